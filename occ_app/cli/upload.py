"""Packing a folder and sending it as a workspace."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import IO

import click

from occ_app import errors
from occ_app.cli import output
from occ_app.client.agent_client import AgentClient
from occ_app.config import config as configuration

_LARGE_BYTES = 5_000_000
_NAMED = 5  # of the paths that are left out for one reason


def upload(client: AgentClient, folder: Path) -> str:
    """Send a folder as a new workspace; returns the workspace's id."""
    import secrets  # like the next: who goes on in a workspace does not wait for them
    import tempfile

    from occ_app.cli.tree_update import recover
    from occ_app.cli.zip_names import zip_name

    folder = folder.resolve()
    if folder in {home.resolve() for home in configuration.homes()}:
        raise click.UsageError(f"{folder} is OCC's own, with its token in it; choose another --dir.")
    recovered = recover(folder)
    if recovered is not None:
        output.note(recovered)
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", folder.name).strip("-._") or "workspace"
    workspace_id = f"{plain[:100]}-{secrets.token_hex(4)}"
    with tempfile.TemporaryFile() as archive:
        _pack(folder, archive)
        archive.seek(0)
        # A folder's name may hold characters that no name of a workspace may.
        name = output.printable(zip_name(Path(folder.name)))[:200] or "workspace"
        reply = client.upload(workspace_id, archive, name=name, description=f"from {name}")
    if reply["skipped"]:
        names = ", ".join(output.printable(entry["path"]) for entry in reply["skipped"][:_NAMED])
        output.note(f"left out, since it could run programs on the agent: {names}")
    return workspace_id


def _pack(folder: Path, archive: IO[bytes]) -> None:
    from occ_app.cli.gitignore import files_to_send
    from occ_app.cli.zip_names import acceptable
    from occ_app.workspaces.archives import pack

    left_out = dict[Path, str]()
    listed = files_to_send(folder, configuration.homes(), left_out.__setitem__)
    paths = list(acceptable(folder, listed, left_out.__setitem__))
    _note_left_out(folder, left_out)
    if not any(path.is_file() for path in paths):
        raise errors.InvalidRequest(
            f"{output.printable(str(folder))} has no files to send, or git ignores them all; choose another --dir."
        )
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
    from occ_app.cli.zip_names import zip_name

    for reason in dict.fromkeys(left_out.values()):
        paths = [path for path, why in left_out.items() if why == reason]
        names = ", ".join(output.printable(zip_name(path.relative_to(folder))) for path in paths[:_NAMED])
        more = f" and {len(paths) - _NAMED} more" if len(paths) > _NAMED else ""
        output.note(f"left out, since {reason}: {names}{more}")
