"""The policy of the process is as it was after each test."""

from __future__ import annotations

import pytest

import crisscross


@pytest.fixture(autouse=True)
def default_policy():
    yield
    crisscross.set_num_threads(None)
