"""A disk that is full, out of inodes, or read-only, and a database that is held: refusals, no loss, and recovery."""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from occ_app.errors import Refused
from tests import sentences
from tests.conftest import Occ, make_zip, names, occ_in, output, stand_in, steps, wait_until
from tests.promises import Promises, counted, counting_cli, prompt


def mounted(path: Path, options: str) -> None:
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(path)], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        pytest.skip(f"FULL DISKS ARE NOT TESTED: {done.stderr.strip()}")


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MB and 400 inodes."""
    path = tmp_path / "small"
    path.mkdir()
    mounted(path, "size=24m,nr_inodes=400")
    yield path
    subprocess.run(["umount", "--lazy", str(path)], check=True)


@pytest.fixture
def occ(tmp_path: Path, small: Path) -> Iterator[Occ]:
    """The command with its home on that file system."""
    stand_in(tmp_path)
    program, _ = counting_cli(tmp_path)
    with occ_in(tmp_path, home=small / "home", program=program) as occ:
        occ.start()
        occ.workspace()
        yield occ


@contextlib.contextmanager
def filled(folder: Path) -> Iterator[None]:
    """No byte is free while the block runs."""
    path = folder / "filler"
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        for size in (1 << 16, 1 << 12, 1):
            with contextlib.suppress(OSError):
                while file.write(b"\0" * size):
                    pass
    try:
        yield
    finally:
        path.unlink()


@contextlib.contextmanager
def crowded(folder: Path) -> Iterator[None]:
    """No inode is free while the block runs."""
    crowd = folder / "crowd"
    crowd.mkdir()
    with contextlib.suppress(OSError):
        for number in range(1000):
            (crowd / str(number)).touch()
    try:
        yield
    finally:
        for path in crowd.iterdir():
            path.unlink()
        crowd.rmdir()


def refused_by(attempt: object) -> Refused:
    with pytest.raises(Refused) as refusal:
        attempt()  # type: ignore[operator]
    return refusal.value


def test_on_a_full_disk_nothing_is_accepted_and_afterwards_all_is_well(occ: Occ, small: Path, tmp_path: Path) -> None:
    promises = Promises(occ, tmp_path / "starts")
    with filled(small):
        for number in range(20):
            body = {"executionId": f"full-{number}", "workspaceId": "work", "prompt": "x" * 5000}
            response = occ.request("POST", "/execute", json_body=body)
            if response.status == 200:
                promises.accepted.add(f"full-{number}")
                continue
            assert (response.status, response.json()["code"]) == (507, "NO_SPACE")
        assert len(promises.accepted) < 20
        refusal = refused_by(lambda: occ.client.upload("new", make_zip({"a": os.urandom(100_000)})))
        assert (refusal.status, refusal.code) == (507, "NO_SPACE")
        assert occ.client.health()["version"]
        assert [each["workspaceId"] for each in occ.client.workspaces()] == ["work"]
    assert occ.run(prompt(3))[-1].name == "complete"
    occ.client.upload("new", make_zip({"a": os.urandom(100_000)}))
    wait_until(lambda: {path.name for path in (occ.home / "workspaces").iterdir()} == {"new", "work"}, "no rest")
    with occ.database.write() as connection:  # their prompts are no counting ones
        assert connection.execute("SELECT count(*) FROM executions WHERE execution_id LIKE 'full-%'").fetchone()[
            0
        ] == len(promises.accepted)


def test_output_waits_for_a_full_disk_and_comes_whole(occ: Occ, small: Path, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    many = {"say": "x" * 20_000, "times": 250}  # more than the log has room for beforehand
    body = steps({"say": "0 "}, {"wait": str(gate)}, many, *({"say": f"{i} "} for i in range(1, 300)))
    stream, seen = occ.under_way(body, "waits")
    with filled(small):
        gate.touch()
        wait_until(lambda: sentences.CANNOT_BE_STORED_YET in occ.logs(), "the disk to be felt")
    events = seen + list(stream)
    assert output(events) == counted(300).replace("0 ", "0 " + 250 * 20_000 * "x", 1)
    assert names(events)[-1] == "complete"
    assert [event.seq for event in events] == list(range(1, len(events) + 1))


def test_without_inodes_uploads_are_refused_and_recover(occ: Occ, small: Path) -> None:
    with crowded(small):
        refusal = refused_by(lambda: occ.client.upload("new", make_zip({f"{i}.txt": "x" for i in range(30)})))
        assert refusal.status in (503, 507)
        assert occ.client.health()["version"]
    assert occ.client.upload("new", make_zip({f"{i}.txt": "x" for i in range(30)}))["files"] == 30
    wait_until(lambda: {path.name for path in (occ.home / "workspaces").iterdir()} == {"new", "work"}, "no rest")


def test_a_start_in_a_read_only_home_says_so(occ: Occ, small: Path) -> None:
    occ.stop()
    subprocess.run(["mount", "--bind", str(small), str(small)], check=True)
    subprocess.run(["mount", "-o", "remount,ro,bind", str(small)], check=True)
    try:
        done = occ.command("start", check=False)
        assert (done.returncode, "read-only" in done.stderr, "fault" in done.stderr) == (1, True, False)
    finally:
        subprocess.run(["umount", "--lazy", str(small)], check=True)
    occ.start()


def test_a_database_held_for_long_delays_and_loses_nothing(occ: Occ, tmp_path: Path) -> None:
    promises = Promises(occ, tmp_path / "starts")
    gate = tmp_path / "gate"
    body = steps({"say": "0 "}, {"wait": str(gate)}, *({"say": f"{i} "} for i in range(1, 50)))
    stream, seen = occ.under_way(body, "held")
    with occ.database.write():
        gate.touch()
        response = occ.request(
            "POST", "/execute", json_body={"executionId": "no", "workspaceId": "work", "prompt": "x"}
        )
        assert (response.status, response.json()["code"]) == (503, "BUSY")
        assert occ.client.health()["version"]
        wait_until(lambda: sentences.CANNOT_BE_STORED_YET in occ.logs(), "the held database to be felt")
        threading.Event().wait(20)  # half a minute in all: the fault itself, not something waited for
    events = seen + list(stream)
    assert output(events) == counted(50)
    assert events[-1].name == "complete"
    promises.check()
