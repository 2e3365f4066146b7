"""The shape of the house, as docs/architecture.md says it: who imports whom, where SQL and HTTP stand."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = sorted([*ROOT.glob("occ_app/**/*.py"), *ROOT.glob("occ_worker/**/*.py")])
DOMAIN = [
    "archive_checks",
    "archives",
    "db",
    "doorbell",
    "events",
    "executions",
    "folders",
    "identity",
    "kernel",
    "lifecycle",
    "link",
    "link_frames",
    "link_socket",
    "link_stream",
    "loop",
    "search",
    "state",
    "tail",
    "tally",
    "usage",
    "workspaces",
]


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
            yield from (f"{node.module}.{name.name}" for name in node.names)


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_the_worker_imports_the_app_and_only_the_wiring_imports_back() -> None:
    back = {
        name(path)
        for path in SOURCES
        if path.is_relative_to(ROOT / "occ_app") and any(module.startswith("occ_worker") for module in imported(path))
    }
    assert back == {"occ_app/wsgi.py", "occ_app/hub/wsgi.py"}


def test_only_config_reads_the_environment() -> None:
    readers = {name(path) for path in SOURCES if re.search(r"os\.environ|os\.getenv|getenv\(", path.read_text())}
    # The entry point replaces the process without its secrets; output looks at NO_COLOR; the simulation is a program.
    assert readers == {"occ_app/config.py", "occ_app/cli/__init__.py", "occ_app/cli/output.py"}


def test_sql_stands_in_its_few_modules() -> None:
    verbs = re.compile(r"\b(SELECT .* FROM|INSERT (OR \w+ )?INTO|UPDATE \w+ SET|DELETE FROM)\b", re.DOTALL)
    with_sql = {name(path) for path in SOURCES if verbs.search(path.read_text())}
    of_both = (
        "agent",
        "events",
        "executions",
        "lifecycle",
        "salvage",
        "search",
        "tally",
        "uploads",
        "usage",
        "workspaces",
    )
    of_the_hub = ("agents", "errands", "keys", "logins", "placement", "webhooks", "workspaces")
    of_the_queue = {"occ_worker/queues.py"}  # the queue's own table
    assert with_sql == of_the_queue | {f"occ_app/{module}.py" for module in of_both} | {
        f"occ_app/hub/{module}.py" for module in of_the_hub
    }


@pytest.mark.parametrize("module", DOMAIN)
def test_the_domain_knows_no_http_and_no_terminal(module: str) -> None:
    modules = set(imported(ROOT / "occ_app" / f"{module}.py"))
    assert not modules & {"flask", "click", "urllib3", "gunicorn", "werkzeug"}


def test_no_import_does_work() -> None:
    """Importing every module starts nothing, opens nothing and writes nothing."""
    modules = [name(path).removesuffix(".py").removesuffix("/__init__").replace("/", ".") for path in SOURCES]
    modules = [module for module in modules if not module.endswith("__main__")]
    program = (
        "import sys\n"
        "wrong = []\n"
        "def hook(event, args):\n"
        "    if event in ('subprocess.Popen', 'socket.bind', 'socket.connect', 'sqlite3.connect', 'os.fork'):\n"
        # urllib3 finds out at import whether there is IPv6, on a loopback port.
        "        if event != 'socket.bind' or args[1][0] != '::1': wrong.append(event)\n"
        "    if event == 'open' and isinstance(args[1], str) and set(args[1]) & set('wax+'):\n"
        "        wrong.append(f'{event} {args[0]}')\n"
        "sys.dont_write_bytecode = True\n"
        "sys.addaudithook(hook)\n"
        f"import importlib\nfor module in {modules!r}: importlib.import_module(module)\n"
        "sys.exit('\\n'.join(wrong) or 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr


def test_the_schema_version_counts_the_migrations() -> None:
    from occ_app import db

    spec = importlib.util.spec_from_file_location("migrations", ROOT / "migrations" / "migrations.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert len(module.occ._migrations) == db.SCHEMA_VERSION


def test_every_suppressed_rule_carries_its_reason() -> None:
    bare = [
        f"{name(path)}:{number}"
        for path in SOURCES
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if re.search(r"# noqa: [A-Z0-9, ]+$", line) or re.search(r"# type: ignore\[[a-z-]+\]$", line)
    ]
    assert bare == []
