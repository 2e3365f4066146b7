"""Packing a folder and sending it as a workspace."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import click

from occ_app import errors
from occ_app.cli import folders, output
from occ_app.cli.folders import Sent
from occ_app.cli.zip_names import acceptable, zip_name
from occ_app.client.agent_client import AgentClient
from occ_app.config import homes

_LARGE_BYTES = 5_000_000
_NAMED = 5  # of the paths that are left out for one reason


def upload(client: AgentClient, folder: Path) -> str:
    """Send a folder as a new workspace; returns the workspace's id."""
    return send(client, folder, "").workspace


def send(client: AgentClient, folder: Path, place: str, *, with_history: bool = False) -> Sent:
    """Send a folder as a new workspace to an agent or hub.

    `place` names the agent or hub. Returns the files that the workspace has now. `with_history` sends the git
    repository, too.
    """
    import secrets  # like the next: a run in an existing workspace does not wait for them
    import tempfile

    from occ_app.cli import git_history

    folder = _ready(folder)
    if with_history:
        git_history.check(folder)
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", folder.name).strip("-._") or "workspace"
    workspace_id = f"{plain[:100]}-{secrets.token_hex(4)}"
    paths = _paths(folder)
    if not any(path.is_file() for path in paths):
        raise errors.InvalidRequest(
            f"{output.printable(str(folder))} has no files to send, or git ignores them all; choose another --dir."
        )
    with tempfile.TemporaryFile() as archive:
        _pack(folder, archive, paths)
        files = folders.packed_states(archive) if place else {}
        if with_history:
            with tempfile.TemporaryDirectory(prefix="occ-git-") as scratch:
                git_history.add(folder, archive, Path(scratch))
        archive.seek(0)
        # A folder's name may hold characters that no name of a workspace may.
        name = output.printable(zip_name(Path(folder.name)))[:200] or "workspace"
        reply = client.upload(workspace_id, archive, name=name, description=f"from {name}")
    _note_skipped(reply)
    return Sent(str(folder), place, workspace_id, None, reply.get("snapshot"), files)


def send_changes(client: AgentClient, folder: Path, sent: Sent) -> Sent:
    """Send the edits of a folder since it was sent; returns the state after that.

    Raises NotWritten when the workspace changed, too.
    """

    folder = _ready(folder)
    paths = _paths(folder)
    changed, removed = folders.differences(sent, folders.states(folder, paths))
    record = client.workspace(sent.workspace)
    there = record.get("snapshot")  # None: a hub does not know it
    if not changed and not removed:
        if sent.snapshot is not None and there not in (None, sent.snapshot):
            output.note(
                f"workspace {sent.workspace} has changes that {output.printable(str(folder))} does not have;"
                f" `occ pull{folders.option(folder)}` brings them"
            )
        return sent
    if sent.snapshot is None:
        raise errors.NotWritten(
            f"{folder} changed since, and workspace {sent.workspace} has no snapshot to send changes to; run without -c"
            " to send the folder as a new workspace."
        )
    if there not in (None, sent.snapshot):
        raise _both_changed(folder, sent)
    names = set(changed)
    edited = [path for path in paths if zip_name(path.relative_to(folder)) in names]
    reply, files = _update(client, folder, sent, record, edited, removed)
    output.note(f"sent your changes: {len(changed)} file{'' if len(changed) == 1 else 's'}, {len(removed)} removed")
    _note_skipped(reply)
    kept = {path: state for path, state in sent.files.items() if path not in removed}
    return replace(sent, snapshot=reply.get("snapshot"), files=kept | files)


def _update(
    client: AgentClient, folder: Path, sent: Sent, record: Mapping[str, Any], paths: list[Path], removed: list[str]
) -> tuple[dict[str, Any], dict[str, folders.State]]:
    """Send changed files and deletions, based on the snapshot they were made from.

    Returns the reply and the states. Raises NotWritten when the workspace changed since.
    """
    import tempfile

    with tempfile.TemporaryFile() as archive:
        files = dict[str, folders.State]()
        if paths:
            _pack(folder, archive, paths)
            files = folders.packed_states(archive)
        archive.seek(0)
        try:
            name, about = str(record["name"]), str(record.get("description") or "")
            reply = client.upload(
                sent.workspace, archive, name=name, description=about, base=sent.snapshot, deletions=removed
            )
        except errors.Refused as refusal:
            if refusal.code == "WORKSPACE_CHANGED":
                raise _both_changed(folder, sent) from None
            raise
    return reply, files


def _both_changed(folder: Path, sent: Sent) -> errors.NotWritten:
    return errors.NotWritten(
        f"Both {output.printable(str(folder))} and workspace {sent.workspace} changed since. Nothing was sent."
        f" `occ pull{folders.option(folder)}` brings the changes from there and merges them; then run it again."
        " Without -c the folder is sent"
        " as a new workspace."
    )


def _ready(folder: Path) -> Path:
    """Return the whole path of a folder to send.

    Raises UsageError for one of OCC's own.
    """
    from occ_app.cli.tree_update import recover

    folder = folder.resolve()
    if folder in {home.resolve() for home in homes.secret_folders()}:
        raise click.UsageError(f"{folder} is OCC's own, with its token in it; choose another --dir.")
    recovered = recover(folder)
    if recovered is not None:
        output.note(recovered)
    return folder


def _note_skipped(reply: Mapping[str, Any]) -> None:
    if reply["skipped"]:
        names = ", ".join(output.printable(entry["path"]) for entry in reply["skipped"][:_NAMED])
        output.note(f"left out, since it could run programs on the agent: {names}")


def _paths(folder: Path) -> list[Path]:
    """Return the paths of a folder that are sent.

    The others are named on standard error.
    """
    from occ_app.cli.gitignore import files_to_send

    left_out = dict[Path, str]()
    listed = files_to_send(folder, homes.secret_folders(), left_out.__setitem__)
    paths = list(acceptable(folder, listed, left_out.__setitem__))
    _note_left_out(folder, left_out)
    return paths


def _pack(folder: Path, archive: IO[bytes], paths: Sequence[Path]) -> None:
    from occ_app.workspaces.archives import pack

    size = sum(path.stat().st_size for path in paths if path.is_file())
    packed = pack(folder, archive, paths)
    if size < _LARGE_BYTES or not sys.stderr.isatty():
        for _ in packed:
            pass
        return
    with click.progressbar(length=size, label=f"packing {output.printable(folder.name)}", file=sys.stderr) as bar:
        for done in packed:
            bar.update(done)


def _note_left_out(folder: Path, left_out: Mapping[Path, str]) -> None:
    """Name on standard error the paths that are left out, a line for each reason."""

    for reason in dict.fromkeys(left_out.values()):
        paths = [path for path, why in left_out.items() if why == reason]
        names = ", ".join(output.printable(zip_name(path.relative_to(folder))) for path in paths[:_NAMED])
        more = f" and {len(paths) - _NAMED} more" if len(paths) > _NAMED else ""
        output.note(f"left out, since {reason}: {names}{more}")
