"""The examples run, and what the documents show of them is what they give."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest

from crisscross import nn

ROOT = Path(__file__).parents[2]


def load_example(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / f"examples/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_example_is_in_a_test():
    """Those of CBraMod and of digits beside PyTorch, and that of digits in JAX beside JAX."""
    names = {path.stem for path in (ROOT / "examples").glob("*.py")}
    assert names == {"cbramod", "costs", "digits", "digits_jax", "pictures"}


def test_the_pictures_are_those_of_the_documents(tmp_path, monkeypatch):
    """But for what a version of matplotlib draws otherwise."""
    monkeypatch.setattr("sys.argv", ["pictures.py", str(tmp_path)])
    load_example("pictures").main()
    assert {path.name for path in tmp_path.iterdir()} == {"attention.png", "entropy.png"}
    for path in tmp_path.iterdir():
        drawn, shown = (plt.imread(each) for each in (path, ROOT / "docs" / path.name))
        assert drawn.shape == shown.shape
        assert np.abs(drawn - shown).mean() < 0.02


def test_the_table_of_costs(monkeypatch, capsys):
    """Of a small image; memory is measured, so it is only there."""
    example = load_example("costs")
    monkeypatch.setattr(example, "SHAPE", (1, 16, 9, 11))
    example.main()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + 3 * 2 + 2
    assert all(re.search(r"\| \d+ MiB \| \d+ MiB \|$", line) for line in lines[2:])
    cost = nn.count_criss_cross_block((9, 11), 16, recurrence=3)
    assert lines[6].startswith(f"| criss-cross, R = 3 | {cost.published_flops / 1e9:.2f} G |")


@pytest.mark.parametrize("recurrence", [1, 2])
def test_the_plain_forms_compute_the_same(recurrence):
    """Outputs and all gradients: or their memory would be that of something else."""
    example = load_example("costs")
    parameters = nn.init_criss_cross_block(16, gamma=0.5, dtype="float64")
    x = np.random.default_rng(0).standard_normal((2, 16, 5, 7))
    for attend, block in (
        (example.attend_with_map, nn.criss_cross_block),
        (example.attend_to_all, nn.position_attention_block),
    ):
        expected, tape = x, nn.Tape()
        for _ in range(recurrence):
            expected = block(parameters, expected, tape=tape)
        gradients = tape.pull(expected, expected, (parameters, x))
        out, plain_tape = example.apply_with_map(attend, recurrence, parameters, x)
        np.testing.assert_allclose(out, expected, 1e-12, 1e-12)
        found = plain_tape.pull(out, out, (parameters, x))
        for name, gradient in gradients[0].items():
            np.testing.assert_allclose(found[0][name], gradient, 1e-10, 1e-10)
        np.testing.assert_allclose(found[1], gradients[1], 1e-10, 1e-10)


@pytest.mark.parametrize("recurrence", [1, 2, 3, None])
def test_the_counts_in_the_document(recurrence):
    if recurrence is None:
        name, cost = "all positions", nn.count_position_attention_block((97, 97), 512)
    else:
        name = f"criss-cross, R = {recurrence}"
        cost = nn.count_criss_cross_block((97, 97), 512, recurrence=recurrence)
    row = (
        f"| {name} | {cost.published_flops / 1e9:.2f} G | {cost.flops / 1e9:.2f} G "
        f"| {cost.map_bytes / 2**20:.1f} MiB |"
    )
    assert row in (ROOT / "docs/blocks.md").read_text()


def test_the_products_in_the_document():
    text = (ROOT / "docs/blocks.md").read_text()
    for cost in (
        nn.count_non_local_block((97, 97), 512),
        nn.count_non_local_block((97, 97), 512, mode="dot_product"),
        nn.count_channel_attention_block((97, 97), 512),
        nn.count_rcca_head((97, 97), classes=19),
    ):
        assert f"{cost.flops / 1e9:.2f} G" in text
