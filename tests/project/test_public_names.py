"""The public surface: its names, their signatures, and docstrings that say what they must."""

from __future__ import annotations

import importlib.metadata
import inspect
from pathlib import Path

import pytest

import crisscross
from crisscross import cpu, nn, plot, reference, testing
from crisscross.ops.backends import Backend

FUNCTIONS = {
    "attention_map",
    "compose_attention",
    "attention_entropy",
    "criss_cross_attention",
    "criss_cross_attention_backward",
    "axial_attention",
    "axial_attention_backward",
    "merge_attentions",
    "ca_weight",
    "ca_weight_backward",
    "ca_softmax",
    "ca_softmax_backward",
    "ca_map",
    "ca_map_backward",
    "to_port_layout",
    "from_port_layout",
    "from_dlpack",
    "to_dlpack",
    "explain",
    "set_num_threads",
    "get_num_threads",
    "clear_workspace",
}
CLASSES = {
    "ArgumentError",
    "ArgumentTypeError",
    "BackendError",
    "BridgeError",
    "CrissCrossError",
    "Explanation",
    "MissingDependencyError",
}
SIGNATURES = {
    "criss_cross_attention": "q, k, v, *, scale=1.0, heads=1, axes=None, key_mask=None, "
    "channel_axis=1, precision=None, return_lse=False, backend=None",
    "criss_cross_attention_backward": "dout, q, k, v, out, lse, *, dlse=None, scale=1.0, heads=1, "
    "axes=None, key_mask=None, channel_axis=1, precision=None, backend=None",
    "axial_attention": "q, k, v, *, axis, include_self=True, scale=1.0, heads=1, key_mask=None, "
    "channel_axis=1, precision=None, return_lse=False, backend=None",
    "axial_attention_backward": "dout, q, k, v, out, lse, *, axis, include_self=True, dlse=None, "
    "scale=1.0, heads=1, key_mask=None, channel_axis=1, precision=None, backend=None",
    "merge_attentions": "outs, lses, *, channel_axis=1, backend=None",
    "ca_weight": "q, k, *, backend=None",
    "ca_weight_backward": "denergy, q, k, *, backend=None",
    "ca_softmax": "energy, *, backend=None",
    "ca_softmax_backward": "dattention, attention, *, backend=None",
    "ca_map": "attention, v, *, backend=None",
    "ca_map_backward": "dout, attention, v, *, backend=None",
    "to_port_layout": "weights, *, self_value=0.0, backend=None",
    "from_port_layout": "ported, *, backend=None",
    "from_dlpack": "array, *, copy=False",
    "to_dlpack": "array, like, *, copy=False",
    "explain": "q, k, v, *, scale=1.0, heads=1, axes=None, key_mask=None, channel_axis=1, "
    "precision=None, backend=None",
    "attention_map": "q, k, *, at, scale=1.0, heads=1, axes=None, key_mask=None, channel_axis=1",
    "compose_attention": "pairs, *, at, scale=1.0, heads=1, axes=None, key_mask=None, "
    "channel_axis=1",
    "attention_entropy": "q, k, *, scale=1.0, heads=1, axes=None, key_mask=None, channel_axis=1, "
    "backend=None",
    "set_num_threads": "threads",
    "get_num_threads": "",
    "clear_workspace": "",
}


def strip_annotations(function) -> str:
    signature = inspect.signature(function)
    bare = [
        parameter.replace(annotation=inspect.Parameter.empty)
        for parameter in signature.parameters.values()
    ]
    text = str(inspect.Signature(bare))
    return text.removeprefix("(").removesuffix(")")


def test_the_names():
    assert set(crisscross.__all__) == FUNCTIONS | CLASSES | {"__version__"}
    assert sorted(crisscross.__all__) == crisscross.__all__
    assert all(hasattr(crisscross, name) for name in crisscross.__all__)


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_the_signatures(name):
    assert strip_annotations(getattr(crisscross, name)) == SIGNATURES[name]


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_the_docstrings(name):
    function = getattr(crisscross, name)
    text = inspect.getdoc(function)
    assert text is not None
    signature = inspect.signature(function)
    takes, returns = bool(signature.parameters), signature.return_annotation != "None"
    sections = {"Parameters": takes, "Returns": returns, "Raises": takes or returns}
    for section, due in {**sections, "Examples": True}.items():
        assert (f"\n{section}\n{'-' * len(section)}\n" in text) == due, section
    assert ">>> " in text
    if not takes:
        return
    parameters = text.split("Parameters\n")[1].split("\nReturns\n")[0].split("\nRaises\n")[0]
    for parameter in signature.parameters:
        documented = [line for line in parameters.splitlines() if line and not line.startswith(" ")]
        assert any(parameter in line.split(" : ")[0].split(", ") for line in documented), parameter


@pytest.mark.parametrize(
    ("room", "name"), [(room, name) for room in (testing, nn, plot) for name in room.__all__]
)
def test_other_rooms_are_documented(room, name):
    value = getattr(room, name)
    assert not callable(value) or inspect.getdoc(value)


@pytest.mark.parametrize("backend", [cpu, reference], ids=["cpu", "reference"])
def test_backends_keep_the_contract(backend):
    operations = [name for name in vars(Backend) if not name.startswith("_")]
    assert sorted(operations) == sorted(backend.__all__)
    for name in operations:
        contract = inspect.signature(getattr(Backend, name))
        without_self = list(contract.parameters.values())[1:]
        actual = inspect.signature(getattr(backend, name))
        assert list(actual.parameters.values()) == without_self, name
        assert actual.return_annotation == contract.return_annotation


def test_the_version_is_told_once():
    assert importlib.metadata.version("crisscross-attention") == crisscross.__version__


def test_the_package_is_typed():
    assert (Path(crisscross.__file__).parent / "py.typed").exists()
