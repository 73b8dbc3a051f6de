"""Where things lie that tests read."""

from __future__ import annotations

import os
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]
DEMO = CHECKOUT / "data" / "demo"
CORPORA = Path(os.environ.get("JUDGESEYE_CORPORA", CHECKOUT.parent / "shared" / "data"))
"""Public corpora, beside the project unless the environment says where."""
