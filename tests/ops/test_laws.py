"""What must hold whatever the numbers: symmetries, invariances, conservation."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import strategies as st

import crisscross
from crisscross.problem import split_heads
from crisscross.testing import (
    LAYOUTS,
    AttentionCase,
    attention_cases,
    attention_problems,
    lay_out,
    make_case,
)
from tests.support.calls import run_whole
from tests.support.properties import law

pytestmark = pytest.mark.usefixtures("cpu_path")

FLOAT64 = attention_problems(dtypes=("float64",))
CASES64 = attention_cases(FLOAT64, energy_peaks=(4.0,))
FULL64 = attention_cases(
    attention_problems(dtypes=("float64",), batches=(1, 2), masked=(False,)), energy_peaks=(4.0,)
)
#: Errors of float64 at these sizes, relative to results of about 1.
TOLERANCE = {"rtol": 1e-9, "atol": 1e-11}


def forward(case: AttentionCase):
    return crisscross.criss_cross_attention(case.q, case.k, case.v, **case.options, return_lse=True)


def backward(case: AttentionCase, out, lse):
    return crisscross.criss_cross_attention_backward(
        case.dout, case.q, case.k, case.v, out, lse, dlse=case.dlse, **case.options
    )


def everything(case: AttentionCase):
    return tuple(run_whole(case).values())


def first_spatial(case: AttentionCase) -> int:
    return 2 if case.problem.channel_axis == 1 else 1


def move(case: AttentionCase, operation, **problem_changes) -> AttentionCase:
    """Apply `operation(array, first spatial axis)` to every array of a case."""
    start = first_spatial(case)
    changed = {name: operation(getattr(case, name), start) for name in ("q", "k", "v", "dout")}
    if case.dlse is not None:
        changed["dlse"] = operation(case.dlse, 2)
    if case.key_mask is not None:
        changed["key_mask"] = operation(case.key_mask, 1)
    problem = dataclasses.replace(case.problem, **problem_changes)
    return dataclasses.replace(case, problem=problem, **changed)


def assert_all_close(actual, expected):
    for name, a, b in zip(("out", "lse", "dq", "dk", "dv"), actual, expected, strict=True):
        np.testing.assert_allclose(a, b, **TOLERANCE, err_msg=name)


def assert_all_equal(actual, expected):
    for name, a, b in zip(("out", "lse", "dq", "dk", "dv"), actual, expected, strict=True):
        np.testing.assert_array_equal(a, b, err_msg=name)


@law(CASES64)
def test_transposing_space_transposes_the_result(case):
    """Swapping the spatial axes around, and `axes` with them, changes nothing else."""
    ndim = len(case.problem.spatial)

    def flip(array, start):
        order = [*range(start), *reversed(range(start, start + ndim))]
        return array.transpose(*order, *range(start + ndim, array.ndim))

    flipped = move(
        case,
        flip,
        spatial=case.problem.spatial[::-1],
        axes=tuple(sorted(ndim - 1 - axis for axis in case.problem.axes)),
    )
    starts = (first_spatial(case), 2, *(first_spatial(case),) * 3)
    expected = [flip(x, start) for x, start in zip(everything(case), starts, strict=True)]
    assert_all_close(everything(flipped), expected)


@law(case=CASES64, seed=st.integers(0, 2**16))
def test_permuting_a_strip_permutes_the_result(case, seed):
    """Positions are a set: any order along any axis serves."""
    rng = np.random.default_rng(seed)
    orders = [rng.permutation(size) for size in case.problem.spatial]

    def permute(array, start):
        for axis, order in enumerate(orders):
            array = array.take(order, axis=start + axis)
        return array

    starts = (first_spatial(case), 2, *(first_spatial(case),) * 3)
    expected = [permute(x, start) for x, start in zip(everything(case), starts, strict=True)]
    assert_all_close(everything(move(case, permute)), expected)


@law(CASES64)
def test_channels_last_is_the_same_function(case):
    """The position of the channel axis is a matter of layout."""
    source, target = (1, -1) if case.problem.channel_axis == 1 else (-1, 1)

    def turn(array):
        return np.moveaxis(array, source, target)

    turned = {name: turn(getattr(case, name)) for name in ("q", "k", "v", "dout")}
    problem = dataclasses.replace(case.problem, channel_axis=target)
    out, lse, dq, dk, dv = everything(case)
    expected = (turn(out), lse, turn(dq), turn(dk), turn(dv))
    assert_all_close(everything(dataclasses.replace(case, problem=problem, **turned)), expected)


@law(attention_cases(attention_problems(batches=(2,))))
def test_images_do_not_know_of_each_other(case):
    """Bit for bit, in every dtype and layout."""
    whole = everything(case)
    for n in range(case.problem.batch):
        alone = move(case, lambda array, _, n=n: array[n : n + 1], batch=1)
        assert_all_equal(everything(alone), [x[n : n + 1] for x in whole])


@law(case=attention_cases(attention_problems(batches=(2,))), huge=st.sampled_from((1e4, np.nan)))
def test_a_wild_image_does_not_change_its_neighbour(cpu_path, case, huge):
    """Bit for bit: whatever shortcut one image forbids, the other still takes."""
    # Copies of one layout on either side: another layout may sum in another order.
    tame = {name: getattr(case, name).copy() for name in ("q", "k", "v", "dout")}
    wild = {name: array.copy() for name, array in tame.items()}
    for array in wild.values():
        array[1] = huge
    expected = everything(dataclasses.replace(case, **tame))
    actual = everything(dataclasses.replace(case, **wild))
    assert_all_equal([x[:1] for x in actual], [x[:1] for x in expected])


@pytest.mark.parametrize("cpu_path", ["tiny"], indirect=True)
@law(case=attention_cases(attention_problems()), layout=st.sampled_from(LAYOUTS))
def test_memory_layout_does_not_change_a_bit(cpu_path, case, layout):
    """The same values in another place and order are the same problem.

    Tiny images are copied in one order. Others are used where they lie, as far as that is fast, and
    their sums may be taken in another order for another layout.
    """
    moved = {name: lay_out(getattr(case, name), layout) for name in ("q", "k", "v", "dout")}
    assert_all_equal(everything(dataclasses.replace(case, **moved)), everything(case))


@law(attention_cases(attention_problems()))
def test_the_same_call_gives_the_same_bits(case):
    assert_all_equal(everything(case), everything(case))


@law(attention_cases(attention_problems()))
def test_inputs_are_not_written_to(case):
    names = ("q", "k", "v", "dout", "dlse", "key_mask")
    arrays = [getattr(case, name) for name in names]
    before = [None if array is None else array.copy() for array in arrays]
    for array in arrays:
        if array is not None:
            array.flags.writeable = False
    everything(case)
    for name, array, copy in zip(names, arrays, before, strict=True):
        if array is not None:
            np.testing.assert_array_equal(array, copy, err_msg=name)


@law(CASES64)
def test_constant_values_give_constant_output(case):
    """The weights of a position that has a key sum to one."""
    out, lse = forward(dataclasses.replace(case, v=np.full_like(case.v, 3.0)))
    out = split_heads(out, case.problem.heads, case.problem.channel_axis)
    keyless = np.isneginf(lse)
    np.testing.assert_allclose(out[~keyless], 3.0, **TOLERANCE)
    assert (out[keyless] == 0).all()


@law(FULL64)
def test_values_gradients_share_out_what_arrives(case):
    """sum_x dv_x = sum_p dout_p, for the weights of every position sum to one."""
    dv = backward(case, *forward(case))[2]
    spatial = (
        tuple(range(2, dv.ndim)) if case.problem.channel_axis == 1 else tuple(range(1, dv.ndim - 1))
    )
    np.testing.assert_allclose(dv.sum(spatial), case.dout.sum(spatial), **TOLERANCE)


@law(case=FULL64, seed=st.integers(0, 2**16))
def test_a_shift_of_all_keys_shifts_lse_alone(case, seed):
    """e(p, x) + c(p) for all x: the softmax does not see it, lse moves by c(p)."""
    problem = case.problem
    shift = np.random.default_rng(seed).standard_normal((problem.heads, problem.head_size_qk))
    shifted = case.k.copy()
    view = split_heads(shifted, problem.heads, problem.channel_axis)
    view += shift[None, :, *[None] * len(problem.spatial), :]
    out, lse = forward(case)
    moved_out, moved_lse = forward(dataclasses.replace(case, k=shifted))
    queries = split_heads(case.q, problem.heads, problem.channel_axis)
    constant = problem.scale * np.einsum("nh...d,hd->nh...", queries, shift)
    np.testing.assert_allclose(moved_out, out, **TOLERANCE)
    np.testing.assert_allclose(moved_lse, lse + constant, **TOLERANCE)


@law(CASES64)
def test_the_parts_merge_to_the_whole(case):
    """One part with self and the others without, in either role."""
    out, lse = forward(case)
    options = {name: value for name, value in case.options.items() if name != "axes"}
    for owner in case.problem.axes:
        parts = [
            crisscross.axial_attention(
                case.q,
                case.k,
                case.v,
                **options,
                axis=axis,
                include_self=axis == owner,
                return_lse=True,
            )
            for axis in case.problem.axes
        ]
        merged_out, merged_lse = crisscross.merge_attentions(
            [part[0] for part in parts],
            [part[1] for part in parts],
            channel_axis=case.problem.channel_axis,
        )
        np.testing.assert_allclose(merged_out, out, **TOLERANCE)
        np.testing.assert_allclose(merged_lse, lse, **TOLERANCE)


@law(CASES64)
def test_the_shares_of_the_gradients_add(case):
    """Each part, called with the whole's out and lse, gives its share."""
    out, lse = forward(case)
    options = {name: value for name, value in case.options.items() if name != "axes"}
    for owner in case.problem.axes:
        shares = [
            crisscross.axial_attention_backward(
                case.dout,
                case.q,
                case.k,
                case.v,
                out,
                lse,
                dlse=case.dlse,
                **options,
                axis=axis,
                include_self=axis == owner,
            )
            for axis in case.problem.axes
        ]
        for whole, *parts in zip(backward(case, out, lse), *shares, strict=True):
            np.testing.assert_allclose(sum(parts), whole, **TOLERANCE)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("height", [0.0, 100.0, -1e4])
def test_merging_constants_gives_the_constant(dtype, height):
    """However large lse is: its digits before the point must not be lost to the weights."""
    rng = np.random.default_rng(0)
    compute = "float64" if dtype == "float64" else "float32"
    outs = [np.full((1, 4, 7, 9), 3, dtype)] * 3
    lses = [(height + rng.standard_normal((1, 2, 7, 9))).astype(compute) for _ in outs]
    out, _ = crisscross.merge_attentions(outs, lses)
    np.testing.assert_allclose(out, 3, rtol=4 * np.finfo(compute).eps)


@law(case=CASES64, seed=st.integers(0, 2**16))
def test_the_gradient_of_a_sum_is_the_sum_of_gradients(case, seed):
    """The backward is linear in (dout, dlse)."""
    rng = np.random.default_rng(seed)
    dlse = rng.standard_normal(case.problem.lse_shape)
    one = dataclasses.replace(case, dlse=dlse)
    two = dataclasses.replace(
        case, dout=rng.standard_normal(case.dout.shape), dlse=rng.standard_normal(dlse.shape)
    )
    both = dataclasses.replace(case, dout=one.dout + 2 * two.dout, dlse=one.dlse + 2 * two.dlse)
    out, lse = forward(case)
    gradients = [backward(x, out, lse) for x in (one, two, both)]
    for first, second, total in zip(*gradients, strict=True):
        np.testing.assert_allclose(total, first + 2 * second, **TOLERANCE)


@law(CASES64)
def test_no_gradient_of_lse_is_a_gradient_of_zero(case):
    zero = dataclasses.replace(case, dlse=np.zeros(case.problem.lse_shape))
    none = dataclasses.replace(case, dlse=None)
    out, lse = forward(case)
    for a, b in zip(backward(zero, out, lse), backward(none, out, lse), strict=True):
        np.testing.assert_array_equal(a, b)


@law(CASES64)
def test_heads_are_independent_calls(case):
    """Head h of a call with heads is a call of its own on the channels h*D to (h+1)*D."""
    problem, results = case.problem, everything(case)
    for h in range(problem.heads):

        def cut(array, h=h):
            return np.split(array, problem.heads, axis=problem.channel_axis)[h]

        alone = {name: cut(getattr(case, name)) for name in ("q", "k", "v", "dout")}
        dlse = None if case.dlse is None else case.dlse[:, h : h + 1]
        single = dataclasses.replace(
            case, problem=dataclasses.replace(problem, heads=1), dlse=dlse, **alone
        )
        out, lse, *gradients = results
        expected = (cut(out), lse[:, h : h + 1], *map(cut, gradients))
        assert_all_close(everything(single), expected)


@law(attention_cases(attention_problems(batches=(1, 2))))
def test_outputs_follow_their_inputs(case):
    """Shape, dtype and memory format of v for out, of each input for its gradient."""
    out, lse, dq, dk, dv = everything(case)
    for result, source in ((out, case.v), (dq, case.q), (dk, case.k), (dv, case.v)):
        assert (result.shape, result.dtype) == (source.shape, source.dtype)
        assert sorted_axes(result) == sorted_axes(source)
    assert lse.shape == case.problem.lse_shape
    assert lse.dtype == case.problem.compute_dtype
    assert lse.flags.c_contiguous


@pytest.mark.parametrize("cpu_path", ["tiny"], indirect=True)
def test_each_output_follows_its_own_input(cpu_path):
    """Four inputs in four memory formats."""
    case = make_case((3, 5), batch=2, heads=2, head_size_qk=3, head_size_v=2)
    orders = {"q": (0, 1, 2, 3), "k": (0, 2, 3, 1), "v": (3, 1, 0, 2), "dout": (1, 0, 2, 3)}
    moved = {
        name: getattr(case, name).transpose(order).copy().transpose(np.argsort(order))
        for name, order in orders.items()
    }
    moved_case = dataclasses.replace(case, **moved)
    results = everything(moved_case)
    out, _, dq, dk, dv = results
    for result, name in ((out, "v"), (dq, "q"), (dk, "k"), (dv, "v")):
        assert sorted_axes(result) == list(orders[name])
    assert_all_equal(results, everything(case))


def sorted_axes(array: np.ndarray) -> list[int]:
    """The axes of more than one element, outermost in memory first."""
    axes = [axis for axis in range(array.ndim) if array.shape[axis] > 1]
    return sorted(axes, key=lambda axis: -abs(array.strides[axis]))


@pytest.mark.parametrize("axes", [None, (0, 1), (1, 0), [0, -1], {0, 1}, range(2)])
def test_axes_are_a_set(axes):
    q, k, v = np.random.default_rng(0).standard_normal((3, 1, 4, 3, 5))
    expected = crisscross.criss_cross_attention(q, k, v)
    np.testing.assert_array_equal(crisscross.criss_cross_attention(q, k, v, axes=axes), expected)


def test_one_axis_is_axial_attention():
    q, k, v = np.random.default_rng(0).standard_normal((3, 1, 4, 3, 5))
    for axis in (0, 1, -1, -2):
        np.testing.assert_array_equal(
            crisscross.criss_cross_attention(q, k, v, axes=(axis,)),
            crisscross.axial_attention(q, k, v, axis=axis),
        )


def test_twice_reaches_the_whole_image():
    """R = 2: what one pixel holds arrives everywhere, in two steps and not in one."""
    rng = np.random.default_rng(0)
    q, k = rng.standard_normal((2, 1, 4, 5, 6))
    v = np.zeros((1, 1, 5, 6))
    v[0, 0, 2, 3] = 1
    once = crisscross.criss_cross_attention(q, k, v)
    reached = np.zeros((5, 6), bool)
    reached[2, :] = reached[:, 3] = True
    np.testing.assert_array_equal(once[0, 0] > 0, reached)
    assert (crisscross.criss_cross_attention(q, k, once) > 0).all()
