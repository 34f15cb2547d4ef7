"""Problems of symbolic sizes: compared, multiplied and divided, never hashed or made an int."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from crisscross import errors
from crisscross.problem import (
    ArraySpec,
    Findings,
    attention_problem,
    features_problem,
    map_problem,
    merge_problem,
    split_heads,
)


class Symbol:
    """A size that a tracer does not know: everything that would pin it down raises."""

    def __init__(self, name: str, hint: int) -> None:
        self.name, self.hint = name, hint

    __hash__ = None

    def _pinned(self, *_):
        raise AssertionError(f"the symbolic size {self.name} was pinned down")

    __int__ = __index__ = __float__ = __bool__ = __iter__ = _pinned

    def _hint(self, other):
        return other.hint if isinstance(other, Symbol) else other

    def _derive(self, sign, other, hint):
        name = other.name if isinstance(other, Symbol) else other
        return Symbol(f"({self.name} {sign} {name})", hint)

    def __eq__(self, other):
        return self.hint == self._hint(other)

    def __lt__(self, other):
        return self.hint < self._hint(other)

    def __add__(self, other):
        return self._derive("+", other, self.hint + self._hint(other))

    def __sub__(self, other):
        return self._derive("-", other, self.hint - self._hint(other))

    def __mul__(self, other):
        return self._derive("*", other, self.hint * self._hint(other))

    __rmul__ = __mul__

    def __floordiv__(self, other):
        return self._derive("//", other, self.hint // self._hint(other))

    def __mod__(self, other):
        return self._derive("%", other, self.hint % self._hint(other))

    def __repr__(self):
        return self.name


N, H, W = Symbol("N", 2), Symbol("H", 5), Symbol("W", 7)
C, D = Symbol("C", 8), Symbol("D", 16)
OPTIONS = {"scale": 1.0, "heads": 2, "axes": None, "channel_axis": 1, "precision": None}


def spec(*shape, dtype="float32"):
    return ArraySpec(shape, dtype)


def test_attention_of_symbolic_sizes():
    specs = {
        "q": spec(N, C, H, W),
        "k": spec(N, C, H, W),
        "v": spec(N, D, H, W),
        "out": spec(N, D, H, W),
        "dout": spec(N, D, H, W),
        "lse": spec(N, 2, H, W),
        "key_mask": spec(N, H, W, dtype="bool"),
    }
    problem = attention_problem(Findings("f"), specs, **OPTIONS)
    assert problem.head_size_qk == 4 and problem.head_size_v == 8
    assert problem.q_shape == (N, C, H, W) and problem.v_shape == (N, D, H, W)
    assert problem.lse_shape == (N, 2, H, W) and problem.mask_shape == (N, H, W)
    assert problem.axes == (0, 1)


def test_messages_write_the_symbols():
    specs = {"q": spec(N, C, H, W), "k": spec(N, C, H, H), "v": spec(N, D, H, W)}
    with pytest.raises(errors.ArgumentError) as caught:
        attention_problem(Findings("f"), specs, **OPTIONS)
    assert str(caught.value) == "f: k.shape: expected (N, C, H, W) like q, got (N, C, H, H)"


def test_merge_of_symbolic_sizes():
    specs = {"outs[0]": spec(N, D, H, W), "lses[0]": spec(N, 2, H, W)}
    problem = merge_problem(Findings("f"), specs, outs=[0], lses=[0], channel_axis=1)
    assert problem.out_shape == (N, D, H, W)


def test_maps_of_symbolic_sizes():
    specs = {"q": spec(N, C, H, W), "denergy": spec(N, H + W - 1, H, W)}
    problem = features_problem(Findings("f"), specs, features=("q",), maps=("denergy",))
    assert problem.map_shape == (N, 11, H, W)
    problem = map_problem(Findings("f"), {"energy": spec(N, 11, H, W)}, maps=("energy",))
    assert problem.port_shape == (N, H, W, 12)


def test_problems_are_frozen_and_compare_by_value():
    specs = {"q": spec(2, 8, 5, 7), "k": spec(2, 8, 5, 7), "v": spec(2, 16, 5, 7)}
    one, two = (attention_problem(Findings("f"), specs, **OPTIONS) for _ in range(2))
    assert one == two and hash(one) == hash(two)
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.heads = 3


@pytest.mark.parametrize("channel_axis", [1, -1])
def test_split_heads_is_a_view_whatever_the_strides(channel_axis):
    base = np.zeros((3, 12, 10, 12))
    for array in (base, base[:, ::2], base[..., ::-1], base.transpose(0, 3, 2, 1), base[::2, :6]):
        view = split_heads(array, 3, channel_axis)
        assert np.shares_memory(view, array)
        head_size = array.shape[channel_axis] // 3
        for h in range(3):
            channels = slice(h * head_size, (h + 1) * head_size)
            expected = np.moveaxis(array, channel_axis, -1)[..., channels]
            assert view[:, h].shape == expected.shape
            view[:, h] = h + 1
            assert (expected == h + 1).all()
