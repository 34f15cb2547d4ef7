"""The CUDA sources, read as one string each.

Headers of our own are put in place of their ``#include``, once each, between ``#line`` directives:
CuPy's cache of compiled kernels goes by the text of the source and does not look into headers, and
what compilers say keeps the names and lines of the files.
"""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files

_FOLDER = files("crisscross.kernels") / "cuda"
_INCLUDE = re.compile(r'^#include "(\w+\.cuh)"$')


@cache
def read_source(name: str) -> str:
    """Read the source `name` (a file in the folder ``cuda``) with its headers in place."""
    return _splice(name, set())


def _splice(name: str, seen: set[str]) -> str:
    seen.add(name)
    lines = [f'#line 1 "{name}"']
    for number, line in enumerate((_FOLDER / name).read_text().splitlines(), 1):
        include = _INCLUDE.match(line)
        if include is None:
            # It would forbid the one file that is left.
            lines.append("" if line == "#pragma once" else line)
        elif include[1] in seen:
            lines.append("")
        else:
            lines += [_splice(include[1], seen), f'#line {number + 1} "{name}"']
    return "\n".join(lines)
