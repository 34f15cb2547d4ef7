"""What the commands accept; wrong usage is told in one line."""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from crisscross import __version__
from crisscross.bench.settings import (
    DEFAULT_PEERS,
    DEFAULT_PROCESSES,
    DEFAULT_ROUNDS,
    QUICK_ROUNDS,
)
from crisscross.bench.shapes import (
    CHANNELS_LAST,
    CPU,
    DEVICES,
    DTYPES,
    GPU_SHAPES,
    LAYOUTS,
    QUICK_SHAPES,
    SHAPES,
    Shape,
    parse_shape,
)
from crisscross.problem import PRECISIONS

__all__ = ["build_parser"]

#: Below it float32 energies, |p|^2 / sigma^2, keep no digit after the point.
_LEAST_SIGMA = 0.001
#: 11 x 11 pixels of three channels: features of 364 channels, 1.5 kB a pixel.
_LARGEST_PATCH = 11


class _Parser(ArgumentParser):
    """A parser whose errors are one line; argparse prints the usage before it."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def build_parser() -> ArgumentParser:
    """Return the parser of the `crisscross` command.

    Examples
    --------
    >>> build_parser().parse_args(["demo", "--sigma", "0.2"]).sigma
    0.2
    """
    parser = _Parser(prog="crisscross", description="Criss-cross attention on plain arrays.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    about = "tell versions, the BLAS, the GPU, and which backend serves which kind of array"
    commands.add_parser("doctor", help=about, description=_sentence(about))
    about = "remove noise from a photograph with criss-cross attention"
    _add_demo_arguments(
        commands.add_parser(
            "demo",
            help=about,
            description=_sentence(about),
        )
    )
    about = "measure the operation beside its peers, on the CPU or on a GPU"
    _add_bench_arguments(
        commands.add_parser(
            "bench",
            help=about,
            description=_sentence(about),
        )
    )
    about = "measure which tiles are fastest on this GPU, and store them for later calls"
    _add_tune_arguments(
        commands.add_parser(
            "tune",
            help=about,
            description=_sentence(about),
        )
    )
    return parser


def _sentence(about: str) -> str:
    return f"{about[0].upper()}{about[1:]}."


def _add_demo_arguments(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("image", nargs="?", type=Path, help="a photograph (default: scikit-image's camera)")
    add(
        "--out",
        type=Path,
        default=Path("crisscross-demo.png"),
        help="the PNG to write (default: %(default)s)",
    )
    add(
        "--sigma",
        type=_sigma,
        default=0.1,
        help="noise to add, black to white being 1; 0.001 to 1 (default: %(default)s)",
    )
    add(
        "--seed",
        type=_whole(0, 2**32 - 1),
        default=0,
        help="seed of the noise (default: %(default)s)",
    )
    add(
        "--patch",
        type=_patch,
        help="side of the patches; odd, 1 to 11 (default: 5, or 7 for grey at sigma >= 0.15)",
    )
    add(
        "--mark",
        type=_whole(0, 2**31),
        nargs=2,
        metavar=("Y", "X"),
        help="the pixel whose attention is drawn (default: one near the middle)",
    )
    add(
        "--max-side",
        type=_whole(16, 4096),
        default=512,
        help="larger images are scaled down to this side; 16 to 4096 (default: %(default)s)",
    )


def _add_bench_arguments(parser: ArgumentParser) -> None:
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--quick",
        action="store_true",
        help=f"{len(QUICK_SHAPES)} shapes in place of {len(SHAPES)}, of {len(GPU_SHAPES)} on a GPU",
    )
    _add_shape(which.add_argument)
    add = parser.add_argument
    add(
        "--device",
        choices=DEVICES,
        default=CPU,
        help="where the arrays are; cuda is the first GPU that CUDA shows (default: %(default)s)",
    )
    add("--dtype", choices=DTYPES, help="(default: float32, or bfloat16 with --device cuda)")
    add(
        "--layout",
        choices=LAYOUTS,
        help="of the arrays (default: channels-first, or channels-last with --device cuda)",
    )
    add(
        "--rounds",
        type=_whole(1, 1000),
        help="measurements of each form "
        f"(default: {DEFAULT_ROUNDS}, or {QUICK_ROUNDS} with --quick)",
    )
    add(
        "--processes",
        type=_whole(1, 1000),
        help="of each library, one after the other, that share the rounds of a shape "
        f"(default: {DEFAULT_PROCESSES}, or 1 with --quick or --device cuda)",
    )
    add(
        "--threads",
        type=_whole(1, 4096),
        help="of every library (default: as many as there are usable CPUs)",
    )
    add(
        "--only",
        action="append",
        default=[],
        metavar="NAME",
        help="beside ours, what has NAME in its form's or file's name; may be repeated",
    )
    add(
        "--peers",
        type=Path,
        default=DEFAULT_PEERS,
        metavar="FOLDER",
        help="folder of the peer files (default: benchmarks beside the package)",
    )
    add(
        "--seed",
        type=_whole(0, 2**32 - 1),
        default=0,
        help="seed of the arrays and of the order (default: %(default)s)",
    )
    for option, kind, default in (
        ("--json", "what was measured, as JSON", Path("crisscross-bench.json")),
        ("--plot", "the ratios as a PNG", Path("crisscross-bench.png")),
    ):
        add(
            option,
            type=Path,
            default=default,
            metavar="FILE",
            help=f"the file to write: {kind} (default: %(default)s)",
        )
    add("--markdown", type=Path, metavar="FILE", help="also write the tables as Markdown")


def _add_tune_arguments(parser: ArgumentParser) -> None:
    add = parser.add_argument
    _add_shape(add)
    add("--dtype", choices=DTYPES, default="bfloat16", help="(default: %(default)s)")
    add(
        "--precision",
        choices=PRECISIONS,
        default=PRECISIONS[0],
        help="the least that calls must deliver, for float32 (default: %(default)s)",
    )
    add(
        "--layout",
        choices=LAYOUTS,
        default=CHANNELS_LAST,
        help="of the arrays (default: %(default)s)",
    )
    add(
        "--rounds",
        type=_whole(1, 1000),
        default=DEFAULT_ROUNDS,
        help="measurements of each tile (default: %(default)s)",
    )
    add("--clear", action="store_true", help="remove what is stored, and measure nothing")


def _add_shape(add: Callable[..., object]) -> None:
    add(
        "--shape",
        type=_shape,
        action="append",
        metavar="C/C',HxW[,N]",
        help="channels of v, of q and k, height, width, images; may be repeated",
    )


def _shape(text: str) -> Shape:
    try:
        return parse_shape(text)
    except ValueError as error:
        raise ArgumentTypeError(str(error)) from None


def _sigma(text: str) -> float:
    expected = f"expected a number from {_LEAST_SIGMA} to 1, got {text!r}"
    try:
        sigma = float(text)
    except ValueError:
        raise ArgumentTypeError(expected) from None
    if not _LEAST_SIGMA <= sigma <= 1:  # NaN, too
        raise ArgumentTypeError(expected)
    return sigma


def _patch(text: str) -> int:
    patch = _whole(1, _LARGEST_PATCH)(text)
    if patch % 2 == 0:
        raise ArgumentTypeError(f"expected an odd number, got {text!r}")
    return patch


def _whole(least: int, most: int) -> Callable[[str], int]:
    """Return the type of an argument that is a whole number from `least` to `most`."""

    def parse(text: str) -> int:
        expected = f"expected a whole number from {least} to {most}, got {text!r}"
        try:
            number = int(text)
        except ValueError:
            raise ArgumentTypeError(expected) from None
        if not least <= number <= most:
            raise ArgumentTypeError(expected)
        return number

    return parse
