"""Updates of a workspace: changed files and deletions; all other files stay.

An upload has the changed files and the paths to delete. The new tree is made beside the old one: the unpacked files,
and hard links to the files of the old tree that stay. So files that no upload contains, such as builds, survive, and
the exchange is one step as with any upload.
"""

from __future__ import annotations

import json
import os
import re
import sqlite3
import stat
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from occ_app import errors
from occ_app.database.database import Database
from occ_app.workspaces import workspace as workspaces
from occ_app.workspaces.archive_names import Name, checked_path

MAX_DELETIONS = 100_000


@dataclass(frozen=True)
class Seen:
    """The state of a workspace when its update began.

    It is its folder, and how many executions had started in it.
    """

    path: Path
    started: int


def deletions(text: str) -> tuple[str, ...]:
    """Return the paths of the form field `deletions`, a JSON list.

    Raises InvalidRequest.
    """
    try:
        listed = json.loads(text)
        if not isinstance(listed, list) or len(listed) > MAX_DELETIONS:
            raise ValueError
        return tuple(checked_path(Name(path if isinstance(path, str) else ""), folder=False) for path in listed)
    except (ValueError, RecursionError):
        reason = f"A JSON list of at most {MAX_DELETIONS} paths."
    except errors.ArchiveError as error:
        reason = str(error)
    raise errors.InvalidRequest("`deletions` cannot be used.", {"deletions": [reason]})


def check_form(policy: str, base: str | None, deleted: Collection[str], *, strip_root: bool, has_zip: bool) -> None:
    """Raise InvalidRequest for fields that do not fit the policy of an upload."""
    if policy != "update":
        if base is not None or deleted:
            raise errors.InvalidRequest("`base` and `deletions` belong to the policy update.", {"base": ["No update."]})
        if not has_zip:
            raise errors.InvalidRequest("The file part `zip` is missing.", {"zip": ["Missing file part."]})
    elif base is None:
        raise errors.InvalidRequest("An update names the snapshot that it changes.", {"base": ["Missing."]})
    elif strip_root:
        raise errors.InvalidRequest("An update keeps the paths of its zip.", {"stripRoot": ["Not for updates."]})


def begin(db: Database, workspace_id: str, base: str | None) -> Seen:
    """Return the state that an update starts from.

    Raises Conflict when the workspace is held, or not at `base`.
    """
    with db.read() as connection:
        return check(connection, workspace_id, base)


def check(connection: sqlite3.Connection, workspace_id: str, base: str | None, seen: Seen | None = None) -> Seen:
    """Return the state of a workspace, which must be at `base`.

    With `seen` it must also be as it was then. Raises Conflict.
    """
    row = connection.execute(
        """
        SELECT w.generation, w.path, w.snapshot,
            (SELECT count(*) FROM executions e WHERE e.workspace_generation = w.generation AND e.started_at IS NOT NULL)
                AS started
        FROM workspaces w WHERE w.workspace_id = :workspace_id
        """,
        {"workspace_id": workspace_id},
    ).fetchone()
    if row is None:
        raise errors.workspace_not_found(workspace_id)
    workspaces.refuse_busy(connection, workspace_id, row["generation"])
    now = Seen(Path(row["path"]), row["started"])
    if row["snapshot"] != base or (seen is not None and now != seen):
        raise errors.Conflict(
            "WORKSPACE_CHANGED",
            f"The files of workspace {workspace_id} changed since; get its changes first (`occ pull`), or send the"
            " folder as a new workspace.",
            {"workspaceId": workspace_id, "snapshot": row["snapshot"]},
        )
    return now


def keep(old: Path, new: Path, deleted: Collection[str]) -> None:
    """Link the remaining files of the tree `old` into the tree `new`.

    A path that is `deleted`, or that `new` has, is left out.
    """
    gone = {os.fsencode(path) for path in deleted}
    root = os.fsencode(old)
    for folder, folders, files in os.walk(root):
        below = os.path.relpath(folder, root) if folder != root else b""
        target = os.path.join(os.fsencode(new), below)
        links = [name for name in folders if os.path.islink(os.path.join(folder, name))]
        for name in (*files, *links):
            path = os.path.join(below, name)
            if path not in gone and not os.path.lexists(os.path.join(target, name)):
                os.link(os.path.join(folder, name), os.path.join(target, name), follow_symlinks=False)
        for name in list(folders):
            place = os.path.join(target, name)
            if name in links or (os.path.lexists(place) and not stat.S_ISDIR(os.lstat(place).st_mode)):
                folders.remove(name)
            elif not os.path.lexists(place):
                os.mkdir(place, stat.S_IMODE(os.stat(os.path.join(folder, name)).st_mode) | 0o700)
    _remove_emptied(new, deleted)


def _remove_emptied(new: Path, deleted: Collection[str]) -> None:
    """Remove the folders whose last file was deleted, as git does."""
    for path in deleted:
        for parent in (new / path).parents:
            if parent == new:
                break
            try:
                parent.rmdir()
            except OSError:
                break


def is_tree(text: str) -> bool:
    """Whether a text is the id of a snapshot."""
    return re.fullmatch(r"[0-9a-f]{40}", text) is not None
