"""Uploads are unpacked by two threads, none of the queue's, and none is left undone."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from occ_worker.control.upkeep import Upkeep
from tests.conftest import wait_until


class Uploads(Upkeep):
    """An upkeep without a database, whose uploads are unpacked by `work`."""

    def __init__(self, work: Callable[[int], None]) -> None:
        super().__init__(cast(Any, None), cast(Any, None))
        self._unpack = work  # type: ignore[method-assign]


@pytest.fixture
def go() -> Iterator[threading.Event]:
    go = threading.Event()
    yield go
    go.set()


def test_more_uploads_than_threads_wait_without_holding_one_of_the_queue(go: threading.Event) -> None:
    begun, done = list[int](), list[int]()

    def work(number: int) -> None:
        begun.append(number)
        go.wait(20)
        done.append(number)

    uploads = Uploads(work)
    for number in range(6):
        uploads.unpack_upload(number)  # returns at once, or the test would stand still here
    wait_until(lambda: begun == [0, 1], "two to begin")
    assert done == []
    go.set()
    wait_until(lambda: sorted(done) == list(range(6)), "all of them")


def test_an_upload_that_fails_is_logged_and_those_behind_it_are_done(caplog: pytest.LogCaptureFixture) -> None:
    done = list[int]()

    def work(number: int) -> None:
        if number == 0:
            raise ValueError("a fault")
        done.append(number)

    uploads = Uploads(work)
    for number in range(3):
        uploads.unpack_upload(number)
    wait_until(lambda: sorted(done) == [1, 2], "the others")
    assert "a fault" in caplog.text


def test_a_control_process_that_ends_begins_no_further_upload(go: threading.Event, tmp_path: Path) -> None:
    begun = list[int]()

    def work(number: int) -> None:
        begun.append(number)
        go.wait(20)
        (tmp_path / str(number)).touch()

    uploads = Uploads(work)
    for number in range(4):
        uploads.unpack_upload(number)
    wait_until(lambda: begun == [0, 1], "two to begin")
    uploads.close()
    go.set()
    wait_until(lambda: len(list(tmp_path.iterdir())) == 2, "those two to end")
    assert begun == [0, 1]
