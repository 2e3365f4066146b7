"""The current files of a workspace: folders, texts and pictures.

They can be viewed and downloaded.
"""

from __future__ import annotations

import tempfile
import zipfile
from collections.abc import Iterator
from typing import IO

from flask import Blueprint, Response, render_template, request, send_file

from occ_app import errors
from occ_app.api import files as files_api
from occ_app.api import workspaces as workspaces_api
from occ_app.api.services import services
from occ_app.hub.pages import changes, patches, pictures
from occ_app.web import callers
from occ_app.workspaces import open_files
from occ_app.workspaces import workspace as workspaces
from occ_app.workspaces.workspace import Workspace

bp = Blueprint("folders", __name__, url_prefix="/files/<workspace_id>")
archives = Blueprint("archives", __name__, url_prefix="/files/<workspace_id>")  # its views take a place themselves
bp.before_request(files_api.enter)
bp.teardown_request(files_api.leave)

_MAX_LINES = 20_000
_PIECE = 1 << 16


@bp.get("")
def show(workspace_id: str) -> str:
    """Show the entries of a folder, folders first."""
    workspace, path = _workspace(workspace_id), request.args.get("path", "")
    if path:
        open_files.plain_parts(path)
    found = files_api.files().folder(workspace, path)
    entries = sorted(found["entries"], key=lambda entry: (entry["type"] != "folder", entry["name"].lower()))
    return render_template(
        "folder.html",
        workspace=workspace,
        name=_name(workspace),
        path=path,
        above=list(_above(path)),
        entries=entries,
        truncated=found["truncated"],
    )


@bp.get("/view")
def view(workspace_id: str) -> str:
    """Show one file: a text with line numbers and colours, or a picture."""
    workspace, path = _workspace(workspace_id), _path()
    response = files_api.files().file(workspace, path)
    size, picture = response.content_length or 0, pictures.is_picture(path)
    text = None
    if picture:
        response.close()
    else:
        content = changes.read_text(response.iter_encoded(), size)
        response.close()
        text = None if content is None else patches.whole(content, path, _MAX_LINES)
    folder = path.rpartition("/")[0]
    return render_template(
        "view.html",
        workspace=workspace,
        name=_name(workspace),
        path=path,
        above=list(_above(folder)),
        size=size,
        picture=picture,
        text=text,
    )


@bp.get("/content")
def file(workspace_id: str) -> Response:
    """Send one file.

    A browser shows a picture and saves anything else.
    """
    path = _path()
    found = files_api.files().file(_workspace(workspace_id), path)
    response = pictures.sent(found.iter_encoded(), found.content_length, path)
    response.call_on_close(found.close)
    return response


@archives.get("/zip")
def pack(workspace_id: str) -> Response:
    """Send the workspace, or one folder of it, as a zip."""
    path = request.args.get("path", "")
    whole = workspaces_api.packed(workspace_id)
    if not path:
        return whole
    open_files.plain_parts(path)
    folder = services().config.run / "uploads"
    with tempfile.TemporaryFile(dir=folder) as everything:
        for piece in whole.iter_encoded():
            everything.write(piece)
        whole.close()
        output = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed with the response
        _copy_folder(everything, output, path)
    output.seek(0)
    return send_file(output, "application/zip", as_attachment=True, download_name=f"{path.rpartition('/')[2]}.zip")


def _copy_folder(everything: IO[bytes], output: IO[bytes], path: str) -> None:
    """Copy the entries of one folder from a zip to another zip.

    Raises NotFound if there are none.
    """
    prefix = f"{path}/"
    with zipfile.ZipFile(everything) as source, zipfile.ZipFile(output, "w", zipfile.ZIP_DEFLATED) as made:
        members = [each for each in source.infolist() if each.filename.startswith(prefix)]
        if not members:
            raise errors.file_not_found(path)
        for member in members:
            inside = zipfile.ZipInfo(
                member.filename.removeprefix(path.rpartition("/")[0]).lstrip("/"), member.date_time
            )
            inside.external_attr, inside.compress_type = member.external_attr, zipfile.ZIP_DEFLATED
            with source.open(member) as content, made.open(inside, "w") as target:
                while piece := content.read(_PIECE):
                    target.write(piece)


def _workspace(workspace_id: str) -> Workspace:
    return workspaces.get(services().db, workspace_id, callers.caller().visible_to)


def _name(workspace: Workspace) -> str:
    return workspace.alias or workspace.workspace_id


def _path() -> str:
    path = request.args.get("path", "")
    open_files.plain_parts(path)
    return path


def _above(path: str) -> Iterator[tuple[str, str]]:
    """Yield the name of each folder of a path, with the path to it."""
    parts = path.split("/") if path else []
    for index, part in enumerate(parts):
        yield part, "/".join(parts[: index + 1])
