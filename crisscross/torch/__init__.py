"""The PyTorch room: the only one that imports torch."""

from crisscross.errors import MissingDependencyError

try:
    import torch as _torch  # noqa: F401
except ImportError:
    raise MissingDependencyError(
        "crisscross.torch needs PyTorch: pip install 'crisscross-attention[torch]'"
    ) from None
