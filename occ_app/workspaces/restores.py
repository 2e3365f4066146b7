"""Restores: undoing or redoing the changes of an execution; all SQL on them.

A restore holds its workspace. Before it touches a file it takes a complete snapshot, so that it can be undone itself.
One whose process was killed is finished by the next.
"""

from __future__ import annotations

import contextlib
import secrets
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from occ_app import errors
from occ_app.database.database import Database
from occ_app.snapshots import restoring
from occ_app.snapshots.git import TooSlow
from occ_app.snapshots.objects import MissingObject
from occ_app.snapshots.restoring import Step
from occ_app.snapshots.scan import IGNORE_FILE, Skipped
from occ_app.snapshots.store import Snapshots
from occ_app.system.kernel import sync_filesystem
from occ_app.system.process_identity import ProcessIdentity
from occ_app.system.timestamps import iso_now
from occ_app.workspaces import folders
from occ_app.workspaces import workspace as workspaces
from occ_app.workspaces.workspace import Workspace

_SECONDS = 120.0
_NAMED = 100  # files in a refusal


@dataclass(frozen=True)
class Source:
    """The changes to make, from one snapshot to another.

    They are of an execution or a restore; see Summary for `exact`.
    """

    execution_id: str
    from_tree: str
    to_tree: str
    exact: bool = True


@dataclass(frozen=True)
class _Restore:
    number: int
    restore_id: str
    generation: int
    from_tree: str
    to_tree: str
    base: str | None

    @property
    def staging(self) -> str:
        return f".{self.restore_id}"


def source(db: Database, generation: int, restore_id: str, to: str) -> Source | None:
    """Return the changes of an earlier restore of a workspace.

    They are undone for `to` start. None when there is no such restore.
    """
    with db.read() as connection:
        row = connection.execute(
            "SELECT base, result FROM restores WHERE restore_id = :restore_id AND workspace_generation = :generation"
            " AND state = 'succeeded'",
            {"restore_id": restore_id, "generation": generation},
        ).fetchone()
    if row is None:
        return None
    trees = (row["result"], row["base"]) if to == "start" else (row["base"], row["result"])
    return Source(restore_id, *trees)


def restore(
    db: Database,
    snapshots: Snapshots,
    workspace: Workspace,
    changes: Source,
    owner: ProcessIdentity,
    *,
    force: bool,
    held_by: str | None = None,
) -> dict[str, Any]:
    """Make changes in a workspace; returns the reply.

    Raises Conflict when something runs there, and with RESTORE_CONFLICT and the files when some of them are not as the
    changes begin; `force` brings those to their end, too, unless no snapshot can have them. Nothing is changed then.
    `held_by` is an execution that holds the workspace and restores.
    """
    if not (changes.exact or force):
        raise _conflict(
            [],
            "its changes are not exact: others may have changed files between its end and the snapshot. Look at the"
            " diff, and use `force` (`occ restore --force`) to go on",
        )
    if workspace.is_project:
        folders.refuse_replaced(Path(workspace.path))
    begun = workspaces.patiently(lambda: _begin(db, workspace, changes, owner, held_by))
    root, objects = Path(workspace.path), snapshots.objects(workspace.generation)
    try:
        steps, base = _prepare(db, snapshots, root, begun, force=force)
        try:
            restoring.apply(root, objects, steps, begun.staging)
        except (OSError, MissingObject):
            with contextlib.suppress(OSError, MissingObject):
                restoring.apply(root, objects, [step.reversed() for step in steps], begun.staging)
            raise
        result = _finish(db, snapshots, begun, root)
    except BaseException as error:
        _set_state(db, begun.number, "failed")
        raise _refusal(error, changes.execution_id) from error
    return {
        "workspace_id": workspace.workspace_id,
        "restore_id": begun.restore_id,
        "files": len(steps),
        "base": base,
        "result": result,
    }


def recover(db: Database, snapshots: Snapshots) -> list[str]:
    """Finish the restores whose process ended, and free their workspaces.

    Returns a sentence for each.
    """
    with db.read() as connection:
        rows = connection.execute(
            "SELECT r.*, w.path, w.source FROM restores r"
            " LEFT JOIN workspaces w ON w.generation = r.workspace_generation"
            " WHERE r.state = 'running' ORDER BY r.number"
        ).fetchall()
    done = []
    for row in rows:
        if ProcessIdentity(row["owner_boot_id"], row["owner_pid"], row["owner_start"]).alive():
            continue
        root = None if row["path"] is None else Path(row["path"])
        if root is not None and row["source"] == "folder" and folders.was_replaced(root):
            _set_state(db, row["number"], "failed")
            done.append(f"Restore {row['restore_id']} was killed and cannot be finished: {root} is a link now.")
            continue
        done.append(_recover(db, snapshots, _from_row(row), root))
    return done


def _recover(db: Database, snapshots: Snapshots, begun: _Restore, root: Path | None) -> str:
    if root is None or begun.base is None:  # no file was touched
        _set_state(db, begun.number, "failed")
        return f"Restore {begun.restore_id} was undone: its process was killed before it began."
    try:
        changes = snapshots.changes(begun.generation, begun.from_tree, begun.to_tree)
        objects = snapshots.objects(begun.generation)
        restoring.apply(root, objects, restoring.plan(objects, begun.base, changes).steps, begun.staging)
        _finish(db, snapshots, begun, root)
    except (OSError, Skipped, MissingObject, TooSlow) as error:
        _set_state(db, begun.number, "failed")
        return f"Restore {begun.restore_id} was killed and cannot be finished: {error}."
    return f"Restore {begun.restore_id}, whose process was killed, is finished."


def _begin(
    db: Database, workspace: Workspace, changes: Source, owner: ProcessIdentity, held_by: str | None
) -> _Restore:
    with db.write() as connection:
        workspaces.refuse_busy(connection, workspace.workspace_id, workspace.generation, held_by)
        # A process that waits for its next turn knows the files as they were.
        connection.execute(
            "UPDATE kept_processes SET revoked = 1 WHERE generation = :generation",
            {"generation": workspace.generation},
        )
        row = connection.execute(
            """
            INSERT INTO restores (restore_id, workspace_generation, execution_id, state, from_tree, to_tree,
                owner_boot_id, owner_pid, owner_start, created_at)
            VALUES (:restore_id, :generation, :execution_id, 'running', :from_tree, :to_tree, :boot_id, :pid, :start,
                :now)
            RETURNING *
            """,
            {
                "restore_id": f"restore-{secrets.token_hex(6)}",
                "generation": workspace.generation,
                "execution_id": changes.execution_id,
                "from_tree": changes.from_tree,
                "to_tree": changes.to_tree,
                "boot_id": owner.boot_id,
                "pid": owner.pid,
                "start": owner.start,
                "now": iso_now(),
            },
        ).fetchone()
        return _from_row(row)


def _prepare(db: Database, snapshots: Snapshots, root: Path, begun: _Restore, *, force: bool) -> tuple[list[Step], str]:
    """Return the steps of a restore and the snapshot before it. Raises Conflict."""
    changes = snapshots.changes(begun.generation, begun.from_tree, begun.to_tree)
    # A file that the execution changed may be ignored only since it changed an ignore file, too.
    as_recorded = any(change.path.rpartition(b"/")[2] == IGNORE_FILE.encode() for change in changes)
    taken = snapshots.take(begun.generation, root, _SECONDS, of_run=as_recorded)
    if not taken.complete:
        raise _conflict([], "some of the workspace's files cannot be read")
    sync_filesystem(snapshots.folder)  # it must be there after a power cut
    with db.write() as connection:
        connection.execute(
            "UPDATE restores SET base = :base WHERE number = :number AND state = 'running'",
            {"base": taken.tree, "number": begun.number},
        )
    plan = restoring.plan(snapshots.objects(begun.generation), taken.tree, changes)
    if plan.conflicts and not force:
        raise _conflict(
            plan.conflicts,
            "files are not as the execution left them; use `force` (`occ restore --force`) to lose their changes",
        )
    in_the_way = restoring.obstacles(root, plan.steps)
    if in_the_way:
        raise _conflict(in_the_way, "something that no snapshot has is in the way")
    return plan.steps, taken.tree


def _finish(db: Database, snapshots: Snapshots, begun: _Restore, root: Path) -> str:
    tree = snapshots.take(begun.generation, root, _SECONDS).tree
    _set_state(db, begun.number, "succeeded", tree)
    return tree


def _set_state(db: Database, number: int, state: str, result: str | None = None) -> None:
    with db.write() as connection:
        won = connection.execute(
            "UPDATE restores SET state = :state, result = :result, finished_at = :now"
            " WHERE number = :number AND state = 'running'",
            {"state": state, "result": result, "now": iso_now(), "number": number},
        ).rowcount
        if won and result is not None:
            connection.execute(
                "UPDATE workspaces SET snapshot = :result WHERE generation ="
                " (SELECT workspace_generation FROM restores WHERE number = :number)",
                {"result": result, "number": number},
            )


def _from_row(row: sqlite3.Row) -> _Restore:
    names = ("number", "restore_id", "workspace_generation", "from_tree", "to_tree", "base")
    return _Restore(*(row[name] for name in names))


def _conflict(paths: Sequence[bytes], why: str) -> errors.Conflict:
    names = [path.decode(errors="replace") for path in paths]
    shown = "".join(f" {name}" for name in names[:3]) + (" …" if len(names) > 3 else "")
    return errors.Conflict(
        "RESTORE_CONFLICT",
        f"Nothing was restored: {why}{':' if shown else '.'}{shown}",
        {"files": names[:_NAMED], "omitted": max(0, len(names) - _NAMED)},
    )


def _refusal(error: BaseException, execution_id: str) -> BaseException:
    """Return the error for a caller."""
    if isinstance(error, Skipped):
        return _conflict([], f"no snapshot can be taken before it ({error})")
    if isinstance(error, MissingObject):
        return errors.changes_not_found(execution_id, "lost")
    if isinstance(error, TooSlow):
        return errors.Unavailable("BUSY", "The comparison took too long; try again in a moment.")
    return errors.unwritable(error) if isinstance(error, OSError) else error
