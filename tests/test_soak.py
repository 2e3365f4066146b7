"""Load with random kills: nothing lost, nothing doubled. `make soak` runs ten minutes of it."""

from __future__ import annotations

import os
from pathlib import Path

from tests.soak import soak
from tests.soak_hub import soak as hub_soak

SECONDS, KILLS, HUB_KILLS = ("30", "12", "12") if os.environ.get("TEST_ALL") else ("8", "4", "3")


def test_load_and_kills_lose_and_double_nothing(tmp_path: Path) -> None:
    print("\n" + soak(tmp_path, float(os.environ.get("SOAK_SECONDS", SECONDS)), int(KILLS)))


def test_kills_of_a_hub_and_its_agents_under_load_lose_and_double_nothing(tmp_path: Path) -> None:
    print("\n" + hub_soak(tmp_path, int(os.environ.get("HUB_SOAK_KILLS", HUB_KILLS))))
