"""`explain` tells what would run, and what runs is what it tells."""

from __future__ import annotations

import numpy as np
import pytest

import crisscross
import crisscross.ops.call
from crisscross import gpu
from crisscross.ops import backends
from crisscross.testing import attention_cases, attention_problems, make_case
from tests.support.properties import law

Q = np.ones((1, 8, 5, 7), np.float32)
V = np.ones((1, 16, 5, 7), np.float32)


def test_the_text():
    text = str(crisscross.explain(Q, Q, V, heads=2, precision="tf32"))
    assert text.splitlines() == [
        "problem        float32 5x7, N = 1, heads = 2, D_qk = 4, D_v = 8",
        "               (N, C, *S), axes 0, 1, scale 1, no key mask",
        "arrays         numpy, on cpu",
        "call           directly",
        "backend        cpu: the first that serves cpu memory",
        "algorithm      matmul along strips, merged by log-sum-exp; "
        "no attention map outlives the call; small images: by whole arrays, "
        "on the caller's thread, in memory prepared by the first such call",
        "precision      tf32 asked for, IEEE float32 delivered",
        "not gpu        it serves arrays in CUDA memory, and these are on cpu",
        "not reference  it serves only when asked for by name: backend='reference'",
    ]


@law(attention_cases(attention_problems()))
def test_it_finds_the_very_problem(case):
    """What the arrays and options describe is what the case was made from."""
    explanation = crisscross.explain(case.q, case.k, case.v, **case.options)
    assert explanation.problem == case.problem
    assert (explanation.library, explanation.device) == ("numpy", "cpu")
    assert dict(explanation.refusals).keys() == {"gpu", "reference"}


def test_one_axis_merges_nothing():
    explanation = crisscross.explain(Q, Q, V, axes=(0,))
    assert explanation.algorithm == (
        "matmul along strips; no attention map outlives the call; "
        "small images: by whole arrays, on the caller's thread, "
        "in memory prepared by the first such call"
    )


def test_a_backend_by_name():
    explanation = crisscross.explain(Q, Q, V, backend="reference")
    assert explanation.backend == "reference"
    assert explanation.reason == "asked for by name"
    assert dict(explanation.refusals).keys() == {"gpu", "cpu"}
    assert explanation.precision == "ieee asked for, float64 delivered"
    wide = crisscross.explain(*(x.astype(float) for x in (Q, Q, V)), backend="reference")
    assert wide.precision == "ieee asked for, long double delivered"


def test_it_refuses_as_the_call_would():
    with pytest.raises(crisscross.BackendError, match="no backend can serve"):
        crisscross.explain(Q, Q, V, backend="gpu")
    with pytest.raises(ValueError, match=r"v\.shape"):
        crisscross.explain(Q, Q, V[..., 1:])


@pytest.mark.parametrize("backend", [None, "cpu", "reference"])
def test_what_runs_is_what_it_tells(monkeypatch, backend):
    loaded = []
    monkeypatch.setattr(
        crisscross.ops.call,
        "load_backend",
        lambda name: loaded.append(name) or backends.load_backend(name),
    )
    crisscross.criss_cross_attention(Q, Q, V, backend=backend)
    assert loaded == [crisscross.explain(Q, Q, V, backend=backend).backend]


class Elsewhere:
    """What an array in CUDA memory shows of itself without being read."""

    __module__ = "elsewhere"
    shape, dtype = Q.shape, Q.dtype

    def __dlpack_device__(self):
        return (2, 0)

    def __dlpack__(self, **_):
        raise AssertionError("memory was asked for before a backend was found")


def test_cuda_arrays_get_a_reason(monkeypatch):
    monkeypatch.setattr(gpu, "find_unavailability", lambda device: f"{device} is on holiday")
    array = Elsewhere()
    with pytest.raises(crisscross.BackendError) as caught:
        crisscross.criss_cross_attention(array, array, array)
    message = str(caught.value)
    assert "gpu: cuda:0 is on holiday" in message
    assert "cpu: it serves arrays in CPU memory, and these are on cuda:0" in message


def test_a_gpu_that_comes_back_is_found(monkeypatch):
    """Whether it serves is asked anew for each call."""
    monkeypatch.setattr(gpu, "find_unavailability", lambda device: f"{device} is on holiday")
    with pytest.raises(crisscross.BackendError):
        backends.recall_choice("explain", "cuda:0", None, "elsewhere")
    for reason in (None, "on holiday again", None):
        monkeypatch.setattr(gpu, "find_unavailability", lambda _, reason=reason: reason)
        assert backends.find_refusal("gpu", "cuda:0", "elsewhere") == reason
        if reason is None:
            choice = backends.recall_choice("explain", "cuda:0", None, "elsewhere")
            assert choice.backend == "gpu"
        else:
            with pytest.raises(crisscross.BackendError, match=reason):
                backends.recall_choice("explain", "cuda:0", None, "elsewhere")


def test_arrays_of_two_libraries_are_named():
    with pytest.raises(
        TypeError, match=r"k: expected an array of elsewhere like q, got an array of numpy"
    ):
        crisscross.criss_cross_attention(Elsewhere(), Q, Q)


def test_arrays_on_two_devices_are_named():
    class Further(Elsewhere):
        def __dlpack_device__(self):
            return (2, 1)

    with pytest.raises(ValueError, match=r"v\.device: expected cuda:0 like q, got cuda:1"):
        crisscross.criss_cross_attention(Elsewhere(), Elsewhere(), Further())


ALONE = "small images: by whole arrays, on the caller's thread"
ON = "threads, BLAS held to one under each"


@pytest.mark.parametrize(
    ("spatial", "batch", "threads", "way"),
    [
        ((16, 16), 1, 2, f"{ALONE}, in memory prepared by the first such call"),
        (
            (16, 16),
            500,
            2,
            f"small images: by whole arrays, each on one of 2 {ON}",
        ),
        ((64, 64), 1, 2, ALONE),
        ((64, 64), 3, 8, f"small images: by whole arrays, each on one of 3 {ON}"),
        (
            (97, 97),
            1,
            3,
            f"in tiles of 2048 KiB of energies on 3 {ON}; forward, unless channels are innermost "
            "in memory, by channels with 7130 KiB of weights of an image at a time",
        ),
        ((128, 97), 1, 3, f"in tiles of 2048 KiB of energies on 3 {ON}"),
        ((128, 97), 1, 1, "in tiles of 2048 KiB of energies on 1 thread"),
    ],
)
def test_the_way_of_the_cpu_backend(spatial, batch, threads, way):
    crisscross.set_num_threads(threads)
    case = make_case(spatial, batch=batch, head_size_v=128 if spatial == (97, 97) else 32)
    explanation = crisscross.explain(case.q, case.k, case.v)
    crisscross.set_num_threads(None)
    assert explanation.algorithm.endswith(f"; {way}")
