"""The permissions that a request gets in its workspace.

A workspace's ceiling may be lower than that of its machine.
"""

from __future__ import annotations

from dataclasses import replace

from occ_app.config.settings import PERMISSIONS
from occ_app.database.database import Database
from occ_app.errors import Conflict, RequestError, workspace_not_found
from occ_app.executions.records import Request


def lowest(permissions: str, *ceilings: str | None) -> str:
    """Return the permissions, at most these ceilings.

    None is no ceiling, an unknown word the lowest.
    """
    known = (each if each in PERMISSIONS else PERMISSIONS[0] for each in ceilings if each is not None)
    return min((permissions, *known), key=PERMISSIONS.index)


def permitted(request: Request, ceiling: str | None) -> Request:
    """Return a request with at most the permissions of its workspace's ceiling.

    None is no ceiling. Raises RequestError for a request that names higher ones.
    """
    allowed = lowest(request.permissions, ceiling)
    if request.permissions_named and allowed != request.permissions:
        raise RequestError(
            "PERMISSION_CEILING",
            f"Workspace {request.workspace_id} allows no more than {allowed}; ask for that, or have its operator raise"
            " it with `occ workspaces limit`, for a project with `occ projects add --permissions`.",
            {"permissions": request.permissions, "ceiling": allowed, "workspaceId": request.workspace_id},
        )
    return replace(request, permissions=allowed)


def limit(db: Database, workspace_id: str, permissions: str) -> None:
    """Set the ceiling of an uploaded workspace.

    It applies to requests from now on, and to runs when they start or resume. Raises NotFound, and Conflict for a
    project.
    """
    with db.write() as connection:
        row = connection.execute(
            """
            UPDATE workspaces SET permissions = :permissions WHERE workspace_id = :workspace_id RETURNING source
            """,
            {"permissions": permissions, "workspace_id": workspace_id},
        ).fetchone()
        if row is None:
            raise workspace_not_found(workspace_id)
        if row["source"] == "folder":
            raise Conflict(
                "WORKSPACE_IS_FOLDER",
                f"{workspace_id} is a project: on its machine, repeat `occ projects add` with --permissions.",
                {"workspaceId": workspace_id},
            )
