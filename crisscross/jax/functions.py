"""The functions with a choice of derivatives: JAX lets a function have rules of one kind only."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any

from crisscross.jax.calls import call_operation
from crisscross.ops.arguments import FUNCTIONS
from crisscross.problem import Findings

_DOCUMENTATION = """Call `crisscross.{name}`, with derivatives of the kind that is asked for.

Parameters
----------
*args, **options
    As for `crisscross.{name}`.
forward_mode : bool
    False: gradients by kernels, as everywhere; `jax.jvp` raises. True: derivatives forwards, and
    backwards by transposing these: for `jvp`, `linearize`, `jacfwd` and `hessian`. The function
    itself runs as ever; its derivatives are plain JAX, and backwards these keep a map.

Returns
-------
As `crisscross.{name}`.

Examples
--------
>>> import jax, jax.numpy as jnp
>>> from crisscross.jax import {name}
>>> run = lambda x: {name}({arguments}, forward_mode=True).sum()
>>> x = jnp.ones({shape})
>>> jax.hessian(run)(x).shape == x.shape * 2
True
"""


def _choose_derivatives(name: str, arguments: str, shape: tuple[int, ...]) -> Callable[..., Any]:
    function: Any = FUNCTIONS[name]

    @wraps(function)
    def call(*args: Any, forward_mode: bool = False, **options: Any) -> Any:
        findings = Findings(name)
        findings.check_flag("forward_mode", forward_mode)
        findings.raise_if_any()
        return call_operation(function.__wrapped__, args, options, forward_mode)

    signature = inspect.signature(function)
    kind = inspect.Parameter.KEYWORD_ONLY
    further = inspect.Parameter("forward_mode", kind, default=False, annotation="bool")
    parameters = [*signature.parameters.values(), further]
    vars(call)["__signature__"] = signature.replace(parameters=parameters)
    call.__doc__ = _DOCUMENTATION.format(name=name, arguments=arguments, shape=shape)
    call.__module__ = __name__
    return call


criss_cross_attention = _choose_derivatives("criss_cross_attention", "x, x, x", (1, 2, 2, 3))
axial_attention = _choose_derivatives("axial_attention", "x, x, x, axis=0", (1, 2, 2, 3))
ca_weight = _choose_derivatives("ca_weight", "x, x", (1, 2, 2, 3))
ca_softmax = _choose_derivatives("ca_softmax", "x", (1, 4, 2, 3))
ca_map = _choose_derivatives("ca_map", "x, x", (1, 1, 1, 1))
