"""A tape gives gradients of what blocks were given, and names what they were not."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch

import crisscross
from crisscross import ArgumentError, ArgumentTypeError, nn
from tests.nn.test_blocks import OPTIONS, check_gradients, draw

#: A block and its parameters in a dtype.
BLOCKS = {
    "criss_cross": (
        lambda parameters, x, tape: nn.criss_cross_block(parameters, x, recurrence=2, tape=tape),
        lambda dtype: nn.init_criss_cross_block(64, gamma=0.7, dtype=dtype),
    ),
    "non_local": (
        lambda parameters, x, tape: nn.non_local_block(parameters, x, tape=tape),
        lambda dtype: nn.init_non_local_block(64, zero=False, dtype=dtype),
    ),
    "dot_product": (
        lambda parameters, x, tape: nn.non_local_block(
            parameters, x, mode="dot_product", tape=tape
        ),
        lambda dtype: nn.init_non_local_block(64, zero=False, dtype=dtype),
    ),
    "channel": (
        lambda parameters, x, tape: nn.channel_attention_block(parameters, x, tape=tape),
        lambda dtype: nn.init_channel_attention_block(gamma=0.7, dtype=dtype),
    ),
}


@pytest.mark.parametrize("block", BLOCKS)
def test_a_tape_of_16_bits_holds_half_of_what_one_of_32_does(block):
    run, make = BLOCKS[block]
    held = {}
    for dtype in (np.float16, np.float32):
        parameters = make(np.dtype(dtype).name)
        x = draw((1, 64, 48, 48), scale=0.1).astype(dtype)
        run(parameters, x, None)  # whatever is kept from call to call
        tracemalloc.start()
        try:
            tape = nn.Tape()
            out = run(parameters, x, tape)
            crisscross.clear_workspace()
            held[dtype] = tracemalloc.get_traced_memory()[0] / x.size
        finally:
            tracemalloc.stop()
        assert tape.pull(out, out, x).dtype == dtype
    assert held[np.float16] < 0.6 * held[np.float32]


def test_what_a_tape_does_not_know_is_an_error():
    parameters = nn.init_criss_cross_block(8, gamma=0.7, **OPTIONS)
    x = draw((1, 8, 4, 5))
    tape = nn.Tape()
    out = nn.criss_cross_block(parameters, x, tape=tape)
    with pytest.raises(ArgumentError, match="output: expected what a block with this tape"):
        tape.pull(out * 2, out, x)
    with pytest.raises(ArgumentError, match=r"doutput.shape: expected \(1, 8, 4, 5\) like output"):
        tape.pull(out, out[0], x)
    with pytest.raises(ArgumentError, match="wanted: expected arrays that blocks with this tape"):
        tape.pull(out, out, {name: array.copy() for name, array in parameters.items()})
    copied = {name: array[...] for name, array in parameters.items()}
    with pytest.raises(ArgumentError, match=r"got 7 of 8 that they were not"):
        tape.pull(out, out, (copied, x))  # rather than None for most of them
    with pytest.raises(ArgumentTypeError, match=r"doutput\.dtype: expected float64 like output"):
        tape.pull(out, out.astype(np.float32), x)
    with pytest.raises(ArgumentTypeError, match=r"doutput: expected an array of numpy like output"):
        tape.pull(out, torch.from_numpy(out), x)


def test_no_recurrence_passes_gradients_on():
    parameters = nn.init_criss_cross_block(8, gamma=0.7, **OPTIONS)
    x, tape = draw((1, 8, 4, 5)), nn.Tape()
    out = nn.criss_cross_block(parameters, x, recurrence=0, tape=tape)
    dout = draw(out.shape, 1)
    dparameters, dx = tape.pull(out, dout, (parameters, x))
    np.testing.assert_array_equal(dx, dout)
    assert set(dparameters.values()) == {None}


def test_blocks_share_a_tape():
    """What one block returns, the next one takes: gradients go back through both, and add up."""
    parameters = nn.init_criss_cross_block(8, gamma=0.7, **OPTIONS)
    x = draw((1, 8, 4, 5))

    def run(parameters, x, tape):
        y = nn.criss_cross_block(parameters, x, tape=tape)
        return nn.position_attention_block(parameters, y, tape=tape)

    check_gradients(run, parameters, x)


def test_a_tape_gives_gradients_of_what_lies_between():
    parameters = nn.init_criss_cross_block(8, gamma=0.7, **OPTIONS)
    x = draw((1, 8, 4, 5))
    tape = nn.Tape()
    y = nn.criss_cross_block(parameters, x, tape=tape)
    z = nn.criss_cross_block(parameters, y, tape=tape)
    dz = draw(z.shape)
    whole = tape.pull(z, dz, (x, [y]))
    assert isinstance(whole, tuple) and isinstance(whole[1], tuple)
    np.testing.assert_array_equal(tape.pull(y, whole[1][0], x), whole[0])
