"""What holds for all tests, and for the processes that they start."""

from __future__ import annotations

import gc
import os

import pytest

# Tiny models on tiny batches: a second thread for each only has them wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="module", autouse=True)
def what_is_loaded_is_not_searched_for_garbage() -> None:
    """Leave libraries out of later collections of garbage: looking through torch's alone takes a third of a second."""
    gc.freeze()
