"""A block's parameters, by the names of the originals: read once, with every mismatch at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from copy import copy
from typing import Any

from crisscross.bridge import describe
from crisscross.dispatch import Description, library_of
from crisscross.errors import ArgumentError, ArgumentTypeError, BridgeError, Fault
from crisscross.nn.tape import Tape
from crisscross.ops.backends import check_backend
from crisscross.problem import COMPUTE_DTYPES, ArraySpec, Findings, attention_problem
from crisscross.problem.findings import Shape, describe_value, format_shape

#: What PyTorch's batch norms count: in state dicts, but read by nobody.
NO_PARAMETER = "num_batches_tracked"
#: Name -> array, as in a state dict.
Parameters = Mapping[str, Any]
#: A size, possibly symbolic; None where the parameter that would tell it is missing.
Size = Any


class Reader:
    """Reads the parameters of one call of a block, and collects what does not fit.

    Whatever `take_...` returns may be used only after `finish`, which raises if anything was found.
    """

    def __init__(self, function: str, parameters: Any, x: Any, channel_axis: object) -> None:
        self.findings = Findings(function)
        self._read: set[str] = set()
        self._given = [x]
        self._traced: list[str] = []
        #: Of all parameters: what x was to be like, if it is x that does not fit.
        self._seen: dict[str, set[Any]] = {
            "library": set(),
            "dtype": set(),
            "channels": set(),
            "axes": set(),
        }
        self._prefix = ""
        self._parameters: Parameters = parameters
        if not isinstance(parameters, Mapping):
            expected = "a mapping of names to arrays"
            self.findings.add("parameters", expected, describe_value(parameters), Fault.TYPE)
            self._parameters = {}
        self.channel_axis = self.findings.check_channel_axis(channel_axis) or 1
        description = describe(self.findings, "x", x, shares=False)
        spec = None if description is None else description.spec
        self._device = None if description is None else description.device
        self._library = None if description is None else library_of(x)
        self._note_if_traced("x", description)
        self.dtype = self.findings.check_features({"x": spec}, ("x",))
        self.shape: Shape = () if spec is None else spec.shape
        self.spatial_ndim, self.channels = 2, 0
        if spec is not None and spec.ndim < 3:
            expected = "(N, C, *S) or (N, *S, C)"
            self.findings.add("x.shape", expected, format_shape(spec.shape))
        elif spec is not None:
            self.spatial_ndim, self.channels = spec.ndim - 2, spec.shape[self.channel_axis]
        self.findings.raise_if_any()  # what the parameters are to be follows from x

    def __contains__(self, name: str) -> bool:
        return self._prefix + name in self._parameters

    @property
    def is_traced(self) -> bool:
        """Whether JAX traces x, or any parameter that was taken."""
        return bool(self._traced)

    def within(self, prefix: str) -> Reader:
        """Return a reader of the parameters whose names begin so, for the same call."""
        inner = copy(self)  # what was found and read is shared
        inner._prefix = self._prefix + prefix
        return inner

    def take_matrix(self, name: str, outputs: Size, inputs: Size) -> Any:
        """Take the weight of a convolution of size 1: (outputs, inputs), or with sizes of 1."""
        array, spec = self._take(name)
        if spec is not None:
            self._note_inputs(spec, inputs)
            sizes = spec.shape[2:]
            fits = len(sizes) in (0, self.spatial_ndim) and all(size == 1 for size in sizes)
            if not _fits(spec.shape[:2], (outputs, inputs)) or not fits:
                whole = _format((outputs, inputs), *["1"] * self.spatial_ndim)
                self._add(name, f"{whole} or {_format((outputs, inputs))}", spec)
        return array

    def take_kernel(self, name: str, outputs: Size, inputs: Size) -> Any:
        """Take the weight of a convolution of odd sizes, one for each spatial axis."""
        array, spec = self._take(name)
        if spec is not None:
            self._note_inputs(spec, inputs)
            sizes = spec.shape[2:]
            fits = len(sizes) == self.spatial_ndim and all(size % 2 == 1 for size in sizes)
            if not _fits(spec.shape[:2], (outputs, inputs)) or not fits:
                odd = _format((outputs, inputs), *["odd"] * self.spatial_ndim)
                self._add(name, odd, spec)
        return array

    def take_vector(self, name: str, size: Size, may_be_wide: bool = False) -> Any:
        """Take a vector of one number a channel, which may be float32 beside 16 bits if so said."""
        array, spec = self._take(name, may_be_wide)
        if spec is not None and not _fits(spec.shape, (size,)):
            self._add(name, _format((size,)), spec)
        return array

    def take_scalar(self, name: str) -> Any:
        """Take a single number: (1,) or ()."""
        array, spec = self._take(name)
        if spec is not None and tuple(spec.shape) not in ((), (1,)):
            self._add(name, "(1,)", spec)
        return array

    def take_optional_vector(self, name: str, size: Size) -> Any:
        return self.take_vector(name, size) if name in self else None

    def count_outputs(self, name: str) -> Size:
        """Return how many rows a weight has, None where there is none to tell."""
        shape = tuple(getattr(self._parameters.get(self._prefix + name), "shape", ()))
        return shape[0] if shape else None

    def _take(self, name: str, may_be_wide: bool = False) -> tuple[Any, ArraySpec | None]:
        name = self._prefix + name
        self._read.add(name)
        if name not in self._parameters:
            self.findings.add(f"parameters[{name!r}]", "an array", "nothing of that name")
            return None, None
        array, label = self._parameters[name], f"parameters[{name!r}]"
        self._given.append(array)
        description = describe(self.findings, label, array, shares=False)
        if description is None:
            return array, None
        self._note_if_traced(label, description)
        self._seen["library"].add(library_of(array))
        self._seen["dtype"].add(description.spec.dtype)
        if (library := library_of(array)) != self._library:
            expected = f"an array of {self._library} like x"
            self.findings.add(label, expected, f"an array of {library}", Fault.TYPE)
        elif None not in (self._device, description.device) and description.device != self._device:
            self.findings.add(f"{label}.device", f"{self._device} like x", str(description.device))
        is_wide = may_be_wide and description.spec.dtype == COMPUTE_DTYPES[self.dtype or "float64"]
        if self.dtype is not None and not is_wide:
            self.findings.check_dtype(label, description.spec, self.dtype, "like x")
        return array, description.spec

    def _note_inputs(self, spec: ArraySpec, inputs: Size) -> None:
        if spec.ndim > 2:
            self._seen["axes"].add(spec.ndim - 2)
        if inputs == self.channels and spec.ndim > 1:
            self._seen["channels"].add(spec.shape[1])

    def _blame_x(self) -> None:
        """Say first of x what no parameter fits: a layout that was mistaken, another library's."""
        before = len(self.findings.mismatches)
        libraries, dtypes, channels, axes = self._seen.values()
        if len(libraries) == 1 and self._library not in libraries:
            got = f"an array of {self._library}"
            self.findings.add(
                "x", f"an array of {libraries.pop()} like parameters", got, Fault.TYPE
            )
        elif len(dtypes) == 1 and self.dtype is not None and self.dtype not in dtypes:
            self.findings.add("x.dtype", f"{dtypes.pop()} like parameters", self.dtype, Fault.TYPE)
        if len(axes) == 1 and self.spatial_ndim not in axes:
            expected = f"N, channels and {axes.pop()} spatial sizes like parameters"
            self.findings.add("x.shape", expected, format_shape(self.shape))
        elif len(channels) == 1 and self.channels not in channels:
            size = channels.pop()
            layout = f"(N, {size}, *S)" if self.channel_axis == 1 else f"(N, *S, {size})"
            expected = f"{layout} like parameters, with channel_axis={self.channel_axis}"
            self.findings.add("x.shape", expected, format_shape(self.shape))
        mismatches = self.findings.mismatches
        mismatches[:] = mismatches[before:] + mismatches[:before]

    def _note_if_traced(self, label: str, description: Description | None) -> None:
        if description is not None and description.is_traced:
            self._traced.append(label)

    def _add(self, name: str, expected: str, spec: ArraySpec) -> None:
        label = f"parameters[{self._prefix + name!r}].shape"
        self.findings.add(label, expected, format_shape(spec.shape))

    def finish(self, tape: Any, pairs: Any = None) -> None:
        """Raise if anything did not fit, parameters that nothing reads included."""
        if not isinstance(tape, Tape | None):
            self.findings.add("tape", "None or a Tape", describe_value(tape), Fault.TYPE)
        if not isinstance(pairs, list | None):
            self.findings.add("pairs", "None or a list", describe_value(pairs), Fault.TYPE)
        unread = [
            name
            for name in self._parameters
            if name not in self._read and not str(name).endswith(NO_PARAMETER)
        ]
        if self.findings.mismatches:
            self._blame_x()
        if unread:
            expected = f"names among {sorted(self._read)}"
            self.findings.add("parameters", expected, ", ".join(map(repr, unread)))
        self.findings.raise_if_any()
        if tape is not None:
            tape.note(self._given)

    def finish_attention(
        self,
        rows: Iterable[Size],
        channels: Size,
        options: Mapping[str, Any],
        tape: Any,
        pairs: Any = None,
    ) -> None:
        """Finish, and hold the options of attention to q and k of `rows` channels, v of `channels`.

        Attention would, but in its own name, after the projections, and not in no steps of it.
        """
        options = {"scale": 1.0, "heads": 1, "axes": None, "key_mask": None, **options}
        check_backend(self.findings, options.pop("backend"))
        specs: dict[str, ArraySpec | None] = {"v": self._like_x(channels)}
        mask = options.pop("key_mask")
        if mask is not None:
            description = describe(self.findings, "key_mask", mask, shares=False)
            specs["key_mask"] = None if description is None else description.spec
        for count in dict.fromkeys(rows):
            with suppress(ArgumentError, ArgumentTypeError, BridgeError):  # findings keep it
                problem = {**specs, "q": self._like_x(count)}
                attention_problem(self.findings, problem, **options)
        mismatches = self.findings.mismatches
        mismatches[:] = dict.fromkeys(mismatches)  # the same of several sets of parameters
        self.finish(tape, pairs)

    def _like_x(self, channels: Size) -> ArraySpec | None:
        if channels is None or self.dtype is None:
            return None
        shape = list(self.shape)
        shape[self.channel_axis] = channels
        return ArraySpec(tuple(shape), self.dtype)


def _fits(shape: Shape, expected: tuple[Size, ...]) -> bool:
    return len(shape) == len(expected) and all(
        wanted in (None, size) for size, wanted in zip(shape, expected, strict=True)
    )


def _format(sizes: tuple[Size, ...], *further: str) -> str:
    return format_shape((*("any" if size is None else size for size in sizes), *further))
