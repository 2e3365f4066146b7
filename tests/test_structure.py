"""The structure that docs/architecture.md describes: layers, imports, and where SQL and HTTP are used."""

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
MOST_LINES = 300
SOURCES = sorted([*ROOT.glob("occ_app/**/*.py"), *ROOT.glob("occ_worker/**/*.py")])
LAYERS = [
    {"errors"},
    {"system", "config"},
    {"database", "client", "claude", "link", "snapshots"},
    {"executions", "workspaces", "queue"},
    {"home", "streams"},
    {"web"},
    {"api", "slack"},
    {"hub"},
    {"wsgi", "service"},
    {"hub_wsgi", "supervisor", "doctor", "upgrade"},
    {"cli", "occ_worker"},
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


def module_of(path: Path) -> str:
    return name(path).removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def folder(path: Path) -> str:
    """The layer a module belongs to: its folder in occ_app, its own name at the root, or occ_worker."""
    parts = module_of(path).split(".")
    return parts[0] if parts[0] == "occ_worker" or len(parts) == 1 else parts[1]


def graph() -> dict[str, set[str]]:
    """Which module imports which, imports inside functions counted."""
    modules = {module_of(path): path for path in SOURCES}
    edges: dict[str, set[str]] = {}
    for module, path in modules.items():
        edges[module] = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                names = (f"{node.module}.{alias.name}" for alias in node.names)
                edges[module] |= {full if full in modules else node.module for full in names} & modules.keys()
            elif isinstance(node, ast.Import):
                edges[module] |= {alias.name for alias in node.names} & modules.keys()
    return edges


def test_a_module_imports_only_from_its_own_layer_or_a_lower_one() -> None:
    layer = {member: rank for rank, members in enumerate(LAYERS) for member in members}
    paths = {module_of(path): path for path in SOURCES}
    wrong = [
        f"{module} -> {target}"
        for module, targets in graph().items()
        for target in targets
        if module != "occ_app" and target != "occ_app" and folder(paths[module]) != folder(paths[target])
        if layer[folder(paths[target])] >= layer[folder(paths[module])]
    ]
    assert wrong == []


def test_the_drawing_of_the_modules_shows_their_imports() -> None:
    """An arrow of docs/architecture.md stands for an import that no longer path replaces."""
    paths = {module_of(path): path for path in SOURCES}
    imports: dict[str, set[str]] = {}
    for module, targets in graph().items():
        box = folder(paths[module])
        imports.setdefault(box, set()).update({folder(paths[each]) for each in targets} - {box, "occ_app"})

    def reached(box: str) -> set[str]:
        return imports[box].union(*(reached(each) for each in imports[box]))

    needed = {
        (box, target)
        for box in imports.keys() - {"occ_app"}
        for target in imports[box]
        if not any(target in reached(other) for other in imports[box])
    }
    drawing = (ROOT / "docs/architecture.md").read_text().partition("flowchart BT\n")[2].partition("```")[0]
    drawn = {
        (box, target)
        for boxes, targets in re.findall(r"^  (.+) --> (.+)$", drawing, re.MULTILINE)
        for box in boxes.split(" & ")
        for target in targets.split(" & ")
    }
    assert drawn == needed


def test_no_module_imports_itself_through_others() -> None:
    edges, state, cycles = graph(), dict[str, str](), list[str]()

    def visit(module: str, path: list[str]) -> None:
        state[module] = "open"
        for target in sorted(edges[module]):
            if state.get(target) == "open":
                cycles.append(" -> ".join([*path[path.index(target) :], target]))
            elif target not in state:
                visit(target, [*path, target])
        state[module] = "done"

    for module in edges:
        if module not in state:
            visit(module, [module])
    assert cycles == []


def test_only_config_reads_the_environment() -> None:
    readers = {name(path) for path in SOURCES if re.search(r"os\.environ|os\.getenv|getenv\(", path.read_text())}
    # The entry point replaces the process without its secrets; output looks at NO_COLOR; the simulation is a program.
    # git is run with its caller's environment, and its settings name the user's ignore file.
    assert readers == {
        *(
            "occ_app/config/config.py",
            "occ_app/config/homes.py",
            "occ_app/config/service_environment.py",
            "occ_app/config/child_processes.py",
            "occ_app/config/client_variables.py",
        ),
        *("occ_app/cli/__init__.py", "occ_app/cli/output.py", "occ_app/cli/gitignore.py"),
    }


def test_sql_stands_in_its_few_modules() -> None:
    verbs = re.compile(r"\b(SELECT .* FROM|INSERT (OR \w+ )?INTO|UPDATE \w+ SET|DELETE FROM)\b", re.DOTALL)
    with_sql = {name(path) for path in SOURCES if verbs.search(path.read_text())}
    assert with_sql == {
        "occ_app/queue.py",  # the queue's own table
        *(
            f"occ_app/executions/{module}.py"
            for module in (
                "acceptance",
                "approvals",
                "attachments",
                "branches",
                "ceilings",
                "conversations",
                "changes",
                "events",
                "follow_ups",
                "inputs",
                "kept",
                "lifecycle",
                "overview",
                "holding",
                "parking",
                "process_marks",
                "queries",
                "rules",
                "search",
                "sharing",
                "snippets",
                "tally",
                "usage",
                "waiting",
            )
        ),
        *(
            f"occ_app/workspaces/{module}.py"
            for module in (
                "places",
                "projects",
                "restores",
                "unfinished",
                "updates",
                "upload_jobs",
                "uploads",
                "workspace",
            )
        ),
        *(f"occ_app/slack/{module}.py" for module in ("inbox", "outbox", "pacing", "people", "threads")),
        *(f"occ_app/home/{module}.py" for module in ("notes", "quarantine")),
        *(
            f"occ_app/hub/{module}.py"
            for module in (
                "agent_lists",
                "agents",
                "approval_rows",
                "channels",
                "deliveries",
                "fetched_changes",
                "keys",
                "local_executions",
                "logins",
                "outbox",
                "pairings",
                "placement",
                "projects",
                "registrations",
                "updates",
                "webhooks",
                "workspaces",
            )
        ),
    }


DOMAIN = {"system", "database", "link", "snapshots", "executions", "workspaces", "streams", "home"}


def test_the_domain_knows_no_http_and_no_terminal() -> None:
    banned = {"flask", "click", "urllib3", "gunicorn", "werkzeug"}
    wrong = {name(path) for path in SOURCES if folder(path) in DOMAIN and banned & set(imported(path))}
    assert wrong == set()


def test_no_module_is_longer_than_a_person_reads_at_once() -> None:
    long = {name(path): lines for path in SOURCES if (lines := len(path.read_text().splitlines())) > MOST_LINES}
    assert not long, long


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
    from occ_app.database import schema

    spec = importlib.util.spec_from_file_location("migrations", ROOT / "migrations" / "migrations.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert len(module.occ._migrations) == schema.SCHEMA_VERSION


def test_every_suppressed_rule_carries_its_reason() -> None:
    bare = [
        f"{name(path)}:{number}"
        for path in SOURCES
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if re.search(r"# noqa: [A-Z0-9, ]+$", line) or re.search(r"# type: ignore\[[a-z-]+\]$", line)
    ]
    assert bare == []


@pytest.mark.parametrize(
    ("program", "unneeded"),
    [
        ("occ_worker.control.process", "occ_worker.execution"),
        ("occ_worker.execution.process", "occ_worker.control"),
        ("occ_worker.agent", "huey"),
        ("occ_worker.control.hub_process", "occ_worker.relay"),
        ("occ_worker.control.hub_process", "flask"),
        ("occ_worker.relay.process", "occ_worker.control"),
        ("occ_worker.relay.process", "flask"),
        ("occ_worker.hub", "huey"),
    ],
)
def test_a_process_loads_no_modules_of_another_one(program: str, unneeded: str) -> None:
    code = f"import sys, {program}; sys.exit({unneeded!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
