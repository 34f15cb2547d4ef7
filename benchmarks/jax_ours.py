"""This library within what JAX compiles: called from there, and compiled by XLA itself."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import jax
from jax_jit import Compiled, compile_both, prepare

import crisscross
from crisscross.bench.peer import Calls, Form, Inputs
from crisscross.bench.shapes import CHANNELS_FIRST, CHANNELS_LAST, CPU, CUDA, DEVICES

__all__ = ["FORMS", "PACKAGES", "release"]

PACKAGES = ("crisscross-attention", "jax", "jaxlib")


def release() -> None:
    crisscross.clear_workspace()
    jax.clear_caches()


def compile_ours(backend: str | None) -> Mapping[str, Compiled]:
    return {
        layout: compile_both(
            partial(crisscross.criss_cross_attention, channel_axis=axis, backend=backend)
        )
        for layout, axis in ((CHANNELS_FIRST, 1), (CHANNELS_LAST, -1))
    }


#: What is called on each device.
CALLED = {device: compile_ours(backend) for device, backend in ((CPU, "cpu"), (CUDA, "gpu"))}
BY_XLA = compile_ours("xla")


def prepare_called(inputs: Inputs) -> Calls:
    return prepare(inputs, CALLED[inputs.device])


def prepare_by_xla(inputs: Inputs) -> Calls:
    return prepare(inputs, BY_XLA)


FORMS = {
    "crisscross under jit, called": Form(prepare_called, devices=DEVICES),
    "crisscross under jit, by XLA": Form(prepare_by_xla, devices=DEVICES),
}
