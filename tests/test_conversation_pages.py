"""The home and the pages of conversations, in one process: rows in a database, and the HTML that comes of them."""

from __future__ import annotations

import base64
import html
import json
import re
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient

from occ_app.executions import approvals, events, overview
from occ_app.executions import queries as executions
from occ_app.executions.events import StoredEvent
from occ_app.hub import approval_rows
from occ_app.hub.pages import diffs, live, parts, pictures, terminal
from occ_app.hub.pages.answer import Reader
from occ_app.hub.pages.live import Drawn, PageFollower
from occ_app.hub.pages.parts import Place
from occ_worker.execution import images
from occ_worker.execution.translator import Translator
from tests import sentences
from tests.hub_app import HubApp, hub_app

NOW = "2026-01-01T00:00:00.000Z"


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubApp]:
    with hub_app(tmp_path_factory.mktemp("pages")) as hub:
        hub.key("ann", "client", admin=True)
        hub.workspace("work")
        yield hub


@pytest.fixture(scope="module")
def browser(hub: HubApp) -> FlaskClient:
    """A browser that is logged in as an admin."""
    return logged_in(hub, hub.key("page", "client", admin=True))


def logged_in(hub: HubApp, key: str) -> FlaskClient:
    browser = hub.browser()
    assert browser.post("/login", data={"key": key}).status_code == 303
    return browser


def add(
    hub: HubApp,
    execution_id: str,
    happened: Sequence[tuple[str, dict[str, Any]]] = (),
    *,
    state: str = "succeeded",
    conversation: str | None = None,
    **more: Any,
) -> int:
    """Add an execution with its events; returns its number."""
    over = state not in ("queued", "running", "parked")
    last = {"exitCode": 0} if state == "succeeded" else {"code": "CLAUDE_EXIT", "message": "It left."}
    ends = [("complete" if state == "succeeded" else "error", last)] if over else []
    happened = happened or [("queued", {"position": 0})]
    stored = [(name, json.dumps({**data, "timestamp": 1})) for name, data in (*happened, *ends)]
    values = {
        "execution_id": execution_id,
        "workspace_id": "work",
        "state": state,
        "request_hash": "",
        "prompt": f"prompt of {execution_id}",
        "timeout_seconds": 1,
        "idle_timeout_seconds": 1,
        "created_at": NOW,
        "started_at": None if state == "queued" else NOW,
        "finished_at": NOW if over else None,
        "error_code": "CLAUDE_EXIT" if state == "failed" else None,
        "last_seq": len(stored) if over else None,
        "conversation": conversation or execution_id,
        "workspace_generation": generation(hub),
        "session_id": "s" if over else None,
    } | more
    with hub.database.write() as connection:
        columns = (", ".join(values), ", ".join(f":{name}" for name in values))
        number = connection.execute("INSERT INTO executions ({}) VALUES ({})".format(*columns), values).lastrowid  # noqa: S608 - names above
        assert number is not None
        events.insert(connection, number, 1, stored)
    return number


def generation(hub: HubApp) -> int:
    with hub.database.read() as connection:
        return int(connection.execute("SELECT generation FROM workspaces WHERE workspace_id = 'work'").fetchone()[0])


def owner_of(hub: HubApp, key_name: str) -> str:
    with hub.database.read() as connection:
        return str(connection.execute("SELECT owner_id FROM keys WHERE name = ?", (key_name,)).fetchone()[0])


def said(*chunks: str) -> list[tuple[str, dict[str, Any]]]:
    return [("output", {"chunk": chunk}) for chunk in chunks]


def called(name: str, given: object, result: str, *, error: bool = False) -> list[tuple[str, dict[str, Any]]]:
    call = f"call-{name}-{len(result)}"
    return [
        ("tool", {"toolUseId": call, "name": name, "input": given}),
        ("tool", {"toolUseId": call, "result": result, "isError": error}),
    ]


def page(browser: FlaskClient, path: str) -> str:
    reply = browser.get(path)
    assert reply.status_code == 200, reply.text
    return reply.text


def text_of(markup: str) -> str:
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", markup)))


# ---- A conversation


def test_all_turns_are_in_one_thread_and_a_reply_continues_the_newest(hub: HubApp, browser: FlaskClient) -> None:
    add(hub, "talk-1", said("First answer."))
    add(hub, "talk-2", said("Second answer."), conversation="talk-1", continues=1)
    for turn in ("talk-1", "talk-2"):
        shown = page(browser, f"/runs/{turn}")
        assert shown.index("First answer.") < shown.index("Second answer.")
        assert 'name="continues" value="talk-2"' in shown
        assert ">Send</button>" in shown


def test_the_form_says_what_it_does_now(hub: HubApp, browser: FlaskClient) -> None:
    add(hub, "busy", said("On it"), state="running")
    shown = page(browser, "/runs/busy")
    assert ">Queue</button>" in shown
    assert "it runs after this turn" in shown
    assert 'action="/runs/busy/cancel"' in shown
    add(hub, "no-session", state="failed", session_id=None)
    shown = page(browser, "/runs/no-session")
    assert ">Start</button>" in shown
    assert 'name="workspace" value="work"' in shown


def test_a_reply_is_sent_to_the_turn_that_runs_or_queued(hub: HubApp, browser: FlaskClient) -> None:
    add(hub, "steered", said("On it"), state="running")
    add(hub, "parked", state="parked")
    for name, offered in (("steered", True), ("parked", False)):
        assert (f'formaction="/runs/{name}/input"' in page(browser, f"/runs/{name}")) is offered
    shown = page(browser, "/runs/steered")
    assert "Send now gives it to Claude while a tool runs" in shown
    run = re.findall(r'name="run" value="([\w-]+)"', shown)[-1]
    form = {"csrf": csrf(browser, "/runs/steered"), "run": run, "prompt": "use pytest\r\ninstead"}
    for _ in range(2):  # no machine has it here, so it follows; the same form again is the same text
        sent = browser.post("/runs/steered/input", data=form)
        assert (sent.status_code, sent.location) == (303, f"/runs/{run}")
    with hub.database.read() as connection:
        (stored,) = connection.execute("SELECT text, wanted, state, follow_up FROM inputs").fetchall()
    assert tuple(stored) == ("use pytest\ninstead", "steer", "queued", run)
    assert browser.post("/runs/steered/input", data=form | {"run": "other", "prompt": " "}).status_code == 422
    assert browser.post("/runs/steered/input", data={"run": "other", "prompt": "x"}).status_code == 403
    assert browser.post("/runs/unknown/input", data=form | {"run": "other"}).status_code == 404


def test_a_turn_that_waits_can_be_edited_moved_paused_and_dropped(hub: HubApp, browser: FlaskClient) -> None:
    first = add(hub, "line", said("On it"), state="running")
    for name in ("line-2", "line-3"):
        add(hub, name, state="queued", conversation="line", continues=first)
    token = csrf(browser, "/runs/line")

    def order() -> list[str]:
        return re.findall(r'data-turn="([\w-]+)"', page(browser, "/runs/line"))

    assert order() == ["line", "line-2", "line-3"]
    change = {"csrf": token, "move": "line-3", "before": "line-2"}
    assert browser.post("/runs/line-2/change", data=change).status_code == 303
    assert order() == ["line", "line-3", "line-2"]
    browser.post("/runs/line-2/change", data={"csrf": token, "prompt": "another prompt"})
    browser.post("/runs/line-2/change", data={"csrf": token, "paused": "yes"})
    shown = text_of(page(browser, "/runs/line"))
    assert "another prompt" in shown
    assert "Paused." in shown
    assert browser.post("/runs/line-3/cancel", data={"csrf": token}).status_code == 303
    assert executions.get(hub.database, "line-3").state == "cancelled"
    assert browser.post("/runs/line/change", data={"csrf": token, "prompt": "x"}).status_code == 409


def csrf(browser: FlaskClient, path: str) -> str:
    found = re.search(r'name="csrf" value="([^"]+)"', page(browser, path))
    assert found is not None
    return html.unescape(found[1])


def test_a_failure_says_what_happened_and_what_to_do_and_can_be_run_again(hub: HubApp, browser: FlaskClient) -> None:
    add(
        hub,
        "broken",
        state="failed",
        error_code="CLAUDE_AUTH",
        error_message=f"{sentences.NO_LOGIN_OF_CLAUDE}.",
        prompt="a <b> & c",
    )
    shown = page(browser, "/runs/broken")
    assert f"{sentences.NO_LOGIN_OF_CLAUDE}." in shown
    assert "enter /login" in shown
    again = re.search(r"<textarea name=\"prompt\" hidden[^>]*>([^<]*)</textarea>\s*<button>Run again", shown)
    assert again is not None
    assert html.unescape(again[1]) == "a <b> & c"


def test_a_viewer_sees_it_without_forms(hub: HubApp) -> None:
    reply = hub.call("POST", "/keys", json={"name": "viewer", "for": "client", "role": "viewer"})
    assert reply.json is not None, reply.text
    add(hub, "watched", said("An answer."), owner_id=owner_of(hub, "viewer"))
    viewer = logged_in(hub, reply.json["key"])
    shown = page(viewer, "/runs/watched")
    assert "An answer." in shown
    assert 'action="/runs"' not in shown
    assert 'id="start"' not in page(viewer, "/")


# ---- Approvals


def ask(hub: HubApp, number: int, approval_id: str, kind: str, tool: str, given: object, **more: Any) -> None:
    asked = {"approvalId": approval_id, "kind": kind, "tool": tool, "input": given, "inputHash": "a" * 64}
    times = {"askedAt": NOW, "expiresAt": "2099-01-01T00:00:00.000Z"}
    assert approval_rows.note_asked(hub.database, number, {**asked, **times, **more}) is not None


def decide(hub: HubApp, browser: FlaskClient, run: str, approval_id: str, **fields: Any) -> int:
    form = {"csrf": csrf(browser, f"/runs/{run}"), "hash": "a" * 64, **fields}
    return browser.post(f"/runs/{run}/approvals/{approval_id}", data=form).status_code


def test_an_approval_shows_the_whole_command_and_is_answered_on_the_page(hub: HubApp, browser: FlaskClient) -> None:
    command = "make <b>all</b> && " + "echo long; " * 40
    ask(hub, add(hub, "asks", said("May I?"), state="running"), "approval-1", "tool", "Bash", {"command": command})
    shown = page(browser, "/runs/asks")
    section = shown[shown.index('id="approval-1"') : shown.index("</section>", shown.index('id="approval-1"'))]
    assert command.strip() in html.unescape(re.sub(r"<[^>]+>", "", section))
    assert 'value="allow">Allow</button>' in section
    home = page(browser, "/")
    assert 'href="/runs/asks#approval-1"' in home.partition('id="recent"')[0]
    assert decide(hub, browser, "asks", "approval-1") == 422  # neither
    assert decide(hub, browser, "asks", "approval-1", decision="allow", hash="b" * 64) >= 400
    assert decide(hub, browser, "asks", "approval-1", decision="allow") == 303
    pending = approvals.get(hub.database, "approval-1").pending
    assert pending is not None
    assert (pending.decision, pending.surface) == ("allow", "page")
    assert "The machine does not have the answer yet" in page(browser, "/runs/asks")
    assert 'href="/runs/asks#approval-1"' not in page(browser, "/")


def approval_text(browser: FlaskClient, execution_id: str, approval_id: str) -> str:
    """Return the text of an approval on the page, without the markup."""
    shown = page(browser, f"/runs/{execution_id}")
    section = shown[shown.index(f'id="{approval_id}"') : shown.index("</section>", shown.index(f'id="{approval_id}"'))]
    return html.unescape(re.sub(r"<[^>]+>", "", section))


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        ("rm -rf ~ #\recho hello     \ntrue", "rm -rf ~ #\\recho hello     \ntrue"),  # a terminal shows the second half
        ("rm -rf ~ #" + "\b" * 10 + "echo hello", "rm -rf ~ #" + "\\x08" * 10 + "echo hello"),
        ("echo a\x1b];rm -rf ~\x07", "echo a\\x1b];rm -rf ~\\x07"),
        ("echo a\x1b[8m;rm -rf ~", "echo a\\x1b[8m;rm -rf ~"),
        ("echo \u202ehidden\u200b\xa0", "echo \\u202ehidden\\u200b\\xa0"),
    ],
)
def test_no_character_of_a_command_hides_before_it_is_allowed(
    hub: HubApp, browser: FlaskClient, command: str, shown: str
) -> None:
    run = f"hides-{len(shown)}"
    ask(hub, add(hub, run, state="running"), f"approval-{run}", "tool", "Bash", {"command": command})
    text = approval_text(browser, run, f"approval-{run}")
    assert f"$ {shown}" in text
    assert "Allow" in text


@pytest.mark.parametrize(
    ("tool", "given"),
    [
        ("Bash", {"command": "pytest", "run_in_background": "yes-1", "dangerouslyDisableSandbox": "yes-2"}),
        ("Edit", {"file_path": "a.py", "old_string": "a", "new_string": "b", "replace_all": "yes-1"}),
        ("Write", {"file_path": f"{'long/' * 60}end.py", "content": "yes-1"}),
        ("Agent", {"prompt": "Look.", "subagent_type": "yes-1", "model": "yes-2"}),
        ("NotebookEdit", {"notebook_path": "a.ipynb", "new_source": "", "edit_mode": "delete-yes-1"}),
        ("Read", {"file_path": "a.py", "offset": "yes-1"}),
        ("mcp__db__query", {"sql": "yes-1", "path": "yes-2"}),
    ],
)
def test_every_argument_is_shown_before_a_call_is_allowed(
    hub: HubApp, browser: FlaskClient, tool: str, given: dict[str, Any]
) -> None:
    ask(hub, add(hub, f"args-{tool}", state="running"), f"approval-{tool}", "tool", tool, given)
    text = approval_text(browser, f"args-{tool}", f"approval-{tool}")
    for value in given.values():
        assert str(value) in text


def test_a_run_that_holds_for_an_answer_is_said_to_wait(hub: HubApp, browser: FlaskClient) -> None:
    ask(hub, add(hub, "holds", state="running"), "approval-holds", "tool", "Bash", {"command": "make"})
    assert 'class="now parked" id="now">' in page(browser, "/runs/holds")
    now = page(browser, "/").partition('id="active"')[2].partition('id="recent"')[0]
    assert f'<span class="state parked">{sentences.WAITS_FOR_YOU}</span>' in now
    assert decide(hub, browser, "holds", "approval-holds", decision="allow") == 303
    assert 'class="now running"' in page(browser, "/runs/holds")


@pytest.mark.parametrize(
    ("run", "said_so_far", "line"),
    [
        ("bold", "First.\n\nI am at **folder 3", "I am at folder 3"),
        ("item", "- `a.jpg` and [the log](x.log)", "a.jpg and the log"),
        ("row", "| a | b", "a | b"),
    ],
)
def test_the_last_line_of_a_run_is_free_of_markdown(
    hub: HubApp, browser: FlaskClient, run: str, said_so_far: str, line: str
) -> None:
    add(hub, f"writes-{run}", said(said_so_far), state="running")
    assert f'<span class="last" dir="auto">{line}</span>' in page(browser, "/")


def test_a_denial_carries_its_reason_and_enter_in_its_field_denies(hub: HubApp, browser: FlaskClient) -> None:
    ask(
        hub,
        add(hub, "denies", state="running"),
        "approval-2",
        "tool",
        "Write",
        {"file_path": "a.py", "content": "x = 1\n"},
    )
    shown = page(browser, "/runs/denies")
    section = shown[shown.index('id="approval-2"') :]
    assert f"{sentences.CLAUDE_WANTS_TO} write a.py" in section
    assert '<span class="add">+x' in section
    form = section[: section.index('name="message"')].rpartition("<form")[2]
    assert 'name="decision" value="deny"' in form
    assert 'value="allow"' not in form
    assert decide(hub, browser, "denies", "approval-2", decision="deny", message="not there") == 303
    pending = approvals.get(hub.database, "approval-2").pending
    assert pending is not None
    assert pending.answer.message == "not there"


def test_questions_are_answered_by_options_or_in_words(hub: HubApp, browser: FlaskClient) -> None:
    questions = [
        {"question": "Which one?", "options": [{"label": "A <b>"}, {"label": "B", "description": "best"}]},
        {"question": "And which of these?", "options": [{"label": "x"}, {"label": "y"}], "multiSelect": True},
    ]
    ask(
        hub,
        add(hub, "questions", state="parked"),
        "approval-3",
        "question",
        "AskUserQuestion",
        {"questions": questions},
    )
    shown = page(browser, "/runs/questions")
    assert 'type="radio" name="answer-0" value="A &lt;b&gt;"' in shown
    assert 'type="checkbox" name="answer-1"' in shown
    assert sentences.WAITS_FOR_YOU in shown
    assert decide(hub, browser, "questions", "approval-3", decision="allow", **{"answer-0": "B"}) == 422
    fields = {"answer-0": "B", "answer-1": ["x", "y"], "other-1": "z"}
    assert decide(hub, browser, "questions", "approval-3", decision="allow", **fields) == 303
    pending = approvals.get(hub.database, "approval-3").pending
    assert pending is not None
    assert pending.answer.answers == {"Which one?": "B", "And which of these?": "x, y, z"}


def test_a_plan_is_rendered_and_approved(hub: HubApp, browser: FlaskClient) -> None:
    ask(hub, add(hub, "plans", state="running"), "approval-4", "plan", "ExitPlanMode", {"plan": "# Do *this*"})
    shown = page(browser, "/runs/plans")
    assert "Do <em>this</em>" in shown
    assert "Approve the plan</button>" in shown
    assert "Keep planning</button>" in shown


def test_approvals_of_others_are_neither_shown_nor_answered(hub: HubApp, browser: FlaskClient) -> None:
    ask(hub, add(hub, "private", state="running"), "approval-5", "tool", "Bash", {"command": "a secret command"})
    reply = hub.call("POST", "/keys", json={"name": "other", "for": "client"})
    assert reply.json is not None
    stranger = logged_in(hub, reply.json["key"])
    assert "a secret command" not in page(stranger, "/")
    form = {"csrf": csrf(stranger, "/"), "hash": "a" * 64, "decision": "deny"}
    assert stranger.post("/runs/private/approvals/approval-5", data=form).status_code == 404


# ---- Tools


@pytest.mark.parametrize(
    ("name", "given", "result", "error", "line"),
    [
        (
            "Edit",
            {"file_path": "app.py", "old_string": "a\nb", "new_string": "a\nc\nd"},
            "ok",
            False,
            "Edit app.py +2 \N{MINUS SIGN}1",
        ),
        ("Write", {"file_path": "new.py", "content": "a\nb\n"}, "ok", False, "Write new.py +2"),
        (
            "Read",
            {"file_path": "x.txt"},
            "1\n2\n3<system-reminder>secret</system-reminder>",
            False,
            "Read x.txt 3 lines",
        ),
        ("Bash", {"command": "pytest"}, "Exit code 1\nfailed", True, "Bash pytest exit 1"),
        ("Grep", {"pattern": "foo"}, "one", False, "Grep foo 1 line"),
        ("mcp__hub__list", {"query": "q"}, "x", False, "hub · list q"),
        ("Unknown", {"odd": 1}, "x", True, "Unknown failed"),
    ],
)
def test_a_tool_says_what_matters_in_one_line(
    hub: HubApp, browser: FlaskClient, name: str, given: object, result: str, error: bool, line: str
) -> None:
    add(hub, f"tool-{name}", called(name, given, result, error=error))
    shown = page(browser, f"/runs/tool-{name}")
    summary = re.search(r"<details class=\"tool.*?<summary>(.*?)</summary>", shown, re.DOTALL)
    assert summary is not None
    assert text_of(summary[1]).strip() == line
    assert "secret" not in shown


def test_an_edit_opens_as_a_diff_with_colours_and_a_command_as_a_terminal(hub: HubApp, browser: FlaskClient) -> None:
    edit = {"file_path": "app.py", "old_string": "x = 1\n", "new_string": "def x():\n"}
    out = "\x1b[31mred\x1b[0m <b>\x1b]0;evil\x07"
    add(hub, "views", [*called("Edit", edit, "ok"), *called("Bash", {"command": "ls"}, out)])
    shown = page(browser, "/runs/views")
    assert '<span class="del">-x = <span class="hn">1</span>' in shown
    assert '<span class="add">+<span class="hk">def</span>' in shown
    assert '<span class="c1">red</span> &lt;b&gt;' in shown
    assert "evil" not in shown


def test_a_path_outside_of_the_workspace_is_shown_whole_also_where_that_is_not_known(
    hub: HubApp, browser: FlaskClient
) -> None:
    number = add(hub, "paths", called("Read", {"file_path": "/etc/passwd"}, "x"), state="running")
    ask(hub, number, "approval-path", "tool", "Edit", {"file_path": "/etc/hosts", "old_string": "a", "new_string": "b"})
    with hub.database.write() as connection:
        connection.execute("UPDATE workspaces SET path = '' WHERE workspace_id = 'work'")
    assert f"{sentences.CLAUDE_WANTS_TO} edit /etc/hosts" in page(browser, "/")
    shown = page(browser, "/runs/paths")
    assert f"{sentences.CLAUDE_WANTS_TO} edit /etc/hosts" in shown
    assert '<span class="subject">/etc/passwd</span>' in shown


def test_a_picture_that_was_read_is_shown_from_the_workspace(hub: HubApp, browser: FlaskClient) -> None:
    with hub.database.write() as connection:
        connection.execute("UPDATE workspaces SET path = '/far/work' WHERE workspace_id = 'work'")
    paths = ("/far/work/a b/logo.png", "/far/work/page.svg", "/etc/other.png")
    calls = [called("Read", {"file_path": path}, "[image]" + " " * index) for index, path in enumerate(paths)]
    add(hub, "pictures", [event for call in calls for event in call])
    shown = page(browser, "/runs/pictures")
    assert re.findall(r'<img src="(/files[^"]*)" alt="([^"]*)"', shown) == [
        ("/files/work/content?path=a%20b/logo.png", "a b/logo.png")
    ]
    assert shown.count("[image]") == 2


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("a.png", b"\x89PNG\r\n\x1a\n rest", "image/png"),
        ("a.JPG", b"\xff\xd8\xff rest of it", "image/jpeg"),
        ("a.webp", b"RIFF1234WEBP rest", "image/webp"),
        ("a.avif", b"\0\0\0\x1cftypavif", "image/avif"),
        ("a.png", b"<svg onload=alert(1)>", None),
        ("a.png", b"GIF89a is no PNG", None),
        ("a.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>", None),
        ("a.png", b"", None),
    ],
)
def test_a_picture_is_shown_only_if_its_content_is_one(name: str, content: bytes, kind: str | None) -> None:
    response = pictures.sent(iter([content[:1], content[1:]]), len(content), name)
    assert response.get_data() == content
    assert response.content_type == (kind or "application/octet-stream")
    assert ("attachment" in response.headers.get("Content-Disposition", "")) == (kind is None)


PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 300  # more than one event holds


def in_result(*images: bytes, text: str = "") -> list[dict[str, Any]]:
    """The content of a tool's result as the CLI has it."""
    data = [base64.b64encode(each).decode() for each in images]
    parts = [{"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": each}} for each in data]
    return [*([{"type": "text", "text": text}] if text else []), *parts]


def translated(name: str, content: object) -> list[tuple[str, dict[str, Any]]]:
    """The events of a tool call of the CLI with this result."""
    call = {"type": "tool_use", "id": "call-1", "name": name, "input": {"url": "page"}}
    result = {"type": "tool_result", "tool_use_id": "call-1", "content": content}
    lines = [
        {"type": "assistant", "message": {"id": "m", "content": [call]}},
        {"type": "user", "message": {"content": [result]}},
    ]
    translator = Translator()
    found = [event for line in lines for event in translator.events(json.dumps(line).encode())]
    assert all(len(data.encode()) < 64 * 1024 - 256 for _, data in found)
    return [(event, json.loads(data)) for event, data in found]


def pictures_of(browser: FlaskClient, execution_id: str) -> list[bytes]:
    """The pictures in the page of an execution, as a browser loads them."""
    sources = re.findall(r'<img src="(/runs/[^"]*)"', page(browser, f"/runs/{execution_id}"))
    replies = [browser.get(source) for source in sources]
    assert all(reply.status_code == 200 for reply in replies)
    assert {reply.content_type for reply in replies} <= {"image/png", "image/gif"}
    assert all(reply.headers["X-Content-Type-Options"] == "nosniff" for reply in replies)
    return [reply.get_data() for reply in replies]


def test_pictures_in_the_result_of_a_tool_are_shown_beside_its_text(hub: HubApp, browser: FlaskClient) -> None:
    second = b"GIF89a" + bytes(1000)
    happened = translated("mcp__browser__shot", in_result(PNG, second, text="Two pages"))
    assert [name for name, _ in happened].count("image") > 2
    add(hub, "shots", happened)
    assert pictures_of(browser, "shots") == [PNG, second]
    shown = page(browser, "/runs/shots")
    assert "Two pages" in shown
    assert "2 pictures" in shown
    assert "[image]" not in shown
    add(hub, "shot", translated("mcp__browser__shot", in_result(PNG)))
    assert pictures_of(browser, "shot") == [PNG]
    assert 'alt="browser · shot, picture 1"' in page(browser, "/runs/shot")
    assert "(nothing)" not in page(browser, "/runs/shot")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("mcp__browser__shot", in_result(b"<svg onload=alert(1)>")),
        ("mcp__browser__shot", in_result(b"\x89PNG\r\n\x1a\n" + bytes(images.MAX_IMAGE_BYTES))),
        ("mcp__browser__shot", [{"type": "image", "source": {"type": "url", "url": "https://elsewhere/a.png"}}]),
        ("mcp__browser__shot", [{"type": "image", "source": {"type": "base64", "data": "no base64"}}]),
        ("Read", in_result(PNG)),
    ],
    ids=["svg", "too large", "elsewhere", "broken", "a file"],
)
def test_an_image_that_is_not_safe_to_show_or_is_a_file_is_a_word(
    hub: HubApp, browser: FlaskClient, request: pytest.FixtureRequest, name: str, content: object
) -> None:
    happened = translated(name, content)
    assert [event for event, _ in happened] == ["tool", "tool"]
    execution_id = f"word-{request.node.callspec.id.replace(' ', '-')}"
    add(hub, execution_id, happened)
    assert pictures_of(browser, execution_id) == []
    assert "[image]" in page(browser, f"/runs/{execution_id}")


def test_what_a_machine_sends_as_an_image_is_served_only_if_it_is_a_whole_picture(
    hub: HubApp, browser: FlaskClient
) -> None:
    def image(content: bytes, **more: Any) -> tuple[str, dict[str, Any]]:
        data = {"toolUseId": "c", "image": 0, "mediaType": "image/png", "part": 0, "parts": 1}
        return "image", {**data, "data": base64.b64encode(content).decode(), **more}

    happened = [
        image(b"<svg onload=alert(1)>"),
        image(PNG, parts=2),
        image(PNG, part=1, parts=2),
        image(PNG, data="no base64"),
        image(PNG, part=-1),
        ("output", {"chunk": "x"}),
    ]
    add(hub, "hostile-images", happened)
    for seq in (0, *range(1, len(happened) + 3)):
        assert browser.get(f"/runs/hostile-images/pictures/{seq}").status_code == 404, seq
    page(browser, "/runs/hostile-images")
    add(hub, "good-image", [image(PNG)])
    assert browser.get("/runs/good-image/pictures/1").get_data() == PNG
    reply = hub.call("POST", "/keys", json={"name": "curious", "for": "client"})
    assert reply.json is not None
    assert logged_in(hub, reply.json["key"]).get("/runs/good-image/pictures/1").status_code == 404


def test_the_calls_of_a_sub_agent_are_folded_into_its_own(hub: HubApp, browser: FlaskClient) -> None:
    inner = {"toolUseId": "b", "name": "Read", "input": {"file_path": "in.txt"}, "parentToolUseId": "a"}
    happened: list[tuple[str, dict[str, Any]]] = [
        ("tool", {"toolUseId": "a", "name": "Agent", "input": {"description": "Look", "prompt": "Look *there*"}}),
        ("tool", inner),
        ("task", {"taskId": "t", "toolUseId": "a", "state": "running", "description": "Reading files"}),
    ]
    add(hub, "agents", happened, state="running")
    shown = page(browser, "/runs/agents")
    assert "Reading files" in shown
    inside = shown.index('<div class="inner">')
    assert shown.index("Look") < inside < shown.index("in.txt")
    assert "<em>there</em>" in shown


def test_the_todo_list_is_pinned_once(hub: HubApp, browser: FlaskClient) -> None:
    items = [{"id": "1", "text": "One", "state": "completed"}, {"id": "2", "text": "Two", "state": "in_progress"}]
    todo = called("TodoWrite", {"todos": []}, "ok")
    add(hub, "todos", [*todo, ("todo", {"items": items[:1]}), ("todo", {"items": items})], state="running")
    shown = page(browser, "/runs/todos")
    assert shown.count('class="todo"') == 1
    assert "1 of 2 Two" in text_of(shown)


@pytest.mark.parametrize(
    ("text", "made"),
    [
        ("\x1b[32mok\x1b[0m", '<span class="c2">ok</span>'),
        ("\x1b[1;31mE\x1b[22m e", '<span class="c1 cb">E</span><span class="c1"> e</span>'),
        ("\x1b[38;5;196mx\x1b[39m y", '<span class="c1">x</span> y'),
        ("\x1b[38;2;0;200;0mx\x1b[m", '<span class="c2">x</span>'),
        ("\x1b[31m<script>", '<span class="c1">&lt;script&gt;</span>'),
        ("50%\r\x1b[32m100%\x1b[0m\n", '<span class="c2">100%</span>\n'),
        ("\ue201not a mark", "not a mark"),
        ("\x1b[;;;;999999999999mx", "x"),
    ],
)
def test_colours_of_a_terminal_become_classes_and_nothing_else(text: str, made: str) -> None:
    assert str(terminal.coloured(text)) == made


def test_a_diff_of_many_lines_takes_no_longer_than_its_length() -> None:
    begun = time.thread_time()
    made = diffs.of("a\n" * 20_000, "b\n" * 20_000, "py")
    assert (made.additions, made.deletions) == (20_001, 20_001)
    assert time.thread_time() - begun < 5


# ---- Long answers


def whole(hub: HubApp, execution_id: str) -> tuple[str, int]:
    """The HTML of all parts of an answer, and how many there are."""
    execution, place, made, count = executions.get(hub.database, execution_id), Place(), "", 0
    while place is not None:
        part = parts.read(hub.database, execution, place)
        made += "".join(str(block.html) for block in part.reader.blocks if block.kind == "text")
        assert part.next is None or part.next != place
        place, count = part.next, count + 1
    return made, count


@pytest.mark.parametrize("size", [40, 700, 30_000])
@pytest.mark.parametrize(
    "block",
    ["Some *text* with `code`.\n\n", "```py\nx = 1\n\ny = 2\n```\n\n- a\n- b\n\n", "# Title\r\n\r\nword\r\n\r\n"],
)
def test_the_parts_of_a_long_answer_are_the_whole_of_it(hub: HubApp, block: str, size: int) -> None:
    text = block * (350_000 // len(block)) + "The end."
    name = f"long-{size}-{abs(hash(block))}"
    add(hub, name, said(*(text[begin : begin + size] for begin in range(0, len(text), size))))
    made, count = whole(hub, name)
    assert count > 2
    assert re.sub(r"\s", "", text_of(made.replace(" Copy ", ""))).replace("Copy", "") == re.sub(
        r"\s|\*|`(?:``)?(?:py)?|(?m:^# )|(?m:^- )", "", text
    )


def test_one_very_long_block_is_cut_and_stays_code(hub: HubApp) -> None:
    lines = [f"line {number}\n" for number in range(50_000)]
    add(hub, "fence", said("```\n", *("".join(lines[begin : begin + 500]) for begin in range(0, 50_000, 500)), "```\n"))
    made, count = whole(hub, "fence")
    assert count > 2
    assert [int(number) for number in re.findall(r"line (\d+)", made)] == list(range(50_000))
    assert "<p>line" not in made


def test_a_line_of_a_megabyte_is_shown_whole(hub: HubApp, browser: FlaskClient) -> None:
    add(hub, "line-mb", said("Before.\n\n", *(["x" * 50_000] * 21), "\n\nAfter."))
    made, _ = whole(hub, "line-mb")
    assert made.count("x") == 21 * 50_000
    assert "After." in made
    assert page(browser, "/runs/line-mb").count("data-more=") == 1


def test_five_megabytes_open_at_once_and_the_rest_is_one_link_away(hub: HubApp, browser: FlaskClient) -> None:
    sentence = "Some *text* with `code` here and there.\n\n"
    add(hub, "five", said(*([sentence * 50] * (5_000_000 // (50 * len(sentence))))))
    page(browser, "/runs/five")
    took = []
    for _ in range(3):
        begun = time.thread_time()
        shown = page(browser, "/runs/five")
        took.append(time.thread_time() - begun)
    print(f"a page of 5 MB: {min(took):.3f} s")
    assert min(took) < 1.5  # 0.1 s on an idle machine
    assert len(shown) < 600_000
    assert "left out" not in shown
    more = re.search(r'data-more="([^"]+)"', shown)
    assert more is not None
    assert "Some <em>text</em>" in page(browser, html.unescape(more[1]))


def test_a_running_answer_shows_its_newest_part_and_leads_to_its_beginning(hub: HubApp, browser: FlaskClient) -> None:
    chunks = [f"Paragraph {number} of it.\n\n" + "word " * 200 + "\n\n" for number in range(600)]
    add(hub, "running-long", said(*chunks), state="running")
    shown = page(browser, "/runs/running-long")
    assert "Paragraph 599 of it." in shown
    assert "Paragraph 1 of it." not in shown
    seen, more = shown, re.search(r'data-more="([^"]+)"', shown)
    while more is not None:
        part = page(browser, html.unescape(more[1]))
        seen += part
        more = re.search(r'data-more="([^"]+)"', part)
    numbers = [int(number) for number in re.findall(r"Paragraph (\d+) of it", seen)]
    assert sorted(numbers) == list(range(600))


# ---- The stream of a page


class Screen:
    """A page as hub.js makes it of the messages."""

    def __init__(self) -> None:
        self.blocks: dict[int, list[str]] = {}

    def take(self, message: dict[str, Any]) -> None:
        for item in message["items"]:
            if "html" in item:
                self.blocks[item["seq"]] = [item["html"]]
                continue
            had, blocks = self.blocks.get(item["seq"], []), list(item["blocks"])
            if item["at"]:
                units = had[item["keep"]].encode("utf-16-le")[: 2 * item["at"]]
                blocks[0] = units.decode("utf-16-le") + blocks[0]
            self.blocks[item["seq"]] = had[: item["keep"]] + blocks


@pytest.mark.parametrize("size", [1, 5, 40])
def test_what_a_page_makes_of_its_stream_is_what_a_reload_shows(hub: HubApp, size: int) -> None:
    text = (
        "# Title\n\nHi 👋 **bold 👋** and `code`.\n\n| a | b |\n|---|--:|\n| 1 | 2 |\n\n```py\nx = 1\n```\n\n1. one\n"
    )
    pieces = [text[begin : begin + size] for begin in range(0, len(text), size)]
    tool = called("Bash", {"command": "ls"}, "files")
    happened = [*said(*pieces), tool[0], *said("between"), tool[1], ("thinking", {"chunk": "hm"}), *said(*pieces)]
    macros: Any = hub.app.jinja_env.get_template("blocks.html").module
    live, screen = Reader(0, "", live=True), Screen()
    drawn = Drawn(live, macros)
    stored = [
        StoredEvent(seq, name, json.dumps({**data, "timestamp": 1})) for seq, (name, data) in enumerate(happened, 1)
    ]
    stored.append(StoredEvent(len(stored) + 1, "complete", '{"exitCode":0,"timestamp":1}'))
    longest = 0
    for event in stored:
        live.take(event)
        message = drawn.changes()
        longest = max(longest, len(json.dumps(message)))
        screen.take(message)
    still = Reader(0, "")
    for event in stored:
        still.take(event)
    expected = {
        block.first: block.blocks if block.kind == "text" else [str(macros.block(block)).strip()]
        for block in still.blocks
    }
    assert screen.blocks == expected
    assert longest < 1_500


def test_a_message_for_a_long_text_is_as_long_as_what_is_new(hub: HubApp) -> None:
    macros: Any = hub.app.jinja_env.get_template("blocks.html").module
    live = Reader(0, "", live=True)
    drawn = Drawn(live, macros)
    sizes = []
    for seq in range(1, 120):
        live.take(StoredEvent(seq, "output", json.dumps({"chunk": f"- item {seq} of a list\n", "timestamp": 1})))
        sizes.append(len(json.dumps(drawn.changes())))
    assert statistics.median(sizes) < 400


def test_the_first_words_of_a_text_do_not_wait_for_the_time_of_the_next_message(
    hub: HubApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "_SHORTEST", 1000.0)
    monkeypatch.setattr(live, "_LONGEST", 1000.0)
    number = add(hub, "first-words", [("queued", {"position": 0}), ("started", {})], state="running")
    tail = hub.app.extensions["occ"].tail

    def happens(seq: int, chunk: str) -> None:
        event = ("output", json.dumps({"chunk": chunk, "timestamp": 1}))
        with hub.database.write() as connection:
            events.insert(connection, number, seq, [event])
        tail._advance(True)

    with PageFollower(hub.app, tail, executions.get(hub.database, "first-words"), 0, "") as follower:
        list(follower.stored())
        happens(3, "Hello")
        assert [b"Hello" in message.sse for message in follower.ready()] == [True]
        happens(4, " there")
        assert follower.ready() == []


def test_a_stream_without_news_says_that_it_is_alive(
    hub: HubApp, browser: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(hub, "silent", said("x"), state="running")
    row = executions.get(hub.database, "silent")
    with PageFollower(hub.app, hub.app.extensions["occ"].tail, row, 0, "") as follower:
        assert len(list(follower.stored())) == 1
        assert follower.ready() == []
    monkeypatch.setattr(live, "BEAT_SECONDS", 0.0)
    with PageFollower(hub.app, hub.app.extensions["occ"].tail, row, 0, "") as follower:
        list(follower.stored())
        assert [(message.sse, message.final) for message in follower.ready()] == [(b"event: beat\ndata: {}\n\n", False)]


# ---- Home


def test_home_is_what_needs_me_then_now_then_recent_by_project(hub: HubApp, browser: FlaskClient) -> None:
    fresh = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime())
    add(hub, "home-failed", state="failed", finished_at=fresh)
    add(hub, "home-runs", said("Reading the *files*\nand then"), state="running")
    add(hub, "home-done", said("x"))
    shown = page(browser, "/")
    needs, now, recent = (shown.index(f'id="{name}"') for name in ("needs", "active", "recent"))
    assert needs < shown.index("prompt of home-failed") < now < shown.index("prompt of home-runs") < recent
    assert recent < shown.index("prompt of home-done")
    assert "and then" in shown
    assert shown.count("prompt of home-failed") == 1
    page(browser, "/runs/home-failed")  # somebody else's look, an admin's
    assert 'id="needs"' in page(browser, "/")


def test_a_failure_that_its_owner_has_seen_is_no_news(hub: HubApp) -> None:
    fresh = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime())
    reply = hub.call("POST", "/keys", json={"name": "owner", "for": "client"})
    assert reply.json is not None
    add(hub, "owned", state="failed", finished_at=fresh, owner_id=owner_of(hub, "owner"))
    browser = logged_in(hub, reply.json["key"])
    assert "prompt of owned" in page(browser, "/").partition('id="recent"')[0]
    page(browser, "/runs/owned")
    before, _, recent = page(browser, "/").partition('id="recent"')
    assert "prompt of owned" not in before
    assert "prompt of owned" in recent


def test_a_conversation_is_one_row_with_counts_on_the_filters(tmp_path: Path) -> None:
    with hub_app(tmp_path) as hub:
        hub.workspace("work")
        browser = logged_in(hub, hub.key("page", "client", admin=True))
        assert "Nothing has run yet" in page(browser, "/")
        add(hub, "one")
        add(hub, "two", conversation="one", state="failed", seen_at=NOW)
        add(hub, "three")
        shown = text_of(page(browser, "/"))
        assert "All 2 Running 0 Waiting 0 Failed 1 Done 1" in shown
        assert shown.count("prompt of one") == 1
        assert "2 turns" in shown
        assert "prompt of three" not in text_of(page(browser, "/?state=failed"))


def test_older_conversations_come_in_pages(tmp_path: Path) -> None:
    with hub_app(tmp_path) as hub:
        hub.workspace("work")
        browser = logged_in(hub, hub.key("page", "client", admin=True))
        for number in range(60):
            add(hub, f"old-{number}")
        shown, seen = page(browser, "/"), set[str]()
        for _ in range(3):
            seen |= set(re.findall(r'href="/runs/(old-\d+)"', shown))
            older = re.search(r'data-older="([^"]+)"', shown)
            shown = page(browser, html.unescape(older[1])) if older else ""
        assert seen == {f"old-{number}" for number in range(60)}
        assert "data-older" not in shown


def test_home_with_20000_executions_is_quick(tmp_path: Path) -> None:
    with hub_app(tmp_path) as hub:
        hub.workspace("work")
        browser = logged_in(hub, hub.key("page", "client", admin=True))
        states = ("succeeded", "succeeded", "succeeded", "failed", "cancelled")
        with hub.database.write() as connection:
            connection.executemany(
                "INSERT INTO executions (execution_id, workspace_id, state, request_hash, prompt, timeout_seconds,"
                " idle_timeout_seconds, created_at, started_at, finished_at, last_seq, conversation, seen_at)"
                " VALUES (:id, 'work', :state, '', 'a prompt', 1, 1, :now, :now, :now, 1, :conversation, :now)",
                [
                    {"id": f"e{n}", "state": states[n % 5], "now": NOW, "conversation": f"e{n - n % 3}"}
                    for n in range(20_000)
                ],
            )
        page(browser, "/")
        took = []
        for _ in range(5):
            begun = time.process_time()
            page(browser, "/")
            took.append(time.process_time() - begun)
        print(f"home with 20,000 executions: {min(took) * 1000:.0f} ms")
        assert min(took) < 0.3  # 60 ms on an idle machine
        assert len(overview.listing(hub.database, visible_to=None)[0]) == 30


def test_styles_and_scripts_of_a_page_are_small(hub: HubApp, browser: FlaskClient) -> None:
    files = hub.app.extensions["occ_static"]
    add(hub, "styles", said("x"))
    for path in ("/", "/runs/styles", "/machines", "/settings", "/find?q=x", "/costs", "/notifications"):
        names = set(re.findall(r"/static/([\w-]+\.(?:css|js))", page(browser, path)))
        assert {"hub.css", "hub.js"} <= names
        assert sum(len(files[name]) for name in names) < 60_000, path
    assert sum(len(files[name]) for name in ("hub.css", "hub.js", "changes.css")) < 60_000


def test_markup_in_the_views_is_made_by_the_escaping_functions() -> None:
    hostile = "<img src=x onerror=alert(1)>"
    made = diffs.of(hostile, hostile + hostile, "html")
    assert all("<img" not in line for _, line in made.rows)
