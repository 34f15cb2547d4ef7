"""Every file of benchmarks/ agrees with the oracle, outputs and gradients."""

from __future__ import annotations

import pytest

from crisscross.bench.exchange import read_arrays, write_arrays
from crisscross.bench.gate import Verdict, expect, judge, judge_dense, make_arrays
from crisscross.bench.peer import DENSE
from crisscross.bench.shapes import (
    CHANNELS_FIRST,
    CHANNELS_LAST,
    CPU,
    CUDA,
    FORWARD,
    FORWARD_BACKWARD,
    LAYOUTS,
    PASSES,
    Shape,
)
from crisscross.gpu import find_device_problem
from tests.bench.conftest import BENCHMARKS

SHAPE = Shape(6, 3, 5, 7, 2)
FILES = sorted(BENCHMARKS.glob("*.py"))
#: Compiling takes long: one dtype, and the pass that holds the other.
COMPILED = "torch_compiled"
#: Every form of every file, and where it is measured.
FORMS = {
    "ours": {"crisscross": [CPU, CUDA], "crisscross, channels-last": [CPU]},
    "torch_ours": {
        "crisscross on tensors": [CPU, CUDA],
        "bare autograd.Function": [CPU, CUDA],
    },
    "torch_eager": {"torch einsum": [CPU, CUDA], "torch bmm": [CPU, CUDA]},
    "torch_compiled": {"torch.compile einsum": [CPU, CUDA], "torch.compile bmm": [CPU, CUDA]},
    "torch_dense": {"dense, all positions (SDPA)": [CPU]},
    "torch_sdpa": {
        "two SDPA, merged (efficient)": [CUDA],
        "two SDPA, merged (flash, v in parts of C')": [CUDA],
        "two SDPA, merged (cuDNN, v in parts of 128)": [CUDA],
    },
    "torch_flex": {
        "two FlexAttention, merged (v in parts of 128)": [CUDA],
        "two FlexAttention, merged (decoding, v in parts of 128)": [CUDA],
    },
    "jax_jit": {"jax.jit": [CPU, CUDA]},
    "jax_ours": {
        "crisscross under jit, called": [CPU, CUDA],
        "crisscross under jit, by XLA": [CPU, CUDA],
    },
}


def test_the_files():
    assert {path.stem for path in FILES} == set(FORMS)


def open_case(worker, folder, case, **options) -> None:
    given = {name: getattr(case, name) for name in ("q", "k", "v", "dout")}
    worker.ask("open", folder=str(folder), dtypes=write_arrays(folder, given), **options)


def compute(worker, folder, expectation, form, name, *, ours=False, function=None) -> Verdict:
    answer = worker.ask("compute", form=form, name=name, folder=str(folder))
    results = read_arrays(folder, answer["dtypes"])
    if function == DENSE:
        return judge_dense(expectation, results, 0)
    names = {"out"} if name == FORWARD else {"out", "dq", "dk", "dv"}
    return judge(expectation, results, names, ours=ours)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_peers_agree_with_the_oracle(tmp_path, start, path):
    worker, introduction = start(path)
    forms = introduction["forms"]
    assert {name: about["devices"] for name, about in forms.items()} == FORMS[path.stem]
    assert "unknown" not in introduction["packages"].values()
    compiled = path.stem == COMPILED
    options = [("float32", CHANNELS_FIRST), ("float64", CHANNELS_FIRST), ("float32", CHANNELS_LAST)]
    for dtype, layout in options[:1] if compiled else options:
        expectation = expect(make_arrays(SHAPE, dtype, 1), SHAPE)
        open_case(worker, tmp_path, expectation.case, layout=layout)
        for form, about in forms.items():
            if about["devices"] == [CUDA]:
                continue
            if (form, layout) == ("crisscross, channels-last", CHANNELS_LAST):
                answer = {"not_served": "channels-last is the layout of this run"}
                assert worker.ask("prepare", form=form) == answer
                continue
            assert "not_served" not in worker.ask("prepare", form=form)
            for name in [FORWARD_BACKWARD] if compiled else about["passes"]:
                verdict = compute(
                    worker,
                    tmp_path,
                    expectation,
                    form,
                    name,
                    ours=path.stem == "ours",
                    function=about["function"],
                )
                assert verdict.reason is None, (form, name, dtype, layout)


#: The forms that are measured on a GPU only, with what the CPU has in place of their kernels.
FUSED = f"""
import sys

sys.path.insert(0, {str(BENCHMARKS)!r})

import torch
import torch.nn.attention.flex_attention as flex
import torch_flex
import torch_sdpa
from crisscross.bench.peer import Form

PACKAGES = ("torch",)
aten = torch.ops.aten
# It refuses to differentiate on the CPU, and can.
flex._validate_device = lambda *_: None
# So that six channels are two parts, the second a smaller one.
torch_flex.PART = 4


def attend(q, k, v):
    out, lse = aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, scale=1.0)
    # As the kernel "efficient" lays it out.
    padded = lse.new_full((*lse.shape[:2], 32), float("inf"))
    padded[..., : lse.shape[2]] = lse
    return out, padded, ("left",)


def differentiate(dout, q, k, v, out, lse, rest):
    length = q.shape[2]
    assert rest == ("left",) and lse.shape[2] == 32 and torch.isposinf(lse[..., length:]).all()
    return aten._scaled_dot_product_flash_attention_for_cpu_backward(
        dout, q, k, v, out, lse[..., :length].contiguous(), 0.0, False, scale=1.0
    )


kernel = torch_sdpa.Kernel(attend, differentiate, lambda inputs: inputs.q.shape[1])
FORMS = {{
    "sdpa": Form(lambda inputs: torch_sdpa.prepare(inputs, kernel)),
    "flex": Form(torch_flex.prepare),
}}
"""


def test_what_is_merged_of_two_calls_agrees_with_the_oracle(tmp_path, start):
    path = tmp_path / "fused.py"
    path.write_text(FUSED)
    worker, introduction = start(path)
    # A column of one position has nothing left without self.
    for shape in (SHAPE, Shape(6, 3, 1, 7, 2)):
        for dtype in ("float32", "float64", "bfloat16"):
            expectation = expect(make_arrays(shape, dtype, 1), shape)
            for layout in LAYOUTS:
                open_case(worker, tmp_path, expectation.case, layout=layout)
                for form in introduction["forms"]:
                    assert worker.ask("prepare", form=form) == {}
                    for name in PASSES:
                        verdict = compute(worker, tmp_path, expectation, form, name)
                        assert verdict.reason is None, (form, name, shape, dtype, layout)


#: Without a GPU, the operators of CUDA know what shapes they would return.
SHAPES_ALONE = f"""
import sys

sys.path.insert(0, {str(BENCHMARKS)!r})

import torch_sdpa
from crisscross.bench.gate import make_arrays
from crisscross.bench.peer import Inputs
from crisscross.bench.shapes import Shape

case = make_arrays(Shape(16, 8, 5, 7, 2), "bfloat16", 0)
inputs = Inputs(case.q, case.k, case.v, case.dout, "meta", "channels-last")
for kernel in torch_sdpa.KERNELS.values():
    results = torch_sdpa.prepare(inputs, kernel).forward_backward()
    print([tuple(x.shape) for x in results.values()])
"""


def test_the_fused_operators_are_called_as_they_want_it(run_python):
    shapes = [(2, 16, 5, 7), (2, 8, 5, 7), (2, 8, 5, 7), (2, 16, 5, 7)]
    assert run_python(SHAPES_ALONE).splitlines() == [str(shapes)] * 3


@pytest.mark.parametrize(
    ("shape", "dtype", "reasons"),
    [
        (SHAPE, "float32", {"flash": "float16 and bfloat16, got", "cuDNN": "and bfloat16, got"}),
        (SHAPE, "float16", {"flash": "of 8 up to 256", "cuDNN": "of 8 up to 128"}),
        (Shape(20, 8, 2, 2), "float16", {"flash": "got C/C' = 20/8", "cuDNN": "got C/C' = 20/8"}),
        (Shape(136, 136, 2, 2), "float16", {"cuDNN": "got C/C' = 136/136"}),
        (Shape(16, 8, 1, 2), "float16", {"cuDNN": "no strips of length 1"}),
        (Shape(16, 8, 2, 2), "bfloat16", {}),
    ],
)
def test_what_a_fused_kernel_does_not_take_is_named(tmp_path, start, shape, dtype, reasons):
    worker, introduction = start(BENCHMARKS / "torch_sdpa.py")
    open_case(worker, tmp_path, make_arrays(shape, dtype, 0))
    for form in introduction["forms"]:
        refusals = [reason for name, reason in reasons.items() if name in form]
        answer = worker.ask("prepare", form=form)
        assert list(answer) == ["not_served"] * len(refusals), form
        assert all(reason in answer["not_served"] for reason in refusals), answer


#: Without a GPU, a compiler of our own sees what the kernels are asked for.
DECODING = f"""
import sys

sys.path.insert(0, {str(BENCHMARKS)!r})

import torch
import torch.nn.attention.flex_attention as flex
import torch_flex
from crisscross.bench.gate import make_arrays
from crisscross.bench.peer import Inputs
from crisscross.bench.shapes import Shape

# What it does not know it would pass over in silence.
assert "FORCE_USE_FLEX_ATTENTION" in flex.FlexKernelOptions.__annotations__
flex._validate_device = lambda *_: None
case = make_arrays(Shape(2, 2, 3, 5), "float32", 0)


def tell(graph, _inputs):
    options = [arg for node in graph.graph.nodes for arg in node.args if isinstance(arg, dict)]
    print([given["FORCE_USE_FLEX_ATTENTION"] for given in options])
    return graph


torch_flex.CUDA = "cpu"
torch_flex.compile_for = lambda _, function, **options: torch.compile(
    function, dynamic=False, backend=tell
)
for form in torch_flex.FORMS.values():
    form.prepare(Inputs(case.q, case.k, case.v, case.dout)).forward()
"""


def test_flex_attention_decodes_only_where_it_is_to(run_python):
    assert run_python(DECODING) == "[True, True]\n[False, False]\n"


def test_strips_that_are_not_decoded_are_named(tmp_path, start):
    worker, introduction = start(BENCHMARKS / "torch_flex.py")
    ordinary, decoding = introduction["forms"]
    reason = {"not_served": "this kernel takes strips shorter than 128, got 128 and 129"}
    for width, answer in ((129, reason), (127, {})):
        open_case(worker, tmp_path, make_arrays(Shape(1, 1, 128, width), "float32", 0))
        assert worker.ask("prepare", form=ordinary) == {}
        assert worker.ask("prepare", form=decoding) == answer


@pytest.mark.skipif(find_device_problem() is None, reason="there is a GPU")
@pytest.mark.parametrize(
    "name", ["torch_eager", "torch_compiled", "torch_flex", "jax_jit", "jax_ours"]
)
def test_a_library_without_a_gpu_says_so(tmp_path, start, name):
    worker, introduction = start(BENCHMARKS / f"{name}.py")
    open_case(worker, tmp_path, make_arrays(SHAPE, "float32", 0), device=CUDA)
    for form in introduction["forms"]:
        (reason,) = worker.ask("prepare", form=form).values()
        library = "JAX" if name.startswith("jax") else "PyTorch"
        assert reason.startswith(library) and " finds no " in reason


def test_bfloat16_reaches_torch_and_comes_back(tmp_path, start):
    expectation = expect(make_arrays(SHAPE, "bfloat16", 1), SHAPE)
    worker, introduction = start(BENCHMARKS / "torch_eager.py")
    open_case(worker, tmp_path, expectation.case)
    form = next(iter(introduction["forms"]))
    worker.ask("prepare", form=form)
    assert compute(worker, tmp_path, expectation, form, FORWARD_BACKWARD).reason is None


def test_dense_attention_is_not_for_large_maps(tmp_path, start):
    shape = Shape(1, 1, 101, 100)
    case = make_arrays(shape, "float32", 0)
    worker, introduction = start(BENCHMARKS / "torch_dense.py")
    (form,) = introduction["forms"]
    open_case(worker, tmp_path, case)
    answer = worker.ask("prepare", form=form)
    assert answer == {"not_served": "measured up to 10,000 positions, got 10,100"}
