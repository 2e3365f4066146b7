"""The spare processes of a daemon, as tests see them."""

from __future__ import annotations

import contextlib
from pathlib import Path

import psutil

from occ_worker.execution import levels
from tests.conftest import Occ, command_line, wait_until


def stand_in_with_claims(folder: Path, claim: str = "", following: Path | None = None) -> Path:
    """Return a stand-in CLI of a version that starts ahead.

    It takes its claim as `claim` says, and the next turn of a session as the file `following` says.
    """
    program = folder / "claiming-claude"
    version = 'if [ "$1" = --version ]; then echo "2.1.332 (a stand-in)"; exit; fi'
    how = f"FAKE_CLAUDE_CLAIM={claim} FAKE_CLAUDE_NEXT='{following or ''}'"
    program.write_text(f'#!/bin/sh\n{version}\n{how} exec "{folder}/fake-claude" "$@"\n')
    program.chmod(0o700)
    return program


def spares(occ: Occ) -> dict[int, psutil.Process]:
    """Return the live spare processes of the daemon, used or not, by pid."""
    found = {}
    for worker in occ.processes():
        try:
            children = worker.children()
        except psutil.NoSuchProcess:
            continue
        found |= {child.pid: child for child in children if "--await-claim" in command_line(child)}
    return found


def one_spare(occ: Occ, *besides: int) -> psutil.Process:
    """Wait for a spare process that is none of those `besides`, and return it."""

    def found() -> list[psutil.Process]:
        return [process for pid, process in spares(occ).items() if pid not in besides]

    return wait_until(found, "a spare process")[0]


def spare_for(occ: Occ, permissions: str, *besides: int) -> psutil.Process:
    """Have only spare processes for these permissions start from now on; wait for one, and return it."""
    with contextlib.closing(occ.database) as database:
        for _ in range(2):
            levels.note(database, permissions)

    def found() -> list[psutil.Process]:
        fitting = []
        for pid, process in spares(occ).items():
            argv = command_line(process)
            kind = "plan" if "plan" in argv else "ask" if "--permission-prompt-tool" in argv else "edit"
            fitting += [process] if kind == permissions and pid not in besides else []
        return fitting

    return wait_until(found, f"a spare process for {permissions}")[0]
