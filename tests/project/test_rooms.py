"""Imports point down only, and a framework is imported in its own room alone."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

import crisscross
from crisscross.dispatch import ADAPTERS

PACKAGE = Path(crisscross.__file__).parent

#: Rooms from the ground up. A room imports from lower floors and from itself, not from its floor.
FLOORS = [
    {"errors", "view"},
    {"problem"},
    {"dispatch"},
    {"bridge"},
    {"arithmetic"},
    {"kernels"},
    {"reference", "cpu", "gpu"},
    {"ops"},
    {"nn", "plot", "testing"},
    {"torch", "jax", "parallel"},
    {"bench"},
    {"cli"},
]
#: Packages besides NumPy and the standard library, and the rooms that may import them.
FOREIGN = {
    "torch": {"torch"},
    "jax": {"jax"},
    "jaxlib": {"jax"},
    "cupy": {"gpu"},
    "hypothesis": {"testing"},
    "ml_dtypes": {"bridge"},
    "threadpoolctl": {"cpu", "cli"},
    "matplotlib": {"plot", "cli"},
    "skimage": {"cli"},
    "PIL": {"cli"},
    "rich": {"cli"},
    "safetensors": {"nn"},
}
#: Where a module is named by a string: the one edge that points up, and the choice of a backend.
IMPORTS_BY_NAME = {"dispatch.py", "ops/backends.py"}
#: The other edge that points up, by statements: what a compiler of PyTorch's follows.
UP = {("dispatch.py", "crisscross.torch")}
#: Of NumPy and threadpoolctl alone the oracle and the NumPy path may know; and not of kernels.
APART = {"reference": {"cpu", "gpu", "kernels"}, "cpu": {"reference", "gpu", "kernels"}}

FILES = sorted(PACKAGE.rglob("*.py"))


def name_room(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def find_floor(room: str) -> int:
    (floor,) = [number for number, rooms in enumerate(FLOORS) if room in rooms]
    return floor


def list_imports(path: Path) -> list[str]:
    """Every module that a file imports, at any depth of the code, as an absolute name."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            assert node.module is not None
            # `from crisscross import cpu` is an import of the room cpu.
            inside = [f"crisscross.{alias.name}" for alias in node.names]
            found += inside if node.module == "crisscross" else [node.module]
    return found


def find_violations(path: Path, imports: list[str]) -> list[str]:
    room, found = name_room(path), []
    if room in ("__init__", "__main__"):
        return []
    for module in imports:
        root, _, rest = module.partition(".")
        if root == "crisscross":
            target = rest.partition(".")[0]
            known = target in set().union(*FLOORS)
            up = known and target != room and find_floor(target) >= find_floor(room)
            up = up and (str(path.relative_to(PACKAGE)), module) not in UP
            if up or target in APART.get(room, ()):
                found.append(f"{room} imports {target}")
            # A public name comes from the package itself, which stands on all up to `ops`.
            public = target in crisscross.__all__ and find_floor(room) > find_floor("ops")
            if not known and not public:
                found.append(f"{room} imports {module}, which is no room")
        elif root in FOREIGN:
            if room not in FOREIGN[root]:
                found.append(f"{room} imports {root}")
        elif root != "numpy" and root not in sys.stdlib_module_names:
            found.append(f"{room} imports {root}, which no room is known to")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path):
    assert find_violations(path, list_imports(path)) == []


@pytest.mark.parametrize(
    ("path", "imports"),
    [
        ("cpu/strips.py", ["crisscross.reference"]),
        ("cpu/strips.py", ["crisscross.kernels.launch"]),
        ("problem/merge.py", ["crisscross.bridge"]),
        ("dispatch.py", ["crisscross.torch.adapter"]),
        ("bridge/native.py", ["torch"]),
        ("ops/call.py", ["jax.numpy"]),
        ("torch/adapter.py", ["crisscross.jax"]),
        ("errors.py", ["requests"]),
        ("cpu/forward.py", ["crisscross.criss_cross_attention"]),
    ],
)
def test_that_a_violation_is_seen(path, imports):
    assert find_violations(PACKAGE / path, imports)


def test_modules_are_named_by_strings_in_two_places_only():
    found = {
        str(path.relative_to(PACKAGE))
        for path in FILES
        if "import_module" in path.read_text() or "__import__" in path.read_text()
    }
    assert found == IMPORTS_BY_NAME
    assert set(ADAPTERS) == {"numpy", "torch", "jax", "cupy", "dlpack", "cuda"}
    for module in ADAPTERS.values():
        assert (PACKAGE.parent / module.replace(".", "/")).with_suffix(".py").exists()


def test_every_file_has_a_room():
    rooms = {name_room(path) for path in FILES} - {"__init__", "__main__"}
    assert rooms <= set().union(*FLOORS)


def test_files_fit_in_the_head():
    long = {str(path): len(path.read_text().splitlines()) for path in FILES}
    assert {path: lines for path, lines in long.items() if lines > 400} == {}


IMPORTED = """
import sys
import {module}
roots = {{name.partition(".")[0] for name in sys.modules}}
print(sorted(roots - set(sys.stdlib_module_names)))
"""


@pytest.mark.parametrize("module", ["crisscross", "crisscross.cpu", "crisscross.reference"])
def test_importing_brings_in_numpy_and_nothing_else(run_python, module):
    found = set(ast.literal_eval(run_python(IMPORTED.format(module=module))))
    private = {name for name in found if name.startswith("_") or name in ("sitecustomize",)}
    assert found - private == {"crisscross", "numpy"}


USED = """
import sys
import numpy as np, crisscross
q = np.ones((1, 2, 3, 4), np.float32)
crisscross.criss_cross_attention(q, q, q)
print({"torch", "jax", "cupy", "ml_dtypes", "hypothesis"} & set(sys.modules))
"""


def test_a_call_on_numpy_arrays_imports_no_framework(run_python):
    assert run_python(USED).strip() == "set()"


@pytest.mark.parametrize(
    ("room", "package", "extra"), [("torch", "torch", "torch"), ("jax", "jax", "jax")]
)
def test_a_missing_framework_is_one_sentence(run_python, room, package, extra):
    code = f"""
import sys
sys.modules[{package!r}] = None
try:
    import crisscross.{room}
except ImportError as error:
    print(type(error).__name__, "|", error)
"""
    expected = f"pip install 'crisscross-attention[{extra}]'"
    kind, _, message = run_python(code).strip().partition(" | ")
    assert kind == "MissingDependencyError"
    assert message.startswith(f"crisscross.{room} needs") and message.endswith(expected)


def test_bfloat16_without_ml_dtypes_is_one_sentence(run_python):
    code = """
import sys
sys.modules["ml_dtypes"] = None
import torch, crisscross
x = torch.ones(1, 2, 3, 4, dtype=torch.bfloat16)
try:
    crisscross.criss_cross_attention(x, x, x)
except ImportError as error:
    print(error)
"""
    expected = "bfloat16 arrays need the package ml_dtypes: pip install ml_dtypes"
    assert run_python(code).strip() == expected
