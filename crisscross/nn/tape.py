"""Gradients of what is made of a few layers: a tape of what was computed, walked backwards."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from crisscross.dispatch import library_of
from crisscross.errors import Fault
from crisscross.problem import Findings

#: From the gradient of a step's output to those of its inputs; None where there is none.
Pull = Callable[[Any], Sequence[Any]]


class _Step(NamedTuple):
    output: Any
    inputs: tuple[Any, ...]
    pull: Pull


class Tape:
    """What blocks computed, in order, and how gradients go back through it.

    A block that is given a tape records its steps there; several blocks may share one. What it was
    given must not be changed in place before gradients are pulled: of most steps, only their inputs
    are kept.

    Examples
    --------
    >>> import numpy as np
    >>> from crisscross import nn
    >>> x = np.random.default_rng(0).standard_normal((1, 16, 5, 7))
    >>> parameters = nn.init_criss_cross_block(16, seed=1, gamma=0.5, dtype="float64")
    >>> tape = nn.Tape()
    >>> out = nn.criss_cross_block(parameters, x, recurrence=2, tape=tape)
    >>> dparameters, dx = tape.pull(out, np.ones_like(out), (parameters, x))
    >>> sorted(dparameters) == sorted(parameters), dx.shape == x.shape
    (True, True)
    """

    def __init__(self) -> None:
        self._steps: list[_Step] = []
        self._given: list[Any] = []

    def note(self, arrays: Sequence[Any]) -> None:
        """Note what a block was given: of these gradients may be wanted, if only to find none."""
        self._given += arrays

    def record(self, output: Any, inputs: Sequence[Any], pull: Pull) -> None:
        """Note that `output` was made of `inputs`, and how its gradient goes back to them."""
        self._steps.append(_Step(output, tuple(inputs), pull))

    def pull(self, output: Any, doutput: Any, wanted: Any) -> Any:
        """Return the gradients of ``sum(output * doutput)``.

        Parameters
        ----------
        output
            What a block returned.
        doutput
            Its gradient, in its shape.
        wanted
            An array, or a mapping or a tuple of such, and so on: with respect to what.

        Returns
        -------
        Gradients, arranged like `wanted`; None for what `output` was not made of, as running
        statistics are.

        Raises
        ------
        ArgumentError, ArgumentTypeError
            If no block made `output`, its gradient is another kind of array, or blocks were not
            given what is wanted: arrays are known by identity, not by their values.
        """
        known = set(map(id, self._given))
        known.update(id(array) for step in self._steps for array in (step.output, *step.inputs))
        kept = set(map(id, _list_arrays(wanted)))
        _check(output, doutput, known, kept)
        gradients = {id(output): doutput}
        for step in reversed(self._steps):
            # An array's gradient is whole when the step that made it is reached; later it is needed
            # no more, unless it was asked for.
            take = gradients.get if id(step.output) in kept else gradients.pop
            doutput = take(id(step.output), None)
            if doutput is None:
                continue
            for array, gradient in zip(step.inputs, step.pull(doutput), strict=True):
                if gradient is not None:
                    before = gradients.get(id(array))
                    gradients[id(array)] = gradient if before is None else before + gradient
        return _rearrange(wanted, gradients)


def _check(output: Any, doutput: Any, known: set[int], kept: set[int]) -> None:
    findings = Findings("Tape.pull")
    if id(output) not in known:
        findings.add("output", "what a block with this tape returned", "another array")
    libraries = [library_of(array) for array in (output, doutput)]
    if libraries[0] != libraries[1]:
        expected = f"an array of {libraries[0]} like output"
        findings.add("doutput", expected, f"an array of {libraries[1]}", Fault.TYPE)
    else:
        shapes = [tuple(array.shape) for array in (output, doutput)]
        if shapes[0] != shapes[1]:
            findings.add("doutput.shape", f"{shapes[0]} like output", str(shapes[1]))
        if doutput.dtype != output.dtype:
            expected = f"{output.dtype} like output"
            findings.add("doutput.dtype", expected, str(doutput.dtype), Fault.TYPE)
    if strangers := len(kept - known):
        expected = "arrays that blocks with this tape were given"
        findings.add("wanted", expected, f"{strangers} of {len(kept)} that they were not")
    findings.raise_if_any()


def _list_arrays(tree: Any) -> list[Any]:
    if isinstance(tree, Mapping):
        tree = tuple(tree.values())
    if isinstance(tree, (tuple, list)):
        return [array for branch in tree for array in _list_arrays(branch)]
    return [tree]


def _rearrange(tree: Any, gradients: Mapping[int, Any]) -> Any:
    if isinstance(tree, Mapping):
        return {name: _rearrange(branch, gradients) for name, branch in tree.items()}
    if isinstance(tree, (tuple, list)):
        return tuple(_rearrange(branch, gradients) for branch in tree)
    return gradients.get(id(tree))
