"""Slack: a zip that is dropped with a message becomes a workspace."""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from occ_app.config.config import HubConfig
from occ_app.errors import OCCError, RequestError
from occ_app.hub import workspaces as hub_workspaces
from occ_app.slack import inbox, threads
from occ_app.slack.incoming import File
from occ_app.slack.tokens import API, Tokens
from occ_app.workspaces import workspace as workspaces
from occ_worker.slack import dropped
from tests.fake_slack import FakeSlack
from tests.slack_office import Office


def packed(**files: str) -> bytes:
    output = io.BytesIO()
    with zipfile.ZipFile(output, "w") as made:
        for name, text in files.items():
            made.writestr(f"app/{name}", text)
    return output.getvalue()


def drops(office: Office, text: str, *, name: str = "my app.zip", **more: Any) -> str:
    """Send a message with a file; returns its ts."""
    url = f"http://127.0.0.1:{office.slack.port}/files/app.zip"
    file = {"id": "F1", "name": name, "url_private_download": url, "size": 100, **more.pop("file", {})}
    return office.says(text, subtype="file_share", files=[file], **more)


def test_a_zip_with_a_mention_is_the_workspace_of_its_run(office: Office) -> None:
    content = packed(main="print(1)")
    office.slack.downloads["/files/app.zip"] = (200, {}, content)
    ts = drops(office, "<@UBOT> run it")
    drops(office, "<@UBOT> run it", ts=ts, type="app_mention", channel_type=None)
    (run,) = office.runs()
    found = workspaces.get(office.hub.database, run.workspace_id, office.owners["UADA"])
    assert (found.files, found.name, found.stripped) == (1, "my app", "app")
    assert run.workspace_id.startswith("my-app-")
    assert hub_workspaces.zip_path(office.hub.config, found).read_bytes() == content
    assert office.slack.fetched == [("/files/app.zip", "Bearer xoxb-1")]
    assert len(office.slack.shown()) == 1
    assert list((office.hub.config.run / "uploads").iterdir()) == []


def test_a_zip_that_is_handled_again_after_a_kill_makes_one_workspace_and_run(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    office.slack.downloads["/files/app.zip"] = (200, {}, packed(main="1"))
    begin = threads.begin
    broken = iter([OSError("as if it were killed")])

    def once(*values: Any) -> bool:
        for error in broken:
            raise error
        return begin(*values)

    monkeypatch.setattr(threads, "begin", once)
    monkeypatch.setattr(inbox, "handled", lambda *_: None)
    drops(office, "<@UBOT> run it")
    monkeypatch.undo()
    office.process.step()
    office.receive("events_api", {})  # which handles what is left
    assert len(office.runs()) == 1
    assert len(workspaces.listing(office.hub.database, office.owners["UADA"])) == 2
    assert len(office.slack.shown()) == 1


def test_a_zip_without_words_becomes_a_workspace_alone(office: Office) -> None:
    office.slack.downloads["/files/app.zip"] = (200, {}, packed(main="1"))
    drops(office, "<@UBOT>")
    assert office.runs() == []
    (made,) = [one for one in workspaces.listing(office.hub.database) if one.workspace_id != "work"]
    assert made.workspace_id in office.slack.ephemeral[-1]["text"]


def test_files_without_a_mention_and_of_strangers_are_not_fetched(office: Office) -> None:
    office.slack.downloads["/files/app.zip"] = (200, {}, packed(main="1"))
    office.link("eve", "UEVE", role="viewer")
    drops(office, "look at this")
    drops(office, "<@UBOT> run it", user="UNEW")
    drops(office, "<@UBOT> run it", user="UEVE")
    drops(office, "<@UBOT> run it", name="notes.txt")
    ts = office.says("<@UBOT> one")
    drops(office, "<@UBOT> and this", thread_ts=ts)
    assert office.slack.fetched == []
    assert len(office.runs()) == 1


@pytest.mark.parametrize(
    "answer",
    [
        (302, {"Location": "/elsewhere"}, b""),
        (200, {}, b"<html>Log in</html>"),
        (404, {}, b""),
        (200, {}, b"x" * 5000),
    ],
)
def test_a_zip_that_slack_does_not_send_or_that_is_none_starts_nothing(
    office: Office, answer: tuple[int, dict[str, str], bytes]
) -> None:
    config = replace(office.hub.config, max_upload_bytes=4000)
    office.process.hub = replace(office.process.hub, config=config)
    office.slack.downloads |= {"/files/app.zip": answer, "/elsewhere": (200, {}, packed(main="1"))}
    drops(office, "<@UBOT> run it")
    assert office.runs() == []
    assert [path for path, _ in office.slack.fetched] == ["/files/app.zip"]
    assert [one.workspace_id for one in workspaces.listing(office.hub.database)] == ["work"]
    assert len(office.slack.ephemeral) == 1


REAL = Tokens("xapp-1", "xoxb-1", "T1", "Acme", "UBOT", API)


@pytest.mark.parametrize(
    "url",
    [
        "http://files.slack.com/a.zip",
        "https://files.slack.com.example.com/a.zip",
        "https://files.slack.com@example.com/a.zip",
        "https://user@files.slack.com/a.zip",
        "https://files.slack.com:8443/a.zip",
        "https://[::1/a.zip",
        "https://example.com/a.zip",
        "",
    ],
)
def test_a_file_elsewhere_is_never_asked_for(tmp_path: Path, url: str) -> None:
    with pytest.raises(RequestError):
        dropped.fetch(HubConfig(home=tmp_path), REAL, File("a.zip", url, 1), io.BytesIO())


def test_a_file_that_is_too_large_is_not_asked_for(tmp_path: Path, slack: FakeSlack) -> None:
    config = HubConfig(home=tmp_path, max_upload_bytes=1 << 20)
    file = File("a.zip", f"http://127.0.0.1:{slack.port}/files/a.zip", (1 << 20) + 1)
    with pytest.raises(OCCError):
        dropped.fetch(config, replace(REAL, api=slack.api), file, io.BytesIO())
    assert slack.fetched == []
    assert json.dumps(slack.calls) == "[]"
