"""Hypothesis strategies for attention problems and their arrays."""

from __future__ import annotations

from collections.abc import Sequence

from crisscross.errors import MissingDependencyError
from crisscross.problem import COMPUTE_DTYPES, AttentionProblem
from crisscross.testing.arrays import LAYOUTS, fill_case
from crisscross.testing.cases import AttentionCase

try:
    from hypothesis import strategies as st
except ImportError:
    raise MissingDependencyError(
        "crisscross.testing needs Hypothesis, and ml_dtypes for bfloat16: "
        "pip install hypothesis ml_dtypes"
    ) from None

_SIZES = (1, 2, 3, 4, 5, 7, 8, 11, 13)
_HEAD_SIZES = (1, 2, 3, 5, 8)
_SCALES = (1.0, 0.35, 1e-3, -0.5)


@st.composite
def attention_problems(
    draw: st.DrawFn,
    *,
    dtypes: Sequence[str] = tuple(COMPUTE_DTYPES),
    spatial_ndims: Sequence[int] = (1, 2, 3),
    batches: Sequence[int] = (1, 2, 0),
    channel_axes: Sequence[int] = (1, -1),
    masked: Sequence[bool] = (False, True),
    precisions: Sequence[str] = ("ieee",),
    axial: bool = False,
    max_positions: int = 40,
) -> AttentionProblem:
    """Draw a problem: ragged, rectangular, prime and single sizes, heads, axes, masks.

    Parameters
    ----------
    dtypes, spatial_ndims, batches, channel_axes, masked, precisions
        What to choose from; Hypothesis shrinks to the first of each.
    axial
        False: any subset of the axes, self included. True: one axis, self included or not.
    max_positions
        Most positions of an image: the oracle takes them one by one.
    """
    ndim = draw(st.sampled_from(spatial_ndims))
    spatial: tuple[int, ...] = ()
    room = max_positions
    for _ in range(ndim):
        size = draw(st.sampled_from([size for size in _SIZES if size <= room]))
        spatial, room = (*spatial, size), room // size
    axis = st.integers(0, ndim - 1)
    axes = draw(st.sets(axis, min_size=1, max_size=1 if axial else ndim))
    return AttentionProblem(
        batch=draw(st.sampled_from(batches)),
        heads=draw(st.sampled_from((1, 2, 3))),
        head_size_qk=draw(st.sampled_from(_HEAD_SIZES)),
        head_size_v=draw(st.sampled_from(_HEAD_SIZES)),
        spatial=spatial,
        axes=tuple(sorted(axes)),
        include_self=draw(st.booleans()) if axial else True,
        scale=draw(st.sampled_from(_SCALES)),
        channel_axis=draw(st.sampled_from(channel_axes)),
        dtype=draw(st.sampled_from(dtypes)),
        precision=draw(st.sampled_from(precisions)),
        masked=draw(st.sampled_from(masked)),
    )


@st.composite
def attention_cases(
    draw: st.DrawFn,
    problems: st.SearchStrategy[AttentionProblem] | None = None,
    *,
    layouts: Sequence[str] = LAYOUTS,
    energy_peaks: Sequence[float] = (4.0, 30.0, 100.0),
) -> AttentionCase:
    """Draw a problem with its arrays: outliers, energies up to 100, any strides, any share of keys.

    Parameters
    ----------
    problems
        Strategy for the problem, `attention_problems()` by default.
    layouts, energy_peaks
        What to choose from; see `fill_case`.

    Examples
    --------
    >>> import crisscross
    >>> from hypothesis import given, settings
    >>> from crisscross.testing import assert_matches_reference, attention_cases
    >>> @settings(max_examples=5, database=None)
    ... @given(attention_cases())
    ... def check(case):
    ...     out = crisscross.criss_cross_attention(case.q, case.k, case.v, **case.options)
    ...     assert_matches_reference(case, out=out)
    >>> check()
    """
    return fill_case(
        draw(attention_problems() if problems is None else problems),
        seed=draw(st.integers(0, 2**16)),
        energy_peak=draw(st.sampled_from(energy_peaks)),
        outliers=draw(st.booleans()),
        key_share=draw(st.sampled_from((0.7, 0.3, 1.0, 0.0))),
        with_dlse=draw(st.booleans()),
        layout=draw(st.sampled_from(layouts)),
    )
