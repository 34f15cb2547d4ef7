"""What a kernel is compiled with: frozen, finite, and listed in full."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from crisscross.kernels.tiles import MmaForwardTile, Tile

#: Bits and sort of the elements, by their dtype.
_ELEMENTS = {
    "float16": (16, 0),
    "bfloat16": (16, 1),
    "float32": (32, 0),
    "float64": (64, 0),
}


@dataclass(frozen=True)
class Configuration:
    """A source and its options; the key under which a compiled kernel is kept.

    Attributes
    ----------
    kernel
        The kernel; its source is the file of that name in the folder ``cuda``.
    dtype
        Of the arrays' elements.
    tile
        The shape of a block's work, for kernels that are made of tiles.
    partial_dtype
        Of results that are not the last, where kernels have such: the dtype of the elements, or,
        where many are summed, the one that is computed in.
    is_aligned
        Whether all features begin at multiples of 16 bytes, for kernels that move so many at once.
    is_across
        Whether neighbours in memory are positions rather than channels, in the results of kernels
        that write such.
    adds
        Whether results are added to those of an axis before, for kernels that have to know.
    terms
        Products on tensor cores of which one of float32 is made, for kernels that make such.
    """

    kernel: str
    dtype: str
    tile: Tile | None = None
    partial_dtype: str | None = None
    is_aligned: bool | None = None
    is_across: bool | None = None
    adds: bool | None = None
    terms: int | None = None

    @property
    def source(self) -> str:
        return f"{self.kernel}.cu"

    @property
    def architecture(self) -> int:
        """The least compute capability that the kernel needs."""
        return 0 if self.tile is None else self.tile.architecture

    @property
    def definitions(self) -> dict[str, int]:
        """The macros that the source is compiled with."""
        bits, is_bfloat = _ELEMENTS[self.dtype]
        found = {"ELEMENT_BITS": bits, "ELEMENT_IS_BFLOAT": is_bfloat}
        if self.partial_dtype is not None:
            found["PARTIAL_IS_COMPUTE"] = int(self.partial_dtype != self.dtype)
        if self.is_aligned is not None:
            found["IS_ALIGNED"] = int(self.is_aligned)
        if self.is_across is not None:
            found["IS_ACROSS"] = int(self.is_across)
        if self.adds is not None:
            found["ADDS"] = int(self.adds)
        if self.terms is not None:
            found["TERMS"] = self.terms
        if self.tile is not None:
            found |= {**self.tile.definitions, "SHARED_BYTES": self.shared_bytes}
        return found

    @cached_property
    def options(self) -> tuple[str, ...]:
        """The definitions as the compiler takes them."""
        return tuple(f"-D{name}={value}" for name, value in self.definitions.items())

    @cached_property
    def shared_bytes(self) -> int:
        """Dynamic shared memory of a block."""
        if self.tile is None:
            return 0
        needed = self.tile.count_shared_bytes(self.dtype)
        if self.is_across and isinstance(self.tile, MmaForwardTile):
            needed += self.tile.count_across_bytes(self.dtype)
        return needed

    def __str__(self) -> str:
        parts = [self.kernel, self.dtype]
        if self.tile is not None:
            parts.append(str(self.tile))
        if self.is_aligned is not None:
            parts.append("16 bytes at a time" if self.is_aligned else "element by element")
        if self.is_across:
            parts.append("to neighbouring positions")
        if self.adds is not None:
            parts.append("adding" if self.adds else "first")
        if self.terms is not None:
            parts.append("in tf32" if self.terms == 1 else f"in {self.terms} products of tf32")
        if self.partial_dtype is not None and self.partial_dtype != self.dtype:
            parts.append(f"partial results in {self.partial_dtype}")
        return ", ".join(parts)
