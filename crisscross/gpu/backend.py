"""The backend contract on a device: fill these views from those."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Protocol

from crisscross.kernels import attention, ccnet
from crisscross.kernels.engine import Engine
from crisscross.kernels.merge import merge


class DeviceEngine(Engine, Protocol):
    """An engine that knows the stream it works on."""

    @property
    def stream(self) -> int: ...

    def keep(self, owners: Sequence[Any], /) -> None:
        """Keep these until what has been launched so far is done."""

    def wait_for(self, stream: int) -> None:
        """Let what follows come after what is under way on another stream."""


class GpuBackend:
    """The functions of a backend for an engine; they take `View`s."""

    def __init__(self, engine: DeviceEngine) -> None:
        self.engine = engine
        self.attention_forward = partial(attention.attention_forward, engine)
        self.attention_backward = partial(attention.attention_backward, engine)
        self.merge = partial(merge, engine)
        self.ca_weight = partial(ccnet.ca_weight, engine)
        self.ca_weight_backward = partial(ccnet.ca_weight_backward, engine)
        self.ca_softmax = partial(ccnet.ca_softmax, engine)
        self.ca_softmax_backward = partial(ccnet.ca_softmax_backward, engine)
        self.ca_map = partial(ccnet.ca_map, engine)
        self.ca_map_backward = partial(ccnet.ca_map_backward, engine)
        self.to_port_layout = partial(ccnet.to_port_layout, engine)
        self.from_port_layout = partial(ccnet.from_port_layout, engine)
