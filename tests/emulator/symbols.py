"""The shared-memory variables of a compiled kernel, from the symbol table of its ELF file."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

_SYMBOL_TABLE, _OBJECT = 2, 1


@dataclass(frozen=True)
class Symbol:
    """A name in the table: its address before the library is loaded, its size and section."""

    name: str
    address: int
    size: int
    kind: int
    section: int


class Symbols:
    """The symbols of a 64-bit little-endian ELF file."""

    def __init__(self, path: Path) -> None:
        self._data = path.read_bytes()
        (table,) = struct.unpack_from("<Q", self._data, 0x28)
        size, count, names = struct.unpack_from("<HHH", self._data, 0x3A)
        sections = [
            struct.unpack_from("<IIQQQQIIQQ", self._data, table + i * size) for i in range(count)
        ]
        self._sections = [self._read(sections[names][4] + section[0]) for section in sections]
        self._symbols: dict[str, Symbol] = {}
        for section in sections:
            if section[1] == _SYMBOL_TABLE:
                start, length, texts = section[4], section[5], sections[section[6]][4]
                for at in range(start, start + length, 24):
                    name, info, _, index, address, bytes_ = struct.unpack_from(
                        "<IBBHQQ", self._data, at
                    )
                    text = self._read(texts + name)
                    self._symbols[text] = Symbol(text, address, bytes_, info & 15, index)

    def _read(self, at: int) -> str:
        return self._data[at : self._data.index(b"\0", at)].decode()

    def find(self, name: str) -> Symbol:
        return self._symbols[name]

    def list_shared(self) -> list[Symbol]:
        """List the static variables of the kernels' functions; those of the emulator are not."""
        bss = self._sections.index(".bss")
        return [
            symbol
            for symbol in self._symbols.values()
            if symbol.kind == _OBJECT
            and symbol.section == bss
            and symbol.size
            and symbol.name.startswith("_ZZ")
            and not symbol.name.startswith("_ZZN8emulator")
        ]
