"""A minute of load with random kills: nothing lost, nothing doubled. `make soak` runs ten."""

from __future__ import annotations

import os
from pathlib import Path

from tests.soak import soak


def test_a_minute_of_load_and_kills_loses_and_doubles_nothing(tmp_path: Path) -> None:
    print("\n" + soak(tmp_path, float(os.environ.get("SOAK_SECONDS", "60"))))
