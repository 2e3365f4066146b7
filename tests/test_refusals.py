"""Requests that must be refused: each gets the one JSON shape with the right code, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import urllib3
from urllib3.filepost import encode_multipart_formdata

from tests.conftest import Occ, make_zip, raw, shared_agent, steps, wait_until

ROUTES = [
    ("GET", "/health"),
    ("GET", "/openapi.json"),
    ("POST", "/workspace/init"),
    ("POST", "/execute"),
    ("GET", "/executions"),
    ("GET", "/executions/x"),
    ("GET", "/executions/x/events"),
    ("GET", "/executions/x/ws"),
    ("POST", "/executions/x/cancel"),
    ("GET", "/workspaces"),
    ("GET", "/workspaces/x"),
    ("DELETE", "/workspaces/x"),
    ("GET", "/workspaces/x/archive"),
    ("GET", "/no/such/address"),
    ("GET", "/static/x"),
]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Occ]:
    """One agent for all these requests: none of them may change anything, which is checked at the end."""
    limits = {"OCC_MAX_UPLOAD_BYTES": "200000", "OCC_MAX_PROMPT_BYTES": "10000", "OCC_ALLOWED_HOSTS": "box.example"}
    with shared_agent(tmp_path_factory.mktemp("refusals"), **limits) as agent:
        agent.workspace()
        before = what_is_there(agent)
        yield agent
        assert what_is_there(agent) == before
        assert "Traceback" not in agent.logs()
        assert agent.token not in agent.logs()


def what_is_there(agent: Occ) -> Any:
    with agent.database.read() as connection:
        rows = tuple(
            connection.execute(
                "SELECT (SELECT count(*) FROM executions), (SELECT count(*) FROM events),"
                " (SELECT count(*) FROM workspaces)"
            ).fetchone()
        )
    return rows, sorted(path.name for path in (agent.home / "workspaces").iterdir()), uploads(agent)


def uploads(agent: Occ) -> list[str]:
    return [path.name for path in (agent.home / "run/uploads").iterdir()]


def refused(agent: Occ, method: str, path: str, status: int, code: str, **options: Any) -> Any:
    response = agent.request(method, path, **options)
    assert response.status == status, response.data
    body = response.json()
    assert (body["status"], body["code"]) == ("error", code)
    assert set(body) == {"status", "code", "message", "details"}
    assert len(body["message"]) > 10
    assert agent.token not in response.data.decode()
    assert str(agent.home) not in response.data.decode()
    if status in (429, 503):
        assert int(response.headers["Retry-After"]) > 0
    return response


@pytest.mark.parametrize(("method", "path"), ROUTES)
@pytest.mark.parametrize(
    "authorization", ["", "Bearer", "Bearer wrong", "Basic eDp5", "Bearer \u00e9", "Bearer " + "x" * 4000]
)
def test_every_address_wants_the_token(served: Occ, method: str, path: str, authorization: str) -> None:
    headers = {"Authorization": authorization.encode("latin-1").decode("latin-1")}
    response = refused(served, method, path, 401, "UNAUTHORIZED", **headers)
    assert response.headers["WWW-Authenticate"] == "Bearer"


def test_the_token_is_not_taken_from_a_query_or_a_cookie(served: Occ) -> None:
    refused(
        served,
        "GET",
        f"/health?token={served.token}&access_token={served.token}",
        401,
        "UNAUTHORIZED",
        Authorization="",
    )
    refused(served, "GET", "/health", 401, "UNAUTHORIZED", Authorization="", Cookie=f"token={served.token}")


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "localhost.evil.example", "", "a b", "127.0.0.1.evil", "x@127.0.0.1"]
)
@pytest.mark.parametrize(("method", "path"), [("GET", "/health"), ("POST", "/execute"), ("GET", "/nothing")])
def test_a_foreign_host_is_refused_before_the_token_is_looked_at(
    served: Occ, method: str, path: str, host: str
) -> None:
    status, body = raw(served, f"{method} {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0\r\n\r\n".encode())
    assert (status, body["code"]) in ((421, "WRONG_HOST"), (400, "BAD_REQUEST"))
    assert status == 421 or host in ("", "a b", "x@127.0.0.1")


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:1", "127.0.0.1", "10.1.2.3:99", "[::1]:80", "box.example", "Box.Example."]
)
def test_its_own_names_and_every_address_are_answered(served: Occ, host: str) -> None:
    assert served.request("GET", "/health", Host=host).status == 200


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1", "file://"])
def test_a_foreign_origin_is_refused(served: Occ, origin: str) -> None:
    response = refused(served, "GET", "/health", 403, "FORBIDDEN_ORIGIN", Origin=origin)
    assert not any(name.lower().startswith("access-control") for name in response.headers)


def test_its_own_origin_is_answered(served: Occ) -> None:
    assert served.request("GET", "/health", Origin=served.url).status == 200


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nothing", 404, "NOT_FOUND"),
        ("GET", "/", 404, "NOT_FOUND"),
        ("GET", "/static/x", 404, "NOT_FOUND"),
        ("GET", "/executions/nope", 404, "EXECUTION_NOT_FOUND"),
        ("GET", "/executions/nope/events", 404, "EXECUTION_NOT_FOUND"),
        ("POST", "/executions/nope/cancel", 404, "EXECUTION_NOT_FOUND"),
        ("GET", "/executions/%00/events", 404, "EXECUTION_NOT_FOUND"),
        ("GET", "/executions/" + "x" * 2000, 404, "EXECUTION_NOT_FOUND"),
        ("GET", "/workspaces/nope", 404, "WORKSPACE_NOT_FOUND"),
        ("GET", "/workspaces/..%2f..", 404, "NOT_FOUND"),
        ("DELETE", "/workspaces/nope", 404, "WORKSPACE_NOT_FOUND"),
        ("GET", "/workspaces/nope/archive", 404, "WORKSPACE_NOT_FOUND"),
        ("POST", "/health", 405, "METHOD_NOT_ALLOWED"),
        ("GET", "/execute", 405, "METHOD_NOT_ALLOWED"),
        ("PUT", "/workspaces/x", 405, "METHOD_NOT_ALLOWED"),
        ("BREW", "/health", 405, "METHOD_NOT_ALLOWED"),
        ("GET", "/executions?state=lost", 422, "INVALID_REQUEST"),
        ("GET", "/executions?limit=0", 422, "INVALID_REQUEST"),
        ("GET", "/executions?limit=99999", 422, "INVALID_REQUEST"),
        ("GET", "/executions?before=x", 422, "INVALID_REQUEST"),
        ("GET", "/executions?before=99999999999999999999999", 422, "INVALID_REQUEST"),
        ("GET", "/executions?what=1", 422, "INVALID_REQUEST"),
        ("GET", "/executions?limit=1&limit=2", 422, "INVALID_REQUEST"),
        ("GET", "/executions?workspaceId=../x", 422, "INVALID_REQUEST"),
        ("GET", "/health?x=1", 422, "INVALID_REQUEST"),
        ("GET", "/executions/x/events?follow=perhaps", 422, "INVALID_REQUEST"),
        ("GET", "/executions/x/events?after=-1", 400, "INVALID_EVENT_ID"),
        ("GET", "/executions/x/events?after=1.5", 400, "INVALID_EVENT_ID"),
        ("GET", "/executions/x/ws", 400, "BAD_REQUEST"),
    ],
)
def test_a_wrong_address_or_query_is_told(served: Occ, method: str, path: str, status: int, code: str) -> None:
    refused(served, method, path, status, code)


@pytest.mark.parametrize("value", ["-1", "x", "1e3", "\u0663", "9" * 30, "0x1", "1 2"])
def test_a_last_event_id_that_is_no_number_is_told(served: Occ, value: str) -> None:
    status, body = raw(
        served,
        f"GET /executions/x/events HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {served.token}\r\n"
        f"Last-Event-ID: {value}\r\n\r\n".encode(),
    )
    assert (status, body["code"]) == (400, "INVALID_EVENT_ID")


EXECUTE = {"executionId": "never", "workspaceId": "work", "prompt": "x"}


@pytest.mark.parametrize(
    "change",
    [
        {"executionId": None},
        {"executionId": ""},
        {"executionId": 5},
        {"executionId": "a/b"},
        {"executionId": "-a"},
        {"executionId": "a."},
        {"executionId": "a\n"},
        {"executionId": "x" * 129},
        {"workspaceId": "../work"},
        {"prompt": ""},
        {"prompt": " \n\t"},
        {"prompt": None},
        {"prompt": ["x"]},
        {"prompt": "lone \ud800"},
        {"timeoutSeconds": 0},
        {"timeoutSeconds": -1},
        {"timeoutSeconds": "10"},
        {"timeoutSeconds": True},
        {"timeoutSeconds": 86401},
        {"idleTimeoutSeconds": 86401},
        {"maxTurns": 0},
        {"maxTurns": 1.5},
        {"maxTurns": True},
        {"maxBudgetUsd": 0},
        {"model": "--dangerously-skip-permissions"},
        {"model": ""},
        {"model": "a b"},
        {"sessionId": "not-a-uuid"},
        {"sessionId": "--resume"},
        {"unknown": 1},
        {"PROMPT": "x"},
    ],
    ids=json.dumps,
)
def test_a_wrong_field_is_named(served: Occ, change: dict[str, Any]) -> None:
    response = refused(served, "POST", "/execute", 422, "INVALID_REQUEST", json_body=EXECUTE | change)
    assert set(response.json()["details"]) == set(change)


@pytest.mark.parametrize("missing", list(EXECUTE))
def test_a_missing_field_is_named(served: Occ, missing: str) -> None:
    body = {name: value for name, value in EXECUTE.items() if name != missing}
    response = refused(served, "POST", "/execute", 422, "INVALID_REQUEST", json_body=body)
    assert set(response.json()["details"]) == {missing}


@pytest.mark.parametrize("body", [b"[]", b'"x"', b"5", b"null", b"true"])
def test_a_body_that_is_no_object_is_told(served: Occ, body: bytes) -> None:
    refused(served, "POST", "/execute", 422, "INVALID_REQUEST", body=body, Content_Type="application/json")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b'{"a":1}{',
        b"NaN",
        b'{"a":NaN}',
        b'{"a":1,"a":2}',
        b"[" * 100_000,
        b'{"a":' * 50_000,
        b"\0",
    ],
    ids=lambda body: body[:8].hex(),
)
def test_a_body_that_is_no_json_is_told(served: Occ, body: bytes) -> None:
    refused(served, "POST", "/execute", 400, "INVALID_JSON", body=body, Content_Type="application/json")


@pytest.mark.parametrize(
    "kind", ["", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"]
)
def test_a_body_of_another_type_is_told(served: Occ, kind: str) -> None:
    body = json.dumps(EXECUTE).encode()
    refused(served, "POST", "/execute", 415, "UNSUPPORTED_MEDIA_TYPE", body=body, Content_Type=kind)
    if not kind.startswith("multipart"):
        refused(served, "POST", "/workspace/init", 415, "UNSUPPORTED_MEDIA_TYPE", body=body, Content_Type=kind)


def test_an_unknown_workspace_is_told_with_what_to_do(served: Occ) -> None:
    response = refused(
        served, "POST", "/execute", 404, "WORKSPACE_NOT_FOUND", json_body=EXECUTE | {"workspaceId": "no"}
    )
    assert "occ run --dir" in response.json()["message"]


def test_a_prompt_over_its_size_is_too_large(served: Occ) -> None:
    refused(served, "POST", "/execute", 413, "BODY_TOO_LARGE", json_body=EXECUTE | {"prompt": "é" * 6000})


def form(**fields: Any) -> dict[str, Any]:
    given = {
        "workspaceId": "new",
        "name": "New",
        "processPolicy": "overwrite",
        "zip": ("w.zip", make_zip({"a": "b"}).read()),
    } | fields
    body, kind = encode_multipart_formdata({k: v for k, v in given.items() if v is not None}, boundary="frontier")
    return {"body": body, "Content_Type": kind}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"workspaceId": None}, "workspaceId"),
        ({"workspaceId": ".."}, "workspaceId"),
        ({"workspaceId": "a/b"}, "workspaceId"),
        ({"workspaceId": ".hidden"}, "workspaceId"),
        ({"workspaceId": "x" * 129}, "workspaceId"),
        ({"name": None}, "name"),
        ({"name": ""}, "name"),
        ({"name": "a\nb"}, "name"),
        ({"name": "x" * 201}, "name"),
        ({"processPolicy": None}, "processPolicy"),
        ({"processPolicy": "merge"}, "processPolicy"),
        ({"description": "x" * 10_001}, "description"),
        ({"other": "x"}, "other"),
        ({"zip": None}, "zip"),
        ({"zip": "text, no file"}, "zip"),
        ({"extra": ("e.zip", b"x")}, "extra"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_wrong_part_of_an_upload_is_named(served: Occ, change: dict[str, Any], named: str) -> None:
    response = refused(served, "POST", "/workspace/init", 422, "INVALID_REQUEST", **form(**change))
    assert named in response.json()["details"]
    assert uploads(served) == []


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", "ZIP_CORRUPT"),
        (b"not a zip", "ZIP_CORRUPT"),
        (make_zip({"a": "b" * 1000}).read()[:-30], "ZIP_CORRUPT"),
        (make_zip({}).read(), "ZIP_EMPTY"),
        (make_zip({"../a": "b"}).read(), "ZIP_PATH"),
        (make_zip({"a": b"0" * 110_000_000}).read(), "ZIP_BOMB"),
    ],
    ids=["nothing", "text", "cut", "empty", "escape", "bomb"],
)
def test_a_bad_zip_is_refused_whole(served: Occ, content: bytes, code: str) -> None:
    refused(served, "POST", "/workspace/init", 422, code, **form(zip=("w.zip", content)))
    assert uploads(served) == []


def test_an_upload_over_its_size_is_refused(served: Occ) -> None:
    content = os.urandom(300_000)
    refused(served, "POST", "/workspace/init", 413, "BODY_TOO_LARGE", **form(zip=("w.zip", content)))
    assert uploads(served) == []


def test_a_form_of_very_many_parts_is_refused_and_not_slow(served: Occ) -> None:
    part = b'--frontier\r\nContent-Disposition: form-data; name="x"\r\n\r\n\r\n'
    kind = "multipart/form-data; boundary=frontier"
    response = served.request("POST", "/workspace/init", body=part * 3000 + b"--frontier--\r\n", Content_Type=kind)
    assert response.status in (413, 422)
    assert response.json()["status"] == "error"


UPGRADE = {
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec_WebSocket_Key": "AAAAAAAAAAAAAAAAAAAAAA==",
    "Sec_WebSocket_Version": "13",
}


def test_a_websocket_is_refused_before_it_is_one(served: Occ) -> None:
    path = "/executions/x/ws"
    refused(served, "GET", path, 401, "UNAUTHORIZED", **UPGRADE, Authorization="")
    refused(served, "GET", path, 403, "FORBIDDEN_ORIGIN", **UPGRADE, Origin="https://evil.example")
    refused(served, "GET", path, 421, "WRONG_HOST", **UPGRADE, Host="evil.example")
    refused(served, "GET", path, 404, "EXECUTION_NOT_FOUND", **UPGRADE)
    refused(served, "GET", path + "?after=x", 400, "INVALID_EVENT_ID", **UPGRADE)


def test_streams_have_a_limit_and_their_places_come_back(occ: Occ, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    occ.start(OCC_MAX_STREAMS="3")
    occ.workspace()
    stream, _ = occ.under_way(steps({"say": "on"}, {"wait": str(gate)}), "long")
    more = [occ.client.events("long") for _ in range(2)]
    for each in more:
        next(each)
    response = occ.request("GET", "/executions/long/events")
    assert (response.status, response.json()["code"]) == (503, "TOO_MANY_STREAMS")
    assert response.headers["Retry-After"]
    assert occ.request("GET", "/health").status == 200
    more.pop().close()
    wait_until(lambda: occ.request("GET", "/executions/long/events?follow=0").status == 200, "a place to come back")
    gate.touch()
    assert list(stream)[-1].name == "complete"
    more[0].close()  # type: ignore[attr-defined]


def test_while_another_program_holds_the_database_it_is_busy(occ: Occ) -> None:
    occ.start()
    occ.workspace()
    with occ.database.write() as _:
        response = occ.request("POST", "/execute", json_body=EXECUTE)
        assert (response.status, response.json()["code"]) == (503, "BUSY")
    assert occ.run("x")[-1].name == "complete"


def test_a_form_of_too_many_fields_is_not_called_too_large(served: Occ) -> None:
    body, kind = urllib3.encode_multipart_formdata({f"f{number}": "x" for number in range(30)})
    response = served.request("POST", "/workspace/init", body=body, Content_Type=kind)
    assert (response.status, response.json()["code"]) == (413, "BODY_TOO_LARGE")
    assert "too many" in response.json()["message"]


FOR_BROWSERS = {"X-Content-Type-Options": "nosniff", "Cross-Origin-Resource-Policy": "same-origin"}


def test_every_answer_carries_the_headers_for_browsers(agent: Occ) -> None:
    agent.workspace()
    agent.run("hi", executionId="e")
    streams = [("GET", "/executions/e/events"), ("GET", "/workspaces/work/archive"), ("GET", "/metrics")]
    for method, path in [*ROUTES, *streams]:
        for options in ({}, {"Authorization": "Bearer wrong"}):
            headers = agent.request(method, path, **options).headers
            assert {name: headers.get(name) for name in FOR_BROWSERS} == FOR_BROWSERS, (path, options)
    host, port = agent.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(b"GET / HTTP/9.9 x\r\n\r\n")
        head = connection.recv(65536).decode().partition("\r\n\r\n")[0]
    assert head.startswith("HTTP/1.1 400")
    for name, value in FOR_BROWSERS.items():
        assert f"\r\n{name}: {value}" in head
