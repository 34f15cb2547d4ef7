"""Parameters in files, and those of CCNet, mmcv and PaddleSeg by our names."""

from __future__ import annotations

import os
import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from crisscross.arithmetic import find_namespace, reshape
from crisscross.bridge import describe, from_dlpack, name_dtype, numpy_dtype
from crisscross.errors import ArgumentError, Fault, Mismatch, MissingDependencyError
from crisscross.nn.parameters import NO_PARAMETER
from crisscross.problem import Findings
from crisscross.problem.findings import describe_value

#: Suffix -> what parameters may be in such a file.
_FORMATS = {
    ".npz": ("float16", "float32", "float64"),
    ".safetensors": ("float16", "bfloat16", "float32", "float64"),
}
#: Names in safetensors files -> dtypes.
_DTYPES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}


def save_parameters(path: str | os.PathLike[str], parameters: Mapping[str, Any]) -> None:
    """Write parameters to a ``.npz`` (without pickle) or a ``.safetensors`` file.

    Parameters
    ----------
    path
        Its suffix decides the format. safetensors needs the extra of that name; bfloat16, which
        ``.npz`` does not know, needs safetensors.
    parameters : mapping of str to array
        Arrays on the CPU, of any library. ``num_batches_tracked`` of PyTorch's norms is left out.

    Raises
    ------
    ArgumentError
        If the suffix is another, or the format does not know a dtype.
    MissingDependencyError
        If the package safetensors is not installed.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> from crisscross import nn
    >>> parameters = nn.init_criss_cross_block(16, seed=0)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder) / "block.npz"
    ...     nn.save_parameters(path, parameters)
    ...     sorted(nn.load_parameters(path)) == sorted(parameters)
    True
    """
    suffix = _read_suffix("save_parameters", path)
    arrays = _read_arrays(parameters)
    dtypes = {name: name_dtype(x.dtype) for name, x in arrays.items()}
    _check_dtypes("save_parameters", "parameters", dtypes, suffix)
    if suffix == ".safetensors":
        _import_safetensors().numpy.save_file(arrays, path)
        return
    # What `numpy.savez` writes; but that has arguments of its own, which are then no names.
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array, allow_pickle=False)


def _read_arrays(parameters: Any) -> dict[str, np.ndarray]:
    """Read parameters as NumPy arrays in C order; what cannot be is named by its name."""
    findings = Findings("save_parameters")
    if not isinstance(parameters, Mapping):
        expected = "a mapping of names to arrays"
        findings.add("parameters", expected, describe_value(parameters), Fault.TYPE)
        findings.raise_if_any()
    arrays: dict[str, np.ndarray] = {}
    for name, array in parameters.items():
        if str(name).endswith(NO_PARAMETER):
            continue
        label = f"parameters[{name!r}]"
        # The name of what safetensors has besides arrays.
        if not isinstance(name, str) or name == "__metadata__":
            findings.add("parameters", "names of parameters", repr(name))
        description = describe(findings, label, array)
        if description is None or description.obstacle is not None:
            continue
        if description.device != "cpu":
            expected = "cpu; copy it there first"
            findings.add(f"{label}.device", expected, str(description.device), Fault.MEMORY)
            continue
        # Not by `ascontiguousarray`, which gives a single number an axis.
        arrays[name] = np.array(from_dlpack(array), order="C")
    findings.raise_if_any()
    return arrays


def load_parameters(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Read parameters from a ``.npz`` or a ``.safetensors`` file; nothing in it is executed.

    How many batches a norm has seen, ``num_batches_tracked`` in PyTorch's files, is no parameter,
    and left out.

    Raises
    ------
    ArgumentError
        If the suffix is another, the file is not what its suffix says, or it holds Python objects
        or a dtype that is no parameter's.
    MissingDependencyError
        If the package safetensors is not installed.
    """
    suffix = _read_suffix("load_parameters", path)
    if suffix == ".npz":
        arrays = {}
        errors = (zipfile.BadZipFile, zlib.error, ValueError, EOFError)
        with _reading(path, errors), zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if name.removesuffix(".npy").endswith(NO_PARAMETER):
                    continue
                with archive.open(name) as file:
                    array = np.lib.format.read_array(file, allow_pickle=False)
                arrays[name.removesuffix(".npy")] = array
        dtypes = {name: name_dtype(array.dtype) for name, array in arrays.items()}
        _check_dtypes("load_parameters", str(path), dtypes, suffix)
        return arrays
    safetensors = _import_safetensors()
    with _reading(path, (safetensors.SafetensorError,)):
        found = safetensors.deserialize(Path(path).read_bytes())
        tensors = {name: x for name, x in found if not name.endswith(NO_PARAMETER)}
    dtypes = {name: _DTYPES.get(x["dtype"], x["dtype"]) for name, x in tensors.items()}
    _check_dtypes("load_parameters", str(path), dtypes, suffix)
    return {
        name: np.frombuffer(x["data"], numpy_dtype(dtypes[name])).reshape(x["shape"]).copy()
        for name, x in tensors.items()
    }


@contextmanager
def _reading(path: str | os.PathLike[str], errors: tuple[type[Exception], ...]) -> Iterator[None]:
    """Say of a broken file which it is."""
    try:
        yield
    except errors as error:
        expected = f"a {Path(path).suffix} file of arrays"
        mismatch = Mismatch("path", expected, f"{str(path)!r}: {error}")
        raise ArgumentError("load_parameters", [mismatch]) from error


def _read_suffix(function: str, path: str | os.PathLike[str]) -> str:
    suffix = Path(path).suffix
    if suffix not in _FORMATS:
        expected = f"a name that ends in one of {tuple(_FORMATS)}"
        raise ArgumentError(function, [Mismatch("path", expected, repr(str(path)))])
    return suffix


def _check_dtypes(function: str, where: str, dtypes: Mapping[str, str], suffix: str) -> None:
    expected = f"one of {', '.join(_FORMATS[suffix])} in a {suffix} file"
    found = [
        Mismatch(f"{where}[{name!r}].dtype", expected, dtype)
        for name, dtype in dtypes.items()
        if dtype not in _FORMATS[suffix]
    ]
    if found:
        raise ArgumentError(function, found)


def _import_safetensors() -> ModuleType:
    try:
        import safetensors.numpy
    except ImportError:
        raise MissingDependencyError(
            ".safetensors files need the package safetensors: pip install safetensors"
        ) from None
    return safetensors


# Renaming: the parts of a head, then what is within.

_CCNET = (
    (r"^conv1([ab])\.", r"conv\1."),
    (r"^pc\.", "cca."),
)
_MMCV = (
    (r"^convs\.0\.conv\.", "conva.0."),
    (r"^convs\.0\.bn\.", "conva.1."),
    (r"^convs\.1\.conv\.", "convb.0."),
    (r"^convs\.1\.bn\.", "convb.1."),
    (r"^conv_cat\.conv\.", "bottleneck.0."),
    (r"^conv_cat\.bn\.", "bottleneck.1."),
    (r"^conv_seg\.", "bottleneck.3."),
    (r"gamma\.scale$", "gamma"),
    (r"^(query|key|value)_project\.", r"\1_conv."),
    (r"^(theta|phi|g)\.conv\.", r"\1."),
    (r"^conv_out\.conv\.", "W."),
)
_PADDLESEG = (
    (r"^out\.conv_bn_relu\.", "bottleneck."),
    (r"^out\.conv\.", "bottleneck.3."),
    (r"\bq_conv\.", "query_conv."),
    (r"\bk_conv\.", "key_conv."),
    (r"\bv_conv\.", "value_conv."),
    (r"\._conv\.", ".0."),
    (r"\._batch_norm\._mean$", ".1.running_mean"),
    (r"\._batch_norm\._variance$", ".1.running_var"),
    (r"\._batch_norm\.", ".1."),
)
_OURS = re.compile(
    r"(conva|convb|bottleneck)\.(0\.weight|1\.(weight|bias|running_mean|running_var))"
    r"|bottleneck\.3\.(weight|bias)"
    r"|(cca\.)?(\d+\.)?((query|key|value)_conv\.(weight|bias)|gamma)"
    r"|(theta|phi|g|W)\.(weight|bias)"
)


def from_ccnet(state: Mapping[str, Any], *, epsilon: float = 1e-5) -> dict[str, Any]:
    """Take the parameters of a block or a head out of a state dict of the original CCNet.

    Parameters
    ----------
    state : mapping of str to array
        Of the module itself, or of a whole network, whose head is ``head``; with or without
        ``module.`` in front. The names of older checkpoints (``conv1a``, ``pc``) do too.
    epsilon : float
        CCNet's InPlaceABN multiplies by the absolute value of its weight, plus this.

    Returns
    -------
    dict of str to array
        For `criss_cross_block` or `rcca_head`. The arrays are those of `state`, but for the weights
        of norms.

    Raises
    ------
    ArgumentError
        Naming what the head holds that is none of its parameters, or if there is nothing.
    """
    _check_state("from_ccnet", state, epsilon)
    found = _rename("from_ccnet", state, "head.", _CCNET)
    for name, array in found.items():
        if re.fullmatch(r"\w+\.1\.weight", name):
            found[name] = find_namespace(array).abs(array) + epsilon
    return found


def from_mmcv(state: Mapping[str, Any], *, epsilon: float = 1e-5) -> dict[str, Any]:
    """Take the parameters of a block or a head out of a state dict of mmcv or mmsegmentation.

    Parameters
    ----------
    state : mapping of str to array
        Of mmcv's ``CrissCrossAttention``, of mmsegmentation's ``CCHead``, or of a whole segmentor,
        whose head is ``decode_head``. Or of mmcv's ``NonLocal1d``, ``2d`` or ``3d``, or of
        mmsegmentation's ``PAM`` or ``CAM``, alone.
    epsilon : float
        Added to the variance by a norm behind the output of ``NonLocal2d``.

    Returns
    -------
    dict of str to array
        For `criss_cross_block`, or for `rcca_head` with ``activation="relu"``. For
        `non_local_block`, which is to have the ``mode`` of theirs and, with "embedded_gaussian"
        unless that has ``use_scale=False``, a ``scale`` of C' to the -1/2; a norm becomes part of
        ``W``, with its running statistics. For `position_attention_block` and
        `channel_attention_block`.

    Raises
    ------
    ArgumentError
        Naming what the head holds that is none of its parameters, or if there is nothing.
    """
    _check_state("from_mmcv", state, epsilon)
    return _rename("from_mmcv", _fold_norm(state, epsilon), "decode_head.", _MMCV)


def _fold_norm(state: Mapping[str, Any], epsilon: float) -> dict[str, Any]:
    """Make one convolution of that behind mmcv's Non-local block and its norm."""
    folded = dict(state)
    for last in [name for name in state if name.endswith("conv_out.bn.running_var")]:
        norm, convolution = (
            last.removesuffix("running_var"),
            last.replace("bn.running_var", "conv."),
        )
        parts = [f"{norm}{part}" for part in ("weight", "bias", "running_mean", "running_var")]
        if f"{convolution}weight" in state and all(part in state for part in parts):
            weight, bias, mean, variance = (folded.pop(part) for part in parts)
            factor = weight / find_namespace(variance).sqrt(variance + epsilon)
            kernel = state[f"{convolution}weight"]
            column = reshape(factor, (-1, *(1,) * (kernel.ndim - 1)))
            folded[f"{convolution}weight"] = kernel * column
            folded[f"{convolution}bias"] = bias - mean * factor
    return folded


def from_paddleseg(state: Mapping[str, Any]) -> dict[str, Any]:
    """Take the parameters of a block or a head out of a state dict of PaddleSeg.

    Parameters
    ----------
    state : mapping of str to array
        Of PaddleSeg's ``CrissCrossAttention``, its ``RCCAModule``, or its ``CCNet``, whose head is
        ``head``.

    Returns
    -------
    dict of str to array
        For `criss_cross_block`, or for `rcca_head` with ``last_activation="relu"``. A bias that
        PaddleSeg adds before its last norm is subtracted from the norm's running mean.

    Raises
    ------
    ArgumentError
        Naming what the head holds that is none of its parameters, or if there is nothing.
    """
    _check_state("from_paddleseg", state)
    shifted = dict(state)
    for name in state:
        mean = name.replace("._conv.bias", "._batch_norm._mean")
        if name.endswith("out.conv_bn_relu._conv.bias") and mean in state:
            shifted[mean] = state[mean] - shifted.pop(name)
    return _rename("from_paddleseg", shifted, "head.", _PADDLESEG)


def _check_state(function: str, state: Any, epsilon: object = 1.0) -> None:
    findings = Findings(function)
    if not isinstance(state, Mapping):
        expected = "a mapping of names to arrays"
        findings.add("state", expected, describe_value(state), Fault.TYPE)
    else:
        for name in state:
            if not isinstance(name, str):
                findings.add("state", "names of parameters", describe_value(name), Fault.TYPE)
    if not findings.check_real("epsilon", epsilon) > 0:
        findings.add("epsilon", "a positive number", describe_value(epsilon))
    findings.raise_if_any()


def _rename(
    function: str, state: Mapping[str, Any], head: str, rules: tuple[tuple[str, str], ...]
) -> dict[str, Any]:
    names = {name: name.removeprefix("module.") for name in state}
    if any(name.startswith(head) for name in names.values()):
        names = {old: new.removeprefix(head) for old, new in names.items() if new.startswith(head)}
    found, unknown = {}, []
    for old, new in names.items():
        for pattern, replacement in rules:
            new = re.sub(pattern, replacement, new)
        if _OURS.fullmatch(new):
            # mmcv's gamma is a single number; a module of PyTorch loads none but of its own shape.
            is_number = new.endswith("gamma") and getattr(state[old], "shape", None) == ()
            found[new] = reshape(state[old], (1,)) if is_number else state[old]
        elif not new.endswith(NO_PARAMETER):
            unknown.append(Mismatch("state", "parameters of a block or a head", repr(old)))
    if not found and not unknown:
        unknown.append(Mismatch("state", "parameters of a block or a head", "none"))
    if unknown:
        raise ArgumentError(function, unknown)
    return found
