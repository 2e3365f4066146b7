"""Every operation of the documents, called with right and wrong values: the live servers answer as the documents say.

`make test-all` sends many more values, which schemathesis makes (tests/documented_calls.py).
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jsonschema_rs
import pytest
import urllib3

from tests.conftest import Occ, make_zip
from tests.documented_calls import secret_of
from tests.real_hub import Hub

# Values of path parameters: of things that exist, and of things that do not.
EXISTING = {"execution_id": "known", "workspace_id": "work", "path": "README.md", "agent_id": "box", "name": "spare"}
UNKNOWN = dict.fromkeys(EXISTING, "unknown")
# Where the smallest value that a schema allows is no meaningful one.
BODIES: dict[str, dict[str, Any]] = {
    "executions.execute": {"executionId": "documented", "workspaceId": "work", "prompt": "hello"},
    "hub.create_key": {"name": "made", "for": "client"},
    "hub.register": {"protocol": 1, "name": "x", "version": "1", "port": 9, "workers": 1},
    "hub.heartbeat": {"seqNum": 1, "status": "healthy", "version": "1"},
}
FIELDS = {"q": "hello", "workspaceId": "work"}  # of queries and bodies
NEVER_REMOVED = {"hub.remove"}  # the machine is of other tests, too
LIMITED = {"sessions.pair"}  # a hub allows so many in a time, and other tests make some
LAST = ("hub.revoke_key", "workspaces.delete")
# With a client's secret, and without approvals, questions and sessions.
REFUSED = {"approvals.show", "approvals.answer", "conversations.show", "follow_ups.resume", "follow_ups.change"}
REFUSED_ONLY = {
    "agent": {"proof.show", "rules.remove"},
    "hub": {
        *("hub.challenge", "hub.register", "hub.echo", "hub.heartbeat", "local.announce"),
        *("hub_rules.remove", "sessions.revoke"),
    },
}


@dataclass(frozen=True)
class Operation:
    """One operation of a document."""

    document: Mapping[str, Any]
    method: str
    path: str
    about: Mapping[str, Any]

    @property
    def name(self) -> str:
        return str(self.about["operationId"])

    @property
    def queries(self) -> dict[str, Mapping[str, Any]]:
        return {found["name"]: found for found in self.about["parameters"] if found["in"] == "query"}

    @property
    def headers(self) -> dict[str, Mapping[str, Any]]:
        return {found["name"]: found for found in self.about["parameters"] if found["in"] == "header"}

    @property
    def body(self) -> Mapping[str, Any] | None:
        """The schema of a JSON body."""
        content = self.about.get("requestBody", {}).get("content", {}).get("application/json")
        return None if content is None else self.resolved(content["schema"])

    def resolved(self, schema: Mapping[str, Any]) -> Mapping[str, Any]:
        while "$ref" in schema:
            schema = self.document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
        return schema

    def example(self, schema: Mapping[str, Any]) -> Any:
        """The smallest value of a schema."""
        schema = self.resolved(schema)
        if "enum" in schema:
            return schema["enum"][0]
        kind = schema.get("type", "object")
        if kind == "object":
            required = schema.get("required", ())
            return {name: FIELDS.get(name) or self.example(schema["properties"][name]) for name in required}
        return {"integer": schema.get("minimum", 1), "number": 1, "boolean": True, "array": []}.get(str(kind), "x")

    def right_body(self) -> Any:
        if self.body is None:
            return None
        return BODIES.get(self.name, self.example(self.body))

    def wrong_bodies(self) -> Iterator[Any]:
        """Bodies that the document forbids."""
        if self.body is None:
            return
        right = self.right_body()
        yield from (b"not json", b"[]", b'"x"', b"\xff")
        for name in self.body.get("required", ()):
            yield {key: value for key, value in right.items() if key != name}
        for name, schema in self.body.get("properties", {}).items():
            kind = self.resolved(schema).get("type")
            if kind is not None:
                yield {**right, name: 5 if "object" in kind else {"x": 1}}

    def wrong_calls(self) -> Iterator[dict[str, Any]]:
        """Arguments of calls that the document forbids."""
        for body in self.wrong_bodies():
            yield {"body": body}
        for name, found in self.queries.items():
            if (wrong := _wrong_text(found["schema"])) is not None:
                yield {"queries": {name: wrong}}
        yield {"queries": {"unheard-of": "1"}}
        for name, found in self.headers.items():
            if found["schema"].keys() != {"type"}:  # else the document allows every text
                yield {"headers": {name: "!"}}

    def check(self, reply: urllib3.BaseHTTPResponse, sent: object) -> None:
        """Fail unless the document describes this reply."""
        told = f"{self.name} with {sent}: {reply.status} {reply.data[:300]!r}"
        assert reply.status < 500, told
        known = self.about["responses"]
        assert reply.status >= 400 or str(reply.status) in known, told
        content = known.get(str(reply.status), known["default"]).get("content", {})
        kind = reply.headers.get("Content-Type", "").partition(";")[0]
        assert kind in content or (not content and not reply.data), told
        if kind == "application/json":
            schema = {**content[kind]["schema"], "components": self.document["components"]}
            jsonschema_rs.Draft202012Validator(schema).validate(json.loads(reply.data))
        if kind == "text/event-stream":
            for event in reply.data.decode().strip().split("\n\n"):
                fields = dict(line.split(": ", 1) for line in event.splitlines() if not line.startswith(":"))
                assert not fields or (fields["id"].isdigit() and json.loads(fields["data"])), told


class Server:
    """Calls the operations of a server's document."""

    def __init__(self, server: Occ | Hub) -> None:
        self._url, self._secret = server.url, secret_of(server)
        self._pool = urllib3.PoolManager(retries=False)
        document = json.loads(
            self._send("GET", "/openapi.json", headers={"Authorization": f"Bearer {self._secret}"}).data
        )
        found = [
            Operation(document, method.upper(), path, about)
            for path, operations in document["paths"].items()
            for method, about in operations.items()
        ]
        self.operations = sorted(found, key=lambda operation: operation.name in LAST)
        self.kind = "hub" if isinstance(server, Hub) else "agent"

    def close(self) -> None:
        self._pool.clear()

    def _send(self, method: str, path: str, **options: Any) -> urllib3.BaseHTTPResponse:
        return self._pool.request(method, self._url + path, redirect=False, timeout=30, **options)

    def call(
        self,
        operation: Operation,
        values: Mapping[str, str],
        *,
        body: Any = None,
        queries: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        secret: str | None = None,
    ) -> urllib3.BaseHTTPResponse:
        """Call an operation, with the operator's secret or another, and check the reply."""
        required = {name: FIELDS[name] for name, found in operation.queries.items() if found.get("required")}
        secret = self._secret if secret is None else secret
        options: dict[str, Any] = {"headers": {"Authorization": f"Bearer {secret}", **(headers or {})}}
        if isinstance(body, bytes):
            options["headers"]["Content-Type"] = "application/json"
            options["body"] = body
        elif body is not None:
            options["json"] = body
        elif "multipart/form-data" in operation.about.get("requestBody", {}).get("content", {}):
            archive = make_zip({"README.md": "hello\n"}).getvalue()
            options["fields"] = {"workspaceId": "new", "name": "new", "processPolicy": "overwrite"}
            options["fields"] |= {"zip": ("a.zip", archive, "application/zip")}
        path = operation.path.format_map(_Values(values))
        if asked := required | dict(queries or {}):
            path += "?" + "&".join(f"{name}={value}" for name, value in asked.items())
        reply = self._send(operation.method, path, **options)
        operation.check(reply, (values, body, queries, headers))
        return reply


class _Values(dict[str, str]):
    """Values of path parameters; one that is not among them is of a thing that does not exist."""

    def __missing__(self, name: str) -> str:
        return "unknown"


@pytest.fixture(params=["agent", "hub_with_box"], ids=["agent", "hub"])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server with the workspace `work`, in which the execution `known` ran."""
    running: Occ | Hub = request.getfixturevalue(request.param)
    if isinstance(running, Hub):
        running.agent("box")
        running.key("spare", "client")
        running.client.upload("work", make_zip({"README.md": "hello\n"}))
    assert [*running.client.execute("work", "hello", executionId="known")][-1].name == "complete"
    server = Server(running)
    yield server
    server.close()


def test_right_calls_are_answered_as_documented(server: Server) -> None:
    refused = set()
    for operation in server.operations:
        replies = [server.call(operation, UNKNOWN, body=operation.right_body())]
        if operation.name not in NEVER_REMOVED:
            replies.append(server.call(operation, EXISTING, body=operation.right_body()))
        if min(reply.status for reply in replies) >= 400:
            refused.add(operation.name)
    assert refused - NEVER_REMOVED - LIMITED == REFUSED | REFUSED_ONLY[server.kind]


def test_wrong_calls_are_refused_as_documented(server: Server) -> None:
    refused = 0
    for operation in server.operations:
        values = UNKNOWN if operation.name in NEVER_REMOVED else EXISTING
        right = operation.right_body()
        for wrong in operation.wrong_calls():
            reply = server.call(operation, values, **{"body": right, **wrong})
            assert 400 <= reply.status < 500, (operation.name, wrong)
            refused += 1
    assert refused > 100


def test_calls_without_a_secret_are_refused_as_documented(server: Server) -> None:
    for operation in server.operations:
        status = server.call(operation, EXISTING, body=operation.right_body(), secret="").status
        assert status == 401, operation.name


def test_calls_of_agents_are_answered_as_documented(hub_with_box: Hub) -> None:
    server = Server(hub_with_box)
    calls = {operation.name: operation for operation in server.operations}
    with contextlib.closing(server):
        reply = server.call(calls["hub.register"], {}, body=BODIES["hub.register"], secret=hub_with_box.agent_key)
        assert reply.status == 201
        known = json.loads(reply.data)
        for name in ("hub.register", "hub.heartbeat", "hub.echo"):
            secret = hub_with_box.agent_key if name == "hub.register" else known["token"]
            values = {"agent_id": known["agentId"]}
            right = calls[name].right_body()
            assert server.call(calls[name], values, body=right, secret=secret).status < 300, name
            for wrong in calls[name].wrong_calls():
                reply = server.call(calls[name], values, **{"body": right, **wrong}, secret=secret)
                assert 400 <= reply.status < 500, (name, wrong)


def _wrong_text(schema: Mapping[str, Any]) -> str | None:
    """A value of a query that its schema forbids, if it forbids any."""
    if schema.get("type") in ("integer", "boolean") or "enum" in schema or "pattern" in schema:
        return "%20" if schema.get("pattern") == r"\S" else "!"
    return "x" * (schema["maxLength"] + 1) if "maxLength" in schema else None
