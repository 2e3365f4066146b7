"""A zip attached to a message, made into a workspace.

It is fetched only from Slack's own file host.
"""

from __future__ import annotations

import re
import tempfile
import time
from pathlib import Path, PurePath
from typing import IO
from urllib.parse import urlsplit

import urllib3

from occ_app.config.config import Config
from occ_app.errors import RequestError, TooLarge, Unavailable, Unreachable
from occ_app.slack.incoming import File, Incoming
from occ_app.slack.people import Person
from occ_app.slack.tokens import API, Tokens
from occ_app.workspaces import upload_jobs
from occ_worker.slack.hub import SlackHub

HOST = "files.slack.com"
_CALL_SECONDS, _DOWNLOAD_SECONDS = 30.0, 300.0
_PIECE = 1 << 16


def make_workspace(hub: SlackHub, found: Incoming, person: Person) -> str:
    """Create a workspace from the zip in a message, and return its id.

    The id is the same for the same message. Raises RequestError for files that are not one zip, and for a zip that an
    upload would refuse.
    """
    zips = [file for file in found.files if file.name.lower().endswith(".zip")]
    if len(found.files) != 1 or len(zips) != 1:
        raise RequestError("INVALID_REQUEST", "Send one zip with your message. I accept no other files.")
    file = zips[0]
    workspace_id = f"{_plain(PurePath(file.name).stem)}-{found.execution_id[-12:]}"
    folder = hub.config.run / "uploads"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=folder, prefix="upload-", suffix=".zip") as output:
        fetch(hub.config, hub.tokens, file, output)
        output.flush()
        _store(hub, workspace_id, file, Path(output.name), person)
    return workspace_id


def fetch(config: Config, tokens: Tokens, file: File, output: IO[bytes]) -> None:
    """Write a file of Slack's to `output`.

    The bot token is sent only to Slack's file host, and redirects are not followed. Raises TooLarge, RequestError for
    another host's address, and Unreachable.
    """
    _check_address(tokens, file.url)
    limit = config.max_upload_bytes
    if file.size > limit:
        raise _too_large(limit)
    deadline = time.monotonic() + _DOWNLOAD_SECONDS
    headers = {"Authorization": f"Bearer {tokens.bot}", "Accept-Encoding": "identity"}
    written = 0
    with urllib3.PoolManager(timeout=_CALL_SECONDS, retries=False) as pool:
        try:
            reply = pool.request("GET", file.url, headers=headers, redirect=False, preload_content=False)
            try:
                if reply.status != 200:
                    raise _away(f"it answered {reply.status}")
                for piece in reply.stream(_PIECE, decode_content=False):
                    written += output.write(piece)
                    if written > limit:
                        raise _too_large(limit)
                    if time.monotonic() > deadline:
                        raise _away("it took too long")
            finally:
                reply.close()
        except urllib3.exceptions.HTTPError as error:
            raise _away(type(error).__name__) from None


def _check_address(tokens: Tokens, url: str) -> None:
    """Raise RequestError unless an address is at Slack's file host.

    With another API than Slack's, the API's own host is the file host.
    """
    try:
        asked, api = urlsplit(url), urlsplit(tokens.api)
        own = (asked.scheme, asked.hostname, asked.port)
    except ValueError:
        own = ("", None, None)
    allowed = ("https", HOST, None) if tokens.api == API else (api.scheme, api.hostname, api.port)
    if own != allowed or asked.username is not None:
        raise RequestError(
            "INVALID_REQUEST", "That file is not stored by Slack, so I cannot fetch it. Upload the zip itself."
        )


def _store(hub: SlackHub, workspace_id: str, file: File, path: Path, person: Person) -> None:
    """Create a workspace from a zip, as an upload to the hub does.

    Raises the RequestErrors of an upload, and Unavailable when the upload was undone.
    """
    from occ_app.hub import workspaces as hub_workspaces  # loaded at the first zip

    upload = upload_jobs.Upload(
        workspace_id,
        PurePath(file.name).stem[:200].strip() or workspace_id,
        "",
        "overwrite",
        path,
        person.key_id,
        person.owner_id,
        strip_root=True,
    )
    number = upload_jobs.submit(hub.db, upload)
    hub_workspaces.store(hub.db, number, hub.config, lambda _: None)
    state, result = upload_jobs.result(hub.db, number)
    if state == "failed" and result is not None:
        raise RequestError(result["code"], result["message"], result.get("details") or {})
    if state != "succeeded":
        raise Unavailable("BUSY", "The upload was undone; send it again.")


def _plain(name: str) -> str:
    return (re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._") or "workspace")[:100]


def _too_large(limit: int) -> TooLarge:
    return TooLarge(f"The zip is over {limit} bytes; leave files out of it.")


def _away(reason: str) -> Unreachable:
    return Unreachable(f"Slack did not send the zip ({reason}). Send it again in a minute.")
