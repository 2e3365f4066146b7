"""What the README and docs/ say, compared with the code, and their examples, run."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import click
import pytest

from occ_app import __version__
from occ_app.cli.commands import occ as occ_command
from occ_app.config import claude_environment as cli_environment
from occ_app.config import config
from occ_app.config.settings import HUB_SETTINGS, SETTINGS, Setting
from occ_app.executions import search
from occ_app.executions.records import ERROR_CODES
from occ_app.web import refusals
from occ_app.workspaces import archive_checks, archive_links, archive_names, archives
from tests import fake_hub, pictures, sentences
from tests.conftest import Occ, make_zip, shared_agent, steps, wait_until
from tests.real_hub import hub_in

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
DOCS = {path.name: path.read_text() for path in sorted((ROOT / "docs").glob("*.md")) if path.name != "README.md"}
INDEX = (ROOT / "docs" / "README.md").read_text()
WEBSOCKET, LINK = "GET /executions/{id}/ws", "GET /api/agents/{id}/link"  # OpenAPI has no words for these
HUBS_API = "\n## The hub's API\n"
PAGES = {"README.md": README, "CHANGELOG.md": (ROOT / "CHANGELOG.md").read_text()} | DOCS
PAGES |= {"docs/README.md": INDEX} | {name: (ROOT / name).read_text() for name in ("CONTRIBUTING.md", "SECURITY.md")}


def commands() -> Iterator[tuple[str, click.Command]]:
    """Every command with its full name."""

    def walk(name: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
        if not isinstance(command, click.Group) or command.invoke_without_command:
            yield name, command
        if isinstance(command, click.Group):
            context = click.Context(command)
            for child in command.list_commands(context):
                inner = command.get_command(context, child)
                assert inner is not None
                yield from walk(f"{name} {child}", inner)

    return walk("occ", occ_command)


def options(command: click.Command) -> set[str]:
    return {name for parameter in command.params for name in parameter.opts if name.startswith("--")}


def table(page: str, first_column: str) -> dict[str, list[str]]:
    """The rows of the page's tables whose first cell matches, by that cell."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line.startswith("|")]
    return {row[0].strip("`"): row[1:] for row in rows if re.fullmatch(first_column, row[0])}


def block(kind: str) -> str:
    """The example of the README or docs/ marked with this kind."""
    (found,) = re.findall(rf"<!-- {kind} -->\n```\w*\n(.*?)```", "\n".join(PAGES.values()), re.DOTALL)
    example: str = found
    return example


def code(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)


def test_the_pictures_are_those_of_the_script_and_small() -> None:
    found = {path.name: path.stat().st_size for path in (ROOT / "docs" / "pictures").iterdir()}
    assert sorted(found) == sorted(pictures.names())
    assert sum(found.values()) < 2_000_000


def test_the_commands_page_lists_every_command_and_no_other() -> None:
    told = {re.sub(r" [A-Z]+$", "", name) for name in table(DOCS["commands.md"], r"`occ [a-z -]+( [A-Z]+)?`")}
    assert told == {name for name, _ in commands()}


def test_the_docs_name_every_option_and_no_other() -> None:
    known = {option for _, command in commands() for option in options(command)}
    pages = README + DOCS["commands.md"] + DOCS["configuration.md"]
    told = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", pages)) - {"--help"}
    assert known - told == set()
    assert told - known == set()


@pytest.mark.parametrize(
    ("settings", "kind", "command"),
    [(SETTINGS, config.Config, "occ start"), (HUB_SETTINGS, config.HubConfig, "occ hub start")],
    ids=["agent", "hub"],
)
def test_the_settings_tables_are_the_code_s(
    settings: tuple[Setting, ...], kind: type[config.Config], command: str
) -> None:
    told = table(
        DOCS["configuration.md"], r"`OCC_HUB_[A-Z_]+`" if kind is config.HubConfig else r"`OCC_(?!HUB_)[A-Z_]+`"
    )
    assert list(told) == [setting.variable for setting in settings]
    defaults = {field.name: field.default for field in fields(kind)}
    for setting in settings:
        default = defaults[setting.name]
        if isinstance(default, (int, float)) and not isinstance(default, bool):
            assert told[setting.variable][1] == f"{default:g}" or told[setting.variable][1] == str(default)
    flags = {row[0].strip("`") for row in told.values() if row[0]}
    assert flags == options(dict(commands())[command]) - {"--foreground"}


def test_the_tools_in_the_settings_table_are_the_code_s() -> None:
    assert table(DOCS["configuration.md"], "`OCC_TOOLS`")["OCC_TOOLS"][1] == ",".join(config.DEFAULT_TOOLS)


def test_every_variable_the_docs_name_is_read_by_the_code() -> None:
    known = {setting.variable for setting in (*SETTINGS, *HUB_SETTINGS)}
    known |= {"OCC_HOME", "OCC_HUB_HOME", "OCC_TOKEN", "OCC_URL", "OCC_PIN", "OCC_EXECUTION_ID"}
    told = {name for page in PAGES.values() for name in re.findall(r"\bOCC_[A-Z_]+\b", page)}
    assert told == known


def test_the_variables_that_reach_the_cli_are_listed() -> None:
    told = set(re.findall(r"`([A-Z][A-Z_]+\*?)`", DOCS["configuration.md"]))
    known = set(cli_environment.NAMES) | {f"{prefix}*" for prefix in cli_environment.PREFIXES}
    known -= {name for name in known if name.islower()}
    assert {name for name in told if not name.startswith("OCC_")} == known


def served(document: dict[str, Any]) -> set[str]:
    """The addresses that an OpenAPI document describes, whatever their parts are called."""
    return {
        f"{method.upper()} {re.sub(r'{.*?}', '{id}', path)}"
        for path, operations in document["paths"].items()
        for method in operations
        if method in ("get", "post", "delete")
    }


def named(text: str) -> set[str]:
    """The addresses that a text names, as `served` writes them."""
    found = re.findall(r"\b((?:GET|POST|DELETE) /[a-zA-Z{}/._]*[a-z}])", text)
    return {re.sub(r"{.*?}", "{id}", address) for address in found}


def apart(page: str) -> tuple[str, str]:
    """A page without its section on the hub's API, and that section."""
    before, _, rest = page.partition(HUBS_API)
    section, _, after = rest.partition("\n## ")
    return before + after, section


def test_every_address_is_listed(audited: Occ) -> None:
    wire = served(audited.request("GET", "/openapi.json").json())
    told = named(apart(DOCS["protocol.md"])[0])
    assert {address for address in told if " /api/" not in address} == wire | {WEBSOCKET}


def test_every_address_of_the_hub_is_listed(audited: Occ, tmp_path: Path) -> None:
    with hub_in(tmp_path) as hub:
        document = hub.start().request("GET", "/openapi.json").json()
    assert document["info"]["title"] == "OCC hub"
    of_agents = served(audited.request("GET", "/openapi.json").json())
    page, section = apart(DOCS["protocol.md"])
    told = (named(section) - of_agents) | {address for address in named(page) if " /api/" in address}
    assert told == (served(document) - of_agents) | {LINK}
    assert of_agents - {"GET /proof"} <= served(document)  # a hub is called by clients, with keys


def test_the_error_codes_are_the_code_s() -> None:
    told = table(DOCS["protocol.md"], r"[45]\d\d")
    listed = {
        name: int(status) for status, (cell,) in told.items() for name in re.findall(r"`([A-Z]+_?[A-Z_]*[A-Z])`", cell)
    }
    assert listed == refusals.STATUS
    sources = [Path(module.__file__).read_text() for module in (archives, archive_checks, archive_links, archive_names)]
    zips = set(re.findall(r'"(ZIP_[A-Z_]+)"', "".join(sources)))
    assert set(re.findall(r"`(ZIP_[A-Z_]+[A-Z])`", DOCS["protocol.md"])) == zips


def test_the_codes_of_the_error_event_are_the_code_s() -> None:
    told = re.search(r"Codes of `error`: (.*?)\n\n", DOCS["protocol.md"], re.DOTALL)
    assert told is not None
    assert set(re.findall(r"`([A-Z_]+)`", told.group(1))) == ERROR_CODES
    sources = "".join(
        path.read_text() for path in (*(ROOT / "occ_worker").rglob("*.py"), *(ROOT / "occ_app").rglob("*.py"))
    )
    for name in ERROR_CODES:
        assert sources.count(f'"{name}"') > 1, name  # once in their list


def test_every_dependency_has_its_reason() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    for name in (re.split(r"[^a-z0-9-]", entry)[0] for entry in needed):
        assert f"`{name}`" in DOCS["dependencies.md"], name


def test_links_between_the_pages_lead_somewhere() -> None:
    for name, page in PAGES.items():
        folder = ROOT / "docs" if name in DOCS or name == "docs/README.md" else ROOT
        for target, _, anchor in re.findall(r"\]\((?!https?:)([^)#]+)(#([^)]*))?\)", page):
            path = folder / target
            assert path.exists(), (name, target)
            if anchor:
                headings = [line for line in path.read_text().splitlines() if line.startswith("#")]
                anchors = {re.sub(r"[^a-z0-9 -]", "", line.lower()).strip().replace(" ", "-") for line in headings}
                assert anchor in anchors, (name, anchor)


def test_every_file_the_docs_name_exists() -> None:
    for path in re.findall(r"`(occ_(?:app|worker)/[a-z_/]+\.py)`", "".join(PAGES.values())):
        assert (ROOT / path).exists(), path


def test_every_test_the_docs_name_exists() -> None:
    tests = {
        match
        for path in (ROOT / "tests").glob("test_*.py")
        for match in re.findall(r"def (test_\w+)", path.read_text())
    }
    files = {path.name for path in (ROOT / "tests").glob("*.py")}
    for name, page in PAGES.items():
        for test in re.findall(r"`(test_\w+)`", page):
            assert test in tests, (name, test)
        for file in re.findall(r"`tests/(\w+\.py)`", page):
            assert file in files, (name, file)


@pytest.fixture
def shell(occ: Occ, tmp_path: Path) -> Occ:
    """`occ` on PATH as a person has it, beside a folder my-project; other agents' ports are not taken."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "occ").symlink_to(Path(sys.executable).with_name("occ"))
    occ.environment |= {"PATH": f"{folder}:{os.environ['PATH']}"}
    (tmp_path / "my-project").mkdir()
    (tmp_path / "my-project" / "README.md").write_text("hello\n")
    return occ


def run(shell: Occ, script: str) -> str:
    """Run a script word for word, stopping at the first thing that fails."""
    done = subprocess.run(
        ["bash", "-e", "-u", "-c", script],
        env=shell.environment,
        cwd=shell.home.parent,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, (done.stdout, done.stderr)
    return done.stdout


def test_the_quick_start_works_word_for_word(shell: Occ) -> None:
    told = run(shell, block("run: quick"))
    assert "You said: Read this project and write its README." in told
    assert "succeeded" in told
    assert sentences.OCC_HAS_STOPPED in told
    told = run(shell, f"{block('run: tutorial')}occ stop")
    assert "You said: Make it half as long." in told
    assert sentences.OCC_HAS_STOPPED in told


def test_the_quick_start_with_a_hub_works(shell: Occ) -> None:
    with fake_hub.serve() as hub:
        script = block("run: hub").replace("https://hub.example.com", hub.url)
        run(shell, f"export OCC_BIND_ADDRESS=127.0.0.1 HUB_KEY={fake_hub.API_KEY}\n{script}")
        assert len(hub.registrations) == 1
        shell.stop()


def test_the_example_with_a_hub_of_its_own_works_word_for_word(shell: Occ, free_port: int, tmp_path: Path) -> None:
    shell.environment |= {"OCC_HUB_HOME": str(tmp_path / "occ-hub"), "OCC_BIND_ADDRESS": "127.0.0.1"}
    shell.environment |= {"OCC_HUB_HTTP_PORT": str(free_port)}
    try:
        told = run(shell, block("run: own hub").replace("7700", str(free_port)))
        assert "You said: What is in here?" in told
        assert sentences.THE_HUB_HAS_STOPPED in told
    finally:
        shell.command("hub", "stop", check=False)


def test_the_example_with_tls_works_word_for_word(shell: Occ, free_port: int) -> None:
    told = run(shell, block("run: tls").replace("8766", str(free_port)))
    assert "You said: What is in here?" in told
    assert sentences.OCC_HAS_STOPPED in told


def test_the_curl_examples_work_word_for_word(shell: Occ, free_port: int, tmp_path: Path) -> None:
    script = block("run: curl").replace("8765", str(free_port)).replace("/tmp/", f"{tmp_path}/")
    script = script.replace("zip -qr", f'"{sys.executable}" -m zipfile -c')
    told = run(shell, script)
    assert '"status": "success"' in told or '"status":"success"' in told
    assert told.count("event: complete") == 2
    assert '"state":"succeeded"' in told.replace(" ", "")
    assert '"healthy"' in told
    assert (tmp_path / "my-project-now.zip").stat().st_size > 100


def test_the_python_example_works_word_for_word(shell: Occ) -> None:
    shell.start()
    python_example(shell, shell.url, shell.token)


def test_the_python_example_works_against_a_hub_too(shell: Occ, tmp_path: Path) -> None:
    with hub_in(tmp_path) as hub:
        hub.start()
        hub.agent("box")
        python_example(shell, hub.url, hub.key("example", "client"))


def python_example(shell: Occ, url: str, token: str) -> None:
    """Run the example of docs/api.md against an agent or a hub."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", block("run: python")],
        env=shell.environment | {"AGENT": url, "TOKEN": token},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "You said: Read notes.txt" in done.stdout
    assert "complete: done" in done.stdout
    assert " succeeded" in done.stdout


def test_no_line_to_paste_has_a_secret_as_an_argument() -> None:
    """`occ` warns of such a line, because other users can read the argument."""
    texts = [*PAGES.values()]
    texts += [path.read_text() for suffix in ("py", "html", "js") for path in (ROOT / "occ_app").rglob(f"*.{suffix}")]
    lines = [line for text in texts for line in re.findall(r"\bocc [^`\n]*--(?:token|api-key)[ =][^`\n]*", text)]
    assert [line for line in lines if not re.search(r"--(?:token|api-key)[ =](?:@\S|--|`|and\b|,)", line)] == []


def test_the_screen_of_the_demo_is_what_it_prints(shell: Occ) -> None:
    """Line by line, with what differs from run to run made equal."""

    def plain(text: str) -> list[str]:
        changing = r"occ_[\w-]{20,}|tally-\w{8}|127.0.0.1:\d+|/pair#[\w-]+|\d+\.\d s"
        changing += r"|[/.\w=]*/occ-demo-\w+|\S*\bocc(?= run| jobs)"
        lines = re.sub(changing, "…", text).replace("\nStopping …", "").strip().splitlines()
        # A terminal replaces the progress line; elsewhere it stays.
        return [line.rstrip() for line in lines if line != f"{sentences.CLAUDE_IS_READING_THE_PROJECT} …"]

    environment = {key: value for key, value in shell.environment.items() if key not in ("OCC_CLAUDE_BIN", "OCC_HOME")}
    environment["PATH"] = f"{shell.home.parent}/bin:/usr/bin:/bin"
    demo = subprocess.Popen(
        ["occ", "demo"], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert demo.stdout is not None
    printed = ""
    for line in demo.stdout:
        printed += line
        if "Ctrl-C stops it" in line:
            break
    demo.terminate()
    printed += demo.stdout.read()
    demo.stdout.close()
    assert demo.wait(60) == 0
    assert plain(printed) == plain(block("screen: demo"))


QUERIES = code(DOCS["auditing.md"], "sql")


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Occ]:
    """An agent with which something of each kind has happened."""
    with shared_agent(tmp_path_factory.mktemp("audited")) as agent:
        client = agent.client
        client.upload("work", make_zip({"notes.txt": "buy milk\n", ".mcp.json": "{}"}))
        agent.run("is there milk?", executionId="exec-1")
        agent.run(steps({"tool": "Write", "input": {"file_path": "a.txt"}, "result": "ok"}))
        agent.run(steps({"exit": 3}))
        running = client.execute("work", steps({"say": "on"}, {"sleep": 1500}))
        while next(running).name != "output":
            pass
        next(client.execute("work", "later"))
        wait_until(lambda: not search.waiting(agent.database), "what is over to be found by a search")
        yield agent


def test_there_are_a_dozen_ready_queries() -> None:
    assert len(QUERIES) >= 12


@pytest.mark.parametrize("query", QUERIES, ids=[query.split("\n")[0][:40] for query in QUERIES])
def test_each_ready_query_answers_in_the_sqlite_shell(audited: Occ, query: str) -> None:
    done = subprocess.run(
        ["sqlite3", "-readonly", "-json", str(audited.home / "occ.db"), query],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout or "[]"), "it found nothing although there is something to be found"


def test_the_index_of_the_docs_names_every_page() -> None:
    named = set(re.findall(r"\]\(([\w-]+\.md)[#)]", INDEX))
    assert named == set(DOCS)


def test_every_quoted_symptom_is_printed_by_the_code() -> None:
    sources = [path.read_text() for name in ("occ_app", "occ_worker") for path in (ROOT / name).rglob("*.py")]
    rows = re.findall(r"^\| (.*?) \|", DOCS["troubleshooting.md"], re.MULTILINE)
    symptoms = [words for row in rows for words in re.findall(r"`([^`]+)`", row) if not words.startswith("occ")]
    assert len(symptoms) > 8
    for words in symptoms:
        shown = words.removeprefix("OCC ")  # a program's name is filled in
        assert any(shown in source for source in sources), words


def test_every_decision_has_its_date_its_alternatives_and_its_cost() -> None:
    records = DOCS["decisions.md"].split("\n## ")[1:]
    assert len(records) >= 12
    for record in records:
        assert re.search(r"\n\n20\d\d-\d\d-\d\d\. ", record), record[:60]
        assert "Alternatives:" in record
        assert "Cost:" in record


def test_the_changelog_has_the_form_of_keep_a_changelog() -> None:
    lines = PAGES["CHANGELOG.md"].splitlines()
    kinds = {line for line in lines if line.startswith("### ")}
    assert kinds <= {f"### {kind}" for kind in ("Added", "Changed", "Deprecated", "Removed", "Fixed", "Security")}
    versions = [line for line in lines if line.startswith("## ")]
    assert versions[0] == "## Unreleased"
    assert versions[1].startswith(f"## {__version__} - ")
    assert all(re.fullmatch(r"## \d+\.\d+\.\d+ - \d{4}-\d\d-\d\d", line) for line in versions[1:])
