"""The extractor against archives made to hurt it, and against what ordinary tools make."""

from __future__ import annotations

import io
import os
import shutil
import stat
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from occ_app.errors import ArchiveError
from occ_app.workspaces.archives import Limits, pack, unpack
from tests.conftest import make_zip

LIMITS = Limits(unpacked_bytes=1_000_000, files=200)


def entry(name: str, content: bytes = b"x", *, mode: int = stat.S_IFREG | 0o644, method: int = 8) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.create_system, info.external_attr, info.compress_type = 3, mode << 16, method
    return info


def zipped(*entries: tuple[zipfile.ZipInfo | str, bytes]) -> bytes:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as writer:
        for info, content in entries:
            writer.writestr(entry(info) if isinstance(info, str) else info, content)
    return archive.getvalue()


def refused(tmp_path: Path, content: bytes, limits: Limits = LIMITS) -> str:
    """The code it is refused with; nothing is written outside the target, and as little as the limit inside."""
    archive, target = tmp_path / "a.zip", tmp_path / "in" / "target"
    archive.write_bytes(content)
    target.mkdir(parents=True)
    with pytest.raises(ArchiveError) as refusal:
        unpack(archive, target, limits)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zip", "in"]
    assert [path.name for path in (tmp_path / "in").iterdir()] == ["target"]
    written = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    assert written <= limits.unpacked_bytes
    assert not any(path.is_symlink() for path in target.rglob("*"))
    shutil.rmtree(tmp_path / "in")
    return refusal.value.code


def taken(tmp_path: Path, content: bytes, limits: Limits = LIMITS) -> Path:
    archive, target = tmp_path / "a.zip", tmp_path / "target"
    archive.write_bytes(content)
    target.mkdir()
    unpack(archive, target, limits)
    return target


@pytest.mark.parametrize(
    "name",
    [
        "../a",
        "a/../../b",
        "..",
        ".",
        "a/./b",
        "/etc/passwd",
        "//server/share",
        "\\\\server\\share",
        "..\\a",
        "a\\b",
        "C:/a",
        "C:a",
        "c:\\a",
        "a//b",
        "a/ /b",
        "a./b",
        "a /b",
        " a",
        "a\nb",
        "a\x7fb",
        "\u2024\u2024/a",
        "\uff0e\uff0e/a",
        "a\u2215b",
        "a\uff0fb",
        "a\uff3cb",
        "a\u202eb",
        "a\u200bb",
        "a\ufeffb",
        "\x1b[2J",
    ],
)
def test_names_that_escape_or_deceive_are_refused(tmp_path: Path, name: str) -> None:
    assert refused(tmp_path, zipped(("good.txt", b"x"), (name, b"x"))) == "ZIP_PATH"


def test_a_name_cut_by_a_nul_is_refused(tmp_path: Path) -> None:
    content = zipped(("good_name", b"x")).replace(b"good_name", b"good\0name")
    assert refused(tmp_path, content) == "ZIP_PATH"


@pytest.mark.parametrize("name", ["x" * 256, "é" * 200, "/".join(["d"] * 80), "/".join(["d" * 200] * 8)])
def test_names_too_long_or_deep_are_refused(tmp_path: Path, name: str) -> None:
    assert refused(tmp_path, zipped((name, b"x"))) == "ZIP_NAME_TOO_LONG"


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFSOCK])
def test_links_and_special_files_are_refused(tmp_path: Path, kind: int) -> None:
    assert refused(tmp_path, zipped((entry("a", mode=kind | 0o777), b"/etc"), ("a/b", b"x"))) in (
        "ZIP_LINK",
        "ZIP_DUPLICATE",
    )


@pytest.mark.parametrize(
    "names",
    [
        ("a", "a"),
        ("a", "a/b"),
        ("a/b", "a"),
        ("\u00e9", "e\u0301"),
        (".claude/CLAUDE.md", ".CLAUDE/claude.md", ".claude/settings.json", ".claude/SETTINGS.json"),
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_names_that_collide_are_refused(tmp_path: Path, names: tuple[str, ...]) -> None:
    assert refused(tmp_path, zipped(*((name, b"x") for name in names))) == "ZIP_DUPLICATE"


def test_names_that_differ_by_case_are_two_files(tmp_path: Path) -> None:
    assert sorted(path.name for path in taken(tmp_path, zipped(("A", b"1"), ("a", b"2"))).iterdir()) == ["A", "a"]


def test_a_flat_bomb_is_refused(tmp_path: Path) -> None:
    assert refused(tmp_path, zipped(("a", b"0" * 5_000_000))) == "ZIP_BOMB"
    assert refused(tmp_path, zipped(*((f"f{i}", b"0" * 100_000) for i in range(20)))) == "ZIP_BOMB"


def test_a_bomb_that_lies_about_its_size_is_refused(tmp_path: Path) -> None:
    content = bytearray(zipped(("a", b"0" * 5_000_000)))
    for signature, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        place = content.index(signature) + offset
        content[place : place + 4] = struct.pack("<I", 100)
    assert refused(tmp_path, bytes(content)) in ("ZIP_BOMB", "ZIP_CORRUPT")


def overlapping(count: int, *, quoted: bool) -> bytes:
    """Many entries of the directory that share one block of bytes; quoted: each swallows the next one's header."""
    block = zlib.compressobj(9, zlib.DEFLATED, -15)
    kernel = block.compress(b"0" * 900_000) + block.flush()
    crc = zlib.crc32(b"0" * 900_000)
    body = b""
    directory = b""
    for number in range(count):
        name = f"f{number}".encode()
        offset = 0 if not quoted else len(body)
        header = struct.pack("<4sHHHHHIIIHH", b"PK\x03\x04", 20, 0, 8, 0, 0, crc, len(kernel), 900_000, len(name), 0)
        if quoted:
            body += header + name
        elif number == 0:
            body = header + name + kernel
        directory += (
            struct.pack(
                "<4sHHHHHHIIIHHHHHII",
                b"PK\x01\x02",
                20,
                20,
                0,
                8,
                0,
                0,
                crc,
                len(kernel),
                900_000,
                len(name),
                0,
                0,
                0,
                0,
                0,
                offset,
            )
            + name
        )
    if quoted:
        body += kernel
    end = struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, count, count, len(directory), len(body), 0)
    return body + directory + end


@pytest.mark.parametrize("quoted", [False, True])
def test_entries_that_share_their_bytes_are_refused(tmp_path: Path, quoted: bool) -> None:
    roomy = Limits(unpacked_bytes=100_000_000, files=200)
    assert refused(tmp_path, overlapping(50, quoted=quoted), roomy) in ("ZIP_BOMB", "ZIP_CORRUPT")


def test_too_many_entries_are_refused(tmp_path: Path) -> None:
    assert refused(tmp_path, zipped(*((f"f{i}", b"") for i in range(201)))) == "ZIP_TOO_MANY_FILES"


@pytest.mark.parametrize("cut", [1, 10, 22, 40, 200])
def test_a_truncated_archive_is_refused(tmp_path: Path, cut: int) -> None:
    content = zipped(("a", os.urandom(1000)), ("b", os.urandom(1000)))
    assert refused(tmp_path, content[:-cut]) == "ZIP_CORRUPT"


SHORT_AND_LONG = pytest.mark.parametrize("size", [100, 200_000])  # which are read in two ways


@SHORT_AND_LONG
def test_damage_in_the_last_entry_is_found(tmp_path: Path, size: int) -> None:
    content = bytearray(zipped((entry("a", method=0), b"a" * size), (entry("z", method=0), b"z" * size)))
    content[content.index(b"z" * size) + 50] ^= 1
    assert refused(tmp_path, bytes(content)) == "ZIP_CORRUPT"


@SHORT_AND_LONG
@pytest.mark.parametrize("off", [-1, 1, 50_000])
def test_a_size_that_is_not_the_content_s_is_refused(tmp_path: Path, size: int, off: int) -> None:
    content = os.urandom(size // 2) + b"0" * (size // 2)
    assert refused(tmp_path, patched(zipped(("a", content)), 22, 24, size + off, "<I")) == "ZIP_CORRUPT"


@SHORT_AND_LONG
def test_a_stream_that_is_cut_is_refused(tmp_path: Path, size: int) -> None:
    archive = zipped(("a", os.urandom(size)))
    (told,) = struct.unpack("<I", archive[18:22])
    assert refused(tmp_path, patched(archive, 18, 20, told - 3, "<I")) == "ZIP_CORRUPT"


@SHORT_AND_LONG
def test_patched_data_is_refused(tmp_path: Path, size: int) -> None:
    assert refused(tmp_path, patched(zipped(("a", b"x" * size)), 6, 8, 0x20)) == "ZIP_UNSUPPORTED"


def patched(content: bytes, local: int, central: int, value: int, kind: str = "<H") -> bytes:
    """The archive with a field of its first entry, of 16 bits or as `kind` says, changed in both of its headers."""
    changed = bytearray(content)
    for signature, offset in ((b"PK\x03\x04", local), (b"PK\x01\x02", central)):
        place = changed.index(signature) + offset
        struct.pack_into(kind, changed, place, value)
    return bytes(changed)


def test_encrypted_entries_are_refused(tmp_path: Path) -> None:
    assert refused(tmp_path, patched(zipped(("a", b"x")), 6, 8, 1)) == "ZIP_ENCRYPTED"


@pytest.mark.parametrize("method", [1, 6, 12, 14, 93, 95, 99])
def test_other_compression_is_refused(tmp_path: Path, method: int) -> None:
    assert refused(tmp_path, patched(zipped(("a", b"x")), 8, 10, method)) == "ZIP_UNSUPPORTED"


def test_a_part_of_a_split_archive_is_refused(tmp_path: Path) -> None:
    content = bytearray(zipped(("a", b"x")))
    place = content.index(b"PK\x01\x02") + 34
    content[place : place + 2] = struct.pack("<H", 3)
    assert refused(tmp_path, bytes(content)) in ("ZIP_UNSUPPORTED", "ZIP_CORRUPT")


def test_data_before_after_or_a_second_directory_is_refused(tmp_path: Path) -> None:
    inner, outer = zipped(("evil", b"x")), zipped(("good", b"x"))
    assert refused(tmp_path, b"#!/bin/sh\n" + outer) == "ZIP_PREFIX_DATA"
    assert refused(tmp_path, inner + outer) == "ZIP_PREFIX_DATA"
    # The comment of the archive holds another end of directory: readers disagree which one counts.
    commented = io.BytesIO(outer)
    with zipfile.ZipFile(commented, "a") as writer:
        writer.comment = inner
    assert refused(tmp_path, commented.getvalue()).startswith("ZIP_")
    assert refused(tmp_path, outer + b"trailing bytes").startswith("ZIP_")


@SHORT_AND_LONG
def test_a_name_that_differs_between_the_two_headers_is_refused(tmp_path: Path, size: int) -> None:
    content = os.urandom(size)
    assert refused(tmp_path, zipped(("name_a", content)).replace(b"name_a", b"name_b", 1)) == "ZIP_CORRUPT"


def lying(
    content: bytes, method: int, *, size: int | None = None, hidden: bytes = b"", crc: int | None = None
) -> bytes:
    """An archive of one file that claims another size or checksum, or whose area holds more than the file."""
    packer = zlib.compressobj(6, zlib.DEFLATED, -zlib.MAX_WBITS)
    area = (packer.compress(content) + packer.flush() if method else content) + hidden
    claimed = len(content) if size is None else size
    checksum = zlib.crc32(content[:claimed]) if crc is None else crc
    common = struct.pack("<5H3I2H", 20, 0, method, 0, 0x21, checksum, len(area), claimed, 1, 0)
    local = b"PK\3\4" + common + b"f" + area
    central = b"PK\1\2" + struct.pack("<H", 20) + common + struct.pack("<3H2I", 0, 0, 0, 0, 0) + b"f"
    return local + central + struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 1, 1, len(central), len(local), 0)


SIZES = [0, 1, 100, 65_535, 65_536, 65_537, 200_000, 600_000]
HIDDEN = zipped(("evil", b"a second file"))


@pytest.mark.parametrize("method", [0, 8])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", ["random", "zeros"])
def test_it_agrees_with_zipfile_and_takes_no_hidden_bytes(tmp_path: Path, kind: str, size: int, method: int) -> None:
    """Bytes, size and checksum as zipfile has them; all that zipfile refuses is refused, and all lies are, too."""
    content = os.urandom(size) if kind == "random" else b"\0" * size
    archive = lying(content, method)
    with zipfile.ZipFile(io.BytesIO(archive)) as reader:
        assert (taken(tmp_path, archive) / "f").read_bytes() == reader.read("f") == content
    shutil.rmtree(tmp_path / "target")
    (tmp_path / "a.zip").unlink()
    lies = [
        lying(content, method, size=size + 1),
        lying(content, method, crc=zlib.crc32(content) ^ 1),
        lying(content, method, hidden=HIDDEN),
        *([lying(content, method, size=claimed) for claimed in {0, size // 2, size - 1}] if size else []),
    ]
    for lie in lies:
        assert refused(tmp_path, lie) == "ZIP_CORRUPT"


def test_an_entry_without_content_may_name_any_method(tmp_path: Path) -> None:
    archive = lying(b"", 0).replace(struct.pack("<3H", 20, 0, 0), struct.pack("<3H", 20, 0, 8))
    assert (taken(tmp_path, archive) / "f").read_bytes() == b""


def test_an_empty_archive_is_refused(tmp_path: Path) -> None:
    assert refused(tmp_path, zipped()) == "ZIP_EMPTY"


TREE = {
    "plain.txt": b"text",
    "empty.txt": b"",
    "deep/er/still/b.bin": os.urandom(50_000),
    "zeros.bin": b"\0" * 100_000,
    "f\u00fcr \u65e5\u672c.txt": b"names",
    "con.txt": b"reserved elsewhere",
    "inner.zip": make_zip({"../x": "y"}).read(),
}


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def by_python(source: Path, archive: Path) -> None:
    shutil.make_archive(str(archive.with_suffix("")), "zip", source)


def by_zip(source: Path, archive: Path) -> None:
    subprocess.run(["zip", "-qr", archive, "."], cwd=source, check=True)


def by_zip_from_a_pipe(source: Path, archive: Path) -> None:
    with archive.open("wb") as file:
        subprocess.run(["zip", "-qr", "-", "."], cwd=source, stdout=file, check=True)


def by_python_zip64(source: Path, archive: Path) -> None:
    with zipfile.ZipFile(archive, "w") as writer:
        for path in sorted(source.rglob("*")):
            if path.is_file():
                info = zipfile.ZipInfo.from_file(path, path.relative_to(source).as_posix())
                with writer.open(info, "w", force_zip64=True) as sink:
                    sink.write(path.read_bytes())


def by_git(source: Path, archive: Path) -> None:
    environment = {"PATH": os.environ["PATH"], "HOME": str(source.parent)}
    for command in (["init", "-q"], ["add", "-A"]):
        subprocess.run(["git", *command], cwd=source, check=True, env=environment)
    identity = ["-c", "user.name=x", "-c", "user.email=x@example.com"]
    subprocess.run(["git", *identity, "commit", "-qm", "x"], cwd=source, check=True, env=environment)
    subprocess.run(["git", "archive", "--format=zip", "-o", archive, "HEAD"], cwd=source, check=True, env=environment)
    shutil.rmtree(source / ".git")


@pytest.mark.parametrize(
    "tool", [by_python, by_zip, by_zip_from_a_pipe, by_python_zip64, by_git], ids=lambda f: f.__name__
)
def test_what_ordinary_tools_make_is_taken_byte_for_byte(tmp_path: Path, tool: Callable[[Path, Path], None]) -> None:
    if "zip" in tool.__name__.split("_")[1:2] and shutil.which("zip") is None:
        pytest.skip("there is no zip command")
    source = tmp_path / "source"
    for name, content in TREE.items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(content)
    tool(source, tmp_path / "made.zip")
    assert tree(taken(tmp_path, (tmp_path / "made.zip").read_bytes())) == TREE


def test_an_execute_bit_is_kept_and_nothing_stronger(tmp_path: Path) -> None:
    target = taken(
        tmp_path,
        zipped((entry("run", mode=stat.S_IFREG | 0o6777), b"x"), (entry("data", mode=stat.S_IFREG | 0o666), b"x")),
    )
    assert stat.S_IMODE((target / "run").stat().st_mode) == 0o700
    assert stat.S_IMODE((target / "data").stat().st_mode) == 0o600


def test_empty_folders_are_kept(tmp_path: Path) -> None:
    target = taken(tmp_path, zipped((entry("empty/", mode=stat.S_IFDIR | 0o755), b""), ("a/b", b"x")))
    assert (target / "empty").is_dir()


def test_legacy_names_are_taken(tmp_path: Path) -> None:
    content = zipped(("caf_.txt", b"x")).replace(b"caf_", b"caf\x82")
    assert [path.name for path in taken(tmp_path, content).iterdir()] == ["caf\u00e9.txt"]


def test_a_large_archive_takes_little_memory(tmp_path: Path) -> None:
    archive = tmp_path / "big.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as writer:
        for number in range(90):
            writer.writestr(f"{number}.bin", b"0123456789" * 100_000)
    (tmp_path / "target").mkdir()
    program = (
        "import sys; from pathlib import Path; from occ_app.workspaces.archives import Limits, unpack\n"
        "unpack(Path(sys.argv[1]), Path(sys.argv[2]), Limits(100_000_000, 50_000))\n"
        # Not getrusage: its peak begins with that of the process that forked this one.
        "print(Path('/proc/self/status').read_text().partition('VmHWM:')[2].split()[0])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, archive, tmp_path / "target"], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 60_000  # KB, the interpreter included


def test_what_disappears_while_a_folder_is_packed_is_left_out(tmp_path: Path) -> None:
    for name in ("a", "b", "c/d", "e"):
        (tmp_path / "folder" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "folder" / name).write_text(name)
    (tmp_path / "folder/link").symlink_to("b")
    output = io.BytesIO()
    packing = pack(tmp_path / "folder", output)
    next(packing)  # what there is has been listed
    shutil.rmtree(tmp_path / "folder/c")
    for name in ("b", "link"):
        (tmp_path / "folder" / name).unlink()
    assert sum(packing) == 1
    assert zipfile.ZipFile(output).namelist() == ["a", "e"]
