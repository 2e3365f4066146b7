"""Packing a folder and sending it as a workspace."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import IO

import click

from occ_app import errors
from occ_app.cli import output
from occ_app.client.agent_client import AgentClient
from occ_app.config import config as configuration

_LARGE_BYTES = 5_000_000


def upload(client: AgentClient, folder: Path) -> str:
    """Send a folder as a new workspace; returns the workspace's id."""
    import secrets  # like the next: who goes on in a workspace does not wait for them
    import tempfile

    folder = folder.resolve()
    if folder in {home.resolve() for home in configuration.homes()}:
        raise click.UsageError(f"{folder} is OCC's own, with its token in it; choose another --dir.")
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", folder.name).strip("-._") or "workspace"
    workspace_id = f"{plain[:100]}-{secrets.token_hex(4)}"
    with tempfile.TemporaryFile() as archive:
        _pack(folder, archive)
        archive.seek(0)
        reply = client.upload(workspace_id, archive, name=folder.name or "workspace", description=f"from {folder.name}")
    if reply["skipped"]:
        names = ", ".join(entry["path"] for entry in reply["skipped"][:5])
        output.note(f"left out, since it could run programs on the agent: {names}")
    return workspace_id


def _pack(folder: Path, archive: IO[bytes]) -> None:
    from occ_app.cli.gitignore import files_to_send
    from occ_app.workspaces.archives import pack

    links = list[Path]()
    paths = list(files_to_send(folder, configuration.homes(), links.append))
    if links:
        names = ", ".join(str(path.relative_to(folder)) for path in links[:5])
        more = f" and {len(links) - 5} more" if len(links) > 5 else ""
        output.note(f"left out, since links are not followed: {output.printable(names)}{more}")
    if not paths:
        raise errors.InvalidRequest(f"{folder} has no files to send; choose another --dir.")
    size = sum(path.stat().st_size for path in paths if path.is_file())
    packed = pack(folder, archive, paths)
    if size < _LARGE_BYTES or not sys.stderr.isatty():
        for _ in packed:
            pass
        return
    with click.progressbar(length=size, label=f"packing {output.printable(folder.name)}", file=sys.stderr) as bar:
        for done in packed:
            bar.update(done)
