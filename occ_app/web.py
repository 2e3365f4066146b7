"""What every HTTP face of OCC shares: who may call, how a refusal looks, how events are streamed."""

from __future__ import annotations

import hmac
import ipaddress
import json
import logging
import re
import select
import socket
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

from flask import Flask, Response, request
from flask import json as flask_json
from marshmallow import Schema, ValidationError
from werkzeug.exceptions import HTTPException

from occ_app import errors, events, tail
from occ_app.db import Database
from occ_app.executions import Execution
from occ_app.tail import Tail

log = logging.getLogger("occ.web")

KEEPALIVE_SECONDS = 15.0

STATUS = {
    "INVALID_JSON": 400,
    "BAD_REQUEST": 400,
    "INVALID_EVENT_ID": 400,
    "UNAUTHORIZED": 401,
    "FORBIDDEN_ORIGIN": 403,
    "NOT_FOUND": 404,
    "WORKSPACE_NOT_FOUND": 404,
    "EXECUTION_NOT_FOUND": 404,
    "METHOD_NOT_ALLOWED": 405,
    "EXECUTION_CONFLICT": 409,
    "WORKSPACE_BUSY": 409,
    "BODY_TOO_LARGE": 413,
    "UNSUPPORTED_MEDIA_TYPE": 415,
    "WRONG_HOST": 421,
    "INVALID_REQUEST": 422,
    "QUEUE_FULL": 429,
    "STOPPING": 503,
    "TOO_MANY_STREAMS": 503,
    "BUSY": 503,
    "NO_SPACE": 507,
}
RETRY_AFTER_SECONDS = {429: 5, 503: 2}

_HTTP_CODES = {
    400: ("BAD_REQUEST", "The request could not be read; check it against docs/protocol.md."),
    404: ("NOT_FOUND", "There is nothing at this address; GET /openapi.json lists what there is."),
    405: ("METHOD_NOT_ALLOWED", "This address does not take that method; GET /openapi.json lists those it takes."),
    413: ("BODY_TOO_LARGE", "The body is larger than this agent accepts."),
    415: ("UNSUPPORTED_MEDIA_TYPE", "The body has the wrong content type; docs/protocol.md names the right one."),
}


def guard(app: Flask, hosts: Collection[str], token: Callable[[], str | None]) -> None:
    """Refuse, before anything else is looked at: a wrong Host, a foreign Origin, a missing or wrong token."""

    @app.before_request
    def check() -> None:
        _check_host(hosts)
        _check_origin(hosts)
        _check_token(token())


def _check_host(hosts: Collection[str]) -> None:
    name = _hostname(request.environ.get("HTTP_HOST", ""))
    if name is None or not (_is_address(name) or name in hosts):
        raise errors.RequestError(
            "WRONG_HOST",
            "This agent does not answer to that Host; use its address, or name the host with --allowed-host.",
        )


def _check_origin(hosts: Collection[str]) -> None:
    origin = request.headers.get("Origin")
    if origin is None:
        return
    own = request.environ.get("HTTP_HOST", "")
    if urlsplit(origin).netloc.lower() != own.lower():
        raise errors.RequestError("FORBIDDEN_ORIGIN", "Pages of other sites may not call this agent.")


def _check_token(token: str | None) -> None:
    scheme, _, given = request.headers.get("Authorization", "").partition(" ")
    # Compared as bytes: compare_digest refuses text that is not ASCII, and a header may hold anything.
    right = token is not None and hmac.compare_digest(given.strip().encode(), token.encode())
    if scheme.lower() != "bearer" or not right:
        raise errors.RequestError(
            "UNAUTHORIZED", "Send the header Authorization: Bearer TOKEN; `occ token` on the agent's machine prints it."
        )


def _hostname(host: str) -> str | None:
    """The name in a Host header, without the port; None when it is not one."""
    match = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:\d{1,5})?", host)
    return match.group(1).strip("[]").lower().rstrip(".") if match else None


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def own_hosts(public_url: str | None, allowed: Collection[str]) -> frozenset[str]:
    """The Host names an agent answers to, besides every IP address."""
    names = {"localhost", socket.gethostname().lower(), *(name.lower() for name in allowed)}
    if public_url:
        names.add((urlsplit(public_url).hostname or "").lower())
    return frozenset(names)


def answer_errors_in_json(app: Flask) -> None:
    """Turn whatever is raised while answering into the one error body."""

    @app.errorhandler(errors.OCCError)
    def refused(error: errors.OCCError) -> Response:
        if isinstance(error, errors.RequestError):
            return error_response(error.code, str(error), error.details)
        return unexpected(error)

    @app.errorhandler(HTTPException)
    def http(error: HTTPException) -> Response:
        status = error.code or 500
        code, message = _HTTP_CODES.get(status, _HTTP_CODES[400] if status < 500 else ("INTERNAL", ""))
        if status >= 500:
            return unexpected(error)
        response = error_response(code, message, status=status if status in _HTTP_CODES else 400)
        for name, value in error.get_headers():
            if name == "Allow":
                response.headers[name] = value
        return response

    @app.errorhandler(Exception)
    def unexpected(error: Exception) -> Response:
        log.error("%s %s failed", request.method, request.path, exc_info=error)
        return error_response(
            "INTERNAL", "The agent met a fault of its own; its log logs/web.log says more.", status=500
        )


def error_body(code: str, message: str, details: Mapping[str, Any] | None = None) -> bytes:
    body = {"status": "error", "code": code, "message": message, "details": dict(details or {})}
    return json.dumps(body).encode()


def error_response(
    code: str, message: str, details: Mapping[str, Any] | None = None, status: int | None = None
) -> Response:
    status = status or STATUS.get(code, 422 if code.startswith("ZIP_") else 500)
    response = Response(error_body(code, message, details), status, content_type="application/json")
    if status == 401:
        response.headers["WWW-Authenticate"] = "Bearer"
    if status in RETRY_AFTER_SECONDS:
        response.headers["Retry-After"] = str(RETRY_AFTER_SECONDS[status])
    return response


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


def loaded(schema: Schema, content: Any) -> dict[str, Any]:
    """The content as the schema reads it. Raises InvalidRequest naming each wrong field."""
    try:
        return dict(schema.load(content))
    except ValidationError as error:
        wrong = error.messages if isinstance(error.messages, dict) else {"_body": error.messages}
        names = ", ".join(sorted(map(str, wrong))[:5])
        raise errors.InvalidRequest(
            f"Wrong or missing: {names}; `details` says why.", {str(k): v for k, v in wrong.items()}
        ) from None


def query(schema: Schema) -> dict[str, Any]:
    """The query string as the schema reads it."""
    doubled = [name for name, values in request.args.lists() if len(values) > 1]
    if doubled:
        raise errors.InvalidRequest(f"{doubled[0]} stands twice in the query.", {doubled[0]: ["Given twice."]})
    return loaded(schema, request.args.to_dict())


def cursor(after: str | None) -> int:
    """Where a reader wants to go on: Last-Event-ID, or the query's `after`. Raises INVALID_EVENT_ID."""
    value = request.headers.get("Last-Event-ID", after)
    if value is None or value == "":
        return 0
    if not re.fullmatch(r"[0-9]{1,18}", value):
        raise errors.RequestError(
            "INVALID_EVENT_ID", "Last-Event-ID must be the id of an event: a whole number, 0 or more."
        )
    return int(value)


class Streams:
    """Counts the streams that are open, so that they never take the last thread from everybody else."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._open = 0
        self._lock = threading.Lock()

    def enter(self) -> None:
        """Take a place. Raises Unavailable when there is none."""
        with self._lock:
            if self._open >= self._most:
                raise errors.Unavailable(
                    "TOO_MANY_STREAMS", f"{self._open} streams are open already; close one or raise OCC_MAX_STREAMS."
                )
            self._open += 1

    def leave(self) -> None:
        with self._lock:
            self._open -= 1


class Departures:
    """Tells at once when a client closes its connection, where a server notices only at its next write."""

    def __init__(self) -> None:
        self._poll = select.epoll()
        self._callbacks: dict[int, Callable[[], None]] = {}
        threading.Thread(target=self._watch, name="departures", daemon=True).start()

    def watch(self, descriptor: int, callback: Callable[[], None]) -> None:
        self._callbacks[descriptor] = callback
        self._poll.register(descriptor, select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR | select.EPOLLONESHOT)

    def forget(self, descriptor: int) -> None:
        if self._callbacks.pop(descriptor, None) is not None:
            try:
                self._poll.unregister(descriptor)
            except (OSError, ValueError):
                log.debug("a stream's connection was closed before it was forgotten")

    def _watch(self) -> None:
        while True:
            for descriptor, _ in self._poll.poll():
                callback = self._callbacks.get(descriptor)
                if callback is not None:
                    callback()


class Follower:
    """One reader of one execution, over any transport: events in order from a cursor to the final one.

    Use it as a context manager; `batches` yields lists of events, and an empty list where a keep-alive is due.
    """

    def __init__(self, db: Database, tailing: Tail, execution: Execution, after: int) -> None:
        self._db = db
        self._tail = tailing
        self._execution = execution
        self._after = after
        self._key = tail.execution_key(execution.number)
        self.gone = False

    def __enter__(self) -> Follower:
        self._channel = self._tail.join(self._key, self._execution.last_seq)
        return self

    def __exit__(self, *_: object) -> None:
        self._tail.leave(self._key)

    def leave(self) -> None:
        """Called from elsewhere when the client is gone: the next wait ends."""
        with self._channel.changed:
            self.gone = True
            self._channel.changed.notify_all()

    def stored(self) -> Iterator[list[events.Event]]:
        """What is there now, then the end."""
        while batch := events.after(self._db, self._execution.number, self._after):
            self._after = batch[-1].seq
            yield batch

    def batches(self) -> Iterator[list[events.Event]]:
        """Everything to the final event, as it comes."""
        over = self._repeated_final()
        if over is not None:
            yield [over]
            return
        while not self.gone:
            batch = self._tail.next_events(self._channel, self._execution.number, self._after)
            if batch:
                self._after = batch[-1].seq
                yield batch
                if batch[-1].final:
                    return
                continue
            if self._tail.closed:
                return
            moved = self._tail.wait(
                self._channel, lambda: self.gone or self._channel.newest > self._after, KEEPALIVE_SECONDS
            )
            if not moved:
                yield []

    def _repeated_final(self) -> events.Event | None:
        """The final event for a reader that has it already, or claims to: it is always sent."""
        if self._execution.over and self._after >= self._execution.last_seq:
            return events.final(self._db, self._execution.number)
        return None


def event_stream(follower: Follower, streams: Streams, departures: Departures, *, follow: bool) -> Response:
    """An execution's events as server-sent events. The caller has taken a place among the streams; this gives it back."""
    connection = request.environ.get("gunicorn.socket")
    descriptor = -1 if connection is None else connection.fileno()
    released = threading.Event()

    def release() -> None:
        if not released.is_set():
            released.set()
            streams.leave()

    def generate() -> Iterator[bytes]:
        with follower:
            if descriptor >= 0:
                departures.watch(descriptor, follower.leave)
            try:
                yield b": follows\n\n"
                for batch in follower.batches() if follow else follower.stored():
                    yield b"".join(event.sse for event in batch) if batch else b": still here\n\n"
            finally:
                departures.forget(descriptor)
                release()

    response = Response(generate(), content_type="text/event-stream; charset=utf-8")
    # A generator that was never begun runs no `finally`; the response's own close always comes.
    response.call_on_close(release)
    # Closing after a stream lets a stop be prompt: a kept-alive connection is lingered on.
    response.headers.update({"Cache-Control": "no-cache", "X-Accel-Buffering": "no", "Connection": "close"})
    return response


def json_response(content: Any, status: int = 200) -> Response:
    return Response(flask_json.dumps(content), status, content_type="application/json")
