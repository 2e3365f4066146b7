"""Files of the home that are empty, half, binary, of the wrong type or a folder: named, put aside, never deleted."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.conftest import Occ, occ_in

DAMAGE = {
    "empty": b"",
    "half": b'{"agentId": null, "tok',
    "binary": bytes(range(256)) * 64,
    "wrong type": b"[1, 2, 3]\n",
    "folder": None,
}


@pytest.fixture(scope="module")
def former(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The home of an agent that ran something and was stopped."""
    with occ_in(tmp_path_factory.mktemp("former")) as occ:
        occ.start()
        occ.workspace()
        occ.run("before")
        occ.stop()
    return occ.home


@pytest.fixture
def stopped(occ: Occ, former: Path) -> Occ:
    """An agent with a copy of that home."""
    shutil.copytree(former, occ.home, ignore=shutil.ignore_patterns("queue"))  # the pipes in run
    return occ


def damage(path: Path, how: str) -> None:
    content = DAMAGE[how]
    path.unlink()
    if content is None:
        path.mkdir()
        (path / "inside").write_text("kept")
    else:
        path.write_bytes(content)


@pytest.mark.parametrize("how", DAMAGE)
def test_damaged_files_are_put_aside_and_the_agent_starts(stopped: Occ, how: str) -> None:
    occ = stopped
    names = ["state.json", "daemon.pid", "run/daemon.json", "run/parts.json", "occ.db", "queue.db"]
    for name in names:
        (occ.home / name).touch()
        damage(occ.home / name, how)
    started = occ.command("start")
    content = DAMAGE[how]
    for name in names:
        path = occ.home / name
        aside = list(path.parent.glob(f"{path.name}.unreadable-*"))
        replaced_by_a_start = name.startswith(("daemon", "run/")) and how != "folder"
        if replaced_by_a_start or (how == "empty" and path.suffix == ".db"):
            # What a start writes anew anyway holds nothing worth keeping, and an empty database is a new one.
            assert aside == [], name
        else:
            assert len(aside) == 1, name
            assert aside[0].name in started.stderr
            assert (aside[0] / "inside").exists() if content is None else aside[0].read_bytes() == content
    occ.attach()
    occ.workspace("again")
    assert occ.run("hello", "again")[-1].name == "complete"


def test_a_database_cut_in_half_is_put_aside_whole(occ: Occ) -> None:
    occ.start()
    occ.workspace()
    for number in range(5):
        occ.run("x" * 20_000, executionId=f"e{number}")
    occ.stop()
    path = occ.home / "occ.db"
    half = path.read_bytes()[: path.stat().st_size // 2]
    path.write_bytes(half)
    started = occ.command("start")
    (aside,) = path.parent.glob("occ.db.unreadable-*")
    assert aside.name in started.stderr
    assert aside.read_bytes() == half


def test_an_unreadable_state_is_told_by_commands_that_only_read(stopped: Occ) -> None:
    (stopped.home / "state.json").write_text("{")
    told = stopped.command("token", check=False)
    assert told.returncode == 1
    assert "state.json" in told.stderr


def test_a_state_of_another_shape_is_not_trusted(stopped: Occ) -> None:
    (stopped.home / "state.json").write_text(json.dumps({"token": 5}))
    started = stopped.command("start")
    assert "new token" in started.stderr
