"""The end of a process by `leave`, beside the one that Python gives it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PROGRAM = """
import atexit, os, sys, threading
from occ_app.system.leaving import leave

class Freed:
    def __del__(self, write=os.write):
        write(2, b"freed")

freed = Freed()
freed.itself = freed
sys.stdout.write("begun ")
atexit.register(print, "an exit function", file=sys.stderr)
go_on = threading.Event()
threading.Thread(target=lambda: (go_on.wait(), print("a thread"))).start()
threading.Timer(0.01, go_on.set).start()
"""


def end(how: str, output: int = subprocess.PIPE) -> tuple[int, bytes, bytes]:
    command = [sys.executable, "-c", f"{PROGRAM}\n{how}(3)"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(command, env=environment, stdout=output, stderr=subprocess.PIPE, check=False, timeout=60)
    return done.returncode, done.stdout, done.stderr


def test_it_joins_threads_runs_exit_functions_and_flushes_and_frees_nothing() -> None:
    assert end("leave") == (3, b"begun a thread\n", b"an exit function\n")
    assert end("sys.exit") == (3, b"begun a thread\n", b"an exit function\nfreed")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no full device")
def test_lost_output_ends_it_with_the_code_of_python() -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        left, exited = (end(how, full) for how in ("leave", "sys.exit"))
    finally:
        os.close(full)
    assert left == exited
    assert left[0] == 120
