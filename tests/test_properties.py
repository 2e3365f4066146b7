"""Properties that hold for any input: of the extractor, of ids, of the reading of the CLI's lines."""

from __future__ import annotations

import contextlib
import io
import json
import re
import sqlite3
import tempfile
import zipfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from marshmallow import ValidationError

from occ_app.client.event_checks import RawEvent, checked
from occ_app.errors import ArchiveError
from occ_app.web import fields
from occ_app.workspaces.archives import Limits, unpack
from occ_worker.execution import lines as lines_module
from occ_worker.execution.lines import Lines
from occ_worker.execution.translator import Translator

LIMITS = Limits(unpacked_bytes=50_000, files=50)
EXAMPLES = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])

names = st.text(alphabet=st.sampled_from("ab./\\ :\0\n~\u2024\uff0f\u00e9e\u0301C"), min_size=1, max_size=12)


def judged(content: bytes) -> None:
    """Either refused with a code, or whole and inside; never anything outside, never over the limit, never a crash."""
    with tempfile.TemporaryDirectory() as scratch:
        archive, target = Path(scratch) / "a.zip", Path(scratch) / "in" / "target"
        archive.write_bytes(content)
        target.mkdir(parents=True)
        with contextlib.suppress(ArchiveError):
            result = unpack(archive, target, LIMITS)
            assert len([path for path in target.rglob("*") if path.is_file()]) == result.files
        assert sorted(path.name for path in Path(scratch).iterdir()) == ["a.zip", "in"]
        assert [path.name for path in (Path(scratch) / "in").iterdir()] == ["target"]
        assert not any(path.is_symlink() for path in target.rglob("*"))
        assert sum(path.stat().st_size for path in target.rglob("*") if path.is_file()) <= LIMITS.unpacked_bytes


@pytest.mark.filterwarnings("ignore:Duplicate name")
@EXAMPLES
@given(st.lists(st.tuples(names, st.binary(max_size=200), st.integers(0, 0xFFFF)), max_size=8))
def test_any_archive_is_taken_whole_inside_or_refused(entries: list[tuple[str, bytes, int]]) -> None:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as writer:
        for name, content, mode in entries:
            info = zipfile.ZipInfo(name)
            info.create_system, info.external_attr = 3, mode << 16
            with contextlib.suppress(ValueError):
                writer.writestr(info, content)
    judged(archive.getvalue())


def _good() -> bytes:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as writer:
        for name in ("a.txt", "b/c.txt", "d.bin"):
            writer.writestr(name, name.encode() * 50)
    return archive.getvalue()


GOOD = _good()


@EXAMPLES
@given(st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)), min_size=1, max_size=6))
def test_any_damage_to_an_archive_is_survived(changes: list[tuple[int, int]]) -> None:
    content = bytearray(GOOD)
    for place, value in changes:
        content[place] = value
    judged(bytes(content))


@EXAMPLES
@given(st.text(max_size=140))
def test_an_id_is_taken_exactly_when_the_contract_says_so(value: str) -> None:
    allowed = re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", value) is not None and not value.endswith(".")
    try:
        fields.Id().deserialize(value)
    except ValidationError:
        assert not allowed
    else:
        assert allowed


HALVES = st.sampled_from(["\ud83d", "\ude00", "a\udc00b"])  # of characters
LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20) | HALVES
KEYS = (
    st.sampled_from(
        ["type", "subtype", "event", "delta", "text", "message", "content", "id", "name", "input", "result", "is_error"]
    )
    | st.sampled_from(
        ["thinking", "task_id", "tool_use_id", "tool_name", "usage", "compact_metadata", "parent_tool_use_id"]
    )
    | st.text(max_size=5)
)
KINDS = st.sampled_from(
    ["system", "init", "stream_event", "content_block_delta", "text_delta", "assistant", "user", "result", "tool_use"]
) | st.sampled_from(
    ["thinking_delta", "task_started", "task_notification", "permission_denied", "compact_boundary", "TaskUpdate"]
)
NAMES = ("started", "output", "tool", "status", "thinking", "task", "todo", "denial", "compaction")
ANYTHING = st.recursive(
    LEAVES | KINDS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=6), max_leaves=20
)


@EXAMPLES
@given(st.lists(ANYTHING | st.dictionaries(KEYS, ANYTHING | KINDS, min_size=1), max_size=8))
def test_any_line_of_json_is_read_or_passed_over(content: list[object]) -> None:
    translator, connection = Translator(), sqlite3.connect(":memory:")
    for line in content:
        for name, data in translator.events(json.dumps(line).encode()):
            assert checked(RawEvent(1, name, data)) is not None, name  # a hub accepts it
            assert name in NAMES
            connection.execute("SELECT ?", (data,)).fetchall()  # it can be stored
    outcome = translator.outcome()
    if outcome is not None:
        told = [
            outcome.data.get(name) for name in ("sessionId", "costUsd", "numTurns", "durationMs", "message", "code")
        ]
        connection.execute("SELECT ?, ?, ?, ?, ?, ?", told).fetchall()  # all of it can be stored
    connection.close()


def chunks(line: bytes) -> list[str]:
    return [json.loads(data)["chunk"] for name, data in Translator().events(line) if name == "output"]


@EXAMPLES
@given(
    st.text(st.characters(exclude_categories=[]), max_size=40) | st.text('\\"/\n\r\t\b\f\x00\x1f\x7f{}', max_size=20),
    st.booleans(),
)
def test_a_line_of_text_means_the_same_on_the_short_way_and_through_the_parser(text: str, ascii_only: bool) -> None:
    content = {
        "type": "stream_event",
        "event": {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}},
        "session_id": "00000000-0000-4000-8000-000000000000",
        "parent_tool_use_id": None,
        "uuid": "00000000-0000-4000-8000-000000000001",
        "api_message_id": "msg_1",
    }
    line = json.dumps(content, ensure_ascii=ascii_only, separators=(",", ":")).encode(errors="surrogatepass")
    assert chunks(line) == chunks(line.replace(b'"type":"stream_event",', b'"type": "stream_event", ', 1))


@EXAMPLES
@given(st.lists(st.binary(max_size=300), max_size=10))
def test_lines_come_out_as_they_went_in_however_they_are_cut(pieces: list[bytes]) -> None:
    lines = Lines()
    found = [line for piece in pieces for line in lines.feed(piece)]
    *whole, rest = b"".join(pieces).split(b"\n")
    assert found == [line for line in whole if line]
    assert lines.rest() == rest


@EXAMPLES
@given(
    st.lists(st.one_of(st.binary(max_size=9), st.sampled_from([b"\n", b"1234567\n", b"12345678\n", b"123456789\n"])))
)
def test_a_line_over_the_limit_is_noted_and_never_returned(pieces: list[bytes]) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(lines_module, "LONGEST_LINE", 8)
        lines = Lines()
        found = [line for piece in pieces for line in lines.feed(piece)]
    *whole, rest = b"".join(pieces).split(b"\n")
    assert found == [line for line in whole if 0 < len(line) <= 8]
    assert lines.too_long == any(len(line) > 8 for line in [*whole, rest])
    assert lines.rest() == rest[:9]
