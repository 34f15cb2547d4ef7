"""What a traced launch counted: how accesses of a warp come together."""

from __future__ import annotations

import ctypes
import re
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

_KINDS = ("read", "write", "atomic")
_PC = re.compile(r"\{pc ([0-9a-f]+)\}")


@dataclass(frozen=True)
class Total:
    """Sums over accesses.

    Attributes
    ----------
    requests
        Instructions of a warp.
    units
        What they cost: wavefronts in shared memory, sectors of 32 bytes in global memory.
    ideal
        What they would cost if their bytes lay side by side.
    """

    requests: int = 0
    units: int = 0
    ideal: int = 0

    def __add__(self, other: Total) -> Total:
        return Total(
            self.requests + other.requests, self.units + other.units, self.ideal + other.ideal
        )


@dataclass(frozen=True)
class Access:
    """The accesses of one kind that a line makes to an array, or to a shared variable.

    `space` is "shared" or "global"; `kind` is "read", "write" or "atomic"; `bytes` are a thread's.
    """

    file: str
    line: int
    space: str
    kind: str
    bytes: int
    array: str
    total: Total


@dataclass(frozen=True)
class Trace:
    """All that a launch counted, line by line."""

    accesses: tuple[Access, ...]

    def total(
        self, space: str, *, array: str | None = None, kind: str | None = None,
        line: int | None = None,
    ) -> Total:  # fmt: skip
        """Sum up the accesses to "shared" or "global" memory; of an array, kind or line alone."""
        return sum((access.total for access in self.find(space, array, kind, line)), Total())

    def find(
        self, space: str, array: str | None = None, kind: str | None = None,
        line: int | None = None,
    ) -> list[Access]:  # fmt: skip
        """List the accesses to "shared" or "global" memory; of an array, kind or line alone."""
        return [
            access
            for access in self.accesses
            if access.space == space
            and array in (None, access.array)
            and kind in (None, access.kind)
            and line in (None, access.line)
        ]

    def __str__(self) -> str:
        """One line for each access, the most wasteful first."""
        ordered = sorted(self.accesses, key=lambda a: a.total.ideal - a.total.units)
        return "\n".join(
            f"{a.file}:{a.line}: {a.kind} of {a.bytes} bytes, {a.space}, {a.array}: "
            f"{a.total.requests} requests, {a.total.units} "
            f"{'wavefronts' if a.space == 'shared' else 'sectors'} of {a.total.ideal}"
            for a in ordered
        )


class _Site(ctypes.Structure):
    _fields_ = (
        ("pc", ctypes.c_uint64),
        ("requests", ctypes.c_uint64),
        ("units", ctypes.c_uint64),
        ("ideal", ctypes.c_uint64),
        ("file", ctypes.c_char_p),
        ("array", ctypes.c_char_p),
        ("line", ctypes.c_uint32),
        ("kind", ctypes.c_uint32),
        ("bytes", ctypes.c_uint32),
        ("shared", ctypes.c_uint32),
    )


def read_trace(library: Any, path: Path, base: int) -> Trace:
    """Read what the last launch of a library counted; `base` is where the library was loaded."""
    count = library.emulator_list_sites(None, 0)
    sites = (_Site * max(1, count))()
    library.emulator_list_sites(sites, count)
    places = locate(path, tuple(sorted({s.pc - base for s in sites[:count] if s.pc})))
    totals: dict[tuple[str, int, str, str, int, str], Total] = {}
    for site in sites[:count]:
        file, line = places[site.pc - base] if site.pc else (site.file.decode(), site.line)
        space = "shared" if site.shared else "global"
        key = (file, line, space, _KINDS[site.kind], site.bytes, site.array.decode())
        total = Total(site.requests, site.units, site.ideal)
        totals[key] = totals.get(key, Total()) + total
    return Trace(tuple(Access(*key, total) for key, total in sorted(totals.items())))


def name_places(message: str, path: Path, base: int) -> str:
    """Put lines in place of the addresses of code in a message of the tracer."""
    found = tuple(int(code, 16) - base for code in _PC.findall(message))
    if not found:
        return message
    places = locate(path, found)

    def name(match: re.Match[str]) -> str:
        file, line = places[int(match[1], 16) - base]
        return f"{file}:{line}"

    return _PC.sub(name, message)


@cache
def locate(path: Path, addresses: tuple[int, ...]) -> dict[int, tuple[str, int]]:
    """Find the lines that the calls before these addresses of a library belong to."""
    if not addresses:
        return {}
    # An address is the one after the call.
    asked = [hex(address - 1) for address in addresses]
    result = subprocess.run(
        ["addr2line", "-a", "-i", "-e", str(path), *asked],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    groups = re.split(r"^0x[0-9a-f]+\n", result.stdout, flags=re.MULTILINE)[1:]
    return {
        address: _choose(group.splitlines())
        for address, group in zip(addresses, groups, strict=True)
    }


def _choose(frames: Iterable[str]) -> tuple[str, int]:
    """Of a function and those that it is inlined into, the innermost of the kernel's own."""
    places = [frame.split(" (")[0].rpartition(":") for frame in frames]
    own = [place for place in places if place[0].startswith("./")]
    file, _, line = (own or places)[0]
    while file.startswith("./"):
        file = file[2:]
    return file if own else Path(file).name, int(line) if line.isdigit() else 0
