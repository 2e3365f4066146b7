"""Zips in the shapes that other programs give them: names, encodings, folders, links, and one folder around it all."""

from __future__ import annotations

import io
import os
import stat
import struct
import subprocess
import zipfile
import zlib
from pathlib import Path

import pytest

from occ_app.errors import ArchiveError
from occ_app.workspaces.archives import Limits, Unpacked, unpack

LIMITS = Limits(unpacked_bytes=1_000_000, files=200)
FILE, FOLDER, LINK = stat.S_IFREG | 0o644, stat.S_IFDIR | 0o755, stat.S_IFLNK | 0o777


def zipped(*entries: tuple[str, bytes], mode: int = FILE, system: int = 3, attributes: int = 0) -> bytes:
    return built(*((name, mode, system, attributes, content) for name, content in entries))


def built(*entries: tuple[str, int, int, int, bytes]) -> bytes:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as writer:
        for name, mode, system, attributes, content in entries:
            info = zipfile.ZipInfo("placeholder")
            # Set later: ZipInfo itself changes separators and cuts names.
            info.filename = info.orig_filename = name
            info.create_system, info.external_attr, info.compress_type = system, mode << 16 | attributes, 8
            writer.writestr(info, content)
    return archive.getvalue()


def legacy(encoding: str, *names: str) -> bytes:
    """An archive whose names are bytes of this encoding, without the flag for UTF-8."""
    body = directory = b""
    for name in names:
        stored = name.encode(encoding)
        common = struct.pack("<5H3I2H", 20, 0, 0, 0, 0x21, zlib.crc32(b"x"), 1, 1, len(stored), 0)
        directory += b"PK\1\2" + struct.pack("<H", 20) + common + struct.pack("<4H2I", 0, 0, 0, 0, 0, len(body))[2:]
        directory += stored
        body += b"PK\3\4" + common + stored + b"x"
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, len(names), len(names), len(directory), len(body), 0)
    return body + directory + end


def taken(tmp_path: Path, content: bytes, *, strip_root: bool = False) -> tuple[Path, Unpacked]:
    archive, target = tmp_path / "a.zip", tmp_path / "target"
    archive.write_bytes(content)
    target.mkdir()
    checked = unpack(archive, None, LIMITS, strip_root=strip_root)
    unpacked = unpack(archive, target, LIMITS, strip_root=strip_root)
    assert checked == unpacked
    return target, unpacked


def below(target: Path) -> list[str]:
    """All paths below a folder; folders end with a slash, links with @."""
    found = []
    for path in target.rglob("*"):
        ending = "@" if path.is_symlink() else "/" if path.is_dir() else ""
        found.append(path.relative_to(target).as_posix() + ending)
    return sorted(found)


def refused(tmp_path: Path, content: bytes, *, strip_root: bool = False) -> ArchiveError:
    archive, target = tmp_path / "a.zip", tmp_path / "target"
    archive.write_bytes(content)
    target.mkdir()
    with pytest.raises(ArchiveError) as refusal:
        unpack(archive, target, LIMITS, strip_root=strip_root)
    assert not any(path.is_symlink() for path in target.rglob("*"))
    target.rename(tmp_path / f"refused-{len(list(tmp_path.iterdir()))}")
    return refusal.value


def test_names_that_begin_with_a_dot_and_a_slash_are_taken(tmp_path: Path) -> None:
    content = zipped(("./", b""), ("./sub/", b""), ("./sub/a.txt", b"x"), ("./b.txt", b"x"), mode=0)
    assert below(taken(tmp_path, content)[0]) == ["b.txt", "sub/", "sub/a.txt"]


@pytest.mark.parametrize("name", [".", "./..", "./../a", ".//a", "a/./b", "./.", "./a/../../b", "././../a"])
def test_dots_that_are_not_at_the_front_stay_refused(tmp_path: Path, name: str) -> None:
    assert refused(tmp_path, zipped((name, b"x"))).code == "ZIP_PATH"


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_with_and_without_the_dot_is_there_twice(tmp_path: Path) -> None:
    assert refused(tmp_path, zipped(("./a", b"x"), ("a", b"x"))).code == "ZIP_DUPLICATE"


@pytest.mark.parametrize(
    ("name", "mode", "system", "attributes"),
    [
        ("new/", FILE, 3, 0),
        ("new", FOLDER, 3, 0x10),
        ("new/", FOLDER, 3, 0x10),
        ("new", 0, 0, 0x10),
        ("new/", 0, 0, 0x20),
        ("new", 0, 10, 0x10),
        ("new", FOLDER, 19, 0),
        ("new/", 0, 3, 0),
    ],
)
@pytest.mark.parametrize("inside", [True, False])
def test_folders_in_every_shape_are_folders(
    tmp_path: Path, name: str, mode: int, system: int, attributes: int, inside: bool
) -> None:
    file = [("new/a.txt", FILE, 3, 0, b"x")] if inside else [("a.txt", FILE, 3, 0, b"x")]
    target, unpacked = taken(tmp_path, built((name, mode, system, attributes, b""), *file))
    assert below(target) == (["new/", "new/a.txt"] if inside else ["a.txt", "new/"])
    assert unpacked.files == 1


@pytest.mark.parametrize(("name", "mode"), [("new/", FILE), ("new", FOLDER)])
def test_a_folder_with_content_is_refused(tmp_path: Path, name: str, mode: int) -> None:
    assert refused(tmp_path, zipped((name, b"content"), mode=mode)).code == "ZIP_LINK"


def test_the_dos_attribute_makes_no_folder_of_a_file_with_content(tmp_path: Path) -> None:
    target, _ = taken(tmp_path, zipped(("a.txt", b"content"), mode=0, system=0, attributes=0x10))
    assert (target / "a.txt").read_bytes() == b"content"


@pytest.mark.parametrize(
    ("encoding", "names"),
    [
        ("cp932", ["表計算/予算表.csv", "ソース/コード.py", "新しいフォルダー/説明書.txt"]),
        ("cp932", ["テスト.txt"]),
        ("cp932", ["readme.txt", "資料/能力.docx"]),
        ("gbk", ["新建文件夹/说明.docx", "项目/源代码/主程序.py"]),
        ("gbk", ["测试.txt", "a.txt"]),
        ("big5", ["專案/原始碼/主程式.py", "許功蓋.txt"]),
        ("big5", ["新資料夾/功能.docx"]),
        ("cp437", ["café.txt", "Müller/Größe.txt", "crème brûlée.txt"]),
    ],
)
def test_names_in_encodings_of_other_days_are_read(tmp_path: Path, encoding: str, names: list[str]) -> None:
    target, _ = taken(tmp_path, legacy(encoding, *names))
    assert [path for path in below(target) if not path.endswith("/")] == sorted(names)


def test_the_refusal_of_a_name_in_an_unknown_encoding_speaks_of_the_encoding(tmp_path: Path) -> None:
    content = legacy("cp437", "a\u2502\\b/c.txt", "\u2591\\\u2591.txt")
    refusal = refused(tmp_path, content)
    assert refusal.code == "ZIP_PATH"
    assert "encoding" in str(refusal)


@pytest.mark.parametrize("system", [0, 10, 14])
def test_backslashes_of_windows_separate_folders(tmp_path: Path, system: int) -> None:
    content = zipped(("src\\", b""), ("src\\deep\\a.txt", b"x"), ("b.txt", b"x"), mode=0, system=system)
    assert below(taken(tmp_path, content)[0]) == ["b.txt", "src/", "src/deep/", "src/deep/a.txt"]


@pytest.mark.parametrize(
    ("system", "names"),
    [
        (3, ("src\\a.txt",)),
        (0, ("src\\a.txt", "other/b.txt")),
        (0, ("..\\a.txt",)),
        (0, ("src\\..\\..\\a.txt",)),
        (0, ("C:\\a.txt",)),
        (0, ("\\\\server\\share\\a.txt",)),
        (0, ("\\a.txt",)),
    ],
)
def test_other_backslashes_stay_refused(tmp_path: Path, system: int, names: tuple[str, ...]) -> None:
    assert refused(tmp_path, zipped(*((name, b"x") for name in names), mode=0, system=system)).code == "ZIP_PATH"


def with_links(*links: tuple[str, str], files: tuple[str, ...] = ("AGENTS.md", "docs/a.md", "docs/b/c.md")) -> bytes:
    return built(
        *((name, LINK, 3, 0, target.encode()) for name, target in links),
        *((name, FILE, 3, 0, b"text of " + name.encode()) for name in files),
    )


@pytest.mark.parametrize(
    ("link", "target"),
    [
        ("CLAUDE.md", "AGENTS.md"),
        ("CLAUDE.md", "./docs/a.md"),
        ("docs/CLAUDE.md", "../AGENTS.md"),
        ("docs/b/CLAUDE.md", "../a.md"),
        ("new/CLAUDE.md", "../docs/b/../a.md"),
        (".claude/rules/a.md", "../../AGENTS.md"),
    ],
)
def test_a_link_to_a_file_of_the_archive_is_stored_as_a_link(tmp_path: Path, link: str, target: str) -> None:
    folder, unpacked = taken(tmp_path, with_links((link, target)))
    assert os.readlink(folder / link) == target
    assert (folder / link).read_text().startswith("text of ")
    assert (unpacked.files, unpacked.skipped) == (3, ())


@pytest.mark.parametrize(
    ("link", "target"),
    [
        ("a", "/etc/passwd"),
        ("a", "../AGENTS.md"),
        ("docs/a.lnk", "../../AGENTS.md"),
        ("a", "docs/../../target/AGENTS.md"),
        ("a", "a"),
        ("a", "missing.md"),
        ("a", "AGENTS.md/"),
        ("a", "AGENTS.md/../docs/a.md"),
        ("a", "missing/../AGENTS.md"),
        ("a", ""),
        ("a", "AGENTS.md\0x"),
        ("a", "docs\\a.md"),
        ("a", "x" * 2000),
        (".claude/settings.json", "/etc/passwd"),
        (".git", "../elsewhere"),
    ],
)
def test_a_link_that_leads_elsewhere_is_refused(tmp_path: Path, link: str, target: str) -> None:
    assert refused(tmp_path, with_links((link, target))).code == "ZIP_LINK"


@pytest.mark.parametrize(
    "links",
    [
        [("a", "b"), ("b", "AGENTS.md")],
        [("a", "b"), ("b", "a")],
        [("d", "docs"), ("a", "d/a.md")],
        [("docs/d", ".."), ("a", "docs/d/AGENTS.md")],
    ],
)
def test_links_that_chain_or_loop_are_refused(tmp_path: Path, links: list[tuple[str, str]]) -> None:
    assert refused(tmp_path, with_links(*links)).code == "ZIP_LINK"


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    assert (
        refused(tmp_path, with_links(("docs2", "docs"), files=("docs/a.md", "docs2/evil.md"))).code == "ZIP_DUPLICATE"
    )
    assert refused(tmp_path, with_links(("a", "AGENTS.md"), files=("AGENTS.md", "a"))).code == "ZIP_DUPLICATE"


@pytest.mark.parametrize(
    ("link", "target", "files"),
    [
        ("d", "docs", ("docs/a.md",)),
        ("docs/up", "..", ("docs/a.md",)),
        (".git", "gitdir", ("gitdir/x",)),
        ("harmless", ".claude/settings.json", (".claude/settings.json",)),
        (".mcp.json", "a.json", ("a.json",)),
    ],
)
def test_other_links_inside_are_left_out_and_named(
    tmp_path: Path, link: str, target: str, files: tuple[str, ...]
) -> None:
    folder, unpacked = taken(tmp_path, with_links((link, target), files=files))
    assert link in [skipped["path"] for skipped in unpacked.skipped]
    assert not (folder / link).is_symlink()


def test_a_single_top_folder_is_left_out_when_that_is_wanted(tmp_path: Path) -> None:
    content = zipped(("repo-main/", b""), ("repo-main/a.txt", b"x"), ("repo-main/src/b.txt", b"x"), mode=0)
    target, unpacked = taken(tmp_path, content, strip_root=True)
    assert below(target) == ["a.txt", "src/", "src/b.txt"]
    assert unpacked.stripped == "repo-main"


@pytest.mark.parametrize("names", [("a/x", "b/y"), ("a/x", "top.txt"), ("a/",), ("a",), ("./a/x", "./b")], ids=" ".join)
def test_nothing_is_left_out_of_any_other_archive(tmp_path: Path, names: tuple[str, ...]) -> None:
    content = zipped(*((name, b"" if name.endswith("/") else b"x") for name in names), mode=0)
    target, unpacked = taken(tmp_path, content, strip_root=True)
    assert unpacked.stripped is None
    assert {name.removeprefix("./") for name in names} <= set(below(target))


def test_a_link_is_judged_by_where_it_is_stored(tmp_path: Path) -> None:
    content = with_links(("top/a", "../top/AGENTS.md"), files=("top/AGENTS.md",))
    assert refused(tmp_path, content, strip_root=True).code == "ZIP_LINK"


def test_what_is_left_out_is_judged_by_where_it_is_stored(tmp_path: Path) -> None:
    content = zipped(("top/.claude/settings.json", b"{}"), ("top/.mcp.json", b"{}"), ("top/a", b"x"))
    target, unpacked = taken(tmp_path, content, strip_root=True)
    assert below(target) == ["a"]
    assert [skipped["path"] for skipped in unpacked.skipped] == [".claude/settings.json", ".mcp.json"]


GIT_CONFIGURATION = [
    (".git",),
    ("sub/.git",),
    (".git/config",),
    (".git/config.worktree",),
    (".git/commondir",),
    (".git/modules/sub/config",),
    (".git/modules/a/modules/b/config",),
    (".git/modules/refs/config",),
    (".git/modules/sub/hooks/post-checkout",),
    (".git/worktrees/w/config.worktree",),
    (".git/worktrees/w/gitdir",),
    (".git/objects/info/alternates",),
    (".GIT/Config",),
    ("config", "HEAD", "objects/info/x", "refs/heads/.keep"),
    ("bare/config", "bare/HEAD", "bare/objects/info/x", "bare/refs/heads/.keep"),
    ("bare/hooks/post-checkout", "bare/HEAD", "bare/objects/info/x", "bare/refs/heads/.keep"),
    ("bare/config.worktree", "bare/HEAD", "bare/objects/info/x", "bare/refs/heads/.keep"),
    ("bare/commondir", "bare/HEAD"),
    ("bare/config", "bare/HEAD", "bare/commondir"),
]


@pytest.mark.parametrize("names", GIT_CONFIGURATION, ids=lambda names: names[0])
def test_whatever_configures_git_is_left_out_and_named(tmp_path: Path, names: tuple[str, ...]) -> None:
    target, unpacked = taken(tmp_path, zipped(*((name, b"x") for name in names), ("a.txt", b"x")))
    assert names[0] in [skipped["path"] for skipped in unpacked.skipped]
    assert not (target / names[0]).exists()


@pytest.mark.parametrize(
    "name", [".git/HEAD", ".git/refs/heads/config", ".gitignore", "config", "hooks/a", "refs/config"]
)
def test_other_files_of_a_repository_are_kept(tmp_path: Path, name: str) -> None:
    assert (taken(tmp_path, zipped((name, b"x")))[0] / name).is_file()


def test_git_runs_nothing_of_an_upload(tmp_path: Path) -> None:
    """Real git, in a repository whose configuration hides in each of these places."""
    evil = f"[core]\n\tfsmonitor = touch {tmp_path}/sung;\n[alias]\n\tx = !touch {tmp_path}/sung\n".encode()
    head = ("HEAD", b"ref: refs/heads/main\n")
    bare = [head, ("config", evil), ("objects/info/x", b""), ("refs/heads/.keep", b"")]
    uploads = {
        "bare": [*bare, ("a.txt", b"x")],
        "file": [(".git", b"gitdir: ./real\n"), *((f"real/{name}", content) for name, content in bare)],
        "commondir": [
            *((f".git/{name}", content) for name, content in (head, ("commondir", b"../real\n"))),
            *((f"real/{name}", content) for name, content in bare),
        ],
    }
    for name, files in uploads.items():
        folder = tmp_path / name
        folder.mkdir()
        for sung in (False, True):  # first as an upload, then as it was made, so that the canary is known to sing
            (tmp_path / "sung").unlink(missing_ok=True)
            (tmp_path / "a.zip").write_bytes(zipped(*files))
            target = folder / str(sung)
            target.mkdir()
            unpack(tmp_path / "a.zip", target, Limits(1_000_000, 200, trusted=sung))
            environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
            for command in ("status", "x"):
                subprocess.run(["git", command], cwd=target, env=environment, capture_output=True, check=False)
            assert (tmp_path / "sung").exists() is sung, name


def shifted(plain: bytes, mark: bytes, counted: int) -> bytes:
    """Put bytes before a zip of one entry, so many of them counted in its offsets."""
    end = len(plain) - 22
    size, start = struct.unpack("<II", plain[end + 12 : end + 20])
    entry, directory, record = plain[:start], plain[start : start + size], plain[end:]
    directory = directory[:42] + struct.pack("<I", counted) + directory[46:]
    return mark + entry + directory + record[:16] + struct.pack("<I", start + counted) + record[20:]


@pytest.mark.parametrize("mark", [b"PK\7\x08", b"PK00"])
def test_a_split_archive_of_one_file_is_read(tmp_path: Path, mark: bytes) -> None:
    target, _ = taken(tmp_path, shifted(zipped(("a.txt", b"x")), mark, 4))
    assert (target / "a.txt").read_bytes() == b"x"


@pytest.mark.parametrize(("mark", "counted"), [(b"PK\7\x08", 0), (b"ABCD", 4), (b"ABCD", 0), (b"PK00PK00", 8)])
def test_other_bytes_before_the_first_entry_are_refused(tmp_path: Path, mark: bytes, counted: int) -> None:
    archive = tmp_path / "a.zip"
    archive.write_bytes(shifted(zipped(("a.txt", b"x")), mark, counted))
    with pytest.raises(ArchiveError) as refused:
        unpack(archive, None, LIMITS)
    assert refused.value.code == "ZIP_PREFIX_DATA"
