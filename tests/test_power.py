"""A power cut, as the file system sees it: everything not yet on the disk is gone in one instant.

The home is on an ext4 image that is told to shut down without flushing its journal (EXT4_IOC_SHUTDOWN), which is what a
cut leaves; then it is mounted again, as after a reboot. Needs root and loop devices; skipped, loudly, without.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import itertools
import os
import random
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from occ_app.client.agent_client import AgentClient
from occ_app.errors import OCCError, Refused
from tests import sentences
from tests.conftest import Occ, make_zip, occ_in, stand_in, wait_until
from tests.promises import HEALTH_SECONDS, Promises, counting_cli, prompt

ROUNDS = int(os.environ.get("FAULT_ROUNDS", "3"))

_EXT4_IOC_SHUTDOWN = 0x8004587D
_WITHOUT_FLUSH = 2


class Disk:
    """An ext4 image, mounted; `cut` takes its power."""

    def __init__(self, folder: Path) -> None:
        self._image, self.path = folder / "disk.img", folder / "disk"
        self.path.mkdir()
        with self._image.open("wb") as file:
            file.truncate(200 << 20)
        _run("mkfs.ext4", "-q", "-F", str(self._image))
        self.mount()

    def mount(self) -> None:
        _run("mount", "-o", "loop", str(self._image), str(self.path))

    def cut(self) -> None:
        descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.ioctl(descriptor, _EXT4_IOC_SHUTDOWN, struct.pack("I", _WITHOUT_FLUSH))
        finally:
            os.close(descriptor)

    def unmount(self) -> None:
        _run("umount", str(self.path))

    def in_use(self) -> bool:
        """Whether the file system is still mounted, be it in a copy of the mounts that another namespace has."""
        for place in Path("/sys/block").glob("loop*/loop/backing_file"):
            with contextlib.suppress(OSError):  # released meanwhile
                if place.read_text().strip() == str(self._image):
                    return True
        return False


def _run(*command: str) -> None:
    # A user's PATH may lack the folders of the system's own commands.
    path = {"PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | path)
    if done.returncode != 0:
        raise OSError(f"{command[0]}: {done.stderr.strip()}")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    try:
        disk = Disk(tmp_path)
    except OSError as reason:
        pytest.skip(f"POWER CUTS ARE NOT TESTED: {reason}")
    yield disk
    _run("umount", "--lazy", str(disk.path))  # this process itself may still have its database open


@pytest.fixture
def occ(tmp_path: Path, disk: Disk, free_port: int) -> Iterator[Occ]:
    """The command with its home on that disk."""
    stand_in(tmp_path)
    program, _ = counting_cli(tmp_path)
    with occ_in(tmp_path, home=disk.path / "home", program=program, OCC_HTTP_PORT=str(free_port)) as occ:
        yield occ


def write_until_cut(occ: Occ, number: int, cut: threading.Event, accepted: set[str], uploaded: dict[str, int]) -> None:
    """Upload workspaces and start executions, noting what was acknowledged, until the power is cut."""
    client = AgentClient(occ.url, occ.token)
    with contextlib.suppress(OCCError):
        for turn in itertools.takewhile(lambda _: not cut.is_set(), itertools.count()):
            workspace = f"n{number}-{turn}"
            client.upload(workspace, make_zip({f"{i}.txt": str(i) * 50 for i in range(20)}))
            uploaded[workspace] = 20
            execution_id = f"{workspace}-run"
            stream = client.execute(workspace, prompt(3, 0), executionId=execution_id)
            next(stream)
            accepted.add(execution_id)
            if turn % 2:
                for event in stream:
                    if event.name == "output":
                        break
            stream.close()  # type: ignore[attr-defined]  # it is a generator
    client.close()


def lose_power(occ: Occ, disk: Disk) -> None:
    disk.cut()
    for process in occ.processes():
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    wait_until(lambda: not occ.processes(), "the processes to be gone")
    gc.collect()  # this process's own connections to the database on it
    wait_until(lambda: _unmounted(disk), "nothing to use the disk any more")
    # Mounted before that, it would be the same file system, without power.
    wait_until(lambda: not disk.in_use(), "no namespace to have it mounted", 120)
    disk.mount()


def _unmounted(disk: Disk) -> bool:
    try:
        disk.unmount()
    except OSError:
        return False
    return True


def test_what_was_acknowledged_survives_a_power_cut(occ: Occ, disk: Disk, tmp_path: Path) -> None:
    promises = Promises(occ, tmp_path / "starts")
    uploaded: dict[str, int] = {}
    occ.start()
    for round_ in range(ROUNDS):
        cut = threading.Event()
        arguments = [(occ, 10 * round_ + client, cut, promises.accepted, uploaded) for client in range(3)]
        threads = [threading.Thread(target=write_until_cut, args=each, daemon=True) for each in arguments]
        for thread in threads:
            thread.start()
        threading.Event().wait(random.uniform(0.3, 1.5))  # noqa: S311 - any instant
        cut.set()
        lose_power(occ, disk)
        occ.start()
        for thread in threads:
            thread.join(60)
        assert not any(thread.is_alive() for thread in threads), "a client waits for an execution that is over"
        promises.check()
        known = {each["workspaceId"]: each for each in occ.client.workspaces()}
        for workspace, files in uploaded.items():
            stored = sorted((occ.home / "workspaces" / workspace).glob("*.txt"))
            assert len(stored) == files == known[workspace]["files"], workspace
            assert all(path.read_text() == path.stem * 50 for path in stored)
        folders = {path.name for path in (occ.home / "workspaces").iterdir()}
        assert not {name for name in folders if name.startswith(".")}
    print(f"\n{ROUNDS} power cuts: {len(promises.accepted)} executions and {len(uploaded)} workspaces, none lost")


def test_on_a_disk_that_fails_every_write_nothing_is_accepted(occ: Occ, disk: Disk, tmp_path: Path) -> None:
    promises = Promises(occ, tmp_path / "starts")
    occ.start()
    occ.workspace()
    occ.run(prompt(3), executionId="before")
    promises.accepted.add("before")
    disk.cut()
    body = {"executionId": "after", "workspaceId": "work", "prompt": "x"}
    response = occ.request("POST", "/execute", json_body=body)
    assert (response.status, response.json()["code"]) in ((507, "NO_SPACE"), (503, "BUSY")), response.data
    begun = time.monotonic()
    response = occ.request("GET", "/health")
    assert (response.status, response.json()["code"]) == (503, "BUSY"), response.data
    assert sentences.SEE_TO_ITS_DISK in response.json()["message"]
    assert time.monotonic() - begun < HEALTH_SECONDS
    lose_power(occ, disk)
    occ.start()
    promises.check()
    with pytest.raises(Refused):
        occ.client.execution("after")
