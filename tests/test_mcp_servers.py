"""The operator's MCP servers: their file, the command, their choice for a run, and runs of the real CLI with them."""

from __future__ import annotations

import base64
import json
import stat
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from click.testing import CliRunner, Result

from occ_app.claude import mcp_servers
from occ_app.claude.mcp_servers import Server
from occ_app.cli.commands import occ
from occ_app.config import config
from occ_app.config.config import Config
from occ_app.config.permission_rules import Rule, parsed
from occ_app.hub.pages.tools import Call
from occ_worker.execution import command, outcome
from tests.conftest import Occ, command_line, names, occ_in, wait_until
from tests.model_api import FAKE_KEY, serve
from tests.picture_data import picture
from tests.test_approvals import Machine, results

SECRET = "made-up-secret-of-a-server"
PICTURE = picture((200, 30, 60))
# It answers on standard input and output, tells where it was started, and has a tool for text and one for a picture.
ANSWERS = """
import json, os, sys
for line in sys.stdin:
    message = json.loads(line)
    result = {
        "initialize": lambda: {"protocolVersion": message["params"]["protocolVersion"], "capabilities": {"tools": {}},
                               "serverInfo": {"name": "s", "version": "1"}},
        "tools/list": lambda: {"tools": [{"name": name, "description": "d", "inputSchema": {"type": "object"}}
                                         for name in ("hello", "shot")]},
        "tools/call": lambda: {"content": [{"type": "text", "text": f"{os.getcwd()} {len(os.environ['TOKEN'])}"}]
                               + [{"type": "image", "mimeType": "image/png", "data": PICTURE}]
                               * (message["params"]["name"] == "shot")},
    }.get(message.get("method"), dict)()
    if "id" in message:
        print(json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": result}), flush=True)
""".replace("PICTURE", repr(base64.b64encode(PICTURE).decode()))
HANGS = "import sys\nfor line in sys.stdin: pass\n"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home for the commands; the current folder has a server's program."""
    monkeypatch.setenv("OCC_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "server.py").write_text(ANSWERS)
    (tmp_path / "token").write_text(f"{SECRET}\nsecond line\n")
    return tmp_path / "home"


def run(*words: str, typed: str | None = None) -> Result:
    return CliRunner().invoke(occ, ["mcp-servers", *words], input=typed)


def test_a_server_is_added_listed_and_removed_and_its_secrets_are_shown_nowhere(home: Path) -> None:
    assert run("add", "one", "--env", "TOKEN=@token", "--", sys.executable, "server.py").exit_code == 0
    assert (
        run(
            "add", "two", "--url", "https://mcp.example.com/", "--header", "Authorization", typed=f"{SECRET}\n"
        ).exit_code
        == 0
    )
    file = home / mcp_servers.FILE
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    one, two = mcp_servers.load(config.load())
    assert (one.env, two.headers) == ({"TOKEN": SECRET}, {"Authorization": SECRET})
    assert one.command == (str(Path(sys.executable).absolute()), str(home.parent / "server.py"))
    for words in (("list",), ("list", "--json")):
        listed = run(*words).output
        assert SECRET not in listed
        assert "server.py" in listed
        assert "https://mcp.example.com/" in listed
    assert SECRET not in repr(one) + repr(two)
    assert run("remove", "one").exit_code == 0
    assert run("remove", "one").exit_code != 0
    assert [server.name for server in mcp_servers.load(config.load())] == ["two"]


@pytest.mark.parametrize(
    "words",
    [
        ("one",),
        ("one", "--url", "https://a.test", "--", "cat"),
        ("one", "--url", "ftp://a.test"),
        ("one", "--env", "A=@token", "--url", "https://a.test"),
        ("one", "--header", "A=@token", "--", "cat"),
        ("one", "--env", "TOKEN=visible", "--", "cat"),
        ("one", "--env", "TOKEN=@nowhere", "--", "cat"),
        ("one", "--", "no-such-program"),
        ("on_e", "--", "cat"),
    ],
)
def test_what_cannot_work_or_would_show_a_secret_is_refused(home: Path, words: tuple[str, ...]) -> None:
    assert run("add", *words).exit_code != 0
    assert not (home / mcp_servers.FILE).exists()


def settings(home: Path) -> Config:
    made = config.load({"OCC_HOME": str(home), "HOME": str(home)})
    made.make_folders()
    return made


def test_a_damaged_file_is_named_and_hides_no_secret_from_redaction(tmp_path: Path) -> None:
    known = settings(tmp_path)
    (tmp_path / mcp_servers.FILE).write_text("{")
    with pytest.raises(config.ConfigError, match=mcp_servers.FILE):
        mcp_servers.load(known)
    assert mcp_servers.secrets(known) == {}
    mcp_servers.save(
        known,
        [Server("a", ("cat",), {"MODE": SECRET}), Server("b", url="https://x", headers={"A": f"Bearer {SECRET}"})],
    )
    shown = outcome.redacted_value({"command": f"echo {SECRET}", SECRET: 1}, mcp_servers.secrets(known))
    assert SECRET not in json.dumps(shown)


def test_passwords_in_addresses_and_words_of_headers_are_secrets() -> None:
    environment = {
        "HTTPS_PROXY": "http://me:long-password@proxy",
        "ANTHROPIC_CUSTOM_HEADERS": "X-Key: abcdefghij",
        "PATH": "/usr/bin",
    }
    shown = outcome.redacted_value(["long-password", "abcdefghij", "/usr/bin"], environment)
    assert shown == ["[redacted]", "[redacted]", "/usr/bin"]


def test_the_cli_waits_a_few_seconds_for_a_server(tmp_path: Path) -> None:
    assert command.environment(settings(tmp_path))["MCP_TIMEOUT"] == "5000"


ALL = [Server("one", ("cat",)), Server("two", ("cat",))]


@pytest.mark.parametrize(
    ("permissions", "rules", "expected"),
    [
        ("ask", [], ["one", "two"]),
        ("full", [], ["one", "two"]),
        ("plan", ["mcp__one"], []),
        ("edit", [], []),
        ("edit", ["Bash"], []),
        ("edit", ["mcp__two"], ["two"]),
        ("edit", ["mcp__one__hello"], ["one"]),
    ],
)
def test_a_run_gets_the_servers_whose_tools_it_may_use(permissions: str, rules: list[str], expected: list[str]) -> None:
    allowed = [parsed(rule, "allow") for rule in rules]
    assert [server.name for server in mcp_servers.chosen(ALL, permissions, allowed)] == expected
    denied = [Rule("deny", "mcp__one")]
    assert mcp_servers.chosen(ALL, "edit", denied) == []


def test_a_server_that_did_not_answer_is_left_out_for_a_while() -> None:
    init = {"mcp_servers": [{"name": "one", "status": "connected"}, {"name": "two", "status": "pending"}, "x"]}
    failures = mcp_servers.failures_after(ALL, init, {}, 1000)
    assert mcp_servers.answering(ALL, failures, 1010) == ALL[:1]
    assert mcp_servers.answering(ALL, failures, 1000 + mcp_servers.RETRY_SECONDS) == ALL
    assert mcp_servers.answering(ALL, failures, 900) == ALL  # the clock was set back
    changed = [replace(ALL[1], command=("cat", "-u"))]
    assert mcp_servers.answering(changed, failures, 1010) == changed
    well = {"mcp_servers": [{"name": "two", "status": "connected"}]}
    assert mcp_servers.failures_after(ALL[1:], well, failures, 1020) == {}
    assert mcp_servers.failures_after(ALL, None, failures, 1020) == failures


# -- with the real CLI


@pytest.fixture(scope="module")
def machine(real_claude: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """An agent with a server that answers, for each release that this run of the tests tries."""
    folder = tmp_path_factory.mktemp("served")
    (folder / "server.py").write_text(ANSWERS)
    (folder / "hangs.py").write_text(HANGS)
    (folder / "token").write_text(SECRET)
    with serve() as model, occ_in(folder, HOME=str(folder), OCC_WORKERS="2") as occ:
        env = {"OCC_CLAUDE_BIN": str(real_claude), "ANTHROPIC_BASE_URL": model.url, "ANTHROPIC_API_KEY": FAKE_KEY}
        add(occ, "good", folder / "server.py", folder / "token")
        occ.start(**env, OCC_PERMISSIONS="full")
        wait_until(lambda: occ.client.health()["claude"]["version"], "the version to be known")
        yield Machine(occ, model)


def add(occ: Occ, name: str, program: Path, token: Path) -> None:
    occ.command("mcp-servers", "add", name, "--env", f"TOKEN=@{token}", "--", sys.executable, "-IS", str(program))


HELLO = {"name": "mcp__good__hello", "input": {}}


@pytest.mark.real_cli
def test_a_server_s_tools_ask_and_it_starts_outside_the_workspace(machine: Machine) -> None:
    run = machine.begin({"tools": [HELLO]}, {"text": "Done."})
    question = run.question()
    assert (question["tool"], question["alwaysAllows"]) == ("mcp__good__hello", ["mcp__good__hello"])
    assert not any(SECRET in word for process in psutil.process_iter() for word in command_line(process))
    run.answer(question, "allow")
    assert results(run.end()) == [(f"/ {len(SECRET)}", False)]
    assert list((machine.occ.home / "run" / "mcp").iterdir()) == []


@pytest.mark.real_cli
def test_a_run_that_asks_nobody_has_no_server_and_full_calls_it_unasked(machine: Machine) -> None:
    events = machine.begin({"tools": [HELLO]}, {"text": "Done."}, permissions="edit").end()
    assert results(events)[0][1]
    events = machine.begin({"tools": [HELLO]}, {"text": "Done."}, permissions="full").end()
    assert "approval" not in names(events)
    assert results(events) == [(f"/ {len(SECRET)}", False)]


@pytest.mark.real_cli
def test_the_picture_in_a_server_s_answer_is_sent_and_shown_without_its_place_on_the_disk(machine: Machine) -> None:
    shot = {"name": "mcp__good__shot", "input": {}}
    events = machine.begin({"tools": [shot]}, {"text": "Done."}, permissions="full").end()
    sent = [event.data for event in events if event.name == "image"]
    assert base64.b64decode("".join(part["data"] for part in sent)) == PICTURE
    ((text, _),) = results(events)
    call = Call(1, shot["name"], {}, text, pictures=["/runs/x/pictures/1"])
    assert call.shown == f"/ {len(SECRET)}"


@pytest.mark.real_cli
def test_the_servers_of_a_workspace_stay_unread_beside_them(machine: Machine, tmp_path: Path) -> None:
    planted = {"mcpServers": {"planted": {"command": "/bin/sh", "args": ["-c", f"touch {tmp_path}/ran; cat"]}}}
    run = machine.begin({"tools": [{"name": "mcp__planted__x", "input": {}}]}, {"text": "x"}, permissions="edit")
    run.end()
    (run.folder / ".mcp.json").write_text(json.dumps(planted))
    events = machine.occ.client.execute(
        run.folder.name, "Say hello.", executionId=f"again-{run.execution_id}", permissions="full"
    )
    assert list(events)[-1].name == "complete"
    assert not (tmp_path / "ran").exists()


@pytest.mark.real_cli
def test_a_server_that_hangs_is_waited_for_once_and_then_left_out(machine: Machine) -> None:
    folder = Path(machine.occ.environment["HOME"])
    add(machine.occ, "slow", folder / "hangs.py", folder / "token")
    try:
        machine.begin({"text": "Done."}, permissions="full").end()
        listed = json.loads(machine.occ.command("mcp-servers", "list", "--json").stdout)["mcpServers"]
        assert {each["name"]: each["failed"] for each in listed} == {"good": False, "slow": True}
        run = machine.begin({"tools": [HELLO]}, {"text": "Done."})
        question = run.question()
        (file,) = (machine.occ.home / "run" / "mcp").iterdir()
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert list(json.loads(file.read_text())["mcpServers"]) == ["good"]
        run.answer(question, "allow")
        assert results(run.end()) == [(f"/ {len(SECRET)}", False)]
    finally:
        machine.occ.command("mcp-servers", "remove", "slow")
