"""Compile kernels for the CPU, into shared libraries that are kept for the next time."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from enum import Enum
from functools import cache, cached_property
from importlib.util import find_spec
from pathlib import Path

INCLUDE = Path(__file__).parent / "include"
_TRACER = INCLUDE / "emulator/tracer/tracer.cpp"

_COMPILER = (
    *("g++", "-std=c++17", "-fPIC", "-w"),
    # Each library has its own emulator, with its own block at work.
    *("-fvisibility=hidden", "-fno-gnu-unique", "-fno-threadsafe-statics"),
)
_KERNEL_OPTIONS = (
    # Of the fifth version, addr2line at times takes one file for another.
    *("-O1", "-g1", "-gdwarf-4"),
    # What CUDA allows: any pointer cast.
    "-fno-strict-aliasing",
    "-ftrivial-auto-var-init=pattern",
)

_DYNAMIC = re.compile(
    r"extern\s+(?:(?:__align__|alignas)\s*\(\s*\w+\s*\)\s*)?__shared__\s+"
    r"(?:(?:__align__|alignas)\s*\(\s*\w+\s*\)\s*)?([\w:\s]+?)\s+(\w+)\s*\[\s*\]\s*;"
)
_BOUNDS = r"(?:__launch_bounds__\s*\([^)]*\)\s*)?"
_KERNEL = re.compile(rf'extern\s+"C"\s+__global__\s+{_BOUNDS}void\s+{_BOUNDS}(\w+)\s*\(')
_INCLUDE_LINE = re.compile(r"^[ \t]*#[ \t]*include[ \t]*(<[^>]+>)", re.MULTILINE)


class Mode(Enum):
    """How a kernel is compiled: plainly, for the sanitizers, or with every access traced."""

    PLAIN = "plain"
    SANITIZED = "sanitized"
    TRACED = "traced"


def default_mode() -> Mode:
    """The mode that the environment variable EMULATOR_MODE names; plain without one."""
    return Mode(os.environ.get("EMULATOR_MODE", Mode.PLAIN.value))


_MODE_OPTIONS = {
    Mode.PLAIN: ("-fwrapv",),
    Mode.SANITIZED: (
        *("-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
        "-fno-omit-frame-pointer",
    ),
    # Hooks of the thread sanitizer, without its library. Split vectors would count as several,
    # and a function that is not inlined as one place, whoever calls it.
    Mode.TRACED: (
        *("-fwrapv", "-fsanitize=thread", "--param=tsan-instrument-func-entry-exit=0"),
        *("-fno-tree-sra", "-fno-ipa-sra", "-finline-small-functions", "-finline-limit=100000"),
        "-DEMULATOR_TRACE",
    ),
}
# To link a traced kernel with the sanitizer's option would bring its library in.
_LINK_OPTIONS = {
    Mode.PLAIN: ("-shared",),
    Mode.SANITIZED: ("-shared", "-fsanitize=address,undefined"),
    Mode.TRACED: ("-shared",),
}


class CompileError(Exception):
    """What the compiler said."""


@dataclass(frozen=True)
class Source:
    """A kernel's source: its text, the name that errors are to give, and -D options.

    All of its `extern "C"` kernels are exported, and `instances` of templates: name and expression.
    """

    text: str
    name: str = "kernel.cu"
    options: tuple[str, ...] = ()
    mode: Mode = field(default_factory=default_mode)
    instances: tuple[tuple[str, str], ...] = ()

    @cached_property
    def kernels(self) -> dict[str, str]:
        """What is exported under each name."""
        return {**{name: name for name in _KERNEL.findall(self.text)}, **dict(self.instances)}


def build(source: Source) -> Path:
    """Compile the source, unless that was done before; return the library."""
    prefix = _build_prefix(source)
    unit = _write_unit(source, prefix)
    command = [*_list_kernel_options(source), *source.options]

    def compile_and_link(library: Path) -> None:
        with tempfile.TemporaryDirectory(dir=library.parent) as folder:
            path, object_ = Path(folder) / "kernel.cpp", Path(folder) / "kernel.o"
            path.write_text(unit)
            _run([*command, "-c", str(path), "-o", str(object_)])
            objects = [str(object_)]
            if source.mode is Mode.TRACED:
                objects.append(str(_build_tracer()))
            _run(["g++", *_LINK_OPTIONS[source.mode], *objects, "-o", str(library)])

    return _make("kernel", ".so", [unit, *command], compile_and_link)


def build_all(sources: Sequence[Source], jobs: int = 2) -> list[Path]:
    """Compile sources, as many at a time as there are jobs; return their libraries."""
    # What several of them include is compiled once, not by each that finds it missing.
    first = list({tuple(_describe_prefix(source)): source for source in sources}.values())
    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(_build_prefix, first))
        if any(source.mode is Mode.TRACED for source in sources):
            _build_tracer()
        return list(pool.map(build, sources))


def _write_unit(source: Source, prefix: Path) -> str:
    # The one change to the text: dynamic shared memory is not an array but a pointer here.
    text = _DYNAMIC.sub(_declare_dynamic, source.text)
    exports = "\n".join(
        f"EMULATOR_EXPORT({name}, {kernel})" for name, kernel in source.kernels.items()
    )
    return (
        f'#include "{prefix}"\nnamespace {{\n'
        f'#line 1 "{source.name}"\n{text}\n}}\n#line 1 "exports"\n{exports}\n'
    )


def _declare_dynamic(match: re.Match[str]) -> str:
    kind, name = match[1], match[2]
    lines = "\n" * match[0].count("\n")
    return f"{kind}* {name} = reinterpret_cast<{kind}*>(emulator::block->dynamic);{lines}"


def _describe_prefix(source: Source) -> list[str]:
    """Say what comes before the text: its own includes, outside of the namespace, and ours."""
    includes = sorted(set(_INCLUDE_LINE.findall(source.text)))
    lines = "".join(f"#if __has_include({name})\n#include {name}\n#endif\n" for name in includes)
    own = [option for option in source.options if "EMULATOR_" in option]
    return [f'{lines}#include "emulator/emulator.h"\n', *_list_kernel_options(source), *own]


def _build_prefix(source: Source) -> Path:
    """Compile what comes before the text; return the header whose compiled form is beside it."""
    text, *command = _describe_prefix(source)

    def compile_header(compiled: Path) -> None:
        header = compiled.with_suffix("")
        header.write_text(text)
        _run([*command, "-x", "c++-header", str(header), "-o", str(compiled)])

    compiled = _make("prefix", ".h.gch", [text, *command], compile_header)
    header = compiled.with_suffix("")
    if not header.exists():
        _replace(header, lambda path: path.write_text(text))
    return header


def _build_tracer() -> Path:
    command = [*_COMPILER, "-O2", "-DEMULATOR_TRACE"]
    return _make(
        "tracer", ".o", command, lambda path: _run([*command, "-c", str(_TRACER), "-o", str(path)])
    )


def _list_kernel_options(source: Source) -> list[str]:
    # Lines are found again by names without a folder.
    folder = f"-fdebug-prefix-map={_find_cache()}=."
    options = [*_COMPILER, *_KERNEL_OPTIONS, *_MODE_OPTIONS[source.mode]]
    return [*options, folder, *_list_includes()]


def _find_cache() -> Path:
    named = os.environ.get("EMULATOR_CACHE")
    folder = Path(named) if named else Path(tempfile.gettempdir()) / f"emulator-{os.getuid()}"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder.resolve()


def _make(kind: str, suffix: str, key: Sequence[str], make: Callable[[Path], None]) -> Path:
    """Make a file of the cache, unless it is there already: under a hash of all it is made from."""
    digest = hashlib.sha256("\0".join([_describe_tools(), *key]).encode()).hexdigest()[:24]
    path = _find_cache() / f"{kind}-{digest}{suffix}"
    if not path.exists():
        _replace(path, make)
    return path


def _replace(path: Path, make: Callable[[Path], object]) -> None:
    """Make a file beside its place, and move it there: whoever comes by sees all of it or none."""
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        make(Path(folder) / path.name)
        os.replace(Path(folder) / path.name, path)


def _run(command: list[str]) -> None:
    # The compiler itself needs no sanitizer.
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    result = subprocess.run(
        command, capture_output=True, text=True, cwd=_find_cache(), env=environment
    )
    if result.returncode:
        raise CompileError(result.stderr)


@cache
def _describe_tools() -> str:
    """What a library depends on besides its source: compiler, toolkit and the emulator itself."""
    version = subprocess.run(["g++", "--version"], capture_output=True, text=True, check=True)
    headers = [path.read_text() for path in sorted(INCLUDE.rglob("*")) if path.is_file()]
    toolkit = (Path(_find_toolkit()) / "cuda_fp16.hpp").read_text()
    return "\0".join([version.stdout, *headers, toolkit])


@cache
def _find_toolkit() -> str:
    from cuda.pathfinder import find_nvidia_header_directory

    folder: str | None = find_nvidia_header_directory("cudart")
    assert folder is not None, "the toolkit's headers come with nvidia-cuda-runtime"
    return folder


@cache
def _list_includes() -> tuple[str, ...]:
    spec = find_spec("cupy")
    assert spec is not None and spec.origin is not None
    libcudacxx = Path(spec.origin).parent / "_core/include/cupy/_cccl/libcudacxx"
    return (f"-I{INCLUDE}", "-isystem", _find_toolkit(), "-isystem", str(libcudacxx))
