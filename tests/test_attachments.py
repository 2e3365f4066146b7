"""Images, PDFs and texts that come with a prompt: checked, stored with the execution, and given to Claude."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from occ_app.errors import InvalidRequest, TooLarge
from occ_app.executions import attachments, lifecycle
from occ_app.executions import queries as executions
from occ_app.executions.attachments import Attachment
from occ_worker.execution import command
from tests.conftest import Occ, occ_in
from tests.hub_app import hub_app
from tests.model_api import FAKE_KEY, serve
from tests.test_owners import add_workspace

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
PDF = b"%PDF-1.4\n1 0 obj<</Type/Catalog>>endobj\ntrailer<</Root 1 0 R>>\n%%EOF\n"


def sent(name: str, data: bytes) -> dict[str, str]:
    return {"name": name, "data": base64.b64encode(data).decode()}


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (PNG, "image/png"),
        (b"\xff\xd8\xff\xe0", "image/jpeg"),
        (b"GIF89a", "image/gif"),
        (b"RIFF\0\0\0\0WEBPVP8 ", "image/webp"),
        (PDF, "application/pdf"),
        ("naïve\n".encode(), "text/plain"),
    ],
)
def test_the_content_decides_on_the_kind(data: bytes, kind: str) -> None:
    assert attachments.checked([("a.txt", data)])[0].media_type == kind


@pytest.mark.parametrize("data", [b"", b"a\0b", b"\xff\xfe", b"\x7fELF"])
def test_a_file_of_another_kind_is_refused(data: bytes) -> None:
    if data == b"\x7fELF":
        data += b"\0"
    with pytest.raises(InvalidRequest):
        attachments.checked([("a.png", data)])


def test_the_size_of_all_together_is_limited() -> None:
    half = b"x" * (attachments.MAX_BYTES // 2)
    assert len(attachments.checked([("a", half), ("b", half)])) == 2
    with pytest.raises(TooLarge):
        attachments.checked([("a", half), ("b", half), ("c", b"x")])


def test_they_are_parts_of_the_prompt_and_the_prompt_is_the_last(tmp_path: Path) -> None:
    files = [Attachment("a.png", "image/png", PNG), Attachment("b.txt", "text/plain", b"@/etc/hostname\n")]
    message = json.loads(command.prompt_line("/look", attachments=files))["message"]
    assert [part["type"] for part in message["content"]] == ["text", "image", "text", "text"]
    assert base64.b64decode(message["content"][1]["source"]["data"]) == PNG
    assert message["content"][2]["text"] == "Attached file b.txt:\n\n@/etc/hostname\n"
    assert message["content"][3]["text"] == " /look"
    assert json.loads(command.prompt_line("look"))["message"]["content"] == "look"


def test_they_are_stored_with_the_execution_and_forgotten_with_its_prompt(tmp_path: Path) -> None:
    with hub_app(tmp_path) as hub:
        ada = hub.key("ada", "client")
        add_workspace(hub, "ada", "work")

        def execute(*files: Any, execution_id: str = "one") -> tuple[int, str]:
            body = {"executionId": execution_id, "workspaceId": "work", "prompt": "look", "attachments": list(files)}
            reply = hub.call("POST", "/execute", ada, json=body, environ_overrides={"gunicorn.socket": None})
            code = "" if reply.status_code == 200 else reply.get_json()["code"]
            reply.close()
            return reply.status_code, code

        assert execute(sent("a.png", PNG), sent("b.txt", b"x" * 3_000_000)) == (200, "")
        assert execute(sent("a.png", PNG), sent("b.txt", b"x" * 3_000_000)) == (200, "")
        assert execute(sent("a.png", PNG)) == (409, "EXECUTION_CONFLICT")
        record = hub.call("GET", "/executions/one", ada).get_json()
        assert record["attachments"] == [
            {"name": "a.png", "mediaType": "image/png", "bytes": len(PNG)},
            {"name": "b.txt", "mediaType": "text/plain", "bytes": 3_000_000},
        ]
        for wrong in (
            {"name": "a", "data": "no base64!"},
            {"name": "a\nb", "data": ""},
            {"data": ""},
            sent("a.bin", b"\0"),
            {**sent("a.png", PNG), "path": "/etc/passwd"},
        ):
            assert execute(wrong, execution_id="two") == (422, "INVALID_REQUEST"), wrong
        assert execute(sent("a", b"x" * (attachments.MAX_BYTES + 1)), execution_id="two") == (413, "BODY_TOO_LARGE")
        execution = executions.get(hub.database, "one")
        assert attachments.of_execution(hub.database, execution.number)[0].data == PNG
        lifecycle.cancel(hub.database, "one", "EXECUTION_CANCELLED", "x")
        lifecycle.forget_prompt(hub.database, execution.number)
        assert attachments.of_execution(hub.database, execution.number) == ()


def test_run_refuses_a_file_that_cannot_go_with_a_prompt_before_it_sends_anything(agent: Occ, tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"\0")
    done = agent.command("run", "look", "--workspace", "work", "--attach", str(tmp_path / "a.bin"), check=False)
    assert done.returncode == 2
    assert "a.bin" in done.stderr
    assert agent.client.executions()["executions"] == []


@pytest.mark.real_cli
def test_the_model_gets_the_image_the_pdf_and_the_text(tmp_path: Path, real_claude: Path) -> None:
    for name, data in (("a.png", PNG), ("b.pdf", PDF), ("c.txt", b"see @/etc/hostname\n")):
        (tmp_path / name).write_bytes(data)
    with serve() as model, occ_in(tmp_path, HOME=str(tmp_path), OCC_WORKERS="1") as occ:
        occ.start(OCC_CLAUDE_BIN=str(real_claude), ANTHROPIC_BASE_URL=model.url, ANTHROPIC_API_KEY=FAKE_KEY)
        occ.workspace("work", {"a.txt": "a"})
        files = [word for name in ("a.png", "b.pdf", "c.txt") for word in ("--attach", str(tmp_path / name))]
        done = occ.command("run", "What is this?", "--workspace", "work", *files)
        assert "Hello from the model." in done.stdout
        (request,) = [each["body"] for each in model.requests() if each["path"] == "/v1/messages"]
        parts = [part for message in request["messages"] for part in message["content"] if isinstance(part, dict)]
        found = {part["type"]: part for part in parts}
        assert base64.b64decode(found["image"]["source"]["data"])[:8] == PNG[:8]
        assert base64.b64decode(found["document"]["source"]["data"]) == PDF
        text = json.dumps(request["messages"])
        assert "Attached file c.txt" in text
        assert "see @/etc/hostname" in text
        assert Path("/etc/hostname").read_text().strip() not in text
        assert sorted(path.name for path in (occ.home / "workspaces" / "work").iterdir()) == ["a.txt"]
