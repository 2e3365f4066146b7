"""Requests that are not well-formed HTTP: refused in JSON, at once, and nobody else is disturbed."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator

import pytest

from tests.conftest import Occ, raw, shared_agent, steps


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Occ]:
    with shared_agent(tmp_path_factory.mktemp("framing")) as agent:
        yield agent
        assert "Traceback" not in agent.logs()


def signed(agent: Occ, start: str, *headers: str, body: bytes = b"") -> bytes:
    lines = [
        start,
        "Host: localhost",
        f"Authorization: Bearer {agent.token}",
        "Content-Type: application/json",
        *headers,
    ]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


@pytest.mark.parametrize(
    ("start", "headers", "body"),
    [
        ("GARBAGE", [], b""),
        ("GET /health HTTP/9.9", [], b""),
        ("GET /he alth HTTP/1.1", [], b""),
        ("POST /execute HTTP/1.1", ["Content-Length: 5", "Content-Length: 6"], b"{}   "),
        ("POST /execute HTTP/1.1", ["Content-Length: -5"], b"{}"),
        ("POST /execute HTTP/1.1", ["Content-Length: x"], b"{}"),
        ("POST /execute HTTP/1.1", ["Content-Length: 5", "Transfer-Encoding: chunked"], b"0\r\n\r\n"),
        ("POST /execute HTTP/1.1", ["Transfer-Encoding: gzip"], b""),
        ("POST /execute HTTP/1.1", ["Transfer-Encoding: chunked"], b"zz\r\n{}\r\n0\r\n\r\n"),
        ("POST /execute HTTP/1.1", ["Transfer-Encoding: chunked"], b"-1\r\n{}\r\n0\r\n\r\n"),
        ("POST /execute HTTP/1.1", ["Transfer-Encoding: chunked"], b"5\r\n{}"),
        ("POST /execute HTTP/1.1", ["Content-Length: 500"], b"{}"),
        ("GET /health HTTP/1.1", ["Bad Header: x"], b""),
        ("GET /health HTTP/1.1", ["X: " + "x" * 20_000], b""),
        ("GET /health HTTP/1.1", ["X: y"] * 300, b""),
        ("GET /health HTTP/1.1", ["Host: localhost"], b""),
        ("GET /health HTTP/1.1", ["Host: evil.example"], b""),
    ],
    ids=lambda value: str(value)[:50],
)
def test_broken_http_is_refused_in_json(served: Occ, start: str, headers: list[str], body: bytes) -> None:
    status, answer = raw(served, signed(served, start, *headers, body=body))
    assert 400 <= status < 500
    assert answer["status"] == "error"
    assert served.request("GET", "/health").status == 200


def test_a_client_of_http_1_0_gets_its_stream_bare_and_then_the_end(served: Occ) -> None:
    served.workspace("bare", {"a.txt": "a"})
    body = json.dumps(
        {"executionId": "bare", "workspaceId": "bare", "prompt": steps({"say": "slow ", "times": 20, "every": 0.02})}
    )
    host, port = served.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(signed(served, "POST /execute HTTP/1.0", f"Content-Length: {len(body)}", body=body.encode()))
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    reply, _, stream = answer.partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in reply.lower()
    frames = stream.decode().split("\n\n")
    assert frames[0] == ": follows"
    names = [frame.split("event: ")[1].split("\n")[0] for frame in frames[1:-1]]
    assert (names[0], names.count("output"), names[-1]) == ("queued", 20, "complete")
    assert frames[-1] == ""
