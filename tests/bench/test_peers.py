"""Every file of benchmarks/ agrees with the oracle, outputs and gradients."""

from __future__ import annotations

import pytest

from crisscross.bench.exchange import read_arrays, write_arrays
from crisscross.bench.gate import expect, judge, judge_dense, make_arrays
from crisscross.bench.peer import DENSE
from crisscross.bench.shapes import FORWARD, FORWARD_BACKWARD, Shape
from tests.bench.conftest import BENCHMARKS

SHAPE = Shape(6, 3, 5, 7, 2)
FILES = sorted(BENCHMARKS.glob("*.py"))
#: Compiling takes long: one dtype, and the pass that holds the other.
COMPILED = "torch_compiled"


def test_the_files():
    assert {path.stem for path in FILES} == {
        "ours",
        "torch_eager",
        "torch_compiled",
        "torch_dense",
        "jax_jit",
    }


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_peers_agree_with_the_oracle(tmp_path, start, path):
    worker, introduction = start(path)
    forms = introduction["forms"]
    assert forms and "unknown" not in introduction["packages"].values()
    compiled = path.stem == COMPILED
    for dtype in ("float32",) if compiled else ("float32", "float64"):
        expectation = expect(make_arrays(SHAPE, dtype, 1), SHAPE)
        given = {name: getattr(expectation.case, name) for name in ("q", "k", "v", "dout")}
        worker.ask("open", folder=str(tmp_path), dtypes=write_arrays(tmp_path, given))
        for form, about in forms.items():
            assert worker.ask("prepare", form=form) == {}
            for name in [FORWARD_BACKWARD] if compiled else about["passes"]:
                answer = worker.ask("compute", form=form, name=name, folder=str(tmp_path))
                results = read_arrays(tmp_path, answer["dtypes"])
                if about["function"] == DENSE:
                    verdict = judge_dense(expectation, results, 0)
                else:
                    names = {"out"} if name == FORWARD else {"out", "dq", "dk", "dv"}
                    verdict = judge(expectation, results, names, ours=path.stem == "ours")
                assert verdict.reason is None, (form, name, dtype)


def test_bfloat16_reaches_torch_and_comes_back(tmp_path, start):
    expectation = expect(make_arrays(SHAPE, "bfloat16", 1), SHAPE)
    worker, introduction = start(BENCHMARKS / "torch_eager.py")
    given = {name: getattr(expectation.case, name) for name in ("q", "k", "v", "dout")}
    worker.ask("open", folder=str(tmp_path), dtypes=write_arrays(tmp_path, given))
    form = next(iter(introduction["forms"]))
    worker.ask("prepare", form=form)
    answer = worker.ask("compute", form=form, name=FORWARD_BACKWARD, folder=str(tmp_path))
    results = read_arrays(tmp_path, answer["dtypes"])
    assert judge(expectation, results, {"out", "dq", "dk", "dv"}, ours=False).reason is None


def test_dense_attention_is_not_for_large_maps(tmp_path, start):
    shape = Shape(1, 1, 101, 100)
    case = make_arrays(shape, "float32", 0)
    worker, introduction = start(BENCHMARKS / "torch_dense.py")
    (form,) = introduction["forms"]
    given = {name: getattr(case, name) for name in ("q", "k", "v", "dout")}
    worker.ask("open", folder=str(tmp_path), dtypes=write_arrays(tmp_path, given))
    answer = worker.ask("prepare", form=form)
    assert answer == {"not_served": "measured up to 10,000 positions, got 10,100"}
