"""What holds for all tests, and for the processes that they start."""

from __future__ import annotations

import os

# Tiny models on tiny batches: a second thread for each only has them wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
