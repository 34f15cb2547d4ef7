"""What the tests of the command line share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from skimage import data
from threadpoolctl import threadpool_limits


@pytest.fixture(autouse=True)
def one_blas_thread() -> Iterator[None]:
    """As in the demo: several threads wait for each other where the CPUs are busy."""
    with threadpool_limits(1, "blas"):
        yield


@pytest.fixture
def small_photograph(tmp_path: Path) -> Path:
    """A grey photograph of 64 x 48 pixels, in a folder of its own."""
    folder = tmp_path / "images"
    folder.mkdir()
    path = folder / "small.png"
    Image.fromarray(data.camera()[100:148, 200:264]).save(path)
    return path


@pytest.fixture
def out_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    return folder
