"""Webhooks: signed, repeated until they arrive, and none delayed by another's receiver."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from occ_app.errors import ConfigError, NotFound, Unreachable
from occ_app.hub import deliveries, keys, webhooks
from occ_app.hub import forbidden_addresses as addresses
from occ_worker.control import delivery
from tests import sentences
from tests.conftest import make_zip, steps, wait_until
from tests.real_hub import Hub, hub_in
from tests.webhook_receiver import Control, Receiver, receiving

DOCS = (Path(__file__).parents[1] / "docs" / "webhooks.md").read_text()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


@pytest.fixture
def control(tmp_path: Path) -> Iterator[Control]:
    control = Control(tmp_path)
    yield control
    control.end()
    assert "Traceback" not in control.log()


def verifier(name: str = "verifier") -> Callable[..., bool]:
    """A function that docs/webhooks.md shows to receivers."""
    found = re.search(rf"<!-- run: {name} -->\n```python\n(.*?)```", DOCS, re.DOTALL)
    assert found is not None
    names: dict[str, Callable[..., bool]] = {}
    exec(found.group(1), names)  # noqa: S102 - the documented example is what is tested
    return names["verify"]


def test_a_finished_execution_is_told_with_a_signature_that_the_documented_verifier_takes(
    hub_with_box: Hub, receiver: Receiver
) -> None:
    hub, verify = hub_with_box, verifier()
    hub.agent("box")
    webhook_id, secret = added(hub, receiver.url)
    hub.client.upload("work", make_zip({"a.txt": "a"}))
    assert [*hub.client.execute("work", steps({"say": "hi"}), executionId="e1")][-1].name == "complete"
    (call,) = receiver.came(1)
    # Its changes are fetched from the machine meanwhile.
    sent, stored = (
        {name: value for name, value in record.items() if not name.startswith("changes")}
        for record in (call.content["execution"], hub.client.execution("e1"))
    )
    assert sent == stored
    assert {name: call.content[name] for name in ("event", "deliveryId", "webhookId")} == {
        "event": "execution.finished",
        "deliveryId": call.headers["OCC-Delivery"],
        "webhookId": webhook_id,
    }
    assert call.headers["Content-Type"] == "application/json"
    assert call.headers["User-Agent"].startswith("occ/")
    headers = {name.lower(): value for name, value in call.headers.items()}
    assert headers["webhook-id"] == call.headers["OCC-Delivery"]
    assert verifier("standard-verifier")(secret, headers, call.body)
    assert not verifier("standard-verifier")(secret, headers, call.body + b" ")
    signature = call.headers["OCC-Signature"]
    assert verify(secret, signature, call.body)
    assert not verify(secret, signature, call.body + b" ")
    assert not verify("another", signature, call.body)
    assert not verify(secret, signature, call.body, seconds=-1)
    assert not verify(secret, "nonsense", call.body)
    wait_until(lambda: logged(hub)[0]["state"] == "delivered", "it is noted")
    assert secret not in hub.logs()


def added(hub: Hub, url: str) -> list[str]:
    """Add a webhook by the command; returns its id and its secret."""
    words = hub.command("webhooks", "add", url).stdout.split()
    return [words[1], words[3]]


def logged(hub: Hub) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(hub.command("webhooks", "log", "--json").stdout)["deliveries"]
    return found


def test_the_commands_work_on_the_database_without_a_hub_and_show_no_secret(
    control: Control, receiver: Receiver, tmp_path: Path
) -> None:
    with hub_in(tmp_path) as hub:  # of the same home, and not started
        webhook_id, secret = added(hub, receiver.url)
        control.start()
        control.finish("e1")
        control.finished(1)
        control.end()
        assert [(d["executionId"], d["attempts"], d["status"], d["nextAt"]) for d in logged(hub)] == [
            ("e1", 1, 200, None)
        ]
        shown = hub.command("webhooks", "list").stdout + hub.command("webhooks", "list", "--json").stdout
        shown += hub.command("webhooks", "log").stdout + json.dumps(logged(hub)) + control.log()
        assert webhook_id in shown
        assert secret not in shown
        hub.command("webhooks", "remove", webhook_id)
        assert json.loads(hub.command("webhooks", "list", "--json").stdout) == {"webhooks": []}
        assert hub.command("webhooks", "remove", webhook_id, check=False).returncode == 4


def test_what_fails_is_tried_again_under_the_same_id_until_it_arrives(control: Control, receiver: Receiver) -> None:
    webhooks.add(control.db, receiver.url)
    answers = iter([500, 404, 204])

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(next(answers))
        handler.end_headers()

    receiver.answer = answer
    control.start(pauses=(2.5, 0.1, 0.1))
    control.finish("e1")
    (done,) = control.finished(1)
    assert (done.state, done.attempts, done.status, done.problem) == ("delivered", 3, 204, None)
    assert {call.content["deliveryId"] for call in receiver.calls} == {done.delivery_id}
    assert re.fullmatch(r"delivery-[0-9a-f]{24}", done.delivery_id)  # never counted: a restored hub would count again
    first, second, _ = (call.at for call in receiver.calls)
    assert second - first >= 2.5
    assert len(receiver.calls) == 3


def test_after_the_last_attempt_it_has_failed(control: Control, receiver: Receiver) -> None:
    webhooks.add(control.db, receiver.url)
    receiver.answer = 503
    control.start(pauses=(0.1, 0.1))
    control.finish("e1")
    (done,) = control.finished(1)
    assert (done.state, done.attempts, done.problem, done.next_at) == ("failed", 3, "it answered 503", None)
    assert len(receiver.calls) == 3


def test_a_receiver_that_is_gone_for_good_is_not_asked_again(control: Control, receiver: Receiver) -> None:
    webhooks.add(control.db, receiver.url)
    receiver.answer = 410
    control.start()
    control.finish("e1")
    (done,) = control.finished(1)
    assert (done.state, done.attempts, done.status) == ("failed", 1, 410)


def test_a_redirect_is_not_followed(control: Control, receiver: Receiver) -> None:
    webhooks.add(control.db, receiver.url)

    def elsewhere(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(307)
        handler.send_header("Location", receiver.url + "/elsewhere")
        handler.end_headers()

    receiver.answer = elsewhere
    control.start(pauses=())
    control.finish("e1")
    (done,) = control.finished(1)
    assert (done.state, done.problem) == ("failed", "it answered 307")
    assert [call.path for call in receiver.calls] == ["/occ"]


def test_a_receiver_that_hangs_or_trickles_is_left_in_time(control: Control, receiver: Receiver) -> None:
    webhooks.add(control.db, receiver.url)

    def trickle(handler: BaseHTTPRequestHandler) -> None:
        for byte in b"HTTP/1.1 200 OK\r\n" + b"X-Long: 1\r\n" * 100:
            handler.wfile.write(bytes([byte]))
            if receiver.released.wait(0.05):
                return

    control.start(pauses=(), seconds=1.0)
    for name, answer in (("hangs", receiver.hang), ("trickles", trickle)):
        receiver.answer = answer
        control.finish(name)
        done = control.finished(len(control.deliveries()))[-1]
        assert (done.state, done.problem) == ("failed", sentences.NO_ANSWER_IN_TIME), name


def test_nobody_there_is_told_in_words(control: Control, free_port: int) -> None:
    webhooks.add(control.db, f"http://127.0.0.1:{free_port}/")
    webhooks.add(control.db, "http://no-such-host.invalid/")
    control.start(pauses=())
    control.finish("e1")
    problems = {done.problem for done in control.finished(2, 30)}
    assert problems == {"connection refused", sentences.THE_HOST_IS_NOT_KNOWN.format("http://no-such-host.invalid/")}


def test_a_control_process_killed_in_the_middle_leaves_it_to_the_next(control: Control, receiver: Receiver) -> None:
    webhooks.add(control.db, receiver.url)
    receiver.answer = receiver.hang
    control.start(seconds=10.0, lease=4.0)
    control.finish("e1")
    receiver.came(1)
    control.end(signal.SIGKILL)
    receiver.answer = 200
    control.start(seconds=10.0, lease=4.0)
    (done,) = control.finished(1)
    assert (done.state, done.attempts) == ("delivered", 2)
    first, second = receiver.calls
    assert first.content["deliveryId"] == second.content["deliveryId"]
    assert second.at - first.at >= 3.5  # not while the first might still be under way


def test_receivers_that_hang_do_not_delay_the_others(control: Control, receiver: Receiver) -> None:
    with receiving() as first, receiving() as second, receiving() as third:
        for hanging in (first, second, third):
            hanging.answer = hanging.hang
            webhooks.add(control.db, hanging.url)
        webhooks.add(control.db, receiver.url)
        control.start(pauses=(0.1,) * 50, seconds=2.0)
        for number in range(20):
            control.finish(f"e{number}")
        # Each of the three may cost its time once, until it is known: three times 2 s, and not twenty times.
        receiver.came(20, 90)
        assert all(hanging.calls for hanging in (first, second, third))
        wait_until(lambda: min(len(hanging.calls) for hanging in (first, second, third)) >= 2, "each has its turn", 30)


def test_the_other_jobs_of_control_are_done_while_receivers_hang(hub_with_box: Hub, receiver: Receiver) -> None:
    hub = hub_with_box
    with receiving() as other:
        hub.agent("box")
        for hanging in (receiver, other):
            hanging.answer = hanging.hang
            hub.command("webhooks", "add", hanging.url)
        hub.client.upload("work", make_zip({"a.txt": "a"}))
        list(hub.client.execute("work", "hello"))
        receiver.came(1)
        other.came(1)
        begun = time.monotonic()
        for number in range(4):
            hub.client.upload(f"work-{number}", make_zip({"a.txt": "a"}))
        assert time.monotonic() - begun < 30


def test_a_webhook_of_a_key_is_told_of_its_executions_alone(control: Control, receiver: Receiver) -> None:
    with receiving() as everything:
        mine, _ = keys.create(control.db, "me", "client")
        other, _ = keys.create(control.db, "other", "client")
        keys.create(control.db, "machines", "agent")
        webhooks.add(control.db, receiver.url, "me")
        webhooks.add(control.db, everything.url)
        control.start()
        control.finish("mine", mine.owner_id)
        control.finish("other", other.owner_id)
        control.finish("operator")
        control.finished(4)
        assert {call.content["execution"]["executionId"] for call in receiver.calls} == {"mine"}
        told = {call.content["execution"]["executionId"] for call in everything.calls}
        assert told == {"mine", "other", "operator"}
        for name in ("nobody", "machines"):
            with pytest.raises(NotFound):
                webhooks.add(control.db, receiver.url, name)


def test_removing_a_webhook_drops_what_waits_and_keeps_what_was(control: Control, receiver: Receiver) -> None:
    made, _ = webhooks.add(control.db, receiver.url)
    control.start(pauses=(3600,))
    control.finish("e1")
    control.finished(1)
    receiver.answer = 500
    control.finish("e2")
    wait_until(lambda: control.deliveries()[-1].problem, "the second failed")
    assert control.deliveries()[-1].state == "waiting"
    webhooks.remove(control.db, made.webhook_id)
    assert [done.execution_id for done in control.deliveries()] == ["e1"]
    control.finish("e3")
    assert len(control.deliveries()) == 1


def test_only_https_with_a_trusted_certificate_is_spoken(tmp_path: Path) -> None:
    pem = tmp_path / "receiver.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-days", "2"]
    command += ["-nodes", "-keyout", pem, "-out", tmp_path / "ca.pem", "-subj", "/CN=receiver"]
    subprocess.run([*command, "-addext", "subjectAltName=IP:127.0.0.1"], check=True, capture_output=True)
    pem.write_text(pem.read_text() + (tmp_path / "ca.pem").read_text())
    with receiving(pem) as receiver:
        for trusted in (False, True):
            folder = tmp_path / str(trusted)
            folder.mkdir()
            control = Control(folder, **({"SSL_CERT_FILE": str(tmp_path / "ca.pem")} if trusted else {}))
            webhooks.add(control.db, receiver.url)
            control.start(pauses=())
            control.finish("e1")
            try:
                (done,) = control.finished(1)
            finally:
                control.end()
            expected = ("delivered", None) if trusted else ("failed", "its certificate is not trusted here")
            assert (done.state, done.problem) == expected
        assert len(receiver.calls) == 1


@pytest.mark.parametrize(
    "url",
    [
        "ftp://example.com/",
        "example.com",
        "https://user:secret@example.com/",
        "https://example.com/#part",
        "https://example.com:port/",
        "https://exa mple.com/",
        "http://169.254.169.254/latest/meta-data/",
        "http://[::ffff:169.254.169.254]/",
        "http://[64:ff9b::a9fe:a9fe]/",
        "http://[2002:a9fe:a9fe::]/",
        "http://[fd00:ec2::254]/",
        "http://[fe80::1]/",
        "http://0.0.0.0/",
        "http://100.100.100.200/",
    ],
)
def test_a_url_that_is_never_called_is_not_taken(control: Control, url: str) -> None:
    with pytest.raises(ConfigError):
        webhooks.add(control.db, url)
    assert webhooks.listing(control.db) == []


def test_an_address_is_looked_at_again_when_it_is_called(control: Control) -> None:
    """A decimal or a name is an address only when it is resolved."""
    webhooks.add(control.db, "http://2852039166/")  # 169.254.169.254
    control.finish("e1")
    claimed = claim(control)
    assert claimed is not None
    with pytest.raises(Unreachable, match=sentences.DOES_NOT_CALL):
        delivery.send(claimed, claimed.receiver, 1.0)


def test_a_name_that_leads_elsewhere_at_the_last_moment_is_sent_nothing(
    control: Control, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    webhooks.add(control.db, receiver.url)
    control.finish("e1")
    claimed = claim(control)
    assert claimed is not None
    # Stands for a name server that gives another address to the second who asks.
    monkeypatch.setattr(addresses, "resolved", lambda url: [])
    monkeypatch.setattr(addresses, "never_called", lambda target: target.is_loopback)
    with pytest.raises(Unreachable):
        delivery.send(claimed, claimed.receiver, 1.0)
    assert receiver.calls == []


def claim(control: Control) -> deliveries.Claimed | None:
    return deliveries.claim(control.db, control.deliveries()[0].number, "9999", "9999", "99999")


def test_of_many_that_claim_a_delivery_one_has_it(control: Control, receiver: Receiver) -> None:
    webhooks.add(control.db, receiver.url)
    control.finish("e1")
    now = control.deliveries()[0].next_at
    won: list[deliveries.Claimed] = []

    def try_it() -> None:
        claimed = deliveries.claim(control.db, 1, str(now), "9999", "99999")
        won.extend([claimed] if claimed else [])

    threads = [threading.Thread(target=try_it) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert deliveries.failed(control.db, won[0], None, "it was slow", str(now))
    again = deliveries.claim(control.db, 1, str(now), "9999", "99999")
    assert again is not None
    assert not deliveries.delivered(control.db, won[0], 200)  # an attempt that was given up says nothing any more
    assert deliveries.delivered(control.db, again, 200)


def test_old_deliveries_go_with_retention_and_what_waits_stays(tmp_path: Path, receiver: Receiver) -> None:
    control = Control(tmp_path, OCC_HUB_RETENTION_DAYS="0.000001")
    webhooks.add(control.db, receiver.url)
    control.finish("e1")
    control.start(pauses=(3600,))
    try:
        control.finished(1)
        receiver.answer = 500
        control.finish("e2")
        wait_until(lambda: control.deliveries()[-1].problem, "the second failed")
        control.end()
        control.start(pauses=(3600,))
        wait_until(lambda: [d.execution_id for d in control.deliveries()] == ["e2"], "the first is forgotten")
    finally:
        control.end()


def test_the_pauses_are_those_that_the_docs_name() -> None:
    units = {"s": 1, "min": 60, "h": 3600}
    sentence = re.search(r"tried again after about (.*?), and has", DOCS.replace("\n", " "))
    assert sentence is not None
    told = [int(number) * units[unit] for number, unit in re.findall(r"(\d+) (s|min|h)\b", sentence.group(1))]
    assert delivery.PATIENCE.pauses == tuple(told)
    for attempts, seconds in enumerate(told, 1):
        pause = delivery.PATIENCE.pause(attempts)
        assert pause is not None
        assert 0.8 * seconds <= pause <= 1.2 * seconds
    assert delivery.PATIENCE.pause(len(told) + 1) is None
    assert delivery.PATIENCE.seconds == 10
