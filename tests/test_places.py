"""Slow jobs take so many threads and no more, and none is left undone."""

from __future__ import annotations

import threading

import pytest

from occ_worker.control.slots import Places
from tests.conftest import wait_until


def test_more_than_there_are_places_for_waits_without_holding_a_thread() -> None:
    done: list[int] = []
    at_once: list[int] = []
    running = threading.Semaphore(0)
    go = threading.Event()

    def work(number: int) -> None:
        at_once.append(number)
        running.release()
        go.wait(10)
        at_once.remove(number)
        done.append(number)

    places = Places(2, work)
    threads = [threading.Thread(target=places.take, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
        assert running.acquire(timeout=10)
    for number in range(2, 6):
        places.take(number)  # returns at once, or the test would stand still here
    assert sorted(at_once) == [0, 1]
    go.set()
    for thread in threads:
        thread.join(10)
    assert sorted(done) == list(range(6))


def test_one_that_fails_leaves_its_place_and_those_behind_it_are_done(caplog: pytest.LogCaptureFixture) -> None:
    done: list[int] = []

    def work(number: int) -> None:
        if number == 0:
            raise ValueError("a fault")
        done.append(number)

    places = Places(1, work)
    for number in range(3):
        places.take(number)
    wait_until(lambda: done == [1, 2], "the others")
    assert "a fault" in caplog.text
