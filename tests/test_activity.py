"""Events about the work: thinking, sub-agents, the todo list, denied calls, compaction; from the CLI to the reader."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import pytest

from benchmarks.targets import ARGUMENTS
from occ_app.cli import transcript
from occ_app.client.event_checks import RawEvent, checked
from occ_app.client.sse import parsed
from occ_app.executions import events
from occ_app.hub.pages import filters
from occ_app.hub.pages.answer import Note, Reader, Thinking
from occ_app.hub.pages.tools import Call
from occ_worker.execution import command
from occ_worker.execution.translator import Translator
from tests.model_api import ModelApi
from tests.test_real_cli import reply
from tests.test_stub_lines import printed, real_environment

TOOLS = "Read,Edit,Write,Grep,Glob,Agent,TaskCreate,TaskUpdate,TaskList"
T = {"timestamp": 1}
CALL = {"toolUseId": "t1", "name": "Agent", "input": {"description": "look around", "prompt": "x"}, **T}
SENT: list[tuple[str, dict[str, Any]]] = [
    ("queued", {"position": 0, **T}),
    ("thinking", {"chunk": "Let me ", **T}),
    ("thinking", {"chunk": "think.", **T}),
    ("output", {"chunk": "Hello. ", **T}),
    ("todo", {"items": [{"id": "1", "text": "one", "state": "completed"}], **T}),
    ("tool", CALL),
    ("task", {"taskId": "a", "toolUseId": "t1", "state": "started", "agentType": "Explore", "description": "x", **T}),
    ("tool", {"toolUseId": "t2", "parentToolUseId": "t1", "name": "Read", "input": {"file_path": "a.py"}, **T}),
    ("task", {"taskId": "a", "toolUseId": "t1", "state": "running", "description": "Reading a.py", **T}),
    ("tool", {"toolUseId": "t2", "parentToolUseId": "t1", "result": "no", "isError": True, **T}),
    ("denial", {"toolUseId": "t3", "name": "Write", "reason": "Path is outside.", **T}),
    ("compaction", {"trigger": "auto", "tokensBefore": 90000, "tokensAfter": 4000, **T}),
]


def translated(lines: Sequence[bytes]) -> list[tuple[str, dict[str, Any]]]:
    """Return the events of the CLI's lines, each as a hub stores it."""
    translator, found = Translator(), list[tuple[str, dict[str, Any]]]()
    for line in lines:
        for name, data in translator.events(line):
            sound = checked(RawEvent(1, name, data))
            assert sound is not None, (name, data)
            assert json.loads(sound.data) == json.loads(data)
            found.append((name, json.loads(data)))
    assert translator.unreadable == 0
    return found


@pytest.mark.real_cli
def test_the_activity_of_the_real_cli_becomes_events(
    release: str, real_claude: Path, tmp_path: Path, model: ModelApi
) -> None:
    environment = real_environment(tmp_path, model)
    if release != "2.1.197":
        environment.pop(command.ALL_ATTACHMENTS)
    (tmp_path / "a.py").write_text("x = 1\n")
    read = {"name": "Read", "input": {"file_path": str(tmp_path / "a.py")}}
    inner = reply({"thinking": "hidden", "text": "Sub.", "tools": [read]}, {"text": "Sub is done."})
    create = {"name": "TaskCreate", "input": {"subject": "First", "description": "d"}}
    update = {"name": "TaskUpdate", "input": {"taskId": "1", "status": "in_progress"}}
    write = {"name": "Write", "input": {"file_path": "/etc/not-here", "content": "x"}}
    agent = {"name": "Agent", "input": {"description": "look", "prompt": inner, "subagent_type": "general-purpose"}}
    turns = [{"text": name, "tools": [tool]} for name, tool in zip("ABCD", (create, update, write, agent), strict=True)]
    prompt = reply(turns[0] | {"thinking": "Let me think."}, *turns[1:], {"text": "E"})
    argv = [TOOLS if argument == "Read,Edit,Write,Grep,Glob" else argument for argument in ARGUMENTS]
    found = translated(printed([real_claude, *argv], prompt, tmp_path, environment))
    assert "".join(data["chunk"] for name, data in found if name == "thinking") == "Let me think."
    lists = [data["items"] for name, data in found if name == "todo"]
    assert lists == [[{"id": "1", "text": "First", "state": state}] for state in ("pending", "in_progress")]
    call = next(data["toolUseId"] for name, data in found if data.get("name") == "Agent")
    tasks = [data for name, data in found if name == "task"]
    assert {data["toolUseId"] for data in tasks} == {call}
    assert [data["state"] for data in tasks] == ["started", "running", "completed"]
    assert tasks[1]["tool"] == "Read"
    inner_calls = [data for name, data in found if name == "tool" and "parentToolUseId" in data]
    assert [data["parentToolUseId"] for data in inner_calls] == [call, call]
    assert inner_calls[0]["name"] == "Read"
    denials = [(data["name"], data["reason"]) for name, data in found if name == "denial"]
    expected = [("Write", "Path is outside allowed working directories")]
    assert denials == ([] if release == "2.1.197" else expected)


def test_a_compaction_and_a_list_of_an_older_cli_become_events() -> None:
    sizes = {"trigger": "auto", "pre_tokens": 9, "post_tokens": 2}
    todos = [{"content": "one", "status": "completed"}, {"content": "two", "status": "in_progress"}]
    use = {"type": "tool_use", "id": "t", "name": "TodoWrite", "input": {"todos": todos}}
    result = {"type": "tool_result", "tool_use_id": "t", "content": "ok"}
    lines = [
        {"type": "system", "subtype": "compact_boundary", "compact_metadata": sizes},
        {"type": "assistant", "message": {"id": "m", "content": [use]}},
        {"type": "user", "message": {"content": [result]}, "tool_use_result": {"oldTodos": [], "newTodos": todos}},
    ]
    found = dict(translated([json.dumps(line).encode() for line in lines]))
    assert (found["compaction"]["tokensBefore"], found["compaction"]["tokensAfter"]) == (9, 2)
    assert [(item["text"], item["state"]) for item in found["todo"]["items"]] == [
        ("one", "completed"),
        ("two", "in_progress"),
    ]


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("thinking", {}),
        ("task", {"taskId": 1, "state": "started"}),
        ("task", {"taskId": "a"}),
        ("todo", {"items": {}}),
        ("todo", {"items": ["x"]}),
        ("todo", {"items": [{"text": "x"}]}),
        ("denial", {"reason": "x"}),
    ],
)
def test_an_event_of_a_machine_that_breaks_its_schema_is_refused(name: str, data: dict[str, Any]) -> None:
    assert checked(RawEvent(1, name, json.dumps(data))) is None


def test_optional_fields_of_another_kind_become_null() -> None:
    said = {"taskId": "a", "state": "running", "tokens": "many", "description": 5, "toolUseId": ["x"]}
    sound = checked(RawEvent(1, "task", json.dumps(said)))
    assert sound is not None
    data = json.loads(sound.data)
    assert (data["tokens"], data["description"], data["toolUseId"]) == (None, None, None)


def test_a_terminal_shows_a_line_for_each(capsys: pytest.CaptureFixture[str]) -> None:
    final = {"exitCode": 0, **T}
    sent = [*SENT, ("task", {"taskId": "a", "state": "completed", "summary": "all read", **T}), ("complete", final)]
    stream = (parsed(RawEvent(seq, name, json.dumps(data))) for seq, (name, data) in enumerate(sent, 1))
    transcript.print_events(stream, as_json=False, waiting="x")
    shown = capsys.readouterr()
    assert shown.out == "Hello. \n"
    assert shown.err.splitlines()[1:] == [
        "[thinking]",
        "[todo] 1 of 1 done",
        "[Agent] look around",
        "  [Read] a.py",
        "  [failed] no",
        "[compacted] the conversation: 90000 tokens became 4000",
        "[task completed] all read",
    ]


@pytest.fixture
def shown() -> Reader:
    """The blocks of a page for a running execution with these events."""
    reader = Reader(0, "")
    for seq, (name, data) in enumerate(SENT, 1):
        reader.take(events.StoredEvent(seq, name, json.dumps(data)))
    return reader


def test_a_page_has_a_block_for_each(shown: Reader) -> None:
    assert [block.kind for block in shown.blocks] == ["thinking", "text", "tool", "note", "note"]
    thinking, _, agent, denied, _ = shown.blocks
    assert isinstance(thinking, Thinking)
    assert thinking.text == "Let me think."
    assert shown.todo is not None
    assert (shown.todo.done, len(shown.todo.items)) == (1, 1)
    assert isinstance(agent, Call)
    assert (agent.progress, agent.result, agent.parent) == ("Reading a.py", None, None)
    (read,) = agent.inner
    assert (read.parent, read.is_error) == ("t1", True)
    assert isinstance(denied, Note)
    assert denied.text == "Write was denied: Path is outside."
    assert shown.stable == agent.first - 1  # the sub-agent is at work: its block is sent again
    environment = jinja2.Environment(loader=jinja2.PackageLoader("occ_app.hub"), autoescape=True)
    environment.filters |= {"beginning": filters.beginning}
    macros: Any = environment.get_template("blocks.html").module
    html = "".join(str(macros.block(block)) for block in shown.blocks) + str(macros.todo(shown.todo))
    assert '<details class="tool thinking"' in html
    assert "Reading a.py</span>" in html
    assert '<li class="done" dir="auto">one</li>' in html
