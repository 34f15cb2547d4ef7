"""Weights of chosen positions, through several steps too, and entropy: held to the dense map."""

from __future__ import annotations

import tracemalloc

import array_api_strict
import jax
import numpy as np
import pytest
import torch
from hypothesis import strategies as st

import crisscross
from crisscross import errors
from crisscross.ops import maps
from crisscross.testing import attention_cases, fill_case, make_case
from tests.support.properties import law

CASES = attention_cases()
TAME = attention_cases(energy_peaks=(4.0,))
SEEDS = st.integers(0, 2**16)
POISONS = st.sampled_from((np.nan, np.inf, -np.inf))

#: Of weights, which are at most 1; energies of up to 100 lose as many units of a float32.
TOLERANCE = {"float32": {"rtol": 2e-4, "atol": 1e-6}, "float64": {"rtol": 1e-10, "atol": 1e-13}}
#: Of entropies, the difference of two numbers of up to 100.
ENTROPY_TOLERANCE = {"float32": 3e-4, "float64": 1e-11}


def find_keys(problem) -> np.ndarray:
    """(P, P): whether x is a key of p, by the definition: they differ along one axis at most."""
    coordinates = np.stack(np.unravel_index(np.arange(count(problem)), problem.spatial), -1)
    differs = coordinates[:, None] != coordinates[None]
    along_one = (differs.sum(-1) == 1) & differs[..., problem.axes].any(-1)
    return along_one | ~differs.any(-1)


def count(problem) -> int:
    return int(np.prod(problem.spatial))


def count_keys(case) -> np.ndarray:
    """(N, P): how many keys each position has."""
    problem = case.problem
    mask = np.ones(problem.mask_shape, bool) if case.key_mask is None else case.key_mask
    flat = mask.reshape(problem.batch, count(problem))
    return flat @ find_keys(problem).T.astype(int)


def make_dense(problem, q, k, key_mask) -> np.ndarray:
    """(N, heads, P, P) in float64: the map as a matrix, rows of zeros where there is no key."""
    shape = (problem.batch, problem.heads, problem.head_size_qk, count(problem))
    q, k = (
        np.moveaxis(x, problem.channel_axis, 1).astype(np.float64).reshape(shape) for x in (q, k)
    )
    is_key = np.broadcast_to(find_keys(problem), (problem.batch, 1, shape[3], shape[3]))
    if key_mask is not None:
        is_key = is_key & key_mask.reshape(problem.batch, 1, 1, shape[3])
    energies = np.where(is_key, problem.scale * np.einsum("nhdp,nhdx->nhpx", q, k), -np.inf)
    peak = energies.max(-1, keepdims=True)
    weights = np.exp(energies - np.where(np.isneginf(peak), 0, peak))
    total = weights.sum(-1, keepdims=True)
    return weights / np.where(total == 0, 1, total)


def draw_positions(problem, seed) -> list[tuple[int, ...]]:
    """One to three positions, some of them counted from the end."""
    rng = np.random.default_rng(seed)
    sizes = np.array(problem.spatial)
    drawn = rng.integers(-sizes, sizes, (rng.integers(1, 4), len(sizes)))
    return [tuple(int(number) for number in row) for row in drawn]


def take_rows(problem, dense, positions) -> np.ndarray:
    """(N, heads, M, *S) out of a matrix."""
    sizes = np.array(problem.spatial)
    rows = [np.ravel_multi_index(np.array(at) % sizes, problem.spatial) for at in positions]
    return dense[:, :, rows].reshape(*dense.shape[:2], len(rows), *problem.spatial)


def options_of(case) -> dict:
    return {name: value for name, value in case.options.items() if name != "precision"}


def poison(array, channel_axis, where, value) -> np.ndarray:
    """Copy an array with `value` in all channels where (N, *S) is marked."""
    poisoned = array.copy()
    np.moveaxis(poisoned, channel_axis, -1)[where] = value
    return poisoned


# The map


@law(case=CASES, seed=SEEDS)
def test_the_map_is_a_row_of_the_dense_one(case, seed):
    problem, positions = case.problem, draw_positions(case.problem, seed)
    weights = crisscross.attention_map(case.q, case.k, at=positions, **options_of(case))
    dense = make_dense(problem, case.q, case.k, case.key_mask)
    assert weights.dtype == problem.compute_dtype
    expected = take_rows(problem, dense, positions)
    assert weights.shape == expected.shape
    np.testing.assert_allclose(weights, expected, **TOLERANCE[problem.compute_dtype])


@law(case=CASES, seed=SEEDS)
def test_the_weights_sum_to_one(case, seed):
    """Or, where a position has no key left, they are all zero."""
    positions = draw_positions(case.problem, seed)
    weights = crisscross.attention_map(case.q, case.k, at=positions, **options_of(case))
    sums = weights.sum(tuple(range(3, weights.ndim)), dtype=np.float64)
    has_key = (count_keys(case) > 0).reshape(case.problem.mask_shape)
    expected = np.stack(
        [np.broadcast_to(has_key[:, *at, None], sums.shape[:2]) for at in positions], 2
    )
    np.testing.assert_allclose(sums, expected, rtol=1e-5, atol=0)


@law(case=CASES, seed=SEEDS, value=POISONS)
def test_what_a_position_cannot_see_is_never_read(case, seed, value):
    """Bit for bit: q of other positions, k off the strips and k where it is masked."""
    problem = case.problem
    at = draw_positions(problem, seed)[0]
    row = np.ravel_multi_index(np.array(at) % np.array(problem.spatial), problem.spatial)
    is_key = find_keys(problem)[row].reshape(problem.spatial)
    unseen = np.broadcast_to(~is_key, problem.mask_shape)
    if case.key_mask is not None:
        unseen = unseen | ~case.key_mask
    others = np.ones(problem.mask_shape, bool)
    # Where there is no key at all, its own q does not matter either.
    others[:, *at] = unseen.all(axis=tuple(range(1, unseen.ndim)))
    q = poison(case.q, problem.channel_axis, others, value)
    k = poison(case.k, problem.channel_axis, unseen, value)
    clean = crisscross.attention_map(case.q.copy(), case.k.copy(), at=at, **options_of(case))
    dirty = crisscross.attention_map(q, k, at=at, **options_of(case))
    np.testing.assert_array_equal(dirty, clean)


@pytest.mark.parametrize("name", ["q", "k"])
def test_nan_that_is_seen_is_not_hidden(name):
    case = make_case((4, 5))
    arrays = {"q": case.q.copy(), "k": case.k.copy()}
    arrays[name][:, :, 1, 2] = np.nan
    weights = crisscross.attention_map(**arrays, at=(1, 2))
    assert np.isnan(weights[0, 0, 1]).all() and np.isnan(weights[0, 0, :, 2]).all()


@pytest.mark.parametrize("at", [(2, -1), [2, 6], np.array([2, 6]), np.array([-3, -1])])
def test_one_position_is_an_image_without_an_axis_for_positions(at):
    case = make_case((5, 7), batch=2, heads=2)
    several = crisscross.attention_map(case.q, case.k, at=[(2, 6), (0, 0)], heads=2)
    one = crisscross.attention_map(case.q, case.k, at=at, heads=2)
    assert one.shape == (2, 2, 5, 7)
    np.testing.assert_array_equal(one, several[:, :, 0])
    listed = crisscross.attention_map(case.q, case.k, at=[at], heads=2)
    np.testing.assert_array_equal(listed, several[:, :, :1])


def test_the_position_itself_is_one_key_among_others():
    """Of 11 keys that are all alike, each has a share: self is not counted twice, nor left out."""
    q = k = np.zeros((1, 3, 5, 7))
    weights = crisscross.attention_map(q, k, at=(2, 3))[0, 0]
    expected = np.zeros((5, 7))
    expected[2, :] = expected[:, 3] = 1 / 11
    np.testing.assert_allclose(weights, expected, rtol=1e-14)


@pytest.mark.parametrize("energy", [1e3, -1e3])
def test_energies_whose_exponentials_no_number_holds(energy):
    q, k = np.full((1, 1, 3, 4), energy, np.float32), np.ones((1, 1, 3, 4), np.float32)
    k[0, 0, 1, 1] += 1 / energy
    weights = crisscross.attention_map(q, k, at=(1, 2))[0, 0]
    np.testing.assert_allclose(weights[1, 1], np.e / (5 + np.e), rtol=1e-3)
    np.testing.assert_allclose(weights.sum(), 1, rtol=1e-6)


@pytest.mark.parametrize(
    ("function", "most"), [("attention_map", 4e6), ("compose_attention", 20e6)]
)
def test_no_map_of_all_positions_is_made(function, most):
    """That map would have 64 MB."""
    rng = np.random.default_rng(0)
    q, k = rng.standard_normal((2, 1, 8, 200, 200), dtype=np.float32)
    argument = {"q": q, "k": k} if function == "attention_map" else {"pairs": [(q, k)] * 2}
    crisscross.set_num_threads(1)
    tracemalloc.start()
    try:
        getattr(crisscross, function)(**argument, at=(17, 40))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        crisscross.set_num_threads(None)
        crisscross.clear_workspace()
    assert peak < most


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38])
def test_no_warning_escapes(value):
    """Warnings are errors here, and neither NaN nor overflow is ours."""
    x = np.full((1, 2, 3, 4), value, np.float32)
    assert np.isnan(crisscross.attention_map(x, x, at=(1, 1))[0, 0, 1]).all()
    assert np.isnan(crisscross.compose_attention([(x, x)] * 2, at=(1, 1))).any()
    assert np.isnan(crisscross.attention_entropy(x, x)).all()


# Several steps


def make_pairs(problem, seed, steps):
    cases = [fill_case(problem, seed=seed + step) for step in range(steps)]
    return [(case.q, case.k) for case in cases]


@law(case=TAME, seed=SEEDS, steps=st.sampled_from((1, 2, 3)))
def test_composed_weights_are_rows_of_the_product_of_the_maps(case, seed, steps):
    problem, positions = case.problem, draw_positions(case.problem, seed)
    pairs = make_pairs(problem, seed, steps)
    product = np.eye(count(problem))
    for q, k in pairs:  # A_1 first: it stands on the right
        product = make_dense(problem, q, k, case.key_mask) @ product
    expected = take_rows(problem, product, positions)
    composed = crisscross.compose_attention(pairs, at=positions, **options_of(case))
    assert composed.dtype == problem.compute_dtype and composed.shape == expected.shape
    np.testing.assert_allclose(composed, expected, **TOLERANCE[problem.compute_dtype])
    one = crisscross.compose_attention(pairs, at=positions[0], **options_of(case))
    np.testing.assert_allclose(one, expected[:, :, 0], **TOLERANCE[problem.compute_dtype])


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("channel_axis", [1, -1])
def test_the_output_of_two_steps_follows_from_the_composed_weights(channel_axis, masked):
    """What `criss_cross_attention` makes of v, twice, at positions of the corner and the middle."""
    case = make_case(
        (6, 7),
        batch=2,
        heads=2,
        head_size_v=3,
        channel_axis=channel_axis,
        masked=masked,
        dtype="float64",
    )
    pairs = make_pairs(case.problem, 5, 2)
    v = case.v
    for q, k in pairs:
        v = crisscross.criss_cross_attention(q, k, v, **case.options)
    positions = [(0, 0), (3, 2), (-1, -1), (5, 1)]
    weights = crisscross.compose_attention(pairs, at=positions, **options_of(case))
    values, out = (np.moveaxis(x, channel_axis, 1).reshape(2, 2, 3, 6, 7) for x in (case.v, v))
    expected = np.stack([out[..., y, x] for y, x in positions], 2)
    recomputed = np.einsum("nhmyx,nhdyx->nhmd", weights, values)
    np.testing.assert_allclose(recomputed, expected, rtol=1e-10, atol=1e-13)


def test_how_far_steps_reach():
    """In d dimensions d steps see everything, fewer do not."""
    for spatial in ((5,), (4, 5), (3, 4, 5)):
        case = make_case(spatial, dtype="float64")
        at = tuple(size // 2 for size in spatial)
        for steps in (1, 2, 3):
            pairs = make_pairs(case.problem, 0, steps)
            weights = crisscross.compose_attention(pairs, at=at)
            coordinates = np.indices(spatial)
            apart = sum(row != number for row, number in zip(coordinates, at, strict=True))
            np.testing.assert_array_equal(weights[0, 0] > 0, apart <= steps)


@pytest.mark.parametrize("at", [(1, -2), [(1, -2), (0, 0)], [(3, 4)]])
@pytest.mark.parametrize("channel_axis", [1, -1])
@pytest.mark.parametrize("convert", [np.asarray, torch.from_numpy], ids=["numpy", "torch"])
def test_steps_are_what_is_composed_of_the_last_ones(convert, channel_axis, at, monkeypatch):
    """Bit for bit, and each costs but one backward more."""
    case = make_case((4, 5), batch=2, heads=2, channel_axis=channel_axis, masked=True)
    pairs = [tuple(map(convert, pair)) for pair in make_pairs(case.problem, 7, 4)]
    options = {**options_of(case), "at": at, "key_mask": convert(case.key_mask)}
    expected = [crisscross.compose_attention(pairs[-steps:], **options) for steps in (1, 2, 3, 4)]
    calls = []
    backward = maps.criss_cross_attention_backward
    monkeypatch.setattr(
        maps,
        "criss_cross_attention_backward",
        lambda *arrays, **named: calls.append(1) or backward(*arrays, **named),
    )
    for number, steps in enumerate(maps.compose_steps(pairs, **options)):
        assert len(calls) == number
        assert steps.shape == expected[number].shape
        np.testing.assert_array_equal(np.asarray(steps), np.asarray(expected[number]))
    assert number == 3
    crisscross.compose_attention(pairs, **options)
    assert len(calls) == 6


def test_all_pairs_are_checked_before_the_first_step():
    with pytest.raises(errors.ArgumentError, match=r"^compose_attention: pairs\[0\]\.k\.shape"):
        next(maps.compose_steps([(Q, NARROW), (Q, Q)], at=(1, 2)))


def test_steps_may_have_different_widths():
    wide, narrow = (make_case((4, 5), heads=2, head_size_qk=size) for size in (5, 2))
    pairs = [(wide.q, wide.k), (narrow.q, narrow.k)]
    product = np.eye(20)
    for case in (wide, narrow):
        product = make_dense(case.problem, case.q, case.k, None) @ product
    expected = take_rows(wide.problem, product, [(1, 2)])[:, :, 0]
    composed = crisscross.compose_attention(pairs, at=(1, 2), heads=2)
    np.testing.assert_allclose(composed, expected, rtol=1e-5)


@pytest.mark.parametrize("channel_axis", [1, -1])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_queries_that_nothing_is_seen_through_have_no_part(channel_axis, value):
    """The first step's queries off the cross, and those of masked positions, padding maybe."""
    case = make_case((4, 5), channel_axis=channel_axis, masked=True, heads=2)
    (q1, k1), last = make_pairs(case.problem, 3, 2)
    at = (1, 2)
    case.key_mask[0, :, 2] = [True, True, False, True]
    through = np.zeros(case.problem.mask_shape, bool)
    through[:, 1, :] = through[:, :, 2] = True
    poisoned = poison(q1, channel_axis, ~(through & case.key_mask), value)
    hidden_k1 = poison(k1, channel_axis, ~case.key_mask, value)
    options = options_of(case)
    clean = crisscross.compose_attention([(q1, k1), last], at=at, **options)
    dirty = crisscross.compose_attention([(poisoned, hidden_k1), last], at=at, **options)
    np.testing.assert_allclose(dirty, clean, rtol=1e-6, atol=1e-9)


# Entropy


@law(CASES)
def test_entropy_is_that_of_the_dense_map(case):
    problem = case.problem
    entropy = crisscross.attention_entropy(case.q, case.k, **options_of(case))
    dense = make_dense(problem, case.q, case.k, case.key_mask)
    expected = -(dense * np.log(np.where(dense == 0, 1, dense))).sum(-1)
    assert entropy.dtype == problem.compute_dtype
    assert entropy.shape == problem.lse_shape
    atol = ENTROPY_TOLERANCE[problem.compute_dtype]
    np.testing.assert_allclose(entropy, expected.reshape(entropy.shape), rtol=0, atol=atol)


@law(CASES)
def test_entropy_lies_between_none_and_that_of_equal_keys(case):
    problem = case.problem
    entropy = crisscross.attention_entropy(case.q, case.k, **options_of(case))
    most = np.log(np.maximum(count_keys(case), 1)).reshape(problem.batch, 1, *problem.spatial)
    assert (entropy >= 0).all()
    assert (entropy <= most + ENTROPY_TOLERANCE[problem.compute_dtype]).all()


def test_entropy_of_equal_keys_of_one_key_and_of_none(backend):
    """log(11); nothing; and nothing either, where the sum of no weights has no logarithm."""
    q, k = np.random.default_rng(0).standard_normal((2, 1, 4, 5, 7))
    equal = crisscross.attention_entropy(q, np.zeros_like(k), backend=backend)
    np.testing.assert_allclose(equal, np.log(11), rtol=1e-14)
    mask = np.zeros((1, 5, 7), bool)
    mask[0, 2, 3] = True
    single = crisscross.attention_entropy(q, k, key_mask=mask, backend=backend)
    np.testing.assert_allclose(single, 0, atol=1e-14)
    assert (single[0, 0, :2, :3] == 0).all()


def test_entropy_is_asked_of_the_backend():
    with pytest.raises(crisscross.BackendError, match="gpu: it serves arrays in CUDA memory"):
        crisscross.attention_entropy(Q, Q, backend="gpu")


def test_nan_has_no_entropy():
    """Nor do those who see it; the others keep theirs."""
    case = make_case((4, 5))
    k = case.k.copy()
    k[:, :, 1, 2] = np.nan
    entropy = crisscross.attention_entropy(case.q, k)[0, 0]
    sees = np.zeros((4, 5), bool)
    sees[1, :] = sees[:, 2] = True
    np.testing.assert_array_equal(np.isnan(entropy), sees)


# Arrays of any library


def call_all(q, k, key_mask, channel_axis):
    """The three functions; each as one array."""
    options = {"heads": 2, "key_mask": key_mask, "channel_axis": channel_axis}
    return {
        "attention_map": crisscross.attention_map(q, k, at=(1, -2), **options),
        "compose_attention": crisscross.compose_attention(
            [(q, k), (k, q)], at=[(1, 3), (0, 0)], **options
        ),
        "attention_entropy": crisscross.attention_entropy(q, k, **options),
    }


LIBRARIES = {
    "torch": (torch.from_numpy, torch.Tensor),
    "jax": (jax.numpy.asarray, jax.Array),
    "array_api_strict": (array_api_strict.asarray, type(array_api_strict.asarray(0.0))),
}


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("channel_axis", [1, -1])
@pytest.mark.parametrize("library", LIBRARIES)
def test_arrays_of_a_library_give_its_own(library, channel_axis, masked):
    convert, kind = LIBRARIES[library]
    case = make_case((4, 5), batch=2, heads=2, channel_axis=channel_axis, masked=masked)
    expected = call_all(case.q, case.k, case.key_mask, channel_axis)
    mask = None if case.key_mask is None else convert(case.key_mask)
    actual = call_all(convert(case.q), convert(case.k), mask, channel_axis)
    for name, array in actual.items():
        assert isinstance(array, kind)
        found = crisscross.from_dlpack(array)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected[name], rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("library", ["numpy", "torch", "jax"])
def test_sixteen_bits_give_float32(library, dtype):
    """Computed in float32 from the start, not rounded on the way."""
    case = make_case((4, 5), heads=2, dtype=dtype)
    wide = [x.astype(np.float32) for x in (case.q, case.k)]
    expected = call_all(*wide, None, 1)
    if library == "torch":
        arrays = [torch.from_numpy(x).to(getattr(torch, dtype)) for x in wide]
    else:
        arrays = [case.q, case.k] if library == "numpy" else [*map(jax.numpy.asarray, wide)]
        if library == "jax":
            arrays = [x.astype(dtype) for x in arrays]
    for name, array in call_all(*arrays, None, 1).items():
        found = crisscross.from_dlpack(array)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected[name], rtol=1e-5, atol=1e-6, err_msg=name)


# Errors

Q = np.zeros((2, 8, 5, 7), np.float32)
NARROW = np.zeros((2, 8, 5, 6), np.float32)
MASK = np.ones((2, 5, 7), bool)
VALID = {
    "attention_map": {"q": Q, "k": Q, "at": (1, 2), "key_mask": MASK},
    "compose_attention": {"pairs": [(Q, Q), (Q, Q)], "at": (1, 2), "key_mask": MASK},
    "attention_entropy": {"q": Q, "k": Q, "key_mask": MASK},
}
ANY_ARRAY = "an array of NumPy, CuPy, PyTorch, JAX or any library that speaks DLPack"
POSITION = "a position, such as (y, x), or several"
VALUE, TYPE, MEMORY = errors.ArgumentError, errors.ArgumentTypeError, errors.BridgeError

#: Function, what is changed, the error, and "argument: expected ..., got ..." line by line.
TABLE = [
    # the position
    ("attention_map", {"at": (1,)}, VALUE, "at: expected a position in (5, 7), got (1,)"),
    ("attention_map", {"at": (1, 2, 0)}, VALUE,
     "at: expected a position in (5, 7), got (1, 2, 0)"),
    ("attention_map", {"at": (5, 0)}, VALUE, "at: expected a position in (5, 7), got (5, 0)"),
    ("attention_map", {"at": (0, -8)}, VALUE, "at: expected a position in (5, 7), got (0, -8)"),
    ("attention_map", {"at": [(0, 0), (0, 7), (9, 9)]}, VALUE,
     "at: expected a position in (5, 7), got (0, 7)\n"
     "at: expected a position in (5, 7), got (9, 9)"),
    ("attention_map", {"at": [(0, 0), ()]}, VALUE, "at: expected a position in (5, 7), got ()"),
    ("attention_map", {"at": "12"}, TYPE, f"at: expected {POSITION}, got '12'"),
    ("attention_map", {"at": b"\1\2"}, TYPE, f"at: expected {POSITION}, got bytes b'\\x01\\x02'"),
    ("attention_map", {"at": ["12"]}, TYPE, "at: expected an integer, got '12'"),
    ("attention_map", {"at": ()}, TYPE, f"at: expected {POSITION}, got tuple ()"),
    ("attention_map", {"at": []}, TYPE, f"at: expected {POSITION}, got list []"),
    ("attention_map", {"at": 3}, TYPE, f"at: expected {POSITION}, got 3"),
    ("attention_map", {"at": None}, TYPE, f"at: expected {POSITION}, got None"),
    ("attention_map", {"at": {1, 2}}, TYPE, f"at: expected {POSITION}, got set {{1, 2}}"),
    ("attention_map", {"at": np.array(3)}, TYPE, f"at: expected {POSITION}, got ndarray array(3)"),
    ("attention_map", {"at": [(1, 2), 3]}, TYPE,
     f"at: expected {POSITION}, got list [(1, 2), 3]"),
    ("attention_map", {"at": (1.0, 2)}, TYPE, "at: expected an integer, got 1.0"),
    ("attention_map", {"at": (True, 2)}, TYPE, "at: expected an integer, got True"),
    ("attention_map", {"at": (10**30, 2)}, VALUE,
     f"at: expected an integer of 64 bits, got {10**30}"),
    ("compose_attention", {"at": (5, 0)}, VALUE, "at: expected a position in (5, 7), got (5, 0)"),
    ("compose_attention", {"at": "12"}, TYPE, f"at: expected {POSITION}, got '12'"),
    # the pairs
    ("compose_attention", {"pairs": []}, TYPE, "pairs: expected at least one (q, k), got list []"),
    ("compose_attention", {"pairs": 3}, TYPE, "pairs: expected at least one (q, k), got 3"),
    ("compose_attention", {"pairs": [3]}, TYPE,
     "pairs: expected at least one (q, k), got list [3]"),
    ("compose_attention", {"pairs": "qk"}, TYPE, "pairs: expected at least one (q, k), got 'qk'"),
    ("compose_attention", {"pairs": ["qk"]}, TYPE,
     "pairs: expected at least one (q, k), got list ['qk']"),
    ("compose_attention", {"pairs": [(Q,)]}, TYPE, "pairs: expected at least one (q, k), got list"),
    ("compose_attention", {"pairs": [(Q, Q, Q)]}, TYPE,
     "pairs: expected at least one (q, k), got list"),
    ("compose_attention", {"pairs": [(Q, Q), (Q, 3)]}, TYPE,
     f"pairs[1].k: expected {ANY_ARRAY}, got int"),
    ("compose_attention", {"pairs": [(None, Q), (Q, Q)]}, TYPE,
     f"pairs[0].q: expected {ANY_ARRAY}, got NoneType"),
    ("compose_attention", {"pairs": [(Q, NARROW), (Q, Q)]}, VALUE,
     "pairs[0].k.shape: expected (2, 8, 5, 7) like q, got (2, 8, 5, 6)"),
    ("compose_attention", {"pairs": [(Q, Q), (NARROW, NARROW)], "key_mask": None}, VALUE,
     "pairs[1].q.shape: expected (2, channels, 5, 7) like pairs[0].q but for the channels, "
     "got (2, 8, 5, 6)"),
    ("compose_attention",
     {"pairs": [(Q.swapaxes(1, 3),) * 2, (Q[:1].swapaxes(1, 3),) * 2], "key_mask": None,
      "channel_axis": -1}, VALUE,
     "pairs[1].q.shape: expected (2, 7, 5, channels) like pairs[0].q but for the channels, "
     "got (1, 7, 5, 8)"),
    ("compose_attention", {"pairs": [(Q, Q), (Q[:1], Q[:1])], "key_mask": None}, VALUE,
     "pairs[1].q.shape: expected (2, channels, 5, 7) like pairs[0].q but for the channels, "
     "got (1, 8, 5, 7)"),
    ("compose_attention", {"pairs": [(Q, Q), (Q.astype(float), Q.astype(float))]}, TYPE,
     "pairs[1].q.dtype: expected float32 like pairs[0].q, got float64"),
    ("compose_attention", {"pairs": [(torch.zeros(2, 8, 5, 7),) * 2, (Q, Q)], "key_mask": None},
     TYPE,
     "pairs[1].q: expected an array of torch like pairs[0].q, got an array of numpy\n"
     "pairs[1].k: expected an array of torch like pairs[0].q, got an array of numpy"),
    ("compose_attention", {"pairs": [(Q, Q[:1]), (Q[:1], Q[:1])]}, VALUE,
     "pairs[0].k.shape: expected (2, 8, 5, 7) like q, got (1, 8, 5, 7)\n"
     "key_mask.shape: expected (1, 5, 7) (N, *S), got (2, 5, 7)"),
    ("compose_attention", {"heads": 3}, VALUE,
     "pairs[0].q.shape[1]: expected a positive multiple of heads = 3, got 8\n"
     "pairs[1].q.shape[1]: expected a positive multiple of heads = 3, got 8"),
    ("compose_attention", {"scale": "1"}, TYPE, "scale: expected a real number, got '1'"),
    # the arrays and the options: there is no v to be spoken of
    ("attention_map", {"q": [1.0]}, TYPE, f"q: expected {ANY_ARRAY}, got list"),
    ("attention_map", {"k": None}, TYPE, f"k: expected {ANY_ARRAY}, got NoneType"),
    ("attention_map", {"k": NARROW}, VALUE,
     "k.shape: expected (2, 8, 5, 7) like q, got (2, 8, 5, 6)"),
    ("attention_map", {"k": Q.astype(np.float16)}, TYPE,
     "k.dtype: expected float32 like q, got float16"),
    ("attention_map", {"q": Q[0, 0], "k": Q[0, 0], "key_mask": None}, VALUE,
     "q.shape: expected at least 3 axes, (N, C, *S), got 2 axes: (5, 7)\n"
     "k.shape: expected at least 3 axes, (N, C, *S), got 2 axes: (5, 7)"),
    ("attention_map", {"q": Q.astype(">f4")}, MEMORY,
     "q: expected native byte order; pass x.astype(x.dtype.newbyteorder('=')), "
     "got big-endian float32"),
    ("attention_map", {"k": torch.zeros(2, 8, 5, 7)}, TYPE,
     "k: expected an array of numpy like q, got an array of torch"),
    ("attention_map", {"key_mask": torch.ones(2, 5, 7, dtype=torch.bool)}, TYPE,
     "key_mask: expected an array of numpy like q, got an array of torch"),
    ("attention_map", {"key_mask": MASK[:1]}, VALUE,
     "key_mask.shape: expected (2, 5, 7) (N, *S), got (1, 5, 7)"),
    ("attention_map", {"heads": 3}, VALUE,
     "q.shape[1]: expected a positive multiple of heads = 3, got 8"),
    ("attention_map", {"scale": float("inf")}, VALUE, "scale: expected a finite number, got inf"),
    ("attention_map", {"axes": (0, -2)}, VALUE,
     "axes: expected each spatial axis once, got tuple (0, -2)"),
    ("attention_map", {"channel_axis": 0}, VALUE,
     "channel_axis: expected 1 (N, C, *S) or -1 (N, *S, C), got 0"),
    ("attention_map", {"k": NARROW, "at": (5, 0), "scale": "x"}, VALUE,
     "at: expected a position in (5, 7), got (5, 0)\n"
     "scale: expected a real number, got 'x'\n"
     "k.shape: expected (2, 8, 5, 7) like q, got (2, 8, 5, 6)"),
    ("attention_entropy", {"q": [1.0]}, TYPE, f"q: expected {ANY_ARRAY}, got list"),
    ("attention_entropy", {"k": NARROW}, VALUE,
     "k.shape: expected (2, 8, 5, 7) like q, got (2, 8, 5, 6)"),
    ("attention_entropy", {"k": torch.zeros(2, 8, 5, 7)}, TYPE,
     "k: expected an array of numpy like q, got an array of torch"),
    ("attention_entropy", {"heads": 3}, VALUE,
     "q.shape[1]: expected a positive multiple of heads = 3, got 8"),
    ("attention_entropy", {"backend": "tpu"}, VALUE,
     "backend: expected None or one of ('gpu', 'cpu', 'xla', 'reference'), got 'tpu'"),
]  # fmt: skip


@pytest.mark.parametrize("function", VALID)
def test_the_valid_call_is_valid(function):
    assert getattr(crisscross, function)(**VALID[function]) is not None


@pytest.mark.parametrize(
    ("function", "changes", "error", "lines"),
    TABLE,
    ids=[f"{row[0]}-{'-'.join(row[1])}" for row in TABLE],
)
def test_messages(function, changes, error, lines):
    with pytest.raises(error) as caught:
        getattr(crisscross, function)(**{**VALID[function], **changes})
    assert type(caught.value) is error
    assert caught.value.function == function
    assert [str(mismatch) for mismatch in caught.value.mismatches] == lines.split("\n")


@pytest.mark.parametrize(
    "function",
    [
        lambda q, k: crisscross.attention_map(q, k, at=[(1, 2), (0, -1)]),
        lambda q, k: crisscross.compose_attention([(q, k), (k, q)], at=(1, 2), heads=2),
        lambda q, k: crisscross.attention_entropy(q, k, scale=0.5),
    ],
    ids=["attention_map", "compose_attention", "attention_entropy"],
)
def test_pytorch_differentiates_them(function):
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 1, 4, 3, 4, dtype=torch.float64, generator=generator)
    assert torch.autograd.gradcheck(function, (q.requires_grad_(), k.requires_grad_()))
