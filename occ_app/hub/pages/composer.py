"""The form that starts a task or continues a conversation.

Converts its fields to a request, and the errors to sentences.
"""

from __future__ import annotations

import hashlib
import io
import re
import uuid
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import PurePath
from typing import Any

from flask import request
from werkzeug.datastructures import FileStorage

from occ_app import errors
from occ_app.api import executions as executions_api
from occ_app.api import workspaces as workspaces_api
from occ_app.api.services import services
from occ_app.executions import queries as executions
from occ_app.hub.pages import filters as shown
from occ_app.hub.services import hub_services
from occ_app.web import callers, schemas
from occ_app.web import requests as web
from occ_app.workspaces import workspace as workspaces

EMPTY_WORKSPACE = "*empty"
"""The value in place of a workspace's id that asks for a new workspace without files."""

_SENT_BEFORE = (
    "This form has already started a run, which is in the list: “{beginning}”. You have changed the form since. Send"
    " it again to start another run."
)
_FIELDS = {
    "prompt": "Prompt",
    "workspaceId": "Workspace",
    "labels": "Labels",
    "model": "Model",
    "continues": "Conversation",
    "permissions": "Permissions",
}


def start(values: dict[str, str]) -> str:
    """Start the run that a form describes, and return the execution's id.

    A form that is sent again starts no second run. The id of a workspace made from an upload is stored in `values`.
    Raises RequestError.
    """
    run_id = _loaded_id(values.get("run", ""))
    upload = _upload(values)
    if [upload is not None, bool(values.get("workspace")), bool(values.get("continues"))].count(True) != 1:
        raise errors.InvalidRequest("Choose a project, a workspace, or files to send: only one of them.")
    name = PurePath((upload.filename if upload else None) or "workspace").stem
    # The same form sent twice names the same workspace.
    workspace_id = values.get("workspace", "") if upload is None else f"{_plain(name)}-{run_id.rpartition('-')[2]}"
    request_of_form = replace(
        executions_api.asked_for(_body(values, run_id, workspace_id)),
        approval_seconds=hub_services().config.pages_approval_seconds,
        permissions_named=bool(values.get("permissions")),
    )
    sent = executions.find(services().db, run_id, callers.caller().visible_to)
    if sent is not None:
        if sent.request_hash == request_of_form.hash and (upload is None or _is_zip_of(workspace_id, upload)):
            return run_id
        values["run"] = new_run()
        raise errors.Conflict(
            "EXECUTION_CONFLICT", _SENT_BEFORE.format(beginning=shown.beginning(sent.prompt or "", 80))
        )
    services().refuse_when_stopping()
    if upload is not None:
        _make(workspace_id, name, upload)
        values["workspace"] = workspace_id
    execution, _ = executions_api.start(request_of_form)
    return execution.execution_id


def _upload(values: dict[str, str]) -> FileStorage | None:
    """Return the zip in the form.

    Returns an empty zip when the form asks for a workspace without files, and None when it has no zip.
    """
    if values.get("workspace") == EMPTY_WORKSPACE:
        values["workspace"] = ""
        content = io.BytesIO()
        zipfile.ZipFile(content, "w").close()
        content.seek(0)
        return FileStorage(content, filename="empty.zip")
    upload = request.files.get("zip")
    return upload if upload is not None and upload.filename else None


def _is_zip_of(workspace_id: str, upload: FileStorage) -> bool:
    """Return whether a workspace was made from this zip."""
    digest = hashlib.file_digest(upload.stream, "sha256").hexdigest()  # type: ignore[arg-type]  # werkzeug types its stream loosely
    upload.stream.seek(0)
    try:
        return workspaces.get(services().db, workspace_id, callers.caller().visible_to).zip == digest
    except errors.NotFound:
        return False


def _make(workspace_id: str, name: str, upload: FileStorage) -> None:
    valuesof_form = {
        "workspaceId": workspace_id,
        "name": name[:200].strip() or workspace_id,
        "processPolicy": "overwrite",
        "stripRoot": "true",
    }
    workspaces_api.make(web.loaded(schemas.InitForm, valuesof_form), upload)


def _plain(name: str) -> str:
    return (re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._") or "workspace")[:100]


def _body(values: Mapping[str, str], run_id: str, workspace_id: str) -> dict[str, Any]:
    """Return the form as the body of POST /execute."""
    labels = [label.strip() for label in values.get("labels", "").split(",") if label.strip()]
    optional = {
        "agent": values.get("agent"),
        "labels": labels,
        "model": values.get("model", "").strip(),
        "continues": values.get("continues"),
        # A reply keeps the permissions of the run before it, which may exceed those now allowed.
        "permissions": values.get("permissions") or values.get("former_permissions"),
        "workspaceId": workspace_id,
    }
    body = {"executionId": run_id, "prompt": values.get("prompt", "")}
    return body | {name: value for name, value in optional.items() if value}


def _loaded_id(run_id: str) -> str:
    if not re.fullmatch(r"page-[0-9a-f]{12}", run_id):
        raise errors.InvalidRequest("This form does not come from a page of this hub; reload the page.")
    return run_id


def sentences(error: errors.RequestError) -> list[str]:
    """Return an error as sentences for the person who sent the form."""
    if error.code != "INVALID_REQUEST" or not error.details:
        return [str(error)]
    problems = []
    for field, reasons in error.details.items():
        flat = reasons.values() if isinstance(reasons, dict) else [reasons]
        words = " ".join(str(word) for reason in flat for word in (reason if isinstance(reason, list) else [reason]))
        problems.append(f"{_FIELDS.get(field, field)}: {words}")
    return problems


def new_run() -> str:
    """Return a new execution id for a form, which keeps it when it is sent again."""
    return f"page-{uuid.uuid4().hex[:12]}"
