"""The contract of an endpoint, declared by one decorator above its view.

It checks the request, shapes the reply and describes both:

    @bp.get("/search")
    @contract(query=schemas.SearchQuery, reply=schemas.SearchResults)
    def find(query: dict[str, Any]) -> SearchResults: ...

The view gets the loaded `query` or `body` by that name, if the contract has a schema for it, and returns the value
that the reply's schema dumps, or a finished Response. An endpoint without a query schema refuses every query. OpenAPI
is generated from the same contracts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import wraps
from typing import Any

from flask import Response
from marshmallow import Schema

from occ_app.system import relayed
from occ_app.web import callers, fields, requests, schemas
from occ_app.web.fields import schema_of
from occ_app.workspaces import origin

# The whole stream is a text. docs/protocol.md has its frames, and the fields of each event.
_EVENTS = {
    "type": "string",
    "description": "Server-sent events: `id`, `event`, and in `data` one JSON object.",
    "example": 'id: 1\nevent: queued\ndata: {"position":0,"timestamp":1790000000000}\n\n',
}
STREAM = {"text/event-stream": {"schema": _EVENTS}}
ZIP = {"application/zip": {"schema": {"type": "string", "format": "binary"}}}
RESUMES = {"Last-Event-ID": {"type": "string", "pattern": fields.CURSOR_PATTERN}}
FROM_HUB = {origin.HEADER: {"type": "string", "pattern": origin.PATTERN}}
RELAYED = {relayed.HEADER: {"type": "string"}}
EXPECTS = {requests.GENERATION_HEADER: {"type": "string", "pattern": requests.GENERATION_PATTERN}}


@dataclass(frozen=True)
class Contract:
    """The input and output of an endpoint.

    A JSON body has at most `body_bytes`; None: the limit of a prompt. `form` and `content` only describe: the view
    reads the form and returns a Response of that content itself. `empty` describes a reply of 204, `accepted` one of
    202 with the same content, `headers` the headers that the view reads, each by a JSON schema. `admin` refuses
    callers that are not admins, and `authenticate` checks the credentials of an endpoint that agents use; both run
    before the body is read.
    """

    query: type[Schema] = schemas.NoQuery
    body: type[Schema] | None = None
    body_bytes: int | None = requests.SMALL_BODY_BYTES
    form: type[Schema] | None = None
    reply: type[Schema] | None = None
    content: Mapping[str, Any] | None = None
    status: int = 200
    empty: str | None = None
    accepted: str | None = None
    headers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    admin: bool = False
    authenticate: Callable[..., None] | None = None


def contract(**terms: Any) -> Callable[[Callable[..., Any]], Callable[..., Response]]:
    """Give a view its contract; `terms` are the fields of Contract."""
    agreed = Contract(**terms)

    def decorate(view: Callable[..., Any]) -> Callable[..., Response]:
        @wraps(view)
        def answer(**arguments: str) -> Response:
            values: dict[str, Any] = dict(arguments)
            query = requests.query(agreed.query)
            if agreed.query is not schemas.NoQuery:
                values["query"] = query
            if agreed.authenticate is not None:
                agreed.authenticate(**arguments)
            if agreed.admin:
                callers.require_admin()
            if agreed.body is not None:
                values["body"] = requests.loaded(
                    agreed.body, requests.json_body(agreed.body_bytes or requests.largest_body_with_prompt())
                )
            result = view(**values)
            if isinstance(result, Response) or agreed.reply is None:
                return result  # type: ignore[no-any-return]  # a view without a reply schema returns a Response
            return requests.json_response(schema_of(agreed.reply).dump(result), agreed.status)

        answer.contract = agreed  # type: ignore[attr-defined]  # a function has no such attribute; contract_of reads it
        return answer

    return decorate


def contract_of(view: Callable[..., Any]) -> Contract | None:
    """Return the contract of a view, None for one that has none."""
    agreed: Contract | None = getattr(view, "contract", None)
    return agreed
