"""The terms of a request that depend on the settings.

They are its permissions, and whether its execution is shared.
"""

from __future__ import annotations

from flask import request

from occ_app import errors
from occ_app.api.services import services
from occ_app.config.settings import PERMISSIONS
from occ_app.system import relayed
from occ_app.web import requests as web


def local_sharing() -> str | None:
    """Return `pending` for an execution that the hub is to show, else None.

    This is the value of its row.
    """
    sent_by_hub = relayed.HEADER in request.headers or web.origin() is not None
    return "pending" if services().config.share_local and not sent_by_hub else None


def permitted(wanted: str | None) -> str:
    """Return the permissions of a request, by default at most `edit`.

    Raises RequestError above the ceiling.
    """
    ceiling = services().config.ceiling
    if wanted is None:
        return min(ceiling, "edit", key=PERMISSIONS.index)
    if PERMISSIONS.index(wanted) > PERMISSIONS.index(ceiling):
        raise errors.RequestError(
            "PERMISSION_CEILING",
            f"This agent allows no more than {ceiling}; ask for that, or raise OCC_PERMISSIONS on its machine.",
            {"permissions": wanted, "ceiling": ceiling},
        )
    return wanted
