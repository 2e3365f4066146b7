"""The one table of sentences: each is OCC's, and tests assert the words that OCC prints nowhere else."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from tests import sentences

ROOT = Path(__file__).parent.parent
# Three words in a row; the names of commands are no words, and neither are attributes of HTML.
WORDS = re.compile(r"(?:\b[A-Za-z]?[a-z']+[,;:]? ){2}[a-z']+(?!=)")
COMMAND = re.compile(r"\bocc(?: [a-z]+)+|<[^>]*>")
TABLE = {name: value for name, value in vars(sentences).items() if name.isupper()}


def test_every_sentence_of_the_table_is_one_that_occ_prints() -> None:
    sources = [text for path in _sources() for text in _strings(_tree(path))]
    pages = (ROOT / "occ_app/hub").rglob("*.*")
    sources += [path.read_text() for path in pages if path.suffix in (".html", ".js")]
    printed = {value.replace("{}", "\0") for value in TABLE.values()}
    unknown = [value for value in printed if not any(value in source for source in sources)]
    assert not unknown, unknown


def test_no_test_asserts_the_words_of_an_error_outside_the_table() -> None:
    raised = [text for path in _sources() for each in _raises(path) for text in _strings(each)]
    asserted = [
        f"{path.name}:{constant.lineno}: {constant.value}"
        for path in sorted((ROOT / "tests").glob("test_*.py"))
        for constant in _asserted(_tree(path))
        if len(constant.value.split()) >= 3 and any(constant.value.strip() in sentence for sentence in raised)
    ]
    assert not asserted, "\n".join(asserted)


def test_no_test_asserts_words_that_occ_prints_outside_the_table() -> None:
    printed = {piece.strip() for path in _sources() for piece in _printed(_tree(path))}
    asserted = {
        f"{path.name}:{constant.lineno}: {constant.value}"
        for path in sorted((ROOT / "tests").glob("test_*.py"))
        for constant in _compared(_tree(path))
        if any(constant.value.strip() in piece or piece in constant.value for piece in printed)
    }
    assert not asserted, "\n".join(sorted(asserted))


def test_the_words_of_a_command_or_of_html_are_no_sentence() -> None:
    assert _is_sentence(sentences.NOTHING_TO_UNDO)
    assert _is_sentence("; look at it with `occ jobs tail --follow ")
    assert not _is_sentence("occ service install")
    assert not _is_sentence('<a rel="noopener noreferrer nofollow" target="_blank">')


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


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
    return (node for node in ast.walk(_tree(path)) if isinstance(node, ast.Raise))


def _asserted(tree: ast.AST) -> Iterator[ast.Constant]:
    """Yield the strings in asserts and in the patterns that raised errors must match."""
    for node in ast.walk(tree):
        inside = node.test if isinstance(node, ast.Assert) else None
        if isinstance(node, ast.keyword) and node.arg == "match":
            inside = node.value
        for each in ast.walk(inside) if inside is not None else ():
            if isinstance(each, ast.Constant) and isinstance(each.value, str):
                yield each


def _is_sentence(text: str) -> bool:
    return WORDS.search(COMMAND.sub("", text)) is not None


def _printed(tree: ast.AST) -> Iterator[str]:
    """Yield the strings with three words in a row, those between placeholders apart; no docstring and no help."""
    apart = set[ast.AST]()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            apart.add(node.value)
        elif isinstance(node, ast.keyword) and node.arg in ("help", "metadata"):
            apart.update(ast.walk(node.value))
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in apart:
            yield from [node.value] if _is_sentence(node.value) else []


def _compared(tree: ast.AST) -> Iterator[ast.Constant]:
    """Yield the strings with three words in a row that are asserted or compared."""
    yield from (each for each in _asserted(tree) if _is_sentence(each.value))
    for node in ast.walk(tree):
        for each in ast.walk(node) if isinstance(node, ast.Compare) else ():
            if isinstance(each, ast.Constant) and isinstance(each.value, str) and _is_sentence(each.value):
                yield each
