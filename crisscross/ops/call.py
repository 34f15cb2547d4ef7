"""One call of a public function: arrays in, problem checked, backend chosen, outputs filled."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, cast

import numpy as np

from crisscross.bridge import (
    allocate,
    describe,
    find_maker,
    give_back,
    hold,
    name_dtype,
    share,
    take,
)
from crisscross.dispatch import Adapter, Held, adapter_of, kind_of, library_of
from crisscross.errors import Fault
from crisscross.ops.backends import Backend, Choice, check_backend, load_backend, recall_choice
from crisscross.problem import ArraySpec, Findings
from crisscross.view import find_strides

#: NumPy arrays on the CPU, `View`s on a device.
Views = Mapping[str, Any]


class Output(NamedTuple):
    """An output to allocate: in the memory format of the input `like`, else in C order."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    like: str | None = None


class Call:
    """One call of `function` on `arrays`; an `optional` array that is None does not take part.

    A function that leaves all to the arrays' library `shares` no memory, and does not `fill`.
    """

    def __init__(
        self,
        function: str,
        backend: str | None,
        arrays: Mapping[str, Any],
        optional: Mapping[str, Any] = MappingProxyType({}),
        shares: bool = True,
    ) -> None:
        self.findings = Findings(function)
        self.backend = backend
        check_backend(self.findings, backend)
        given = {name: array for name, array in optional.items() if array is not None}
        self.arrays = {**arrays, **given}
        self.specs: dict[str, ArraySpec | None] = {}
        self._device: str | None = None
        self._is_fake, self._shares = False, shares
        self._example: Any = None
        for name, array in self.arrays.items():
            self._take(name, array)

    def _take(self, name: str, array: Any) -> None:
        description = describe(self.findings, name, array, self._shares)
        self.specs[name] = None if description is None else description.spec
        if description is None:
            return
        self._is_fake = self._is_fake or description.is_fake
        if self._example is None:
            self._example, self._leader = array, name
            self._device = description.device
            return
        same = type(array) is type(self._example)
        if not same and (library := library_of(array)) != (expected := library_of(self._example)):
            got = f"an array of {library}"
            self.findings.add(name, f"an array of {expected} like {self._leader}", got, Fault.TYPE)
        elif None not in (self._device, description.device) and description.device != self._device:
            expected = f"{self._device} like {self._leader}"
            self.findings.add(f"{name}.device", expected, str(description.device))

    def _hold_to_spec(self, name: str, shape: tuple[int, ...], dtype: str) -> None:
        """Report memory that is not what its owner said of it."""
        spec = self.specs[name]
        if spec is not None and (shape, dtype) != (spec.shape, spec.dtype):
            expected = f"the {spec.dtype} {spec.shape} that the array tells of itself"
            got = f"{dtype} {shape} from its memory"
            self.findings.add(name, expected, got, Fault.MEMORY)

    def shape_of(self, name: str) -> tuple[int, ...]:
        """Return the shape of an array, once the problem has been checked."""
        spec = self.specs[name]
        assert spec is not None
        return spec.shape

    @property
    def device(self) -> str:
        """Where the arrays are, once the problem has been checked."""
        assert self._device is not None
        return self._device

    def choose(self) -> Choice:
        """Choose the backend, once the problem has been checked."""
        library = library_of(self._example)
        return recall_choice(self.findings.function, self.device, self.backend, library)

    def fill(
        self, outputs: Sequence[Output], run: Callable[[Backend, Views], None]
    ) -> tuple[Any, ...]:
        """Allocate `outputs`, let `run` fill them, and return them as the caller's arrays.

        `run` gets the chosen backend and the views of all inputs and outputs by name.
        """
        kind = kind_of(self._example)
        assert kind is not None  # the problem was checked, so there is an array
        adapter = adapter_of(kind)
        if self._is_fake:
            return tuple(
                adapter.imitate(
                    output.shape,
                    output.dtype,
                    self.arrays[output.like or self._leader],
                    output.like is not None,
                )
                for output in outputs
            )
        choice = self.choose()
        if choice.backend == "gpu":
            return self._fill_on_device(outputs, run, adapter)
        views: dict[str, np.ndarray] = {}
        for name, array in self.arrays.items():
            view = share(self.findings, name, array, adapter)
            if view is None:
                continue
            if view is not array:
                self._hold_to_spec(name, view.shape, name_dtype(view.dtype))
            views[name] = view
        self.findings.raise_if_any()
        for output in outputs:
            like = None if output.like is None else views[output.like]
            views[output.name] = allocate(output.shape, _numpy_dtype(output, views), like)
        run(load_backend(choice.backend), views)
        results = [
            give_back(self.findings, output.name, views[output.name], adapter, self._example)
            for output in outputs
        ]
        self.findings.raise_if_any()
        return tuple(results)

    def _fill_on_device(
        self, outputs: Sequence[Output], run: Callable[[Backend, Views], None], adapter: Adapter
    ) -> tuple[Any, ...]:
        """Do what `fill` does in the memory of a device, on the caller's stream."""
        from crisscross import gpu

        example = self._example
        stream = adapter.find_stream(example)
        make = find_maker(self.findings, outputs[0].name, adapter, example)
        self.findings.raise_if_any()
        with gpu.open_device(self.device, stream, make) as backend:
            engine = backend.engine
            all_held: dict[str, Held] = {}
            for name, array in self.arrays.items():
                held = hold(self.findings, name, array, adapter, engine.stream)
                if held is not None:
                    self._hold_to_spec(name, held.view.shape, held.view.dtype)
                    all_held[name] = held
            self.findings.raise_if_any()
            for held in all_held.values():
                if held.stream is not None:
                    engine.wait_for(held.stream)
            for output in outputs:
                like = None if output.like is None else all_held[output.like].view
                strides = find_strides(output.shape, like)
                all_held[output.name] = engine.make(output.shape, strides, output.dtype)
            run(cast(Backend, backend), {name: held.view for name, held in all_held.items()})
            engine.keep([held.owner for held in all_held.values() if held.is_foreign])
            results = [
                take(self.findings, output.name, all_held[output.name].owner, adapter, example)
                for output in outputs
            ]
        self.findings.raise_if_any()
        return tuple(results)


def _numpy_dtype(output: Output, views: Mapping[str, np.ndarray]) -> np.dtype[Any]:
    # bfloat16 is no name to NumPy itself, but an input of that dtype carries it along.
    if output.like is not None and name_dtype(views[output.like].dtype) == output.dtype:
        return views[output.like].dtype
    return np.dtype(output.dtype)
