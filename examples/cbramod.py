"""CBraMod's criss-cross layer for EEG (ICLR 2025) in a few lines of axial attention.

    python examples/cbramod.py

Features are (N, electrodes, patches, 200). Half of the channels, four heads of 25, attend over the
electrodes at the same time; the other half over time at the same electrode; each half has a softmax
of its own. 25 is not a multiple of 8, and the plane is rectangular: nothing is padded for that.
Parameters have the names of the original's state dict.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

import crisscross

WIDTH, HEADS, HIDDEN = 200, 8, 800
#: Each half of the heads, and the spatial axis that it attends along.
HALVES = {"self_attn_s": 0, "self_attn_t": 1}

Parameters = Mapping[str, np.ndarray]


def apply_layer(parameters: Parameters, x: np.ndarray) -> np.ndarray:
    """Attend and feed forward, each after a norm and with a residual; without dropout."""
    x = x + attend(parameters, normalise(parameters, "norm1", x))
    hidden = apply_gelu(project(parameters, "linear1", normalise(parameters, "norm2", x)))
    return x + project(parameters, "linear2", hidden)


def attend(parameters: Parameters, x: np.ndarray) -> np.ndarray:
    """Attend along electrodes with one half of the channels, along time with the other."""
    halves = []
    for (name, axis), half in zip(HALVES.items(), np.split(x, 2, axis=-1), strict=True):
        own = {key.removeprefix(f"{name}."): array for key, array in parameters.items()}
        projected = half @ own["in_proj_weight"].T + own["in_proj_bias"]
        q, k, v = np.split(projected, 3, axis=-1)
        attended = crisscross.axial_attention(
            q,
            k,
            v,
            axis=axis,
            heads=HEADS // 2,
            scale=1 / math.sqrt(WIDTH / HEADS),
            channel_axis=-1,
        )
        halves.append(attended @ own["out_proj.weight"].T + own["out_proj.bias"])
    return np.concatenate(halves, axis=-1)


def project(parameters: Parameters, name: str, x: np.ndarray) -> np.ndarray:
    return x @ parameters[f"{name}.weight"].T + parameters[f"{name}.bias"]


def normalise(parameters: Parameters, name: str, x: np.ndarray) -> np.ndarray:
    """Layer norm."""
    centred = x - x.mean(-1, keepdims=True)
    standard = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    return standard * parameters[f"{name}.weight"] + parameters[f"{name}.bias"]


def apply_gelu(x: np.ndarray) -> np.ndarray:
    return x * (1 + np.vectorize(math.erf, otypes=[x.dtype])(x / math.sqrt(2))) / 2


def draw_parameters(seed: int = 0) -> dict[str, np.ndarray]:
    """Draw parameters of the right shapes."""
    shapes: dict[str, tuple[int, ...]] = {
        "linear1.weight": (HIDDEN, WIDTH),
        "linear1.bias": (HIDDEN,),
        "linear2.weight": (WIDTH, HIDDEN),
        "linear2.bias": (WIDTH,),
    }
    for name in ("norm1", "norm2"):
        shapes |= {f"{name}.weight": (WIDTH,), f"{name}.bias": (WIDTH,)}
    half = WIDTH // 2
    for name in HALVES:
        shapes |= {f"{name}.in_proj_weight": (3 * half, half), f"{name}.in_proj_bias": (3 * half,)}
        shapes |= {f"{name}.out_proj.weight": (half, half), f"{name}.out_proj.bias": (half,)}
    rng = np.random.default_rng(seed)
    return {
        name: rng.standard_normal(shape) / math.sqrt(shape[-1]) for name, shape in shapes.items()
    }


def main() -> None:
    x = np.random.default_rng(1).standard_normal((2, 19, 30, WIDTH))
    out = apply_layer(draw_parameters(), x)
    print(f"(N, electrodes, patches, channels): {x.shape} -> {out.shape}")
    print(
        crisscross.explain(
            x[..., :100], x[..., :100], x[..., :100], axes=(0,), heads=4, channel_axis=-1
        )
    )


if __name__ == "__main__":
    main()
