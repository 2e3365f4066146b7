"""The one table of sentences: each is OCC's, and tests assert the words of errors nowhere else."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from tests import sentences

ROOT = Path(__file__).parent.parent
TABLE = {name: value for name, value in vars(sentences).items() if name.isupper()}


def test_every_sentence_of_the_table_is_one_that_occ_prints() -> None:
    sources = [text for path in _sources() for text in _strings(ast.parse(path.read_text()))]
    pages = (ROOT / "occ_app/hub").rglob("*.*")
    sources += [path.read_text() for path in pages if path.suffix in (".html", ".js")]
    unknown = [value for value in TABLE.values() if not any(value in source for source in sources)]
    assert not unknown, unknown


def test_no_test_asserts_the_words_of_an_error_outside_the_table() -> None:
    raised = [text for path in _sources() for each in _raises(path) for text in _strings(each)]
    asserted = [
        f"{path.name}:{constant.lineno}: {constant.value}"
        for path in sorted((ROOT / "tests").glob("test_*.py"))
        for constant in _asserted(ast.parse(path.read_text()))
        if len(constant.value.split()) >= 3 and any(constant.value.strip() in sentence for sentence in raised)
    ]
    assert not asserted, "\n".join(asserted)


def _sources() -> Iterator[Path]:
    for package in ("occ_app", "occ_worker"):
        yield from (ROOT / package).rglob("*.py")


def _strings(tree: ast.AST) -> Iterator[str]:
    """Yield the strings of a tree, those with placeholders joined without them."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        elif isinstance(node, ast.JoinedStr):
            yield "\0".join(str(part.value) for part in node.values if isinstance(part, ast.Constant))


def _raises(path: Path) -> Iterator[ast.Raise]:
    return (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Raise))


def _asserted(tree: ast.AST) -> Iterator[ast.Constant]:
    """Yield the strings in asserts and in the patterns that raised errors must match."""
    for node in ast.walk(tree):
        inside = node.test if isinstance(node, ast.Assert) else None
        if isinstance(node, ast.keyword) and node.arg == "match":
            inside = node.value
        for each in ast.walk(inside) if inside is not None else ():
            if isinstance(each, ast.Constant) and isinstance(each.value, str):
                yield each
