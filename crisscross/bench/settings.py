"""What to measure and how."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from crisscross.bench.shapes import CHANNELS_FIRST, CPU, SHAPES, Shape

__all__ = ["DEFAULT_PEERS", "DEFAULT_PROCESSES", "DEFAULT_ROUNDS", "QUICK_ROUNDS", "Settings"]

#: Beside the package: in a clone, and where it is installed as editable.
DEFAULT_PEERS = Path(__file__).parents[2] / "benchmarks"
DEFAULT_ROUNDS, QUICK_ROUNDS = 9, 5
#: On a CPU, and not for a quick look.
DEFAULT_PROCESSES = 3


@dataclass(frozen=True)
class Settings:
    """What to measure and how.

    Attributes
    ----------
    shapes : tuple of Shape
    dtype : str
    device : {"cpu", "cuda"}
        "cuda" is the first GPU.
    layout : {"channels-first", "channels-last"}
        Of the arrays that every form is given.
    rounds : int
        Measurements of every form and pass.
    processes : int
        Of every library, one after the other, that share the rounds of a shape; at most as many.
    threads : int
        Of every library; at most the usable CPUs.
    peers : Path
        Folder of the peer files.
    only : tuple of str
        Measure beside ours only forms, or files, whose name contains one of these; all if empty.
    seed : int
        Of the arrays and of the order.
    command : str
        For the record.
    """

    shapes: tuple[Shape, ...] = SHAPES
    dtype: str = "float32"
    device: str = CPU
    layout: str = CHANNELS_FIRST
    rounds: int = DEFAULT_ROUNDS
    processes: int = 1
    threads: int = 1
    peers: Path = DEFAULT_PEERS
    only: tuple[str, ...] = ()
    seed: int = 0
    command: str = ""
