"""The executions: start and follow, list, look at, cancel."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

from flask import Blueprint, Flask, Response, g, request

from occ_app import errors
from occ_app.api.follow_ups import check_prompt_size
from occ_app.api.request_terms import local_sharing, permitted
from occ_app.api.services import Services, services
from occ_app.config.permission_rules import parsed
from occ_app.config.settings import MAX_APPROVAL_SECONDS
from occ_app.executions import acceptance, attachments, lifecycle
from occ_app.executions import queries as executions
from occ_app.executions.records import Execution, Request
from occ_app.streams import followers as streams
from occ_app.streams import tail
from occ_app.web import callers, schemas
from occ_app.web import requests as web
from occ_app.web.contracts import FROM_HUB, RELAYED, RESUMES, STREAM, contract
from occ_app.web.event_stream import event_stream
from occ_app.web.fields import schema_of
from occ_app.workspaces import workspace as workspaces

bp = Blueprint("executions", __name__)

_LONGEST_LISTED = 1 << 16


@bp.post("/execute")
@contract(content=STREAM, headers={**RESUMES, **FROM_HUB, **RELAYED})
def execute() -> Response:
    """Run a prompt in a workspace and stream its events.

    The same id and body again follow the existing execution.
    """
    after = web.cursor(None)
    web.origin()  # refused here when it is malformed, and looked at when the execution is admitted
    wanted = asked_for(web.json_body(web.largest_body_with_prompt() + 2 * attachments.MAX_BYTES))
    with services().streams.place(callers.caller().key_id) as place:
        execution, created = start(wanted)
        response = stream(execution, after, place, follow=True)
    response.headers["OCC-Execution"] = "created" if created else "existing"
    held = None if created else workspaces.numbered(services().db, execution.workspace_generation)
    if held is not None and held.origin is not None:  # by it a hub knows an execution that it sent before
        response.headers.update(held.origin.owner())
    return response


def start(wanted: Request) -> tuple[Execution, bool]:
    """Accept an execution and wake a worker; returns it and whether it is new.

    It is on the disk when this returns. Raises the errors of lifecycle.create.
    """
    wiring = services()
    execution, created = _create(wiring, wanted)
    if created:
        with contextlib.suppress(errors.OCCError):  # it is accepted; the reaper wakes somebody within seconds
            wiring.wake_worker()
    # A worker may be starting the CLI already; the client gets only a reply that no power cut takes back.
    wiring.db.sync()
    return execution, created


def _create(wiring: Services, wanted: Request) -> tuple[Execution, bool]:
    try:
        wiring.refuse_when_stopping()
    except errors.Unavailable:
        # One that exists may still be followed to its end.
        existing = executions.find(wiring.db, wanted.execution_id, callers.caller().visible_to)
        if existing is not None and existing.request_hash == wanted.hash:
            return existing, False
        raise
    return lifecycle.create(
        wiring.db, wanted, max_queue=wiring.config.max_queue, admit=wiring.admit, resolve=wiring.resolve_workspace
    )


def asked_for(body: Any) -> Request:
    """Return the body as a request with the configured limits.

    Raises InvalidRequest and TooLarge.
    """
    wiring = services()
    loaded, config = web.loaded(wiring.execute_body, body), wiring.config
    check_prompt_size(loaded["prompt"])
    for name in ("timeout_seconds", "idle_timeout_seconds"):
        if loaded.get(name, 0) > config.max_timeout_seconds:
            wire = schema_of(wiring.execute_body).fields[name].data_key or name
            setting = "OCC_MAX_TIMEOUT_SECONDS, on a hub OCC_HUB_MAX_TIMEOUT_SECONDS"
            message = f"Must be at most {config.max_timeout_seconds:g} ({setting})."
            raise errors.InvalidRequest(f"{wire} is above the maximum; see `details`.", {wire: [message]})
    if loaded.get("approval_seconds", 0) > MAX_APPROVAL_SECONDS:
        message = f"Must be at most {MAX_APPROVAL_SECONDS:.0f}: Claude Code removes older sessions."
        raise errors.InvalidRequest("approvalSeconds is above the maximum.", {"approvalSeconds": [message]})
    return Request(
        execution_id=loaded["execution_id"],
        workspace_id=loaded.get("workspace_id", ""),
        prompt=loaded["prompt"],
        timeout_seconds=loaded.get("timeout_seconds", config.timeout_seconds),
        idle_timeout_seconds=loaded.get("idle_timeout_seconds", config.idle_timeout_seconds),
        model=loaded.get("model"),
        max_turns=loaded.get("max_turns"),
        max_budget_usd=loaded.get("max_budget_usd"),
        session_id=loaded.get("session_id"),
        hash=acceptance.request_hash(body),
        key_id=callers.caller().key_id,
        owner_id=callers.caller().owner_id,
        approval_seconds=loaded.get("approval_seconds", config.default_approval_seconds),
        permissions=permitted(loaded.get("permissions")),
        permissions_named="permissions" in loaded,
        rules=tuple(parsed(text, decision) for decision in ("deny", "ask") for text in loaded.get(decision, ())),
        continues=loaded.get("continues"),
        visible_to=callers.caller().visible_to,
        agent=loaded.get("agent"),
        labels=tuple(loaded.get("labels", ())),
        workspace_generation=loaded.get("workspace_generation"),
        notify=loaded.get("notify", False),
        fork=loaded.get("fork", False),
        rewind_to=loaded.get("rewind_to"),
        local_sharing=local_sharing(),
        attachments=attachments.checked([(each["name"], each["data"]) for each in loaded.get("attachments", ())]),
    )


def stream(execution: Execution, after: int, place: contextlib.ExitStack, *, follow: bool) -> Response:
    """Return an execution's events as server-sent events; the response owns `place`."""
    return event_stream(services().tail, follower(execution, after), place, follow=follow)


def follower(execution: Execution, after: int) -> streams.Follower:
    """Return the caller as a reader of an execution."""
    open_streams, caller, since = services().streams, callers.caller(), callers.asked_at()

    def refused() -> bool:
        return open_streams.refuses(caller.key_id, since) or caller.refused()

    return streams.Follower(services().db, services().tail, execution, after, refused)


@bp.get("/executions")
@contract(query=schemas.ListQuery, reply=schemas.ExecutionList)
def listing(query: dict[str, Any]) -> Response:
    """List executions, newest first."""
    rows, following = executions.listing(services().db, owner_id=callers.caller().visible_to, **query)
    return web.json_response(page(rows, following))


def page(rows: list[Execution], following: int | None) -> Any:
    """Return a page of executions as JSON."""
    return schema_of(schemas.ExecutionList).dump({"executions": list(map(listed, rows)), "next": following})


def listed(execution: Execution) -> Execution:
    """Return an execution for a list: its error message has at most 64 KiB there."""
    message = (execution.error_message or "").encode(errors="surrogatepass")
    if len(message) <= _LONGEST_LISTED:
        return execution
    return replace(execution, error_message=message[:_LONGEST_LISTED].decode(errors="ignore"))


@bp.get("/executions/<execution_id>")
@contract(query=schemas.GenerationQuery, reply=schemas.ExecutionRecord)
def show(execution_id: str, query: dict[str, Any]) -> Any:
    """Return one execution."""
    return executions.get(services().db, execution_id, callers.caller().visible_to, query.get("generation"))


@bp.get("/executions/<execution_id>/events")
@contract(
    query=schemas.EventsQuery,
    content=STREAM,
    headers=RESUMES,
    empty="Last-Event-ID is the id of the final event: there is nothing to reconnect for",
)
def events(execution_id: str, query: dict[str, Any]) -> Response:
    """Stream an execution's events.

    From the first or after Last-Event-ID, to its end, or with follow=0 to the stored ones.
    """
    after = web.cursor(query.get("after"))
    execution = executions.get(services().db, execution_id, callers.caller().visible_to)
    if _has_all(execution, after):
        return Response(status=204)
    with services().streams.place(callers.caller().key_id) as place:
        return stream(execution, after, place, follow=query["follow"])


# The codes of ends that may have a lower id than events that a reader has: written after an owner was lost, or a disk.
_LOW_ENDS = ("WORKER_LOST", "AGENT_LOST", "INTERNAL")


def _has_all(execution: Execution, after: int) -> bool:
    """Return whether the reader's Last-Event-ID is that of the final event.

    An EventSource reconnects until 204. The cursor of the query does not count, nor an end that may have replaced
    another event.
    """
    if "Last-Event-ID" not in request.headers or not execution.over or execution.error_code in _LOW_ENDS:
        return False
    return after == execution.last_seq


@bp.post("/executions/<execution_id>/cancel")
@contract(query=schemas.GenerationQuery, reply=schemas.ExecutionRecord, status=202)
def cancel(execution_id: str, query: dict[str, Any]) -> Any:
    """End an execution; harmless when it is over."""
    return cancel_execution(execution_id, query.get("generation"))


def cancel_execution(execution_id: str, generation: int | None = None) -> Execution:
    """Cancel an execution of the caller's and wake its runner and followers.

    Raises NotFound, also when its workspace has another number than `generation`.
    """
    execution = lifecycle.cancel(
        services().db,
        execution_id,
        "EXECUTION_CANCELLED",
        "The execution was cancelled before it started.",
        callers.caller().visible_to,
        generation,
    )
    services().workers.ring(execution_id)
    services().readers.ring(tail.execution_key(execution.number))
    return execution


def add_websocket(app: Flask) -> None:
    """GET /executions/{id}/ws: the same events, one JSON object a message."""
    # A ping more often than the server's limit on silence, which would cut an idle socket otherwise.
    app.config["SOCK_SERVER_OPTIONS"] = {"ping_interval": 5, "max_message_size": 4096}

    @app.get("/executions/<execution_id>/ws", websocket=True)
    def websocket(execution_id: str) -> Any:
        # Checked here, while a refusal can still be an HTTP reply: flask-sock upgrades before it calls its own view.
        if request.headers.get("Upgrade", "").lower() != "websocket":
            raise errors.RequestError("BAD_REQUEST", "This endpoint serves WebSockets; use …/events for SSE.")
        g.after = web.cursor(web.query(schemas.EventsQuery).get("after"))
        g.execution = executions.get(services().db, execution_id, callers.caller().visible_to)
        return _websocket_view()()


@cache
def _websocket_view() -> Callable[[], Any]:
    """Load the WebSocket view at its first use: a tenth of the process's memory."""
    from flask_sock import Sock

    routes = dict[str, Callable[[], Any]]()

    class Keeper:
        """A holder of the view that flask-sock makes; its address is registered already."""

        def route(self, path: str, **_: Any) -> Callable[[Callable[[], Any]], None]:
            return lambda view: routes.update({path: view})

    @Sock().route("/", bp=Keeper())  # type: ignore[untyped-decorator]  # flask-sock is untyped
    def speak(connection: Any) -> None:
        _send_events(connection, services(), follower(g.execution, g.after))

    return routes["/"]


class _Unread(list[Any]):
    """Take the place of a WebSocket's queue of received messages, which nothing reads."""

    def append(self, _: Any) -> None: ...


def _send_events(connection: Any, services: Services, follower: streams.Follower) -> None:
    with services.streams.place(callers.caller().key_id), follower:
        connection.input_buffer = _Unread()
        try:
            unwatch = services.tail.when_gone(connection.sock, follower.disconnect)
        except OSError:  # it is gone already
            return
        try:
            for batch in follower.batches():
                if not all(_sent(connection, event.frame) for event in batch):
                    return
        finally:
            unwatch()


def _sent(connection: Any, frame: str) -> bool:
    """Send one message; False if the client closed or dropped the connection."""
    from simple_websocket import ConnectionClosed

    try:
        connection.send(frame)
    except (ConnectionClosed, OSError):
        return False
    return True
