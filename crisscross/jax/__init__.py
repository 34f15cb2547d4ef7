"""The JAX room: the only one that imports jax."""

from crisscross.errors import MissingDependencyError

try:
    import jax as _jax  # noqa: F401
except ImportError:
    raise MissingDependencyError(
        "crisscross.jax needs JAX: pip install 'crisscross-attention[jax]'"
    ) from None
