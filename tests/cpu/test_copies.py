"""Copies of inputs: room where positions would clash, and pieces of a bounded size."""

from __future__ import annotations

import numpy as np
import pytest

from crisscross.cpu import copies
from crisscross.cpu.workspace import Workspace

FLOAT32 = np.dtype(np.float32)


@pytest.mark.parametrize(
    ("row", "channels", "strides"),
    [(97, 512, (97 * 2112, 2112)), (256, 32, (257 * 128, 128)), (24, 16, (1536, 64))],
    ids=["behind vectors", "behind rows", "nowhere"],
)
def test_room_is_left_where_positions_would_clash(row, channels, strides):
    with Workspace() as workspace:
        features = copies.take_features(workspace, "v", (1, 1, 3, row, channels), FLOAT32)
        assert features.shape == (1, 1, 3, row, channels)
        assert features.strides[-3:-1] == strides


@pytest.mark.parametrize("spatial", [(4, 8, 256), (32, 256), (2048,), (4, 8, 255)])
def test_pieces_are_of_bounded_size_and_every_position_is_in_one(spatial):
    """Rows of 256 positions have room behind them, those of 255 have none."""
    source = np.zeros((2, 3, *spatial, 16), np.float32)
    with Workspace() as workspace:
        target = copies.take_features(workspace, "q", source.shape, FLOAT32)
        target[...] = 0
        pieces = copies._cut_pieces(source, target, 1 << 15)
        assert max(piece.source.nbytes for piece in pieces) <= 1 << 15
        for piece in pieces:
            assert piece.source.shape == piece.target.shape
            piece.source[...] += 1
            piece.target[...] += 1
        assert (source == 1).all() and (target == 1).all()
