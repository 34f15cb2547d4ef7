"""Compiling: what errors are called, what is kept, and that many may build and launch at once."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from ml_dtypes import bfloat16

from tests.emulator import build as build_module
from tests.emulator.build import CompileError, Mode, Source, build, build_all
from tests.emulator.launch import LaunchError, Module, Schedule
from tests.emulator.memory import allocate, place

ADD = """
extern "C" __global__ void add(const float* x, float* y) {
  extern
    __shared__ float
    s[];
  int i = threadIdx.x;
  s[i] = x[blockIdx.x * blockDim.x + i];
  __syncthreads();
  y[blockIdx.x * blockDim.x + i] += s[blockDim.x - 1 - i] + BY;
  if (BY == 5) __trap();
}
"""


def make(by: int = 1, **more: object) -> Source:
    return Source(ADD, options=(f"-DBY={by}",), **{"mode": Mode.PLAIN, **more})


def add(module: Module, by: int, schedule: Schedule = Schedule.ASCENDING) -> None:
    x, y = place(np.arange(256, dtype=np.float32)), place(np.ones(256, np.float32))
    module.launch("add", (4,), (64,), (x, y), shared_bytes=256, schedule=schedule)
    np.testing.assert_array_equal(y.reshape(4, 64), x.reshape(4, 64)[:, ::-1] + 1 + by)


def test_a_library_is_kept(monkeypatch):
    path = build(make())
    monkeypatch.setattr(build_module, "_run", None)
    assert build(make()) == path


def test_options_make_another_library():
    for by in (1, 2):
        add(Module(make(by)), by)


def test_lines_stay_where_they_are():
    with pytest.raises(LaunchError, match=r"__trap\(\) at kernel\.cu:10"):
        add(Module(make(5)), 5)


def test_a_library_may_be_loaded_twice():
    first, second = Module(make()), Module(make())
    add(first, 1)
    del first
    add(second, 1)
    add(Module(make()), 1)


def test_threads_launch_one_after_the_other():
    modules = [Module(make(by)) for by in (1, 2)] * 2
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda i: add(modules[i % 4], i % 2 + 1), range(40)))


def test_the_portable_switch():
    module = Module(Source(ADD, options=("-DBY=3", "-DEMULATOR_UCONTEXT"), mode=Mode.PLAIN))
    for schedule in Schedule:
        add(module, 3, schedule)


def test_processes_may_build_the_same(tmp_path):
    code = (
        "from tests.emulator.build import *; import sys;"
        f" print(*build_all([Source({ADD!r}, options=(f'-DBY={{i}}',), mode=Mode.PLAIN)"
        " for i in (1, 2)]))"
    )
    root = Path(__file__).parents[2]
    environment = {**os.environ, "EMULATOR_CACHE": str(tmp_path), "PYTHONPATH": str(root)}
    processes = [
        subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE)
        for _ in range(2)
    ]
    found = [process.communicate()[0].split() for process in processes]
    assert found[0] == found[1]
    left = sorted(path.suffix for path in tmp_path.iterdir())
    assert left == [".gch", ".h", ".so", ".so"]


def test_all_are_built_in_their_order():
    sources = [make(1), make(2), make(1, mode=Mode.TRACED)]
    assert build_all(sources) == [build(source) for source in sources]


def test_templates_are_exported_by_name():
    text = """
template <class T, int by>
__global__ void scale(T* x) { x[threadIdx.x] *= by; }
"""
    instances = (("twice", "scale<float, 2>"), ("thrice", "scale<double, 3>"))
    module = Module(Source(text, mode=Mode.PLAIN, instances=instances))
    for name, dtype, by in (("twice", np.float32, 2), ("thrice", np.float64, 3)):
        x = np.ones(4, dtype)
        module.launch(name, (1,), (4,), (x,))
        np.testing.assert_array_equal(x, by)


def test_a_compiler_error_names_the_source():
    text = 'extern "C" __global__ void k() {\n nonsense; }'
    with pytest.raises(CompileError, match=r"strip\.cu:2:.*nonsense"):
        build(Source(text, name="strip.cu"))
    with pytest.raises(CompileError, match=r"tile\.cuh:8:.*nonsense"):
        build(Source(f'#line 7 "tile.cuh"\n{text}'))


@pytest.mark.parametrize("word", ["INFINITY", "NAN", "__half", "__nv_bfloat16"])
def test_what_nvrtc_has_not_is_not_here(word):
    """The last two not without their headers."""
    with pytest.raises(CompileError, match=word):
        build(Source(f'extern "C" __global__ void k(float* out) {{ out[0] = float({word}); }}'))


def test_a_source_includes_what_it_needs():
    text = """
#include <cuda_fp16.h>
  #  include <cuda_bf16.h>
extern "C" __global__ void k(float* out) {
  out[0] = __half2float(__float2half(0.1f));
  out[1] = float(__nv_bfloat16(0.1f));
}
"""
    out = allocate(2, np.float32)
    Module(Source(text, mode=Mode.PLAIN)).launch("k", (1,), (1,), (out,))
    assert out.tolist() == [float(np.float16(0.1)), float(bfloat16(0.1))]
