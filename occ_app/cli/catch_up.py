"""Changes of a workspace that the folder sent to it lacks.

They are of runs and of restores. Runs are known with their files before and after. Other changes, such as a restore's,
are found by a comparison of the workspace's files with those that the folder is known to have.
"""

from __future__ import annotations

import contextlib
import stat
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from occ_app import errors
from occ_app.cli import folders, merging
from occ_app.cli.folders import Sent, State
from occ_app.client import results
from occ_app.client.agent_client import AgentClient
from occ_app.client.results import Changes, Entry
from occ_app.workspaces.skipped import skip_reasons


@dataclass(frozen=True)
class Missing:
    """The runs whose changes a folder lacks, oldest first, or `snapshot`.

    That is the one to compare it with. `touched` are all paths that a run of the workspace changed. `only_runs`: only
    runs could be looked for.
    """

    runs: tuple[str, ...]
    snapshot: str | None
    touched: frozenset[str]
    only_runs: bool = False


def missing(client: AgentClient, sent: Sent) -> Missing:
    """Return the changes that a folder lacks.

    A hub does not know the snapshots of its workspaces, only runs. Raises NotWritten when a run is active after
    another change of the workspace.
    """
    page = client.executions(workspaceId=sent.workspace, limit=1000)["executions"]
    known = list(_recorded(client, page))
    now = client.workspace(sent.workspace).get("snapshot")
    runs = _chain(sent, known, now)
    end = known[runs[-1]].result if runs else sent.snapshot
    if now is None or end == now:
        return Missing(tuple(known[run].execution_id for run in runs), None, frozenset(), only_runs=now is None)
    going_on = next((each["executionId"] for each in page if not each.get("finishedAt")), None)
    if going_on is not None:
        raise errors.NotWritten(f"Workspace {sent.workspace} changes: {results.goes_on(going_on)}")
    touched = {path for run in known for entry in run.entries for path in (entry.path, entry.old_path) if path}
    return Missing((), str(now), frozenset(touched))


@dataclass(frozen=True)
class _Run(Changes):
    execution_id: str = ""


def _recorded(client: AgentClient, page: Iterable[Mapping[str, Any]]) -> Iterator[_Run]:
    """Yield the runs that changed a file, newest first."""
    for each in page:
        pending = each.get("finishedAt") and each.get("changesReason") == "pending"
        if pending or (each.get("changes") and each["changes"]["files"]):
            with contextlib.suppress(errors.Refused):  # its snapshots are pruned
                yield _Run(**vars(results.changes(client, each["executionId"])), execution_id=each["executionId"])


def _chain(sent: Sent, known: list[_Run], now: str | None) -> list[int]:
    """Return the runs from the folder's snapshot towards the present one.

    They are indexes of `known`.
    """
    by_base = dict[str | None, int]()
    for index, run in enumerate(known):
        by_base.setdefault(run.base, index)
    found, snapshot = list[int](), sent.snapshot
    while snapshot != now and snapshot in by_base:
        found.append(by_base.pop(snapshot))
        snapshot = known[found[-1]].result or ""
    return found


class Comparison:
    """The files of a workspace now, compared with those a folder is known to have.

    Use it as a context manager.
    """

    def __init__(self, client: AgentClient, sent: Sent, touched: frozenset[str]) -> None:
        self._archive: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed at the end of the context
        try:
            client.archive(sent.workspace, self._archive)
            self._zip = zipfile.ZipFile(self._archive)
        except BaseException:
            self._archive.close()
            raise
        self._folder, self._files = Path(sent.folder), sent.files
        self.entries = tuple(self._compared(touched))

    def __enter__(self) -> Comparison:
        return self

    def __exit__(self, *_: object) -> None:
        self._zip.close()
        self._archive.close()

    def content(self, path: str, at: str) -> bytes:
        """Return a file of the workspace, or with `at` start the folder's known one.

        Raises InConflict for one that was edited in the folder: its former content is not stored.
        """
        if at == "end":
            return self._zip.read(path)
        file = self._folder / path
        here = b"" if file.is_symlink() or not file.is_file() else file.read_bytes()
        if merging.digest(here) != self._files[path][0]:
            raise merging.InConflict("it was edited here, and changed in the workspace")
        return here

    def _compared(self, touched: frozenset[str]) -> Iterator[Entry]:
        there = self._states()
        # An upload leaves such files out, so their absence is no change.
        never_sent = skip_reasons(dict.fromkeys(self._files, False)).keys() - touched
        # Files that neither was sent nor a run recorded, such as builds that git ignores, are no part of a snapshot.
        for path in sorted((touched | self._files.keys()) - never_sent):
            before, now = self._files.get(path), there.get(path)
            if before != now:
                status = "added" if before is None else "deleted" if now is None else "modified"
                yield Entry(path, None, status, 0, 0, False, _mode(now), _mode(before))

    def _states(self) -> dict[str, State]:
        links = {info.filename for info in self._zip.infolist() if stat.S_ISLNK(info.external_attr >> 16)}
        self._archive.seek(0)
        return {path: state for path, state in folders.packed_states(self._archive).items() if path not in links}


def _mode(state: State | None) -> str | None:
    return None if state is None else "100755" if state[1] else "100644"
