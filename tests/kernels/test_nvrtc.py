"""Every configuration compiled by NVRTC, without a GPU, within budgets of registers and memory."""

from __future__ import annotations

import io
import re
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import pytest
from cupy._core import core
from cupy.cuda.compiler import CompileException, _NVRTCProgram

from crisscross.gpu.cupy_engine import OPTIONS
from crisscross.kernels.catalogue import all_configurations
from crisscross.kernels.configuration import Configuration
from crisscross.kernels.engine import Limits
from crisscross.kernels.select import TABLE, select
from crisscross.kernels.source import read_source
from tests.kernels.sweep import sample

#: Shared memory that a block may have, by architecture.
SHARED_BYTES = {75: 64 << 10, 80: 163 << 10, 90: 227 << 10, 100: 227 << 10, 120: 99 << 10}
#: Of a multiprocessor: what all threads of a block have together.
REGISTERS = 65536
#: The most registers of a thread: of strip kernels by tile, of others by name. Where it is all that
#: there are, the budget is that none spills.
BUDGETS = {
    "32x32x64 by 64 threads": 255,
    "64x64x128 by 256 threads": 255,
    "64x112x128 by 256 threads": 255,
    "64x144x128 by 256 threads": 255,
    "32x64x512 by 256 threads": 255,
    "32x64x64 by 128 threads": 255,
    "16x32x256 by 128 threads": 255,
    "ca_weight": 144,
    "ca_map": 136,
    "ca_map_transposed_rows": 136,
    "ca_softmax": 88,
    "ca_softmax_backward": 72,
    "to_port_layout": 36,
    "from_port_layout": 40,
    "copy_features": 40,
    "merge": 64,
}


@dataclass(frozen=True)
class Resources:
    """What ptxas says that a kernel needs."""

    registers: int
    spilled_bytes: int
    static_shared_bytes: int


def compile_for(configuration: Configuration, architecture: int) -> Resources:
    """Compile as CuPy does, for a device that need not be there."""
    options = (
        *core.assemble_cupy_compiler_options((*OPTIONS, *configuration.options)),
        *("-ftz=true", "--device-as-default-execution-space"),
        *("--ptxas-options=-v", f"-arch=sm_{architecture}"),
    )
    source = read_source(configuration.source)
    program = _NVRTCProgram(source, configuration.source, (), (), method="cubin")
    log = io.StringIO()
    program.compile(options, log)
    text = log.getvalue()
    spilled = [int(n) for n in re.findall(r"(\d+) bytes spill (?:stores|loads)", text)]
    stack = [int(n) for n in re.findall(r"(\d+) bytes stack frame", text)]
    registers = [int(n) for n in re.findall(r"Used (\d+) registers", text)]
    static = [int(n) for n in re.findall(r"(\d+) bytes smem", text)]
    assert len(registers) == 1 and len(spilled) == 2 and len(stack) == 1, text
    return Resources(registers[0], sum(spilled) + sum(stack), sum(static))


def fits(configuration: Configuration, architecture: int) -> bool:
    return configuration.shared_bytes <= SHARED_BYTES[architecture]


PAIRS = [
    (configuration, architecture)
    for configuration in all_configurations()
    for architecture in sample(list(SHARED_BYTES), 1, str(configuration))
    if fits(configuration, architecture)
]
PAIRS = sample(PAIRS, 40, "nvrtc")


@pytest.fixture(scope="module")
def compiled():
    """All of them under way at once: the compiler does not hold Python's lock."""
    with ThreadPoolExecutor(2) as pool:
        futures: dict[tuple[Configuration, int], Future[Resources]] = {
            pair: pool.submit(compile_for, *pair) for pair in PAIRS
        }
        yield futures
        for future in futures.values():
            future.cancel()


@pytest.mark.parametrize(
    "pair",
    PAIRS,
    ids=[f"{configuration}-sm_{arch}".replace(" ", "-") for configuration, arch in PAIRS],
)
def test_resources(compiled, pair):
    configuration, architecture = pair
    found = compiled[pair].result()
    assert found.spilled_bytes == 0
    name = configuration.kernel if configuration.tile is None else str(configuration.tile)
    assert found.registers <= BUDGETS[name]
    if configuration.tile is not None:
        # By eights, as they are handed out.
        assert -(-found.registers // 8) * 8 * configuration.tile.threads <= REGISTERS
    shared = configuration.shared_bytes + found.static_shared_bytes
    assert shared <= SHARED_BYTES[architecture]


def test_what_a_device_has_no_room_for_is_not_selected():
    for architecture, shared_bytes in SHARED_BYTES.items():
        limits = Limits(architecture, shared_bytes, cache_bytes=0)
        for dtype in TABLE:
            for length in range(1, 200):
                tile = select(dtype, length, limits).tile
                assert tile.count_shared_bytes(dtype) <= shared_bytes


def test_what_nvrtc_does_not_take_is_seen():
    with pytest.raises(
        CompileException, match=r'strips\.cuh|tiles\.cuh\(\d+\): error: identifier "ROWS"'
    ):
        compile_for(Configuration("strip_forward", "float32"), 90)
