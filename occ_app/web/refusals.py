"""Errors as HTTP responses: the one place where a code becomes a status."""

from __future__ import annotations

import errno
import json
import logging
from collections.abc import Callable, Mapping
from typing import Any

from flask import Blueprint, Flask, Response, current_app, g, request
from gunicorn.http.errors import NoMoreData, ParseException
from werkzeug.exceptions import HTTPException

from occ_app import errors
from occ_app.web.statuses import STATUS

log = logging.getLogger("occ.web")

_FORM_TOO_LARGE = "The form has a field of over a megabyte, or too many; put long text into a file of the zip."


BROWSER_HEADERS = {"X-Content-Type-Options": "nosniff", "Cross-Origin-Resource-Policy": "same-origin"}


RETRY_AFTER_SECONDS = {429: 5, 503: 2}


_HTTP_CODES = {
    400: ("BAD_REQUEST", "The request could not be read; check it against docs/protocol.md."),
    404: ("NOT_FOUND", "There is nothing at this address; GET /openapi.json lists what there is."),
    405: ("METHOD_NOT_ALLOWED", "This address does not take that method; GET /openapi.json lists those it takes."),
    413: (
        "BODY_TOO_LARGE",
        "The body is over the {limit} bytes that are taken here; send less, or raise OCC_MAX_UPLOAD_BYTES (on a hub"
        " OCC_HUB_MAX_UPLOAD_BYTES).",
    ),
    415: ("UNSUPPORTED_MEDIA_TYPE", "The body has the wrong content type; docs/protocol.md names the right one."),
}


def answer_errors(app: Flask | Blueprint, answer: Callable[..., Response] | None = None) -> None:
    """Turn every exception of a request into one kind of reply.

    It is the error body, or the result of `answer`, which takes the arguments of `error_response`.
    """
    answer = answer or error_response

    @app.errorhandler(errors.OCCError)
    def refused(error: errors.OCCError) -> Response:
        if isinstance(error, errors.RequestError):
            return answer(error.code, str(error), error.details)
        return unexpected(error)

    @app.errorhandler(HTTPException)
    def http(error: HTTPException) -> Response:
        status = error.code or 500
        code, message = _HTTP_CODES.get(status, _HTTP_CODES[400] if status < 500 else ("INTERNAL", ""))
        if status >= 500:
            return unexpected(error)
        if status == 413:
            limit = request.max_content_length or current_app.config["MAX_CONTENT_LENGTH"]
            within = request.content_length is not None and request.content_length <= limit
            message = _FORM_TOO_LARGE if within else message.format(limit=limit)
        response = answer(code, message, status=status if status in _HTTP_CODES else 400)
        for name, value in error.get_headers():
            if name == "Allow":
                response.headers[name] = value
        return response

    @app.errorhandler(NoMoreData)
    @app.errorhandler(ParseException)
    def broken_body(_: Exception) -> Response:
        # A chunked body is parsed only when it is read, so its errors arrive here.
        return answer(*_HTTP_CODES[400])

    @app.errorhandler(OSError)
    def failed(error: OSError) -> Response:
        if error.errno in (errno.EAGAIN, errno.ETIMEDOUT, errno.ECONNRESET):
            return answer(*_HTTP_CODES[400])  # the body did not come, or not in time
        if error.errno is None:
            return unexpected(error)
        # The disk or the machine refused it: which errno that is depends on the file system.
        log.error("%s %s failed", request.method, request.path, exc_info=error)
        refusal = errors.unwritable(error)
        return answer(refusal.code, str(refusal))

    @app.errorhandler(Exception)
    def unexpected(error: Exception) -> Response:
        log.error("%s %s failed", request.method, request.path, exc_info=error)
        return answer("INTERNAL", "Internal error; see logs/web.log.", status=500)


def error_body(code: str, message: str, details: Mapping[str, Any] | None = None) -> bytes:
    body = {"status": "error", "code": code, "message": message, "details": dict(details or {})}
    return json.dumps(body).encode() + b"\n"


def error_response(
    code: str, message: str, details: Mapping[str, Any] | None = None, status: int | None = None
) -> Response:
    g.refusal = code  # for the metrics
    status = status or status_of(code)
    response = Response(error_body(code, message, details), status, content_type="application/json")
    if status == 401:
        response.headers["WWW-Authenticate"] = "Bearer"
    if status in RETRY_AFTER_SECONDS:
        response.headers["Retry-After"] = str(RETRY_AFTER_SECONDS[status])
    return response


def status_of(code: str) -> int:
    """Return the HTTP status of an error code."""
    return STATUS.get(code, 422 if code.startswith("ZIP_") else 500)
