"""Templates that are compiled once and loaded by each later start."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import jinja2
import pytest

from occ_app.hub.pages.compiled import CompiledTemplates


@pytest.fixture(autouse=True)
def writing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)


def rendered(folder: Path, source: str, compiles: bool = True) -> str:
    """The text of a template in a new environment, as in a new process."""
    environment = jinja2.Environment(loader=jinja2.DictLoader({"page.html": source}), autoescape=True)
    environment.bytecode_cache = CompiledTemplates(folder)
    if not compiles:
        environment.compile = _refuse  # type: ignore[assignment]
    return environment.get_template("page.html").render(name="<Ada>")


def _refuse(*_: Any, **__: Any) -> Any:
    raise AssertionError("compiled again")


def test_a_template_is_compiled_once_until_its_source_changes(tmp_path: Path) -> None:
    assert rendered(tmp_path, "Hello {{ name }}") == "Hello &lt;Ada&gt;"
    assert rendered(tmp_path, "Hello {{ name }}", compiles=False) == "Hello &lt;Ada&gt;"
    assert rendered(tmp_path, "Goodbye {{ name }}") == "Goodbye &lt;Ada&gt;"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_template_is_rendered_where_nothing_can_be_stored(tmp_path: Path) -> None:
    assert rendered(tmp_path / "missing", "Hello") == "Hello"
    assert not (tmp_path / "missing").exists()


def test_no_template_is_stored_where_python_stores_no_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    assert rendered(tmp_path, "Hello") == "Hello"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"\0" * 500, b"text"])
def test_a_stored_template_that_is_damaged_is_compiled_again(tmp_path: Path, content: bytes) -> None:
    assert rendered(tmp_path, "Hello") == "Hello"
    [stored] = tmp_path.iterdir()
    stored.write_bytes(content)
    assert rendered(tmp_path, "Hello") == "Hello"
    assert stored.read_bytes() != content
