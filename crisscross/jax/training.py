"""What the head does otherwise while training: a key drops channels, statistics are followed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
from jax import Array, lax

from crisscross import nn
from crisscross.errors import Fault
from crisscross.jax.initial import check_key
from crisscross.problem import Findings
from crisscross.problem.findings import describe_value


@partial(jax.tree_util.register_dataclass, data_fields=["key"], meta_fields=["dropout", "momentum"])
@dataclass(frozen=True)
class Training:
    """What `rcca_head` does otherwise while training; a tree of JAX, whose numbers are static.

    Attributes
    ----------
    key : jax.Array or None
        Decides which channels are dropped; None drops none. A key for each step.
    dropout : float
        The share of channels that are dropped before the classifier; 0.1, as in CCNet.
    momentum : float
        The share of new statistics in the running ones.
    """

    key: Any = None
    dropout: float = 0.1
    momentum: float = 0.1


class _Draws:
    """Draws from a key, new numbers each time, as a generator of NumPy's does."""

    def __init__(self, key: Array) -> None:
        self._key = key

    def random(self, shape: tuple[int, ...], /) -> Array:
        self._key, key = jax.random.split(self._key)
        return jax.random.uniform(key, shape, "float32")


def read_training(findings: Findings, training: Any) -> nn.Training | None:
    """Say it as `nn.rcca_head` takes it, which checks the numbers."""
    if training is None:
        return None
    if not isinstance(training, Training):
        expected = "None or a Training of crisscross.jax"
        findings.add("training", expected, describe_value(training), Fault.TYPE)
        return None
    if training.key is not None:
        check_key(findings, "training.key", training.key)
    draws = None if training.key is None else _Draws(training.key)
    return nn.Training(draws, training.dropout, training.momentum)


def hold_statistics(parameters: Any) -> Any:
    """Keep gradients from running statistics, which are followed and not learned."""
    if not isinstance(parameters, Mapping):
        return parameters  # to be refused

    def hold(name: object, x: Any) -> Any:
        is_running = str(name).endswith((".running_mean", ".running_var"))
        return lax.stop_gradient(x) if is_running and isinstance(x, Array) else x

    return {name: hold(name, x) for name, x in parameters.items()}
