"""The workspaces: upload, list, look at, fetch, delete."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flask import Blueprint, Response, request, send_file
from werkzeug.datastructures import FileStorage

from occ_app import errors
from occ_app.api.services import services
from occ_app.streams import tail
from occ_app.web import callers, schemas
from occ_app.web import requests as web
from occ_app.web.contracts import EXPECTS, FROM_HUB, ZIP, contract
from occ_app.workspaces import origin as origins
from occ_app.workspaces import updates, upload_jobs
from occ_app.workspaces import workspace as workspaces
from occ_app.workspaces.origin import Origin

bp = Blueprint("workspaces", __name__)

INIT_SECONDS = 60.0


@bp.post("/workspace/init")
@contract(form=schemas.InitUpload, headers={**EXPECTS, **FROM_HUB}, reply=schemas.InitReply)
def init() -> Response:
    """Make a workspace from an uploaded zip, or keep the one there is."""
    services().refuse_when_stopping()
    if request.mimetype != "multipart/form-data":
        raise errors.RequestError("UNSUPPORTED_MEDIA_TYPE", "Send the upload as multipart/form-data.")
    doubled = [name for name, values in request.form.lists() if len(values) > 1]
    unknown = [name for name in request.files if name != "zip"]
    if doubled or unknown or len(request.files.getlist("zip")) > 1:
        name = (doubled + unknown + ["zip"])[0][:100]
        raise errors.InvalidRequest(
            f"{name} occurs twice or is not a file part.", {name: ["Given twice or not a file."]}
        )
    form = web.loaded(schemas.InitForm, request.form.to_dict())
    upload = request.files.get("zip")
    return web.json_response(make(form, upload, web.expected_generation(), web.origin()))


def make(
    form: Mapping[str, Any], upload: FileStorage | None, expected: int | None = None, origin: Origin | None = None
) -> dict[str, Any]:
    """Create or update a workspace from a file part; returns the reply.

    `form` is as InitForm reads it. With `expected` the workspace must have that number; with 0 there must be none.
    Raises RequestError for a wrong zip, Conflict for a project or another workspace than the expected one, Unavailable
    when it took too long.
    """
    deleted, base, policy = updates.deletions(form.get("deletions", "[]")), form.get("base"), form["process_policy"]
    updates.check_form(policy, base, deleted, strip_root=form["strip_root"], has_zip=upload is not None)
    if policy == "update":
        workspaces.get(services().db, form["workspace_id"], callers.caller().visible_to)
    with contextlib.suppress(errors.NotFound):
        existing = workspaces.get(services().db, form["workspace_id"], callers.caller().visible_to)
        workspaces.refuse_folder(existing.workspace_id, existing.source)
        origins.refuse_other(existing.workspace_id, existing.origin, origin)
    path = None if upload is None else _file(upload)
    number = upload_jobs.submit(
        services().db,
        upload_jobs.Upload(
            form["workspace_id"],
            form["name"],
            form["description"],
            policy,
            path,
            callers.caller().key_id,
            callers.caller().owner_id,
            form["strip_root"],
            expected,
            origin,
            base,
            deleted,
        ),
    )
    return _await_job(number)


def _file(upload: FileStorage) -> Path:
    """Return the path of an uploaded zip. Raises TooLarge."""
    upload.stream.flush()
    path = Path(upload.stream.name or "")
    if path.stat().st_size > services().config.max_upload_bytes:
        raise errors.TooLarge(f"The zip is over {services().config.max_upload_bytes} bytes; leave files out of it.")
    return path


def _await_job(number: int) -> dict[str, Any]:
    """Enqueue the job and return its result."""
    key = tail.job_key(number)
    channel = services().tail.subscribe(key)
    try:
        services().enqueue_upload(number)
        deadline = time.monotonic() + INIT_SECONDS
        while True:
            rings = channel.rings
            state, result = upload_jobs.result(services().db, number)
            if state not in ("queued", "running"):
                break
            left = deadline - time.monotonic()
            if left <= 0 or services().tail.closed:
                upload_jobs.abandon(services().db, number)
                continue
            services().tail.wait(channel, lambda seen=rings: channel.rings > seen, min(left, 2.0))  # type: ignore[misc]  # mypy does not infer the default
    except errors.OCCError:
        upload_jobs.abandon(services().db, number)
        raise
    finally:
        services().tail.unsubscribe(key)
    if state == "abandoned" or result is None:
        raise errors.Unavailable("BUSY", "The upload took too long and was undone; try again.")
    if state == "failed":
        raise errors.RequestError(result["code"], result["message"], result["details"])
    # Its rows are seen here as soon as control has committed them, which may still be waiting for the disk.
    services().db.sync()
    services().workers.ring(result["workspaceId"])  # the one that keeps a process in the former folder ends it
    return result


@bp.get("/workspaces")
@contract(reply=schemas.WorkspaceList)
def listing() -> Any:
    """All workspaces, by id."""
    return {"workspaces": workspaces.listing(services().db, callers.caller().visible_to)}


@bp.get("/workspaces/<workspace_id>")
@contract(reply=schemas.WorkspaceRecord)
def show(workspace_id: str) -> Any:
    """One workspace."""
    return workspaces.get(services().db, workspace_id, callers.caller().visible_to)


@bp.delete("/workspaces/<workspace_id>")
@contract(query=schemas.GenerationQuery, reply=schemas.Deleted)
def delete(workspace_id: str, query: dict[str, Any]) -> Response:
    """Remove a workspace and its files and end its queued executions.

    Refused while one runs in it.
    """
    for number in services().delete_workspace(workspace_id, callers.caller().visible_to, query.get("generation")):
        services().readers.ring(tail.execution_key(number))
    services().workers.ring(workspace_id)  # the one that keeps a process there ends it
    return web.json_response({"status": "success"})


@bp.get("/workspaces/<workspace_id>/archive")
@contract(query=schemas.GenerationQuery, content=ZIP)
def archive(workspace_id: str, query: dict[str, Any]) -> Response:
    """Return the workspace as it is now, as a zip."""
    return packed(workspace_id, query.get("generation"))


def packed(workspace_id: str, generation: int | None = None) -> Response:
    """Return the caller's workspace as it is now, as a zip.

    Raises NotFound, Conflict, Unavailable or NoSpace.
    """
    workspace = workspaces.get(services().db, workspace_id, callers.caller().visible_to, generation)
    workspaces.refuse_folder(workspace_id, workspace.source)  # the zip would hold all of it, `.env` and `.git` included
    folder = services().config.run / "uploads"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # something may have cleaned up
    output = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed with the response
    try:
        with services().file_reads.place(callers.caller().key_id):
            services().pack(workspace, output)
        output.seek(0)
    except OSError as error:
        output.close()
        raise errors.unwritable(error) from None
    except errors.OCCError:
        output.close()
        raise
    return send_file(output, "application/zip", as_attachment=True, download_name=f"{workspace_id}.zip")
