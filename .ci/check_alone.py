"""The installed package with its base dependencies only: it works, and says what it lacks."""

import sys
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import numpy as np

import crisscross
from crisscross.kernels.source import read_source

assert "site-packages" in crisscross.__file__, crisscross.__file__
assert (Path(crisscross.__file__).parent / "py.typed").exists()
assert metadata.version("crisscross-attention") == crisscross.__version__
extras = ("torch", "jax", "ml_dtypes", "hypothesis", "cupy", "matplotlib", "skimage", "rich")
assert not any(map(find_spec, extras))

assert "__global__" in read_source("strip_forward.cu")

q, k, v = np.random.default_rng(0).standard_normal((3, 1, 4, 5, 6))
out, lse = crisscross.criss_cross_attention(q, k, v, return_lse=True)
expected = crisscross.criss_cross_attention(q, k, v, backend="reference")
np.testing.assert_allclose(out, expected, 1e-10)
crisscross.criss_cross_attention_backward(v, q, k, v, out, lse)

for module in ("crisscross.torch", "crisscross.jax", "crisscross.plot", "crisscross.testing"):
    try:
        __import__(module)
    except crisscross.MissingDependencyError as error:
        message = str(error)
        if "pip install" not in message or "\n" in message:
            sys.exit(message)
    else:
        sys.exit(f"{module} imported without its dependency")
print(f"crisscross {crisscross.__version__} works with NumPy {np.__version__} alone")
