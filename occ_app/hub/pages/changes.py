"""The changed files of a run or a conversation, and undoing them.

The pages show patches in two views, whole files and pictures.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from flask import Blueprint, Response, render_template, request

from occ_app import errors
from occ_app.api import files as files_api
from occ_app.api.services import services
from occ_app.executions import conversations
from occ_app.executions import queries as executions
from occ_app.executions.records import Execution
from occ_app.hub.pages import login as door
from occ_app.hub.pages import patches, pictures
from occ_app.hub.pages.patches import FilePatch
from occ_app.web import callers, refusals
from occ_app.workspaces import open_files
from occ_app.workspaces import workspace as workspaces
from occ_app.workspaces.workspace import Workspace

bp = Blueprint("changes", __name__)
bp.before_request(files_api.enter)
bp.teardown_request(files_api.leave)

_MAX_FILES = 300  # on a page
_MAX_LINES, _MAX_LINES_OF_FILE, _MAX_LINES_ALONE = 6_000, 600, 20_000
_MAX_PATCH_BYTES, _MAX_SHOWN_BYTES = 20_000_000, 2_000_000
_MAX_TURNS = 50
_REASONS = {
    "pending": "They are being recorded. Reload the page in a moment.",
    "not recorded": "They were not recorded.",
    "no git": "They were not recorded, because the machine has no git.",
    "too large": "The workspace is too large for OCC to record changes.",
    "lost": "The machine no longer has them.",
    "invalid": "The machine sent them in an unknown format.",
}


@dataclass(frozen=True)
class ChangedFile:
    """A file that a run changed, as its machine listed it.

    `patch` holds the lines that the page shows.
    """

    number: int
    entry: Mapping[str, Any]
    patch: FilePatch

    @property
    def path(self) -> str:
        return str(self.entry["path"])

    @property
    def folder(self) -> str:
        return self.path.rpartition("/")[0]

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]

    @property
    def picture(self) -> bool:
        return pictures.is_picture(self.path)


@dataclass(frozen=True)
class Turn:
    """A run and its changed files.

    `files` are those on the page and `total` counts all. `why` is the reason when there are none.
    """

    execution: Execution
    files: tuple[ChangedFile, ...] = ()
    total: int = 0
    additions: int = 0
    deletions: int = 0
    exact: bool = True
    truncated: bool = False
    why: str | None = None

    @property
    def by_folder(self) -> Iterator[tuple[str, list[ChangedFile]]]:
        ordered = sorted(self.files, key=lambda each: (each.folder, each.name))
        return ((folder, list(group)) for folder, group in groupby(ordered, key=lambda each: each.folder))


@bp.get("/runs/<execution_id>/changes")
def show(execution_id: str) -> str:
    """Show the changes of one run, or of one file in it."""
    execution = executions.get(services().db, execution_id, callers.caller().visible_to)
    return _page(execution, [_turn(execution, request.args.get("path"), _MAX_LINES)])


@bp.get("/conversations/<conversation_id>/changes")
def conversation(conversation_id: str) -> str:
    """Show the changes of each turn of a conversation, in order."""
    _, turns = conversations.get(services().db, conversation_id, callers.caller().visible_to)
    begun = [turn for turn in turns if turn.state != "queued"]
    shown = begun[-_MAX_TURNS:]
    left = _MAX_LINES // max(1, len(shown))
    return _page(
        begun[0] if begun else turns[0],
        [_turn(each, None, left, len(shown)) for each in shown],
        turns_of=conversation_id,
    )


@bp.get("/runs/<execution_id>/changes.patch")
def patch(execution_id: str) -> Response:
    """Send the changes as a patch for git."""
    return files_api.as_attachment(files_api.diff(execution_id=execution_id), f"{execution_id}.patch")


@bp.get("/runs/<execution_id>/file")
def file(execution_id: str) -> Response:
    """Send a file as a run found or left it.

    A browser shows a picture and saves anything else.
    """
    path, at = _path(), _side()
    found = files_api.files().stored(files_api.recorded(execution_id), path, at)
    return pictures.sent(found.content, found.size, path)


@bp.get("/runs/<execution_id>/whole")
def whole(execution_id: str) -> str:
    """Show a whole file as a run found or left it."""
    path, at = _path(), _side()
    execution = files_api.recorded(execution_id)
    found = files_api.files().stored(execution, path, at)
    content = read_text(found.content, found.size)
    return render_template(
        "whole.html",
        execution=execution,
        path=path,
        at=at,
        size=found.size,
        text=None if content is None else patches.whole(content, path, _MAX_LINES_ALONE),
    )


@bp.get("/runs/<execution_id>/undo")
def ask(execution_id: str) -> str:
    """Ask whether to undo a run, or with `to=end` whether to redo its changes."""
    execution = executions.get(services().db, execution_id, callers.caller().visible_to)
    return _confirmation(execution, _target(request.args.get("to")))


@bp.post("/runs/<execution_id>/undo")
def undo(execution_id: str) -> Response:
    """Restore the files that a run changed as it found them or as it left them."""
    services().refuse_when_stopping()
    visible_to = callers.caller().visible_to
    execution = executions.get(services().db, execution_id, visible_to)
    workspace = _workspace(execution)
    to, force = _target(request.form.get("to")), request.form.get("force") == "yes"
    if workspace is None:
        raise errors.workspace_not_found(execution.workspace_id)
    try:
        files_api.files().restore(workspace, execution_id, to, force=force)
    except (errors.Conflict, errors.RequestError) as error:
        if error.code not in ("RESTORE_CONFLICT", "WORKSPACE_BUSY", "AGENT_UNREACHABLE", "BUSY"):
            raise
        return Response(_confirmation(execution, to, error), refusals.status_of(error.code))
    return door.go(f"/runs/{execution_id}/changes?done={'undone' if to == 'start' else 'again'}")


def read_text(content: Iterator[bytes], size: int) -> str | None:
    """Read a text that is short enough for a page; None for anything else."""
    if size > _MAX_SHOWN_BYTES:
        return None
    data = b"".join(content)
    if b"\0" in data[:8000]:
        return None
    return data.decode(errors="replace")


def _page(execution: Execution, turns: Sequence[Turn], turns_of: str | None = None) -> str:
    return render_template(
        "changes.html",
        execution=execution,
        turns=turns,
        turns_of=turns_of,
        only=request.args.get("path") if turns_of is None else None,
        split=request.args.get("view") == "split",
        done=request.args.get("done"),
        workspace=_workspace(execution),
        additions=sum(turn.additions for turn in turns),
        deletions=sum(turn.deletions for turn in turns),
        paths=len({file.path for turn in turns for file in turn.files}),
    )


def _turn(execution: Execution, only: str | None, lines: int, share: int = 1) -> Turn:
    """Return the changes of a run, with at most `lines` lines.

    `only` names the one file to show. On a page with several turns `share` is their number: each gets an equal part of
    the characters that may have syntax colours.
    """
    if execution.why_no_changes is not None:
        why = execution.why_no_changes
        return Turn(execution, why="It has not ended yet." if not execution.over else _REASONS.get(why, why))
    try:
        found = files_api.files().changes(execution)
    except errors.RequestError as error:
        return Turn(execution, why=str(error))
    entries = [entry for entry in found["entries"] if only in (None, entry["path"])]
    if only is not None and not entries:
        raise errors.file_not_found(only, "the run did not change it")
    try:
        parts = _parts(execution, entries, only)
    except errors.RequestError as error:
        return Turn(execution, why=str(error))
    files, colours = list[ChangedFile](), patches.MAX_COLOURED // share
    for number, (entry, part) in enumerate(zip(entries[:_MAX_FILES], parts, strict=False)):
        limit = _MAX_LINES_ALONE if only else min(_MAX_LINES_OF_FILE, max(0, lines))
        made = patches.parse(part, entry["path"], limit, colours)
        lines, colours = lines - sum(len(hunk.lines) for hunk in made.hunks), colours - made.coloured
        files.append(ChangedFile(number, entry, made))
    sums = (found["files"], found["additions"], found["deletions"], found["exact"], found["truncated"])
    return Turn(execution, tuple(files), *sums)


def _parts(execution: Execution, entries: Sequence[Mapping[str, Any]], only: str | None) -> list[bytes]:
    """Return the patch of each file."""
    content = bytearray()
    for piece in files_api.files().diff(execution, only):
        content += piece
        if len(content) > _MAX_PATCH_BYTES:
            break
    return [bytes(content)] if only is not None else patches.split(bytes(content), entries)


def _confirmation(execution: Execution, to: str, problem: errors.RequestError | None = None) -> str:
    turn = _turn(execution, None, 0)
    return render_template(
        "undo.html", execution=execution, turn=turn, to=to, problem=problem, workspace=_workspace(execution)
    )


def _workspace(execution: Execution) -> Workspace | None:
    return workspaces.numbered(services().db, execution.workspace_generation, callers.caller().visible_to)


def _path() -> str:
    path = request.args.get("path", "")
    open_files.plain_parts(path)  # a path with dots would address something else on the machine
    return path


def _side() -> str:
    return "start" if request.args.get("at") == "start" else "end"


def _target(to: str | None) -> str:
    return to if to is not None and re.fullmatch("start|end", to) else "start"
