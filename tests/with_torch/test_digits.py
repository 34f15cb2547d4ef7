"""The example of digits: its data are what it says, who can know the key, and that it trains."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("digits", ROOT / "examples/digits.py")
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up.
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "digits", module)
        spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def canvases(example):
    digits = example.load()
    return example.draw(np.random.default_rng(5), digits, np.arange(1797), 40)


@pytest.mark.parametrize("seed", [0, 1])
def test_no_digit_is_trained_with_and_held_out(example, seed):
    digits = example.load()
    parts = example.split(digits, seed)
    assert [len(part) for part in parts] == [1297, 500]
    assert set(parts[0]) | set(parts[1]) == set(range(1797))
    # By what they look like, too: no two of the images are the same.
    first, second = ({digits.images[at].tobytes() for at in part} for part in parts)
    assert len(first) + len(second) == 1797 and not first & second


def test_canvases_hold_digits_of_the_pool_only(example):
    pool = np.array([3, 14, 15, 92, 65])
    drawn = example.draw(np.random.default_rng(0), example.load(), pool, 30)
    assert set(np.unique(drawn.picked)) == set(pool)


def test_canvases_are_those_described(canvases):
    """Each pixel of each digit, one by one, from what scikit-learn has."""
    data = load_digits()
    images, labels = np.zeros((40, 48, 48)), np.full((40, 48, 48), 19)
    kinds = np.full((40, 48, 48), "background")
    for n in range(40):
        key = canvases.picked[n, 0]
        places = set()
        for number, (digit, (top, left)) in enumerate(
            zip(canvases.picked[n], canvases.corners[n], strict=True)
        ):
            row, column = top // 12, left // 12
            places.add((row, column))
            assert (top % 12, left % 12) == tuple(canvases.corners[n, 0] % 12)
            assert {top % 12, left % 12} <= {0, 4}
            crosses = row == canvases.corners[n, 0, 0] // 12
            crosses |= column == canvases.corners[n, 0, 1] // 12
            for y in range(8):
                for x in range(8):
                    at, tone = (n, top + y, left + x), data.images[digit, y, x]
                    images[at] = tone / 16 * (0.6 if number else 1)
                    if tone > 4:
                        total = data.target[digit] + (data.target[key] if number else 0)
                        labels[at] = total
                        kinds[at] = "key" if number == 0 else "aligned" if crosses else "elsewhere"
        assert len(places) == 8
        brightest = np.argwhere(canvases.images[n, 0] == canvases.images[n, 0].max())
        inside = brightest - canvases.corners[n, 0]
        assert ((inside >= 0) & (inside < 8)).all()
    np.testing.assert_allclose(canvases.images[:, 0], images, rtol=1e-6)
    np.testing.assert_array_equal(canvases.labels, labels)
    for name in ("key", "aligned", "elsewhere"):
        np.testing.assert_array_equal(getattr(canvases, name), kinds == name)


def test_who_can_know_the_key(example, canvases):
    """Another key, and nothing else: whose logits change?"""
    picked = canvases.picked.copy()
    picked[:, 0] = (picked[:, 0] + 1) % 1797
    others = example.compose(example.load(), picked, canvases.corners)
    for recurrence, network in example.build(0).items():
        network.eval()
        with torch.no_grad():
            first, second = (network(torch.from_numpy(x.images)) for x in (canvases, others))
        change = (first - second).abs().amax(1).numpy()
        assert change[canvases.key].min() > 1e-4
        known = {"aligned": recurrence >= 1, "elsewhere": recurrence >= 2}
        for kind, changes in known.items():
            at = getattr(canvases, kind)
            assert at.any()
            if changes:
                assert change[at].min() > 1e-6, (recurrence, kind)
            else:
                assert change[at].max() < 1e-6, (recurrence, kind)


def test_networks_begin_the_same(example):
    networks = example.build(3).values()
    first, *rest = (network.state_dict() for network in networks)
    for state in rest:
        assert state.keys() == first.keys()
        assert all(torch.equal(state[name], first[name]) for name in first)


def test_it_runs_and_lowers_the_loss(example, tmp_path, monkeypatch, capsys):
    kept = []
    train = example.train
    monkeypatch.setattr(example, "train", lambda *args: kept.append(train(*args)) or kept[0])
    monkeypatch.setattr("sys.argv", ["digits.py", "--quick", "--out", str(tmp_path)])
    example.main()
    (curves,) = kept
    assert list(curves) == [0, 1, 2]
    for curve in curves.values():
        assert curve.steps == list(range(1, 21)) and len(curve.accuracies) == 20
        assert np.mean(curve.losses[-3:]) < 0.75 * np.mean(curve.losses[:3])
    count, _, header, _, *rows = capsys.readouterr().out.splitlines()
    assert [row[:5] for row in rows] == ["| 0 |", "| 1 |", "| 2 |"]
    document = (ROOT / "docs/training.md").read_text()
    assert header in document and count.removesuffix(" parameters each") in document
    assert [path.name for path in tmp_path.iterdir()] == ["digits.png"]
    drawn, shown = (plt.imread(folder / "digits.png") for folder in (tmp_path, ROOT / "docs"))
    assert drawn.shape == shown.shape and drawn.std() > 0.05
