"""The example of CBraMod's layer against the same layer made of PyTorch's modules."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import torch

PATH = Path(__file__).parents[2] / "examples/cbramod.py"


def load_example():
    spec = importlib.util.spec_from_file_location("cbramod", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def apply_torch(parameters, x):
    """(N, electrodes, patches, 200): sequences of electrodes, and sequences of patches."""
    state = {name: torch.from_numpy(array) for name, array in parameters.items()}

    def attend(name, sequences):
        module = torch.nn.MultiheadAttention(100, 4, batch_first=True, dtype=torch.float64).eval()
        own = {key.removeprefix(f"{name}."): each for key, each in state.items() if name in key}
        module.load_state_dict(own, strict=True)
        return module(sequences, sequences, sequences, need_weights=False)[0]

    def norm(name, x):
        return torch.nn.functional.layer_norm(
            x, (200,), state[f"{name}.weight"], state[f"{name}.bias"]
        )

    n, electrodes, patches, _ = x.shape
    with torch.no_grad():
        spatial, temporal = norm("norm1", x).split(100, -1)
        by_time = spatial.transpose(1, 2).reshape(n * patches, electrodes, 100)
        by_electrode = temporal.reshape(n * electrodes, patches, 100)
        attended = torch.cat(
            [
                attend("self_attn_s", by_time).view(n, patches, electrodes, 100).transpose(1, 2),
                attend("self_attn_t", by_electrode).view(n, electrodes, patches, 100),
            ],
            -1,
        )
        x = x + attended
        linear = torch.nn.functional.linear
        hidden = linear(norm("norm2", x), state["linear1.weight"], state["linear1.bias"])
        hidden = torch.nn.functional.gelu(hidden)
        return x + linear(hidden, state["linear2.weight"], state["linear2.bias"])


def test_the_layer_is_cbramods():
    example = load_example()
    parameters = example.draw_parameters(seed=3)
    x = np.random.default_rng(2).standard_normal((2, 7, 5, 200))
    expected = apply_torch(parameters, torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(example.apply_layer(parameters, x), expected, 1e-11, 1e-11)


def test_the_example_runs(capsys):
    load_example().main()
    assert "(2, 19, 30, 200) -> (2, 19, 30, 200)" in capsys.readouterr().out
