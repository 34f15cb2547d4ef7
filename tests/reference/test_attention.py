"""The oracle against plain Python loops, an explicit softmax matrix, and finite differences."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import assume
from hypothesis import strategies as st

import crisscross
from crisscross.testing import (
    AttentionCase,
    attention_cases,
    attention_problems,
    make_case,
)
from tests.support.properties import law

#: The oracle is exact to float64 for half precision, too: nothing of it is computed in float32.
DTYPES = ("float64", "float32", "float16")
UNIONS = attention_problems(dtypes=DTYPES, max_positions=20)
AXIAL = attention_problems(dtypes=DTYPES, max_positions=20, axial=True)


def attend_by_loops(case: AttentionCase):
    """out and lse by nothing but Python numbers: the definition once more, told differently."""
    problem = case.problem
    positions = list(itertools.product(*map(range, problem.spatial)))
    out, lse = np.zeros(case.v.shape), np.zeros(problem.lse_shape)

    def read(array, n, channel, position):
        if problem.channel_axis == 1:
            return float(array[(n, channel, *position)])
        return float(array[(n, *position, channel)])

    for n, h, p in itertools.product(range(problem.batch), range(problem.heads), positions):
        keys = []
        for x in positions:
            moved = [a for a in range(len(p)) if p[a] != x[a]]
            sees = (not moved and problem.include_self) or (
                len(moved) == 1 and moved[0] in problem.axes
            )
            if sees and (case.key_mask is None or case.key_mask[(n, *x)]):
                keys.append(x)
        d_qk, d_v = problem.head_size_qk, problem.head_size_v
        energies = [
            problem.scale
            * math.fsum(
                read(case.q, n, h * d_qk + d, p) * read(case.k, n, h * d_qk + d, x)
                for d in range(d_qk)
            )
            for x in keys
        ]
        total = math.fsum(math.exp(e) for e in energies)
        lse[(n, h, *p)] = math.log(total) if keys else -math.inf
        for d in range(d_v):
            value = math.fsum(
                math.exp(e) / total * read(case.v, n, h * d_v + d, x)
                for e, x in zip(energies, keys, strict=True)
            )
            where = (h * d_v + d, *p) if problem.channel_axis == 1 else (*p, h * d_v + d)
            out[(n, *where)] = value
    return out, lse


@law(attention_cases(UNIONS) | attention_cases(AXIAL))
def test_forward_is_the_definition(case):
    out, lse = attend_by_loops(case)
    np.testing.assert_allclose(case.exact["out"].astype(float), out, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(case.exact["lse"].astype(float), lse, rtol=1e-10, atol=1e-12)


def evaluate_loss(case: AttentionCase, **changed) -> np.longdouble:
    """<dout, out> + <dlse, lse> of the oracle, over the positions that have a key."""
    arrays = {"q": case.q, "k": case.k, "v": case.v, "dout": case.dout, "dlse": case.dlse}
    moved = AttentionCase(case.problem, **{**arrays, **changed}, key_mask=case.key_mask)
    loss = (moved.dout * moved.exact["out"]).sum()
    if moved.dlse is not None:
        finite = np.isfinite(moved.exact["lse"])
        loss += (moved.dlse[finite] * moved.exact["lse"][finite]).sum()
    return loss


SMALL = attention_problems(dtypes=("float64",), max_positions=8)
SMALL_AXIAL = attention_problems(dtypes=("float64",), max_positions=8, axial=True)
SMALL_CASES = attention_cases(SMALL, energy_peaks=(4.0,)) | attention_cases(
    SMALL_AXIAL, energy_peaks=(4.0,)
)


@law(case=SMALL_CASES, name=st.sampled_from(("q", "k", "v")), seed=st.integers(0, 2**16))
def test_backward_is_the_derivative(case, name, seed):
    assume(case.q.size > 0)
    array = getattr(case, name)
    direction = np.random.default_rng(seed).standard_normal(array.shape)
    # Small against the largest element, exact in float64 on either side.
    step = 2.0**-14 * max(1e-3, float(np.abs(array).max()))
    ahead = evaluate_loss(case, **{name: array + step * direction})
    behind = evaluate_loss(case, **{name: array - step * direction})
    slope = float((ahead - behind) / (2 * step))
    gradient = case.exact[f"d{name}"]
    expected = float((gradient * direction).sum())
    size = float(np.abs(gradient * direction).sum())
    assert math.isclose(slope, expected, rel_tol=1e-5, abs_tol=1e-5 * size + 1e-9)


@pytest.mark.parametrize("name", ["q", "k", "v"])
@pytest.mark.parametrize(
    "case",
    [
        make_case((3, 2), heads=2, head_size_qk=2, head_size_v=3, dtype="float64", masked=True),
        make_case((2, 1, 3), head_size_qk=2, head_size_v=1, dtype="float64", channel_axis=-1),
        make_case((4,), dtype="float64", include_self=False, head_size_qk=3, head_size_v=2),
    ],
    ids=["cross", "video", "axial"],
)
def test_every_element_of_the_gradient(case, name):
    array = getattr(case, name)
    step = 2.0**-13
    for index in np.ndindex(array.shape):
        shift = np.zeros_like(array)
        shift[index] = step
        slope = evaluate_loss(case, **{name: array + shift}) - evaluate_loss(
            case, **{name: array - shift}
        )
        assert float(slope / (2 * step)) == pytest.approx(
            float(case.exact[f"d{name}"][index]), rel=1e-5, abs=1e-7
        )


@pytest.mark.parametrize("spatial", [(6,), (4, 3), (1, 5), (3, 2, 4)])
def test_gradients_by_the_softmax_matrix(spatial):
    """The backward in matrix form: A = softmax, dA = dout v^T, dE = A * (dA - rowsum(A * dA))."""
    case = make_case(spatial, head_size_qk=3, head_size_v=2, dtype="float64", with_dlse=False)
    positions = math.prod(spatial)
    q, k, v, dout = (
        x.reshape(x.shape[1], positions).T for x in (case.q, case.k, case.v, case.dout)
    )
    coordinates = np.indices(spatial).reshape(len(spatial), positions)
    distance = (coordinates[:, :, None] != coordinates[:, None, :]).sum(axis=0)
    weights = np.where(distance <= 1, np.exp(q @ k.T), 0)
    weights /= weights.sum(axis=1, keepdims=True)
    dweights = dout @ v.T
    denergies = weights * (dweights - (weights * dweights).sum(axis=1, keepdims=True))
    expected = {"out": weights @ v, "dq": denergies @ k, "dk": denergies.T @ q}
    expected["dv"] = weights.T @ dout
    for name, array in expected.items():
        actual = case.exact[name].reshape(-1, positions).T.astype(float)
        np.testing.assert_allclose(actual, array, rtol=1e-10, atol=1e-13)


def test_merge_by_hand():
    """Two parts, one of them without a key at one position."""
    outs = [np.array([[[1.0, 2.0, 3.0]]]), np.array([[[5.0, 6.0, 7.0]]])]
    lses = [np.array([[[0.0, 1.0, -np.inf]]]), np.array([[[0.0, -np.inf, -np.inf]]])]
    out, lse = crisscross.merge_attentions(outs, lses, backend="reference")
    np.testing.assert_array_equal(out, [[[3.0, 2.0, 0.0]]])
    np.testing.assert_allclose(lse, [[[math.log(2), 1.0, -math.inf]]])
