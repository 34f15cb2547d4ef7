"""What the address and undefined-behaviour sanitizers see, and that they say where."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.emulator import sanitizers
from tests.emulator.build import Mode, Source, default_mode
from tests.emulator.launch import Module

# In each, thread 63 of block 1 goes wrong, at line 3.
BODIES = {
    "static_shared": ("s[i] = 1;\n\n a[i] = s[i + last];", "index 64 out of bounds"),
    "static_shared_by_pointer": (
        "s[i] = 1;\n\n a[i] = at(s, i + last);", "global-buffer-overflow"),
    "row_of_an_array": ("t[1][0] = 1;\n\n a[i] = t[0][last * 9];", "index 9 out of bounds"),
    "dynamic_shared": ("d[i] = 1;\n\n d[i + last] = 2;", "use-after-poison|heap-buffer-overflow"),
    "local": ("float l[64]; for (int k = 0; k < 64; k++) l[k] = k;\n\n a[i] = l[i + last];",
              "stack-buffer-overflow|index 64 out of bounds"),
    "beyond_an_array": ("\n\n a[i + last] = 1;", "heap-buffer-overflow"),
    "before_an_array": ("\n\n a[i - 64 * last] = 1;", "heap-buffer-overflow|use-after-poison"),
    "misaligned": ("\n\n *reinterpret_cast<float4*>(a + (last ? 5 : 4)) = make_float4(0, 0, 0, 0);",
                   "misaligned address"),
    "overflow": ("int n = 1 << 30;\n\n a[i] = n + n * last;", "signed integer overflow"),
    "shift": ("\n\n a[i] = 1 << (i * last);", "shift exponent 63 is too large"),
    "copy": ("\n\n emulator::cp_async(s + (last ? 64 : 4 * (i % 16)), h, 16, 16);"
             " emulator::cp_async_wait_all();", r"cp\.async at kernel\.cu:3: writes out of bounds"),
    "copy_from": ("\n\n emulator::cp_async(s, h + 4 * last, 16, 16);"
                  " emulator::cp_async_wait_all();",
                  r"cp\.async at kernel\.cu:3: reads out of bounds"),
    "matrix": ("unsigned r[1];\n\n emulator::ldmatrix<1, false>(r, s + (i == 33 ? 64 : 0));",
               r"ldmatrix at kernel\.cu:3: reads out of bounds"),
}  # fmt: skip
CLEAN = """
#line 1 "kernel.cu"
extern "C" __global__ void clean(float* a, const float* h) {
  __shared__ float s[64];
  extern __shared__ float d[];
  int i = threadIdx.x, local[8];
  for (int k = 0; k < 8; k++) local[k] = i + k;
  s[i] = 1; d[i] = local[i % 8];
  for (int k = 0; k < 20; k++) {
    __syncthreads();
    float x = __shfl_xor_sync(~0u, s[63 - i], 1) + (d[63 - i] > 100);
    __syncthreads();
    s[i] = x;
    if (k % 2) __syncwarp();
  }
  a[i] = s[i];
}
extern "C" __global__ void stop(float* a, const float* h) {
  int array[16] = {};
  if (threadIdx.x == 9) __trap();
  __syncthreads();
  a[threadIdx.x] = array[threadIdx.x % 16];
}
"""

RUNNER = """
import json, os, sys, tempfile
import numpy as np
from tests.emulator.launch import LaunchError, Module, Source
from tests.emulator.memory import allocate, place

module = Module(Source(sys.stdin.read()))

def run(kernel):
    a, h = allocate(64, np.float32, offset=256), place(np.ones(4, np.float32))
    module.launch(kernel, (2,), (64,), (a, h), shared_bytes=64 * 4)
    return a

found = {}
for kernel in sys.argv[1:]:
    with tempfile.TemporaryFile("w+") as text:
        child = os.fork()
        if not child:
            os.dup2(text.fileno(), 2)
            try:
                run(kernel)
            except LaunchError as error:
                os.write(2, str(error).encode())
                os._exit(3)
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        text.seek(0)
        found[kernel] = status, text.read()
try:
    run("stop")
except LaunchError as error:
    found["stop"] = 3, str(error)
found["clean"] = 0, str(run("clean")[:32].tolist())
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def outcomes() -> dict[str, tuple[int, str]]:
    """Run each kernel in a process of its own, for it does not survive: status and what it says."""
    text = "".join(
        f'#line 0 "kernel.cu"\nextern "C" __global__ void {name}(float* a, float* h) {{'
        " __shared__ __align__(16) float s[64], t[8][9]; extern __shared__ float d[];"
        f" int i = threadIdx.x, last = blockIdx.x == 1 && i == 63;\n {body} }}\n"
        for name, (body, _) in BODIES.items()
    )
    text = "__noinline__ float at(const float* from, int i) { return from[i]; }\n" + text
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", RUNNER, *BODIES],
        env={**os.environ, **sanitizers.environment(), "PYTHONPATH": str(root)},
        cwd=root, input=text + CLEAN, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", BODIES)
def test_what_they_see_is_reported_with_line_block_and_thread(outcomes, name):
    status, said = outcomes[name]
    assert status != 0
    assert re.search(BODIES[name][1], said)
    thread = 33 if name == "matrix" else 63
    block = 0 if name == "matrix" else 1
    assert f"block ({block}, 0, 0), thread ({thread}, 0, 0)" in said
    assert name in said
    assert "kernel.cu:3" in said


def test_a_clean_kernel_passes(outcomes):
    """In a process, too, in which another kernel left its threads where they were."""
    assert outcomes["stop"][0] == 3
    assert "thread (9, 0, 0): __trap() at kernel.cu:" in outcomes["stop"][1]
    assert outcomes["clean"][0] == 0


def test_sanitized_kernels_need_a_process_of_their_own():
    assert not sanitizers.are_loaded()
    with pytest.raises(RuntimeError, match=r"sanitizers\.environment"):
        Module(Source('extern "C" __global__ void k() {}', mode=Mode.SANITIZED))


@pytest.mark.parametrize("mode", Mode)
def test_the_default_mode(monkeypatch, mode):
    monkeypatch.setenv("EMULATOR_MODE", mode.value)
    assert default_mode() is mode
    assert Source("").mode is mode
    monkeypatch.delenv("EMULATOR_MODE")
    assert default_mode() is Mode.PLAIN
