"""The memory of a project reaches the model as it does by hand in the same folder, and nothing from outside does."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from occ_app.workspaces import memory
from tests.model_api import FAKE_KEY, ModelApi
from tests.test_real_cli import marks, reply

# Each import is a file of that name, which holds a mark with its name.
IMPORTS = """
MARK-root
@plain.md and @two.md, in See @sentence.md, (@paren.md) x@mid.md @dot.md. `@code.md` ``@code2.md``
@semi.md; @ex.md! @q.md? @colon.md: "@quoted.md" @frag.md#part @./rel.md @noext @a.json @b.py @d.yaml @c.bin
@sp\\ ace.md @missing.md @dir/deep1.md @AGENTS.md @*star.md
```
@block.md
```
~~~python
@tilde.md
```
@tilde2.md
~~~
- @list.md
  @list2.md

  @list3.md

> @quote.md
# @head.md
**@bold.md** *@em.md* [x](@link.md) [@linktext.md](y) ~~@strike.md~~

    @indent.md

prose
    @lazy.md

<!-- @comment.md MARK-comment -->

<div>@html.md
@html2.md
</div>

| @table.md | x |
|---|---|
| @cell.md | y |

1. @number.md
"""
NAMES = re.findall(r"@(?:\./)?([a-z0-9]+\.md)", IMPORTS)
FILES = {
    **{name: f"MARK-{name.removesuffix('.md')}\n" for name in NAMES if name != "missing.md"},
    "CLAUDE.md": IMPORTS,
    "AGENTS.md": "MARK-agents\n",
    "noext": "MARK-noext\n",
    "sp ace.md": "MARK-space\n",
    **{name: f"MARK-file-{name[0]}\n" for name in ("a.json", "b.py", "c.bin", "d.yaml")},
    **{f"dir/deep{n}.md": f"MARK-deep{n} @deep{n + 1}.md\n" for n in range(1, 8)},
    "CLAUDE.local.md": "MARK-local @viaLocal.md\n",
    "viaLocal.md": "MARK-viaLocal\n",
    ".claude/CLAUDE.md": "MARK-dot @../viaDot.md @inDot.md\n",
    ".claude/inDot.md": "MARK-inDot\n",
    "viaDot.md": "MARK-viaDot\n",
    ".claude/rules/a.md": "MARK-rule-a @imp.md\n",
    ".claude/rules/imp.md": "MARK-rule-imp\n",
    ".claude/rules/sub/b.md": "MARK-rule-b\n",
    ".claude/rules/c.txt": "MARK-rule-text\n",
    ".claude/rules/UP.MD": "MARK-rule-upper\n",
    ".claude/rules/p.md": "---\npaths: src/**/*.py\n---\nMARK-rule-paths\n",
    ".claude/rules/l.md": '---\npaths:\n  - "src/*.py"\n---\nMARK-rule-list\n',
    ".claude/rules/q.md": "---\ndescription: x\n---\nMARK-rule-front\n",
    ".claude/rules/r.md": "---\npaths:\n---\nMARK-rule-empty\n",
    ".claude/rules/s.md": '---\npaths: "**"\n---\nMARK-rule-all\n',
    "src/CLAUDE.md": "MARK-nested\n",
    "claude.md": "MARK-lowercase\n",
    "loop1.md": "MARK-loop1 @loop2.md\n",
    "loop2.md": "MARK-loop2 @loop1.md\n",
    ".claude/rules/z.md": "@../../loop1.md\n",
}


ABC = {f"{name}.md": f"MARK-{name}" for name in "abc"}


def make(folder: Path, files: Mapping[str, str], links: Mapping[str, str] | None = None) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    for name, target in (links or {}).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to(target)
    return folder


@dataclass(frozen=True)
class ByHand:
    """Returns the marks that reach the model when `claude -p` runs in a folder."""

    claude: Path
    version: str
    environment: Mapping[str, str]
    model: ModelApi

    def __call__(self, folder: Path, prompt: str = "hello") -> set[str]:
        before = len(self.model.requests())
        command = [self.claude, "-p", prompt]
        subprocess.run(
            command,
            cwd=folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            check=True,
            timeout=60,
            capture_output=True,
        )
        return marks(json.dumps([request["body"] for request in self.model.requests()[before:]]))


@pytest.fixture
def by_hand(release: str, real_claude: Path, tmp_path: Path, model: ModelApi) -> ByHand:
    environment = {"PATH": os.defpath, "HOME": str(tmp_path), "ANTHROPIC_BASE_URL": model.url}
    environment |= {"ANTHROPIC_API_KEY": FAKE_KEY, "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1"}
    return ByHand(real_claude, release, environment, model)


# Of FILES, the marks that are part of the memory.
READ = """
agents bold cell deep1 deep2 deep3 deep4 dot em file-a file-b file-d frag head inDot lazy linktext list list2 list3
local loop1 loop2 noext number plain quote rel root rule-a rule-all rule-b rule-empty rule-front rule-imp space table
viaDot viaLocal
"""
# Files, links, and the marks that are part of the memory. `make test` runs the CLI on the first ones.
CASES: list[tuple[Mapping[str, str], Mapping[str, str], str]] = [
    (FILES, {}, READ),
    ({"a.md": "MARK-root @x.md", "real/AGENTS.md": "MARK-linked @x.md",
      "real/x.md": "MARK-beside", "x.md": "MARK-x"},
     {"CLAUDE.md": "real/AGENTS.md", ".claude/rules/ln.md": "../../a.md", "CLAUDE.local.md": "/etc/hostname"},
     "beside linked root x"),
    ({"AGENTS.md": "MARK-agents @x.md", "x.md": "MARK-x"}, {}, "agents x"),
    ({"CLAUDE.md": "\ufeff@AGENTS.md", "AGENTS.md": "MARK-agents"}, {}, "agents"),
    ({"CLAUDE.md": "a\r\n@AGENTS.md\r\n", "AGENTS.md": "MARK-agents\r\n"}, {}, "agents"),
    ({"AGENTS.md": "MARK-agents", "CLAUDE.md": ""}, {}, "agents"),
    ({"AGENTS.md": "MARK-agents", "CLAUDE.md": "MARK-root"}, {}, "root"),
    ({"AGENTS.md": "MARK-agents", "CLAUDE.local.md": "MARK-local"}, {}, "local"),
    ({"AGENTS.md": "MARK-agents", ".claude/rules/a.md": "MARK-rule"}, {}, "agents rule"),
    ({".claude/AGENTS.md": "MARK-agents"}, {}, "agents"),
    ({".claude/CLAUDE.md": "MARK-dot"}, {}, "dot"),
    ({"CLAUDE.md": "# T\n\n- Use\n    @a.md\n\n1. x\n\n   ```sh\n   @b.md\n   ```\n2. @c.md", **ABC}, {}, "a c"),
    ({"CLAUDE.md": "a ` b\n\n@a.md ` c @b.md\n\n<b>@c.md</b>\n", **ABC}, {}, "a b c"),
]  # fmt: skip
RUN_BY_HAND = CASES if os.environ.get("TEST_ALL") else CASES[:3]


@pytest.mark.parametrize(("files", "links", "read"), CASES)
def test_the_memory_has_these_files(
    tmp_path: Path, files: Mapping[str, str], links: Mapping[str, str], read: str
) -> None:
    assert marks(memory.read(make(tmp_path / "work", files, links))) == {f"MARK-{name}" for name in read.split()}


@pytest.mark.real_cli
@pytest.mark.parametrize(("files", "links", "read"), RUN_BY_HAND)
def test_it_is_the_memory_that_the_cli_reads_by_hand(
    tmp_path: Path, by_hand: ByHand, files: Mapping[str, str], links: Mapping[str, str], read: str
) -> None:
    folder = make(tmp_path / "work", files, links)
    expected = set(read.split())
    if by_hand.version == "2.1.197" and "@AGENTS.md" not in str(files.get("CLAUDE.md")):
        # It reads no AGENTS.md by itself, nor the imports of one.
        alone = " ".join(files.get(name, "") for name in ("AGENTS.md", ".claude/AGENTS.md"))
        expected -= {"agents"} | ({"x"} if "@x.md" in alone else set())
    assert by_hand(folder) == {f"MARK-{name}" for name in expected}


SUBFOLDERS = {
    "src/CLAUDE.md": "MARK-src",
    "src/.claude/CLAUDE.md": "MARK-dot",
    "src/.claude/rules/sub/r.md": "MARK-rule",
    "src/deep/CLAUDE.md": "MARK-deep",
    "src/deep/CLAUDE.local.md": "MARK-local",
    "src/deep/AGENTS.md": "MARK-agents",
    "src/deep/claude.md": "MARK-lowercase",
    "src/deep/.claude/AGENTS.md": "MARK-dot-agents",
}


ROOTS = [{"CLAUDE.md": "MARK-root"}, {}]


def named_in_subfolders(folder: Path, root: Mapping[str, str]) -> set[str]:
    """The marks of the files that the memory of such a folder names."""
    make(folder, {**root, **SUBFOLDERS, "src/deep/a.py": "x = 1"})
    return {SUBFOLDERS[name] for name in memory.read(folder).rpartition("read its file: ")[2].split(", ")}


@pytest.mark.parametrize("root", ROOTS)
def test_it_names_these_files_of_subfolders(tmp_path: Path, root: Mapping[str, str]) -> None:
    expected = {f"MARK-{name}" for name in ("src", "dot", "rule", "deep", "local")}
    assert named_in_subfolders(tmp_path / "work", root) == expected


@pytest.mark.real_cli
@pytest.mark.parametrize("root", ROOTS if os.environ.get("TEST_ALL") else ROOTS[:1])
def test_it_names_the_files_of_subfolders_that_the_cli_reads_later_by_hand(
    tmp_path: Path, by_hand: ByHand, root: Mapping[str, str]
) -> None:
    folder = tmp_path / "work"
    named = named_in_subfolders(folder, root)
    read = {"name": "Read", "input": {"file_path": str(folder / "src/deep/a.py")}}
    assert named == by_hand(folder, reply({"text": "x", "tools": [read]}, {"text": "y"})) - {"MARK-root"}


def test_files_of_subfolders_are_named_only_where_they_are_the_workspaces(tmp_path: Path) -> None:
    secret = make(tmp_path / "outside", {"CLAUDE.md": "SECRET"})
    files = {"a/b/CLAUDE.md": "x", "empty/CLAUDE.md": "", "node_modules/p/CLAUDE.md": "x", ".hidden/CLAUDE.md": "x"}
    links = {"c/CLAUDE.md": str(secret / "CLAUDE.md"), "d": str(secret), "e/CLAUDE.md": "../a/b/CLAUDE.md"}
    text = memory.read(make(tmp_path / "work", files, links))
    assert text.endswith("read its file: e/CLAUDE.md, a/b/CLAUDE.md")
    assert memory.read(make(tmp_path / "none", {"a/b.txt": "x"})) == ""


def test_the_look_for_files_of_subfolders_has_a_bound(tmp_path: Path) -> None:
    for number in range(memory._MAX_FOLDERS + 10):
        (tmp_path / f"a{number:05}").mkdir()
    make(tmp_path, {"a00001/b/CLAUDE.md": "x", "a00002/CLAUDE.md": "x"})
    assert memory.read(tmp_path).endswith("read its file: a00002/CLAUDE.md, a00001/b/CLAUDE.md")
    make(tmp_path, {"a02005/b/CLAUDE.md": "x"})
    assert "a02005" not in memory.read(tmp_path)


@pytest.mark.parametrize(
    "name",
    ["/etc/hostname", "../secret.md", "~/secret.md", "../place/../secret.md", "out.md", "folder/secret.md", "fifo"],
)
def test_an_import_reads_nothing_outside_the_workspace(tmp_path: Path, name: str) -> None:
    secret = tmp_path / "secret.md"
    secret.write_text("SECRET")
    folder = make(tmp_path / "place", {"CLAUDE.md": f"Look at @{name} and @{secret}."})
    (folder / "out.md").symlink_to(secret)
    (folder / "folder").symlink_to(tmp_path)
    os.mkfifo(folder / "fifo")
    text = memory.read(folder)
    assert text.endswith(f"@{secret}.")
    assert "SECRET" not in text


@pytest.mark.parametrize("name", ["CLAUDE.md", ".claude", ".claude/rules", ".claude/rules/a.md"])
def test_links_out_of_the_workspace_are_not_followed(tmp_path: Path, name: str) -> None:
    outside = tmp_path / "outside"
    make(outside, {"CLAUDE.md": "SECRET", "a.md": "SECRET", "rules/a.md": "SECRET"})
    target = outside / "a.md" if name.endswith(".md") else outside
    assert memory.read(make(tmp_path / "work", {}, {name: str(target)})) == ""


def test_a_rule_for_some_files_is_named_to_the_model(tmp_path: Path) -> None:
    text = memory.read(make(tmp_path, {".claude/rules/p.md": "---\npaths: src/*.py\n---\nMARK-rule\n"}))
    assert ".claude/rules/p.md" in text
    assert "MARK-rule" not in text


def test_it_has_a_bound(tmp_path: Path) -> None:
    files = {f"{n}.md": "x" * 600_000 for n in range(4)} | {"CLAUDE.md": "@0.md @1.md @2.md @3.md"}
    assert len(memory.read(make(tmp_path, files))) < 1_100_000
