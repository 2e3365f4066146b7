"""The end of a process, without the teardown of its modules."""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import threading
from typing import NoReturn


def leave(code: int = 0) -> NoReturn:
    """End this process with an exit code, and free no objects.

    As at every end of Python, threads are joined, exit functions run, and the output is flushed. Python would then
    free every object of every module, which takes up to a third of the time of a short command. The kernel frees the
    memory at once.
    """
    with contextlib.suppress(KeyboardInterrupt):
        threading._shutdown()  # type: ignore[attr-defined]  # multiprocessing ends its processes with it, too
    atexit._run_exitfuncs()
    try:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
    except (OSError, ValueError):
        sys.exit(code)  # Python says that the output is lost, and exits with 120
    os._exit(code)
