"""Problems that were checked before are remembered; never one for another."""

from __future__ import annotations

import numpy as np
import pytest

import crisscross
from crisscross.problem import ArraySpec, Findings, attention, attention_problem

OPTIONS = {"scale": 1.0, "heads": 1, "axes": None, "channel_axis": 1, "precision": None}


def check(dtype="float32", shape=(2, 4, 3, 5), function="f", **options):
    specs = dict.fromkeys(("q", "k", "v"), ArraySpec(shape, dtype))
    return attention_problem(Findings(function), specs, **{**OPTIONS, **options})


def test_a_problem_is_made_once():
    assert check() is check(function="another")
    assert check(axes=(0, 1)) is check(axes=(0, 1))


@pytest.mark.parametrize(
    "different",
    [
        {"dtype": "float64"},
        {"shape": (2, 4, 5, 3)},
        {"scale": 2.0},
        {"heads": 2},
        {"axes": 0, "one_axis": True},
        {"axes": (0,)},
        {"channel_axis": -1},
        {"precision": "tf32"},
    ],
    ids=lambda different: next(iter(different)),
)
def test_another_problem_is_another(different):
    assert check() != check(**different)
    assert check(**different) == check(**different)


@pytest.mark.parametrize("options", [{"heads": True}, {"channel_axis": 1.0}, {"axes": (0, True)}])
def test_what_is_equal_to_a_good_option_is_not_one(options):
    check()
    check(axes=(0, 1))
    with pytest.raises(TypeError):
        check(**options)


def test_the_sign_of_zero_counts():
    assert np.signbit(check(scale=0.0).scale) != np.signbit(check(scale=-0.0).scale)


def test_no_more_are_kept_than_the_limit(monkeypatch):
    monkeypatch.setattr(attention, "_known", {})
    for number in range(attention._MOST_KNOWN + 10):
        check(scale=1.0 + number)
    assert 0 < len(attention._known) <= attention._MOST_KNOWN


class WithoutHash(type):
    """Classes of which one can tell whether they are the same, but not look them up."""

    def __eq__(cls, other):
        return cls is other


class Stranger(metaclass=WithoutHash):
    pass


def test_what_cannot_be_looked_up_is_refused_like_the_rest():
    array = np.zeros((1, 4, 5, 7), np.float32)
    with pytest.raises(TypeError, match=r"q: expected an array of .*, got .*Stranger"):
        crisscross.criss_cross_attention(Stranger(), array, array)
    text = np.array(["a"], dtype=np.dtypes.StringDType(na_object=[]))
    with pytest.raises(
        BufferError, match="array: expected a plain numeric dtype, got dtype StringD"
    ):
        crisscross.from_dlpack(text)
