"""DLPack capsules, read where NumPy does not.

NumPy refuses to export or import bfloat16. The bytes are those of uint16, so the capsule is made
(or read) as uint16 and the dtype code in it is rewritten in place. Of memory on a device NumPy
knows nothing: what a capsule says of it becomes a `View`. In both cases ownership stays where it
was: the capsule keeps the deleter of the library that made it.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from crisscross.errors import MissingDependencyError
from crisscross.view import View, find_strides

_KDL_UINT, _KDL_BFLOAT = 1, 4
#: DLDataTypeCode and bits -> dtype, those that a backend takes.
_DTYPE_NAMES = {
    (2, 16): "float16",
    (2, 32): "float32",
    (2, 64): "float64",
    (4, 16): "bfloat16",
    (6, 8): "bool",
}


class _DLDataType(ctypes.Structure):
    _fields_ = [("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16)]


class _DLTensor(ctypes.Structure):
    # Its layout has never changed.
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("dtype", _DLDataType),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


class _DLManagedTensorVersioned(ctypes.Structure):
    _fields_ = [
        ("version", ctypes.c_uint32 * 2),
        ("manager_ctx", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("dl_tensor", _DLTensor),
    ]


_get_name = ctypes.pythonapi.PyCapsule_GetName
_get_name.restype, _get_name.argtypes = ctypes.c_char_p, [ctypes.py_object]
_get_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_get_pointer.restype, _get_pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]


def _tensor_in(capsule: Any) -> _DLTensor:
    """Return the tensor inside a DLPack capsule, versioned or not."""
    name = _get_name(capsule)
    # A capsule that has been consumed has another name, and its memory may be gone.
    if name not in (b"dltensor", b"dltensor_versioned"):
        raise BufferError(f"expected a DLPack capsule that nobody has consumed, got {name!r}")
    address = _get_pointer(capsule, name)
    assert address is not None  # a capsule's pointer is never null
    if name == b"dltensor_versioned":
        tensor = _DLManagedTensorVersioned.from_address(address).dl_tensor
        assert isinstance(tensor, _DLTensor)
        return tensor
    return _DLTensor.from_address(address)


def read_view(capsule: Any) -> View:
    """Read what a capsule says of its memory, which lives as long as the unconsumed capsule."""
    tensor = _tensor_in(capsule)
    dtype = tensor.dtype
    code, bits, lanes = dtype.code, dtype.bits, dtype.lanes
    name = _DTYPE_NAMES.get((code, bits)) if lanes == 1 else None
    if name is None:
        raise BufferError(
            f"a dtype unknown to this library: (code, bits, lanes) {code, bits, lanes}"
        )
    shape = tuple(tensor.shape[: tensor.ndim])
    # Compact memory in C order need not say so.
    strides = tuple(tensor.strides[: tensor.ndim]) if tensor.strides else find_strides(shape)
    return View((tensor.data or 0) + tensor.byte_offset, shape, strides, name)


class Retagged:
    """An exporter whose 16-bit elements are declared as another 16-bit dtype."""

    def __init__(self, exporter: Any, old_code: int, new_code: int) -> None:
        self._exporter = exporter
        self._old_code, self._new_code = old_code, new_code

    @classmethod
    def of_bfloat16(cls, array: Any) -> Retagged:
        """Export a bfloat16 array of NumPy, or of CuPy."""
        return cls(array.view(np.uint16), _KDL_UINT, _KDL_BFLOAT)

    def __dlpack__(self, **options: Any) -> Any:
        capsule = self._exporter.__dlpack__(**options)
        dtype = _tensor_in(capsule).dtype
        found, expected = (dtype.code, dtype.bits, dtype.lanes), (self._old_code, 16, 1)
        if found != expected:
            raise BufferError(
                f"expected the DLPack dtype {expected} (code, bits, lanes), got {found}"
            )
        dtype.code = self._new_code
        return capsule

    def __dlpack_device__(self) -> tuple[int, int]:
        device: tuple[int, int] = self._exporter.__dlpack_device__()
        return device


def import_bfloat16(exporter: Any) -> np.ndarray:
    """View the bfloat16 memory of another library's array as an ml_dtypes array."""
    retagged = Retagged(exporter, _KDL_BFLOAT, _KDL_UINT)
    return import_shared(retagged).view(numpy_bfloat16())


def import_shared(exporter: Any) -> np.ndarray:
    """View the memory of another library's array; never a copy of it."""
    try:
        return np.from_dlpack(exporter, copy=False)
    except TypeError:
        # An exporter of before 2024 knows no `copy`, and cannot make one.
        return np.from_dlpack(exporter)


def numpy_bfloat16() -> np.dtype[Any]:
    """Return NumPy's bfloat16, which the package ml_dtypes brings."""
    try:
        import ml_dtypes
    except ImportError:
        raise MissingDependencyError(
            "bfloat16 arrays need the package ml_dtypes: pip install ml_dtypes"
        ) from None
    dtype: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
    return dtype


def numpy_dtype(name: str) -> np.dtype[Any]:
    """Return NumPy's dtype of that name, bfloat16 through ml_dtypes."""
    return numpy_bfloat16() if name == "bfloat16" else np.dtype(name)
