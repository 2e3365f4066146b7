"""`occ chat`: a conversation at a terminal, with texts for the turn that runs, approvals, changes and undo."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, cast

import pytest

from occ_app.cli import chat_input
from occ_app.cli.chat_session import Chat
from occ_app.client.agent_client import AgentClient
from occ_app.client.sse import StreamEvent
from occ_app.errors import Refused
from occ_app.executions import queries as executions
from tests import sentences
from tests.conftest import Occ, make_zip, occ_in, steps
from tests.model_api import FAKE_KEY, serve
from tests.real_hub import Hub
from tests.terminal import Terminal, occ_at_terminal


class Script:
    """The prompts of a person, in order."""

    def __init__(self, *texts: str) -> None:
        self.texts = iter(texts)

    def text(self, _: str) -> str | None:
        return next(self.texts, None)


class Here:
    """A workspace that exists."""

    def workspace(self) -> str:
        return "work"

    def accepted(self) -> None: ...

    def ended(self, final: Any, changes: Any) -> None: ...


@pytest.fixture
def work(agent: Occ) -> Path:
    agent.workspace("work", {"a.txt": "a\n"})
    return agent.home / "workspaces" / "work"


def chat(agent: Occ, *texts: str, last: str | None = None) -> str | None:
    """Chat with these prompts; returns the last turn."""
    session = Chat(agent.client, Script(*texts), Here(), {"permissions": "edit"}, last)
    session.run()
    return session.last


def turns(agent: Occ, last: str | None) -> list[dict[str, Any]]:
    conversation = agent.client.execution(str(last))["conversationId"]
    found: list[dict[str, Any]] = agent.client.call("GET", f"/conversations/{conversation}")["turns"]
    return found


def test_each_prompt_continues_the_conversation(agent: Occ, work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    last = chat(agent, "one", " ", "//two", "/nosuch")
    found = turns(agent, last)
    assert [turn["prompt"] for turn in found] == ["one", "/two"]
    printed = capsys.readouterr()
    assert "You said: one" in printed.out
    assert f"{sentences.THERE_IS_NO_COMMAND} /nosuch" in printed.err


def test_undo_goes_back_turn_by_turn_and_diff_shows_the_last(
    agent: Occ, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write = [steps({"write": "a.txt", "text": f"{text}\n"}, {"say": "ok"}) for text in "bc"]
    last = chat(agent, *write, "/diff", "/undo", "/diff")
    printed = capsys.readouterr().out
    assert [line for line in printed.splitlines() if line in ("+b", "+c")] == ["+c", "+b"]
    assert (work / "a.txt").read_text() == "b\n"
    chat(agent, "/undo", "/undo", "/undo", last=last)  # in a later chat: the first one is undone already
    assert (work / "a.txt").read_text() == "a\n"
    assert sentences.NOTHING_TO_UNDO in capsys.readouterr().err


def test_an_undo_of_edited_files_is_refused_and_the_chat_goes_on(
    agent: Occ, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    last = chat(agent, steps({"write": "a.txt", "text": "b\n"}, {"say": "ok"}))
    (work / "a.txt").write_text("mine\n")
    chat(agent, "/undo", "hello", last=last)
    assert (work / "a.txt").read_text() == "mine\n"
    printed = capsys.readouterr()
    assert "You said: hello" in printed.out


def test_prompts_that_wait_are_watched_listed_dropped_and_resumed(
    agent: Occ, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, _ = agent.under_way(steps({"say": "one"}, {"wait": "go"}, {"result": {"is_error": True}}), "first")
    for name in ("second", "third"):
        body = {"inputId": name, "text": f"prompt of {name}", "delivery": "queue"}
        agent.client.call("POST", "/executions/first/input", body)
    (work / "go").write_text("")
    list(first)
    chat(agent, "/queue", "/drop second", "/drop nosuch", "/resume", last="first")
    printed = capsys.readouterr()
    assert "second  prompt of second (paused)" in printed.out
    assert "You said: prompt of third" in printed.out
    assert agent.client.execution("second")["state"] == "cancelled"
    assert "2 paused" in printed.err


def test_a_follow_up_that_ended_before_the_list_was_read_is_shown(
    agent: Occ, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, _ = agent.under_way(steps({"say": "one"}, {"wait": "go"}, {"say": "end"}), "first")
    for name in ("short", "shorter"):
        body = {"inputId": name, "text": f"the {name}", "delivery": "queue"}
        agent.client.call("POST", "/executions/first/input", body)

    class Late(AgentClient):
        """A client that lists the turns once all of them ended, after the first began to be watched."""

        def events(self, execution_id: str, *, after: int = 0, follow: bool = True) -> Iterator[StreamEvent]:
            (work / "go").write_text("")
            return super().events(execution_id, after=after, follow=follow)

        def call(self, method: str, path: str, *given: Any, **options: Any) -> dict[str, Any]:
            if (work / "go").exists() and path.startswith("/conversations/"):
                list(agent.client.events("shorter"))
            return super().call(method, path, *given, **options)

    client = Late(agent.url, agent.token)
    Chat(client, Script(), Here(), {"permissions": "edit"}, "first").run()
    list(first)
    printed = capsys.readouterr().out
    assert printed.index("end") < printed.index("You said: the short\n") < printed.index("You said: the shorter")
    assert printed.count("You said:") == 2


def test_a_prompt_of_several_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO('one\\\ntwo\n"""\nthree\n\n  """\n"""\nfour\n'))
    reader = chat_input.Reader()
    assert list(iter(lambda: reader.text("> "), None)) == ["one\ntwo", "three\n", "four"]


def test_a_chat_from_a_pipe_sends_the_folder_and_can_be_continued(agent: Occ, tmp_path: Path) -> None:
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "a.txt").write_text("a\n")

    def piped(given: str, *options: str) -> Any:
        environment = agent.environment
        return subprocess.run(
            [sys.executable, "-m", "occ_app.cli", "chat", "--dir", str(folder), *options],
            input=given,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    def sent() -> list[str]:
        return [name for each in agent.client.workspaces() if (name := each["workspaceId"]).startswith("project-")]

    assert piped("").returncode == 0
    assert sent() == []  # nothing before the first prompt
    done = piped("one\n")
    assert "You said: one" in done.stdout
    assert f"{sentences.GO_ON_WITH} occ chat --dir {folder} -c" in done.stderr
    (folder / "a.txt").write_text("edited\n")
    assert "You said: two" in piped("two\n/quit\n", "-c").stdout
    (workspace,) = sent()
    assert (agent.home / "workspaces" / workspace / "a.txt").read_text() == "edited\n"
    (conversation,) = agent.client.call("GET", f"/conversations?workspaceId={workspace}")["conversations"]
    assert conversation["executions"] == 2


def chat_at_terminal(agent: Occ, *options: str) -> AbstractContextManager[Terminal]:
    """Run `occ chat` on a terminal."""
    return occ_at_terminal(agent.environment, "chat", "--workspace", "work", *options, kind="dumb")


def test_ctrl_c_takes_texts_for_the_turn_and_leaving_keeps_it_running(agent: Occ, work: Path) -> None:
    with chat_at_terminal(agent) as terminal:
        terminal.until("> ")
        terminal.type(steps({"say": "some text"}, {"tool": "Bash", "input": {}, "result": "ok", "wait": "go"}))
        terminal.until("[Bash]")
        terminal.press("\x03")
        terminal.until("… > ")
        terminal.type("and this")
        terminal.until("sent; Claude reads it")
        terminal.type("/queue and then that")
        terminal.until("it follows this turn as")
        terminal.type("/quit")
        terminal.until("go on with: occ chat --workspace work -c")
        assert terminal.wait() == 0
    (record,) = agent.client.executions(state="running")["executions"]
    with chat_at_terminal(agent, "-c") as terminal:
        terminal.until("some text")
        (work / "go").write_text("")
        terminal.until("You said: and then that")
        terminal.until("> ")
        terminal.press("\x04")
        terminal.until("go on with")
        assert terminal.wait() == 0
    states = [event.data["state"] for event in agent.client.events(record["executionId"]) if event.name == "input"]
    assert states == ["sent", "delivered"]
    history = Path(agent.environment["HOME"], ".local/state/occ/chat-history.json")
    assert "and this" in json.loads(history.read_text())["prompts"]
    assert history.stat().st_mode & 0o077 == 0


@pytest.mark.real_cli
def test_a_call_is_approved_in_the_chat(tmp_path: Path, real_claude: Path) -> None:
    with serve() as model, occ_in(tmp_path, HOME=str(tmp_path), OCC_WORKERS="1") as occ:
        settings = {"OCC_CLAUDE_BIN": str(real_claude), "ANTHROPIC_BASE_URL": model.url, "ANTHROPIC_API_KEY": FAKE_KEY}
        occ.start(**settings)
        occ.workspace("work", {"a.txt": "a\n"})
        tool = {"name": "Bash", "input": {"command": "touch made", "description": "d"}}
        with chat_at_terminal(occ) as terminal:
            terminal.until("> ")
            terminal.type(f"Do it. @reply{json.dumps({'turns': [{'tools': [tool]}, {'text': 'It is made.'}]})}")
            terminal.until("Let it run?")
            terminal.type("y")
            terminal.until("[allowed]")  # once, and not as the state of the approval, too
            answered = terminal.until("It is made.")
            assert ("is allowed" in answered, "by token" in answered) == (False, False)
            terminal.until("1 file changed")
            terminal.until("> ")
            terminal.type("/undo")
            terminal.until("files restored: 1")
            terminal.type("/quit")
            assert terminal.wait() == 0
        assert not (occ.home / "workspaces" / "work" / "made").exists()


@pytest.mark.parametrize(
    ("ceiling", "shown"), [("plan", sentences.ONLY_PLANS_ARE_ALLOWED), ("edit", sentences.ONLY_THE_EDITING_OF_FILES)]
)
def test_a_chat_says_what_it_may_do_where_it_may_ask_for_nothing(
    ceiling: str, shown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    class Client:
        def execute(self, workspace: str, text: str, **options: Any) -> Iterator[StreamEvent]:
            if options["permissions"] == "ask":
                raise Refused("no", 403, "PERMISSION_CEILING", details={"ceiling": ceiling})
            yield StreamEvent(1, "complete", {"permissions": options["permissions"]})

    session = Chat(cast("AgentClient", Client()), Script(), Here(), {})
    (event,) = session._begun("work", "hello", {})
    assert event.data["permissions"] == ceiling
    assert capsys.readouterr().err.startswith(shown)


def test_a_chat_asks_for_no_more_than_the_agent_allows(tmp_path: Path, fake_claude: Path) -> None:
    with occ_in(tmp_path, program=fake_claude) as occ:
        occ.start(OCC_PERMISSIONS="edit")
        occ.workspace("work", {"a.txt": "a"})
        session = Chat(occ.client, Script("hello"), Here(), {})
        session.run()
        record = occ.client.execution(str(session.last))
        assert (record["state"], record["permissions"]) == ("succeeded", "edit")


def test_the_next_prompt_forks_or_goes_back(agent: Occ, work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    last = chat(agent, "/fork", "/rewind", "one", "/rewind", "two", "three", "/rewind 2", "/rewind x", "/fork", "four")
    printed = capsys.readouterr().err
    assert sentences.THERE_IS_NO_CONVERSATION_YET in printed
    assert f"{sentences.THE_NEXT_PROMPT_CONTINUES_AFTER} one" in printed
    record = agent.client.execution(str(last))
    assert record["conversationId"] == last
    fork = executions.get(agent.database, str(last))
    assert fork.fork
    assert fork.rewind_to is not None


def test_a_chat_through_a_hub(hub_with_box: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    box = hub_with_box.agent("box")
    hub_with_box.client.upload("work", make_zip({"a.txt": "a\n"}))
    write = steps({"write": "a.txt", "text": "b\n"}, {"say": "ok"})
    script = Script(write, "/diff", "/undo", "hello", "/quit")
    session = Chat(hub_with_box.client, script, Here(), {}, placement={"agent": "box"})
    session.run()
    printed = capsys.readouterr()
    assert "+b" in printed.out
    assert "You said: hello" in printed.out
    assert "files restored: 1" in printed.err
    record = hub_with_box.client.execution(str(session.last))
    assert record["conversationId"] != session.last
    assert (Path(box.client.workspace("work")["path"]) / "a.txt").read_text() == "a\n"
