"""Reading requests: JSON bodies, queries, limits."""

from __future__ import annotations

import json
import logging
import re
from itertools import islice
from typing import Any

from flask import Response, current_app, request
from flask import json as flask_json
from marshmallow import Schema, ValidationError

from occ_app import errors
from occ_app.web import fields
from occ_app.web.fields import schema_of
from occ_app.workspaces import origin as origins
from occ_app.workspaces.origin import Origin

log = logging.getLogger("occ.web")


SMALL_BODY_BYTES = 1 << 16  # of a JSON body without a text of any length
PROMPT_BODY_BYTES = "OCC_PROMPT_BODY_BYTES"  # in the application's configuration
_MAX_STRUCTURE_BYTES = 1 << 16  # of a JSON body without its strings
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)  # possessive: no body makes it go back
GENERATION_HEADER, GENERATION_PATTERN = "OCC-Workspace-Generation", "^[0-9]{1,18}$"
_MAX_NAMES, _LONGEST_NAME, _LONGEST_REASON = 20, 100, 300


def json_body(limit: int = SMALL_BODY_BYTES) -> Any:
    """Read the request's JSON body of at most `limit` bytes.

    Raises the wire's errors for another type, for a body that is not JSON, and for one that has too many parts: a
    million names would take seconds to refuse one by one.
    """
    request.max_content_length = limit
    if request.mimetype != "application/json":
        raise errors.RequestError("UNSUPPORTED_MEDIA_TYPE", "Send the body as application/json.")
    try:
        content = request.get_data(cache=False)
        if len(content) > _MAX_STRUCTURE_BYTES and len(_STRING.sub(b'""', content)) > _MAX_STRUCTURE_BYTES:
            message = "The body has too many names and values; send only the fields that docs/protocol.md lists."
            raise errors.RequestError("INVALID_JSON", message)
        return json.loads(content, object_pairs_hook=_no_doubles, parse_constant=_no_constant)
    except RecursionError:
        raise errors.RequestError("INVALID_JSON", "The body is nested too deeply.") from None
    except ValueError as error:
        raise errors.RequestError("INVALID_JSON", f"The body is not JSON: {error}.") from None


def largest_body_with_prompt() -> int:
    """Return the size in bytes of the largest JSON body that has a prompt."""
    size: int = current_app.config[PROMPT_BODY_BYTES]
    return size


def _no_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        raise ValueError("a name appears twice in one object")
    return content


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON value")


def loaded(kind: type[Schema], content: Any) -> dict[str, Any]:
    """Return the content as the schema reads it.

    Raises InvalidRequest naming each wrong field.
    """
    try:
        return dict(schema_of(kind).load(content))
    except ValidationError as error:
        wrong = error.messages if isinstance(error.messages, dict) else {"_body": error.messages}
        details = _shortened(wrong)
        names = ", ".join(sorted(details)[:5])
        raise errors.InvalidRequest(f"Wrong or missing: {names}; see `details`.", details) from None


def valid_filters(kind: type[Schema]) -> dict[str, Any]:
    """Return the query parameters of a page as the schema reads them.

    An empty or wrong one is left out.
    """
    try:
        return dict(schema_of(kind).load({name: value for name, value in request.args.items() if value}))
    except ValidationError as wrong:
        valid: dict[str, Any] = wrong.valid_data  # type: ignore[assignment]  # a dict, since one object was loaded
        return valid


def _shortened(content: Any) -> Any:
    """Return the errors of a body, names and reasons cut: they echo the request."""
    if isinstance(content, dict):
        return {str(name)[:_LONGEST_NAME]: _shortened(content[name]) for name in islice(content, _MAX_NAMES)}
    if isinstance(content, list):
        return [_shortened(one) for one in content[:_MAX_NAMES]]
    return str(content)[:_LONGEST_REASON]


def query(kind: type[Schema]) -> dict[str, Any]:
    """Return the query string as the schema reads it."""
    doubled = [name for name, values in request.args.lists() if len(values) > 1]
    if doubled:
        name = doubled[0][:_LONGEST_NAME]
        raise errors.InvalidRequest(f"{name} occurs twice in the query.", {name: ["Given twice."]})
    return loaded(kind, request.args.to_dict())


def cursor(after: str | None) -> int:
    """Return the seq after which a reader continues.

    It is Last-Event-ID, or the query's `after`. Raises INVALID_EVENT_ID.
    """
    header = request.headers.get("Last-Event-ID")
    for value in (header, after):
        if value is not None and not re.fullmatch(fields.CURSOR_PATTERN, value):
            raise errors.RequestError(
                "INVALID_EVENT_ID", "Last-Event-ID and `after` must be the id of an event: a whole number, 0 or more."
            )
    return int((after if header is None else header) or 0)


def expected_generation() -> int | None:
    """Return the number that the workspace of this upload must have.

    0: it must not exist; None: any. Raises InvalidRequest.
    """
    given = request.headers.get(GENERATION_HEADER)
    if given is None:
        return None
    if not re.fullmatch(GENERATION_PATTERN, given):
        message = f"{GENERATION_HEADER} must be the number of a workspace, or 0 for none."
        raise errors.InvalidRequest(message, {GENERATION_HEADER: ["Not a whole number of 0 or more."]})
    return int(given)


def json_response(content: Any, status: int = 200) -> Response:
    return Response(flask_json.dumps(content) + "\n", status, content_type="application/json")


def origin() -> Origin | None:
    """Return the hub that this request names as the sender of its workspace.

    None without one. Raises RequestError.
    """
    return origins.parse(request.headers.get(origins.HEADER, ""))
