"""Every configuration compiled by NVRTC, without a GPU, within budgets of registers and memory."""

from __future__ import annotations

import hashlib
import io
import json
import random
import re
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from cupy._core import core
from cupy.cuda import nvrtc
from cupy.cuda.compiler import CompileException, _NVRTCProgram

from crisscross.gpu.cupy_engine import OPTIONS
from crisscross.kernels.catalogue import all_configurations
from crisscross.kernels.configuration import Configuration
from crisscross.kernels.engine import Limits
from crisscross.kernels.select import list_fitting
from crisscross.kernels.source import read_source
from crisscross.kernels.tables import TABLES, Strip, find_dtype
from crisscross.kernels.tiles import (
    MmaBackwardStreamTile,
    MmaBackwardTile,
    MmaForwardTile,
    MmaStreamTile,
)
from tests.kernels.sweep import FULL, sample

#: Shared memory that a block may have, by architecture.
SHARED_BYTES = {75: 64 << 10, 80: 163 << 10, 90: 227 << 10, 100: 227 << 10, 120: 99 << 10}
#: Of a multiprocessor: what all threads of a block have together.
REGISTERS = 65536
#: Registers of a thread, by configuration and architecture, and the digest of the text they are of;
#: the NVRTC that counted them; how many more there may be.
COUNTED = Path(__file__).with_name("registers.json")
COUNTED_WITH = (12, 9)
SPARE = 8
#: Bytes that another NVRTC spills, by its major version, architecture and configuration.
_ADDING = "a strip of up to 112 by 128 threads, 16 bytes at a time, adding"
SPILLED = {
    (13, 80, f"strip_backward_mma, {dtype}, {_ADDING}"): 40 for dtype in ("float16", "bfloat16")
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


def compile_to_ptx(configuration: Configuration) -> str:
    """Compile for the least architecture that a kernel needs, to text."""
    options = (
        *core.assemble_cupy_compiler_options((*OPTIONS, *configuration.options)),
        *("--device-as-default-execution-space", f"-arch=compute_{configuration.architecture}"),
    )
    source = read_source(configuration.source)
    program = _NVRTCProgram(source, configuration.source, (), (), method="ptx")
    text, _ = program.compile(options)
    return text.decode()


def fits(configuration: Configuration, architecture: int) -> bool:
    return (
        configuration.architecture <= architecture
        and configuration.shared_bytes <= SHARED_BYTES[architecture]
    )


def digest(configuration: Configuration) -> str:
    """Tell apart the texts that compilers see, whatever their comments and line ends are.

    What NVRTC makes of one is always the same.
    """
    text = re.sub(r"^#include.*$", "", read_source(configuration.source), flags=re.M)
    command = ["g++", "-E", "-P", "-x", "c++", "-D__CUDA_ARCH__=900", *configuration.options, "-"]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=True)
    return hashlib.sha256(done.stdout.encode()).hexdigest()[:16]


def list_pairs() -> list[tuple[Configuration, int]]:
    """List what to compile: a sample, and in a full sweep all that changed since it was counted."""
    pairs = [
        (configuration, architecture)
        for configuration in all_configurations()
        for architecture in SHARED_BYTES
        if fits(configuration, architecture)
    ]
    chosen = random.Random(0).sample(pairs, 24)
    if not FULL:
        return chosen
    counted = json.loads(COUNTED.read_text())
    changed = {c for c in all_configurations() if counted.get(str(c), {}).get("of") != digest(c)}
    return list(dict.fromkeys([*chosen, *(pair for pair in pairs if pair[0] in changed)]))


PAIRS = list_pairs()


@pytest.mark.parametrize(
    "pair",
    PAIRS,
    ids=[f"{configuration}-sm_{arch}".replace(" ", "-") for configuration, arch in PAIRS],
)
def test_resources(pair):
    configuration, architecture = pair
    found = compile_for(configuration, architecture)
    known = (nvrtc.getVersion()[0], architecture, str(configuration))
    assert found.spilled_bytes <= SPILLED.get(known, 0)
    if nvrtc.getVersion() == COUNTED_WITH:
        counted = json.loads(COUNTED.read_text())
        assert found.registers <= counted[str(configuration)][str(architecture)] + SPARE
    if configuration.tile is not None:
        # By eights, as they are handed out.
        assert -(-found.registers // 8) * 8 * configuration.tile.threads <= REGISTERS
    shared = configuration.shared_bytes + found.static_shared_bytes
    assert shared <= SHARED_BYTES[architecture]


def count_products(configuration: Configuration) -> dict[str, int]:
    """Count the products of a kernel's tile: each is one instruction of its text.

    Forward, channels come in steps of 16 (of 8 in tf32), keys in tiles of 8: each step of q and k
    for every tile of them, then each two tiles of channels of v for every 16 keys (8 in tf32), and
    for 8 where these are left.
    Backward, two steps of channels for each tile of weights, or all of a chunk where there are
    registers, are written down twice, once for the energies and once for their gradients; then for
    every 16 positions (of the longest strips, for two such steps) the pairs of tiles of dv that are
    made at once, and for every 16 one of dq and dk.
    Where a long strip streams by, dq and dk take the products of the forward and once more those of
    energies, for gradients of weights; dv takes those of the forward.
    """
    tile = configuration.tile
    if isinstance(tile, MmaBackwardTile):
        row_tiles = -(-(tile.keys // 16) // tile.warp_rows)
        weights = row_tiles * tile.keys // 8 // tile.warp_columns
        is_wide = configuration.partial_dtype != configuration.dtype
        pairs = 1 if is_wide else tile.channels // 16 // tile.warp_columns
        is_long, steps = tile.keys > 112, tile.keys // 16
        unrolled = configuration.is_aligned and not configuration.adds and not is_long
        channel_steps = tile.channels // 16 if unrolled else 2
        value_steps = 2 if is_long and pairs > 1 else steps
        values = row_tiles * 2 * (value_steps * pairs + steps)
        return {"m16n8k16": 2 * channel_steps * weights + values}
    assert isinstance(tile, MmaForwardTile | MmaStreamTile | MmaBackwardStreamTile)
    step = 16 if configuration.terms is None else 8
    energies = tile.channels // step * (tile.keys // 8)
    pairs = (tile.channels if isinstance(tile, MmaForwardTile) else tile.group) // 16
    sums = pairs * 2 * (tile.keys // step)
    count = tile.row_tiles * (energies + sums) * (configuration.terms or 1)
    if isinstance(tile, MmaBackwardStreamTile):
        more = tile.row_tiles * energies * (configuration.terms or 1)  # for gradients of weights
        count = 2 * count + more if "keys" in configuration.kernel else count + more
    if not isinstance(tile, MmaForwardTile):
        return {f"m16n8k{step}": count}
    return {
        "m16n8k16": count,
        "m16n8k8": tile.row_tiles * pairs * 2 * (tile.keys % 16 // 8),
    }


TENSOR = [each for each in all_configurations() if "mma" in each.kernel]


@pytest.mark.parametrize("configuration", sample(TENSOR, 4, "ptx"), ids=str)
def test_products_on_tensor_cores(configuration):
    text = compile_to_ptx(configuration)
    sort = {"bfloat16": "bf16", "float16": "f16", "float32": "tf32"}[configuration.dtype]
    for shape, count in count_products(configuration).items():
        instruction = f"mma.sync.aligned.{shape}.row.col.f32.{sort}.{sort}.f32"
        assert text.count(instruction) == count
    assert text.count("mma.sync") == sum(count_products(configuration).values())
    assert ("cp.async.cg.shared.global" in text) == configuration.is_aligned


def test_what_a_device_has_no_room_for_is_neither_selected_nor_tried():
    for architecture, shared_bytes in SHARED_BYTES.items():
        limits = Limits(architecture, shared_bytes, cache_bytes=0)
        for direction, table in TABLES.items():
            for strip in product(table, range(1, 200, 3), (64, 500), (64, 512), (True, False)):
                dtype = find_dtype(strip[0])
                for row in list_fitting(direction, Strip(*strip), limits):
                    needed = row.tile.count_shared_bytes(dtype)
                    if isinstance(row.tile, MmaForwardTile):
                        needed += row.tile.count_across_bytes(dtype)
                    assert needed <= shared_bytes
                    assert row.tile.architecture <= architecture


def test_what_nvrtc_does_not_take_is_seen():
    with pytest.raises(
        CompileException, match=r'strips\.cuh|tiles\.cuh\(\d+\): error: identifier "ROWS"'
    ):
        compile_for(Configuration("strip_forward", "float32"), 90)


def test_the_counts_are_of_the_configurations_there_are():
    counted = json.loads(COUNTED.read_text())
    assert {
        name: {int(architecture) for architecture in counts if architecture != "of"}
        for name, counts in counted.items()
    } == {
        str(configuration): {a for a in SHARED_BYTES if fits(configuration, a)}
        for configuration in all_configurations()
    }


def count_registers(*filters: str) -> None:
    """Count anew what has changed: ``python -m tests.kernels.test_nvrtc [FILTER...]``.

    And configurations whose names contain one of the filters. What spills is told, and not counted.
    """
    kept: dict[str, dict[str, Any]] = json.loads(COUNTED.read_text())
    counted: dict[str, dict[str, Any]] = {}
    with ThreadPoolExecutor(2) as pool:
        running: dict[tuple[str, int], Future[Resources]] = {}
        for configuration in all_configurations():
            name, text = str(configuration), digest(configuration)
            counted[name] = kept.get(name, {})
            if counted[name].get("of") != text or any(each in name for each in filters):
                counted[name] = {"of": text}
                running |= {
                    (name, architecture): pool.submit(compile_for, configuration, architecture)
                    for architecture in SHARED_BYTES
                    if fits(configuration, architecture)
                }
        for (name, architecture), future in running.items():
            found = future.result()
            if found.spilled_bytes:
                print(f"sm_{architecture}: {found.spilled_bytes} bytes spill: {name}")
                counted[name]["of"] = None
            counted[name][str(architecture)] = found.registers
    lines = [f"{json.dumps(name)}: {json.dumps(counts)}" for name, counts in counted.items()]
    COUNTED.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    count_registers(*sys.argv[1:])
