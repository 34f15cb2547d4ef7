"""This library, on NumPy arrays."""

from __future__ import annotations

from typing import Any

import numpy as np

import crisscross
from crisscross.bench.peer import Calls, Form, Inputs

PACKAGES = ("crisscross-attention", "numpy")


def release() -> None:
    crisscross.clear_workspace()


def prepare_channels_first(inputs: Inputs) -> Calls:
    return _prepare(inputs.q, inputs.k, inputs.v, inputs.dout, channel_axis=1)


def prepare_channels_last(inputs: Inputs) -> Calls:
    arrays = (inputs.q, inputs.k, inputs.v, inputs.dout)
    return _prepare(*(np.moveaxis(x, 1, -1).copy() for x in arrays), channel_axis=-1)


def _prepare(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, dout: np.ndarray, channel_axis: int
) -> Calls:
    def forward() -> dict[str, Any]:
        out, lse = crisscross.criss_cross_attention(
            q, k, v, channel_axis=channel_axis, return_lse=True
        )
        return {"out": out, "lse": lse}

    def forward_backward() -> dict[str, Any]:
        results = forward()
        dq, dk, dv = crisscross.criss_cross_attention_backward(
            dout, q, k, v, results["out"], results["lse"], channel_axis=channel_axis
        )
        return {**results, "dq": dq, "dk": dk, "dv": dv}

    def to_numpy(results: dict[str, Any]) -> dict[str, np.ndarray]:
        # lse is (N, heads, H, W) whatever the channel axis.
        return {
            name: array if name == "lse" else np.moveaxis(array, channel_axis, 1)
            for name, array in results.items()
        }

    return Calls(forward, forward_backward, to_numpy)


#: The first is what all others are compared with.
FORMS = {
    "crisscross": Form(prepare_channels_first),
    "crisscross, channels-last": Form(prepare_channels_last),
}
