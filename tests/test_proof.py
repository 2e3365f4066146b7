"""Proof of the token by both sides, before a hub sends anything to an agent's address."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from occ_app.client.agent_client import AgentClient
from occ_app.errors import Unreachable
from occ_app.system import proofs
from tests import sentences
from tests.conftest import Occ, make_zip, output, steps

TOKEN = "occ_made-up-token"


@contextlib.contextmanager
def at_the_port(answer: Callable[[str], str]) -> Iterator[tuple[str, bytearray]]:
    """Something that listens where an agent was; `answer` makes the proof in its reply from the nonce."""
    got = bytearray()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    caller, _ = server.accept()
                    with caller:
                        head = caller.recv(65536)
                        got.extend(head)
                        nonce = head.partition(b"OCC-Proof ")[2][:32].decode()
                        body = json.dumps({"proof": answer(nonce)}).encode()
                        caller.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
                        got.extend(caller.recv(65536))

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}", got
        server.shutdown(socket.SHUT_RDWR)
    thread.join(10)


@pytest.mark.parametrize(
    "answer",
    [
        lambda _: "",
        lambda _: "f" * 64,
        lambda nonce: proofs.of_agent("another token", nonce),
        lambda nonce: proofs.of_caller(TOKEN, nonce),  # the question sent back
        lambda _: proofs.of_agent(TOKEN, "0" * 32),  # an older answer
    ],
)
def test_nothing_is_sent_to_an_address_that_does_not_prove_the_token(answer: Callable[[str], str]) -> None:
    with at_the_port(answer) as (url, got):
        client = AgentClient(url, TOKEN, prove=True)
        with pytest.raises(Unreachable, match=sentences.DOES_NOT_PROVE):
            client.upload("work", make_zip({"a.txt": "secret content"}))
        with pytest.raises(Unreachable):
            next(client.batches("e1", 0, {"prompt": "secret prompt"}))
        client.close()
        assert bytes(got).startswith(b"GET /proof ")
        assert b"POST" not in got
        assert TOKEN.encode() not in got
        assert b"secret" not in got


def test_an_agent_proves_the_token_to_those_who_hold_it(occ: Occ) -> None:
    occ.start()
    client = AgentClient(occ.url, occ.token, prove=True)
    client.upload("work", make_zip({"a.txt": "a"}))
    assert output(list(client.execute("work", steps({"say": "hello"})))) == "hello"
    client.close()
    nonce = proofs.new_nonce()
    stranger = occ.request("GET", "/proof", Authorization=proofs.question("guessed", nonce))
    assert stranger.status == 401
    bearer = occ.request("GET", "/proof")
    assert bearer.status == 401
