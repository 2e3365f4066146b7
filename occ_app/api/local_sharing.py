"""Which executions an agent shares with its hub: those that no hub sent, once the operator said so."""

from __future__ import annotations

from flask import request

from occ_app.api.services import services
from occ_app.system import relayed
from occ_app.web import requests as web


def local_sharing() -> str | None:
    """Return `pending` for an execution that is to be announced to the hub, as its row has it; else None."""
    sent_by_hub = relayed.HEADER in request.headers or web.origin() is not None
    return "pending" if services().config.share_local and not sent_by_hub else None
