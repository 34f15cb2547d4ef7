"""Copies of inputs: room where positions would clash, and pieces of a bounded size."""

from __future__ import annotations

import numpy as np
import pytest

from crisscross.cpu import copies
from crisscross.cpu.crew import Crew
from crisscross.cpu.workspace import Workspace

FLOAT32 = np.dtype(np.float32)


@pytest.mark.parametrize(
    ("rows", "row", "channels", "strides"),
    [
        (3, 97, 512, (97 * 2112, 2112)),
        (129, 256, 32, (257 * 128, 128)),
        (128, 256, 32, (256 * 128, 128)),
        (3, 24, 16, (1536, 64)),
    ],
    ids=["behind vectors", "behind rows", "behind few rows", "nowhere"],
)
def test_room_is_left_where_positions_would_clash(rows, row, channels, strides):
    shape = (1, 1, rows, row, channels)
    with Workspace() as workspace:
        features = copies.take_features(workspace, "v", shape, FLOAT32)
        assert features.shape == shape
        assert features.strides[-3:-1] == strides


@pytest.mark.parametrize("spatial", [(4, 8, 256), (32, 256), (2048,), (4, 8, 255)])
def test_pieces_are_of_bounded_size_and_every_position_is_in_one(monkeypatch, spatial):
    """Rows of 256 positions have room behind them, those of 255 have none."""
    monkeypatch.setattr(copies, "_MOST_ROWS", 1)
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


@pytest.mark.parametrize(
    ("positions", "channels", "transposed"),
    [(1000, 16, False), (1024, 16, True), (128, 16, True), (127, 16, False), (1033, 16, True)],
    ids=["small", "clashing", "smallest clashing", "too small", "large"],
)
def test_openblas_transposes_what_is_large_or_clashes(monkeypatch, positions, channels, transposed):
    """On the way in and out; the rest is NumPy's, here all of it."""
    asked = []
    monkeypatch.setattr(copies, "transpose", lambda *arrays: asked.append(arrays))
    values = np.arange(positions * channels, dtype=np.float32).reshape(1, 1, -1, channels)
    given = np.ascontiguousarray(values.swapaxes(-1, -2)).swapaxes(-1, -2)
    result = np.empty_like(given)
    with Workspace() as workspace:
        crew = Crew(1, workspace)
        (copied,) = copies.convert({"v": given}, FLOAT32, crew)
        np.testing.assert_array_equal(copied, values)
        assert bool(asked) == transposed
        asked.clear()
        copies.write_back([(values, result)], crew)
    assert bool(asked) == transposed
    np.testing.assert_array_equal(result, values)
