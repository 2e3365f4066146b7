"""What every HTTP face of OCC shares: how a request is read, how a refusal looks."""

from __future__ import annotations

import json
import logging
import re
import threading
from functools import cache
from typing import Any

from flask import Flask, Response, g, request
from flask import json as flask_json
from marshmallow import Schema, ValidationError

from occ_app import errors
from occ_app.web import fields

log = logging.getLogger("occ.web")


BODIES = 112
_BODY_PATIENCE_SECONDS = 10.0


def limit_bodies(app: Flask) -> None:
    """Let only so many requests read their bodies at once: a slow one holds a thread, and /health needs one too."""
    places = threading.BoundedSemaphore(BODIES)

    @app.before_request
    def enter() -> None:
        if request.content_length or request.headers.get("Transfer-Encoding"):
            if not places.acquire(timeout=_BODY_PATIENCE_SECONDS):
                raise errors.Unavailable("BUSY", f"{BODIES} uploads are under way already; try again in a moment.")
            g.reads_body = True

    @app.teardown_request
    def leave(_: object) -> None:
        if g.pop("reads_body", False):
            places.release()


def json_body() -> Any:
    """The request's JSON body. Raises the wire's errors for another type and for what is not JSON."""
    if request.mimetype != "application/json":
        raise errors.RequestError("UNSUPPORTED_MEDIA_TYPE", "Send the body as application/json.")
    try:
        return json.loads(request.get_data(cache=False), object_pairs_hook=_no_doubles, parse_constant=_no_constant)
    except RecursionError:
        raise errors.RequestError("INVALID_JSON", "The body is nested too deeply.") from None
    except ValueError as error:
        raise errors.RequestError("INVALID_JSON", f"The body is not JSON: {error}.") from None


def _no_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        raise ValueError("a name stands twice in one object")
    return content


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON value")


@cache
def schema_of(kind: type[Schema]) -> Schema:
    """The one instance of a schema; making one takes longer than using it."""
    return kind()


def loaded(kind: type[Schema], content: Any) -> dict[str, Any]:
    """The content as the schema reads it. Raises InvalidRequest naming each wrong field."""
    try:
        return dict(schema_of(kind).load(content))
    except ValidationError as error:
        wrong = error.messages if isinstance(error.messages, dict) else {"_body": error.messages}
        names = ", ".join(sorted(map(str, wrong))[:5])
        raise errors.InvalidRequest(
            f"Wrong or missing: {names}; `details` says why.", {str(k): v for k, v in wrong.items()}
        ) from None


def query(kind: type[Schema]) -> dict[str, Any]:
    """The query string as the schema reads it."""
    doubled = [name for name, values in request.args.lists() if len(values) > 1]
    if doubled:
        raise errors.InvalidRequest(f"{doubled[0]} stands twice in the query.", {doubled[0]: ["Given twice."]})
    return loaded(kind, request.args.to_dict())


def cursor(after: str | None) -> int:
    """Where a reader wants to go on: Last-Event-ID, or the query's `after`. Raises INVALID_EVENT_ID."""
    header = request.headers.get("Last-Event-ID")
    for value in (header, after):
        if value is not None and not re.fullmatch(fields.CURSOR_PATTERN, value):
            raise errors.RequestError(
                "INVALID_EVENT_ID", "Last-Event-ID and `after` must be the id of an event: a whole number, 0 or more."
            )
    return int((after if header is None else header) or 0)


def json_response(content: Any, status: int = 200) -> Response:
    return Response(flask_json.dumps(content), status, content_type="application/json")
