"""AdamW-influence and TracIn are what Bergson's MAGIC and dattri's TracIn come to, in double precision.

Both are installed into a folder of their own without what they would bring along (tests.evidence.influence_oracle),
made once under .harnesses/ or where $JUDGESEYE_HARNESSES says.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from pathlib import Path

import pytest

from tests.evidence import influence_oracle
from tests.integration.test_harnesses import PLACE, run
from tests.places import CHECKOUT

pytestmark = [pytest.mark.harness, pytest.mark.timeout(900)]


def installed() -> Path:
    """Return the folder of the packages that the script's head asks for."""
    assert influence_oracle.__doc__ is not None
    wanted = re.findall(r"[\w-]+==[\d.]+", influence_oracle.__doc__)
    folder = PLACE / f"oracle-{hashlib.sha256(' '.join([*wanted, sys.version]).encode()).hexdigest()[:8]}"
    if not (folder / "ready").exists():
        run([sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--upgrade", "--target", str(folder), *wanted])
        (folder / "ready").touch()
    return folder


def test_scores_are_those_of_other_peoples_code() -> None:
    path = f"{CHECKOUT}:{installed()}"
    said = run([sys.executable, "-m", "tests.evidence.influence_oracle"], cwd=CHECKOUT, PYTHONPATH=path)
    (line,) = re.findall(r"^\{.*\}$", said, re.MULTILINE)
    figures = json.loads(line)
    assert len(figures) == 10
    assert max(figures.values()) < 1e-12, figures
