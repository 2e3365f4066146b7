"""Which files `occ run` sends: with git exactly those that git lists, without it the same by the patterns alone."""

from __future__ import annotations

import os
import random
import re
import subprocess
import tempfile
import zipfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from occ_app.cli import gitignore, upload
from occ_app.system import ignore_patterns
from occ_app.workspaces.archives import Limits, unpack

TREES = 700 if os.environ.get("TEST_ALL") else 200


@pytest.fixture(autouse=True)
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home, so that nothing of this machine's own git settings counts."""
    home = tmp_path / "me"
    home.mkdir()
    for name in [name for name in os.environ if name.startswith(("GIT_", "XDG_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    return home


def git(folder: Path, *arguments: str) -> bytes:
    """Run git in a folder; returns its output."""
    identity = ("-c", "user.name=n", "-c", "user.email=e@example.org", "-c", "protocol.file.allow=always")
    return subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True).stdout


def made(folder: Path, files: dict[str, str | bytes], *, repository: bool = True) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    if repository:
        git(folder, "init", "-q")
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def sent(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in gitignore.files_to_send(folder) if path.is_file())


def without_git(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    with monkeypatch.context() as patched:
        patched.setattr(gitignore.shutil, "which", lambda _: None)
        return sent(folder)


def listed(folder: Path) -> list[str]:
    names = git(folder, "-c", "core.fsmonitor=false", "ls-files", "-coz", "--exclude-standard", "--deduplicate")
    return sorted(os.fsdecode(name) for name in names.split(b"\0") if name and (folder / os.fsdecode(name)).is_file())


def test_a_package_of_a_repository_obeys_the_root_s_gitignore(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {".gitignore": ".env\nnode_modules/\n", "app/.env": "s", "app/node_modules/x/i.js": "1", "app/main.js": "1"}
    folder = made(tmp_path / "a", files) / "app"
    assert sent(folder) == without_git(folder, monkeypatch) == ["main.js"]


def test_the_repository_s_and_the_user_s_ignore_files_count(
    tmp_path: Path, user: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = made(tmp_path / "a", dict.fromkeys(("main.js", ".env", "mine.yml", "other.yml", "kept.yml"), "1"))
    (folder / ".git/info").mkdir(exist_ok=True)
    (folder / ".git/info/exclude").write_text(".env\n!kept.yml\n")
    made(user / ".config/git", {"ignore": "mine.yml\nkept.yml\n"}, repository=False)
    assert sent(folder) == without_git(folder, monkeypatch) == ["kept.yml", "main.js", "other.yml"]
    made(
        user,
        {".gitconfig": "[user]\nname = n\n[core]\n\texcludesFile = ~/elsewhere\n", "elsewhere": "other.yml\n"},
        repository=False,
    )
    assert sent(folder) == without_git(folder, monkeypatch) == ["kept.yml", "main.js", "mine.yml"]


def test_files_that_are_tracked_are_sent_though_a_pattern_names_them(tmp_path: Path) -> None:
    folder = made(tmp_path / "d", {".gitignore": "vendor/\n*.log\n", "vendor/lib.js": "1", "a.log": "l", "b.log": "l"})
    git(folder, "add", "-f", "vendor", "a.log")
    assert sent(folder) == [".gitignore", "a.log", "vendor/lib.js"]


def test_a_submodule_is_entered_and_what_is_gone_is_not_named(tmp_path: Path) -> None:
    library = made(tmp_path / "library", {".gitignore": "*.o\n", "lib.c": "1"})
    git(library, "add", ".")
    git(library, "commit", "-qm", "x")
    folder = made(tmp_path / "main", {"main.c": "1", "gone.c": "1", "f": "1", "d/f": "1"})
    git(folder, "submodule", "--quiet", "add", str(library), "lib")
    git(folder, "add", ".")
    made(folder, {"lib/lib.o": "1", "lib/new.c": "1", "nested/x": "1", "nested/y.o": "1"}, repository=False)
    made(folder / "nested", {".gitignore": "*.o\n"})
    (folder / "gone.c").unlink()
    (folder / "f").unlink()
    made(folder, {"f/inside": "1"}, repository=False)  # a folder where a file was tracked
    (folder / "d/f").unlink()
    (folder / "d").rmdir()
    (folder / "d").symlink_to(library)  # a link where a folder was tracked
    (library / "f").write_text("outside")
    left_out = dict[Path, str]()
    found = sorted(str(path.relative_to(folder)) for path in gitignore.files_to_send(folder, (), left_out.__setitem__))
    expected = [".gitmodules", "f/inside", "lib/.gitignore", "lib/lib.c", "lib/new.c", "main.c"]
    assert found == [*expected, "nested/.gitignore", "nested/x"]
    assert list(left_out) == [folder / "d"]


def test_git_runs_nothing_of_the_repository_and_obeys_no_hook_s_variables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = made(tmp_path / "a", {"main.js": "1"})
    (tmp_path / "monitor").write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    (tmp_path / "monitor").chmod(0o755)
    git(folder, "config", "core.fsmonitor", str(tmp_path / "monitor"))
    other = made(tmp_path / "b", {"other.js": "1"})
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(other / "index"))
    assert sent(folder) == ["main.js"]
    assert not (tmp_path / "ran").exists()


def test_a_repository_that_git_refuses_is_read_by_its_patterns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = made(tmp_path / "a", {".gitignore": "*.log\n", "x.log": "1", "main.js": "1"})
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")  # git's own way to test safe.directory
    with pytest.raises(subprocess.CalledProcessError):
        git(folder, "status")
    assert sent(folder) == [".gitignore", "main.js"]


NAMINGS = {
    "included": {"me/.gitconfig": "[include]\npath = more\n", "me/more": "[core]\nexcludesFile = ~/ignore # mine\n"},
    "user": {"me/.gitconfig": '[core]\n\texcludesFile = "~/ignore" ; mine\n'},
    "system": {"system": "[core]\nexcludesfile=~/ignore\n"},
    "later": {"me/.gitconfig": "[core]\nexcludesFile = ~/no\n[user]\nname = n\n[core]\nexcludesFile = ~/ignore\n"},
}


@pytest.mark.parametrize("naming", [*NAMINGS, "repository", "command"])
def test_the_ignore_file_that_gits_settings_name_counts_also_where_git_lists_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, naming: str
) -> None:
    folder = made(tmp_path / "a", {"main.js": "1", "secret.key": "1"})
    made(tmp_path, {"me/ignore": "*.key\n", "me/no": "*.js\n", **NAMINGS.get(naming, {})}, repository=False)
    monkeypatch.delenv("GIT_CONFIG_NOSYSTEM")
    monkeypatch.setenv("GIT_CONFIG_SYSTEM", str(tmp_path / "system"))
    if naming == "repository":
        git(folder, "config", "core.excludesFile", "~/ignore")
    if naming == "command":  # as within an alias or a hook of `git -c …`
        monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
        monkeypatch.setenv("GIT_CONFIG_KEY_0", "core.excludesFile")
        monkeypatch.setenv("GIT_CONFIG_VALUE_0", str(tmp_path / "me/ignore"))
    assert sent(folder) == ["main.js"]
    if naming not in ("included", "command"):  # only git itself reads these
        assert without_git(folder, monkeypatch) == ["main.js"]
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    assert sent(folder) == ["main.js"]


def test_a_linked_work_tree_obeys_the_ignore_files_of_its_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    main = made(tmp_path / "main", {".gitignore": "*.log\n", "a.js": "1"})
    git(main, "add", ".")
    git(main, "commit", "-qm", "x")
    git(main, "worktree", "add", "-q", str(tmp_path / "linked"))
    (main / ".git/info").mkdir(exist_ok=True)
    (main / ".git/info/exclude").write_text("*.key\n")
    linked = made(tmp_path / "linked", {"b.js": "1", "x.log": "1", "x.key": "1"}, repository=False)
    expected = [".gitignore", "a.js", "b.js"]
    assert sent(linked) == without_git(linked, monkeypatch) == expected
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(linked.parent))
    made(linked, {"sub/c.js": "1", "sub/x.key": "1"}, repository=False)
    assert sent(linked / "sub") == ["c.js"]
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    assert sent(linked) == [*expected, "sub/c.js"]


def test_a_sparse_checkout_sends_the_files_that_are_there(tmp_path: Path) -> None:
    folder = made(tmp_path / "a", {"top.js": "1", "in/a.js": "1", "out/b.js": "1", "out/deep/c.js": "1"})
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "x")
    git(folder, "sparse-checkout", "set", "--cone", "--sparse-index", "in")
    made(folder, {"out/new.js": "1"}, repository=False)
    assert sent(folder) == listed(folder) == ["in/a.js", "out/new.js", "top.js"]


@pytest.mark.parametrize(
    ("patterns", "ignored"),
    [
        (b"\xef\xbb\xbf.env\n", ".env"),
        (b"Icon\r\r\n", None),
        (b"*.log\r\n", "x.log"),
        (b"# x\x0cmain.js\n", None),
        ("# x\u0085main.js\n".encode(), None),
        ("# x\u2028main.js\n".encode(), None),
        (b"*.log.[[:digit:]]\n", "a.log.1"),
        (b"!\n*.log\n", "x.log"),
        (b"build\\\n*.log\n", "x.log"),
        (b"[z-a]\n*.log\n", "x.log"),
        (b"[\n[[:nonsense:]]\n[a\n***\\\n*.log", "x.log"),
        (b"x.log  \n", "x.log"),
        (b"x.log\\ \n", None),
        (b"x.log\t\n", None),
        (b"\xff\xfe\n*.log\n", "x.log"),
    ],
)
def test_lines_are_cut_and_read_as_git_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, patterns: bytes, ignored: str | None
) -> None:
    names = ["main.js", ".env", "x.log", "a.log.1", "src/Icon/index.ts"]
    folder = made(tmp_path / "a", dict.fromkeys(names, "1"))
    (folder / ".gitignore").write_bytes(patterns)
    expected = sorted({".gitignore", *names} - {ignored})
    assert sent(folder) == without_git(folder, monkeypatch) == expected


NAMES = [
    "a",
    "b",
    "ab",
    "a.log",
    "b.log",
    ".env",
    "build",
    "src",
    "a b",
    " a",
    "#a",
    "!a",
    "a-b",
    "A",
    "é",
    "[a]",
    "a\\b",
    "x*",
    "ba",
    "1",
]
PIECES = [
    "a",
    "b",
    "*",
    "**",
    "?",
    "/",
    "\\",
    "[",
    "]",
    "!",
    "-",
    "^",
    ".",
    "log",
    "src",
    "build",
    "[ab]",
    "[!a]",
    "[a-c]",
    "[[:alpha:]]",
    "[[:space:]]",
    "é",
    " ",
    "#",
    "**/",
    "/**",
    "1",
]
LINES = [
    "*.log",
    "build/",
    "/src",
    "!a.log",
    "!build",
    "src/**",
    "**/a",
    "a/**/b",
    "*",
    "!*/",
    "!*.log",
    "src/*",
    "!src/a",
    "\ufeffa",
    "# c\x0cb",
    "a\r\r",
    "x\\",
    "[z-a]",
    "!",
    "/",
    "",
    "**",
    "a**/b",
    "\\!a",
    "\\#a",
    "a\\ ",
    "b\t",
    "src//a",
    "./a",
    "a/",
    "*/b",
    "[]a]",
    "[!]a]",
    "[a-]",
    "[\\]]",
    "[[:x:]]",
    "a\0b",
]


@cache
def stars_after_text_are_one_star() -> bool:
    """Return whether this git reads `a**/b` as its manual says, which releases before 2.52 do not."""
    with tempfile.TemporaryDirectory() as folder:
        made(Path(folder), {".gitignore": "a**/b\n"})
        check = ["git", "check-ignore", "--quiet", "--no-index", "ab"]
        return subprocess.run(check, cwd=folder, check=False).returncode == 1


def read_alike(line: str) -> bool:
    """Return whether every release of git reads a line as this one should."""
    plain = re.sub(r"[*?\[\\].*", "", line.removeprefix("\ufeff").removeprefix("!"), flags=re.DOTALL)
    stars = line.removeprefix("\ufeff").removeprefix("!").startswith(f"{plain}**")
    return stars_after_text_are_one_star() or not (stars and plain and not plain.endswith("/"))


@pytest.mark.parametrize(
    ("pattern", "ignored"),
    [
        ("a**/b", ["a/b", "ax/b"]),  # and not ab or a/x/b
        ("a***/b", ["a/b", "ax/b"]),
        ("/a**/b", ["a/b", "ax/b"]),
        ("**/b", ["a/b", "a/x/b", "ax/b", "b"]),
        ("a/**/b", ["a/b", "a/x/b"]),
        ("a/**", ["a/b", "a/x/b"]),
    ],
)
def test_stars_beside_text_are_one_star(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str, ignored: list[str]
) -> None:
    names = ["a/b", "a/x/b", "ab", "ax/b", "b"]
    folder = made(tmp_path / "a", {**dict.fromkeys(names, "1"), ".gitignore": f"{pattern}\n"})
    expected = sorted({".gitignore", *names} - {*ignored})
    assert without_git(folder, monkeypatch) == expected
    if read_alike(pattern):
        assert sent(folder) == expected


def _rules(chosen: random.Random) -> bytes:
    lines = [
        chosen.choice(LINES) if chosen.random() < 0.6 else "".join(chosen.choices(PIECES, k=chosen.randint(1, 5)))
        for _ in range(chosen.randint(1, 5))
    ]
    lines = [line for line in lines if read_alike(line)]
    return (chosen.choice(["", "", "", "\ufeff"]) + chosen.choice(["\n", "\n", "\r\n"]).join(lines)).encode()


def _grow(chosen: random.Random, folder: Path, depth: int) -> None:
    for name in chosen.sample(NAMES, chosen.randint(1, 6)):
        if depth < 3 and chosen.random() < 0.45:
            (folder / name).mkdir()
            _grow(chosen, folder / name, depth + 1)
        else:
            (folder / name).write_bytes(b"")
    if chosen.random() < (0.9 if depth == 0 else 0.3):
        (folder / ".gitignore").write_bytes(_rules(chosen))


def _trees(folder: Path) -> Iterator[tuple[int, Path]]:
    for number in range(TREES):
        chosen = random.Random(number)  # noqa: S311 - the same trees every time
        root = folder / str(number)
        root.mkdir()
        _grow(chosen, root, 0)
        made(root / ".git", {"HEAD": "ref: refs/heads/main\n"}, repository=False)
        for name in ("objects", "refs"):
            (root / ".git" / name).mkdir()
        if chosen.random() < 0.3:
            (root / ".git/info").mkdir()
            (root / ".git/info/exclude").write_bytes(_rules(chosen))
        folders = [root, *(path for path in root.rglob("*") if path.is_dir() and ".git" not in path.parts)]
        yield number, chosen.choice(folders) if chosen.random() < 0.2 else root


def test_without_git_random_trees_give_the_same_files_as_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    different = []
    for number, folder in _trees(tmp_path):
        expected = listed(folder)
        if not (sent(folder) == expected == without_git(folder, monkeypatch)):
            different.append((number, set(expected) ^ set(without_git(folder, monkeypatch))))
    assert different == []


REFUSED = ["dev\\x2ddisk", "notes\u2026.txt", "1\uff0f2.txt", "a.", " b", "Icon\r", "e\u0301", "x" * 250 + "\u00e9" * 3]


@pytest.mark.parametrize("repository", [True, False])
def test_what_an_agent_would_refuse_is_left_out_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], repository: bool
) -> None:
    folder = made(tmp_path / "p", {"ok": "1", "\u00e9": "1", "sub./x": "1"}, repository=repository)
    for name in REFUSED[:-1]:
        (folder / name).write_text("1")
    (folder / os.fsdecode(b"latin-\xe9")).write_text("1")
    (folder / "link").symlink_to("/etc/passwd")
    (folder / "closed").write_text("1")
    (folder / "closed").chmod(0)
    with (tmp_path / "a.zip").open("w+b") as archive:
        upload._pack(folder, archive, upload._paths(folder))
    names = zipfile.ZipFile(tmp_path / "a.zip").namelist()
    assert {"ok", "latin-\ufffd"} <= set(names)
    assert len({"\u00e9", "e\u0301"} & set(names)) == 1
    assert unpack(tmp_path / "a.zip", tmp_path / "out", Limits(10**6, 100)).files >= 3
    told = capsys.readouterr().err
    for name in ("dev\\x2ddisk", "a.", "link", "1\uff0f2.txt"):
        assert name in told or "more" in told
    assert "\r" not in told


def test_a_pattern_of_many_stars_matches_as_git_matches_it(tmp_path: Path) -> None:
    """Such patterns are not matched by regular expressions."""
    chance = random.Random(5)  # noqa: S311 - the same ones each time
    names = [re.sub("/+", "/", "".join(chance.choices("ab/c", k=chance.randint(1, 12)))).strip("/") for _ in range(400)]
    names = sorted({name for name in names if name})
    pieces = ["*", "**", "a", "b", "/", "?", "[ab]", "c"]
    patterns = {"".join(chance.choices(pieces, weights=[4, 2, 2, 2, 2, 1, 1, 1], k=9)) for _ in range(150)}
    patterns |= {"**/a/**/b/**", "*a*b*c*", "**/*a*/**", "a/**/**/**/b", "***a***b***", "/**/*/**/c"}
    repository = made(tmp_path / "r", {})
    compared = 0
    for pattern in sorted(pattern for pattern in patterns if pattern.count("*") > 2 and read_alike(pattern)):
        (repository / ".gitignore").write_text(f"{pattern}\n")
        command = ["git", "check-ignore", "--no-index", "-v", "-n", "-z", "--stdin"]
        told = subprocess.run(
            command, cwd=repository, input="\0".join(names).encode(), capture_output=True, check=False
        ).stdout.split(b"\0")
        by_git = {told[index + 3] for index in range(0, len(told) - 1, 4) if told[index + 2]}
        rules = [ignore_patterns.Rules.of(pattern.encode(), b"")]
        for name in map(str.encode, names):
            parts = name.split(b"/")
            parents = [b"/".join(parts[:count]) for count in range(1, len(parts))]
            mine = any(ignore_patterns.ignored(rules, parent, folder=True) for parent in parents)
            mine = mine or ignore_patterns.ignored(rules, name, folder=False)
            assert mine == (name in by_git), (pattern, name)
            compared += 1
    assert compared > 10_000
