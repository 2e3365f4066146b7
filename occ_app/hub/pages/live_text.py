"""Markdown while it is being written.

It never shows raw marks, and never shows text in a block that the text will leave again.

A block at the top level is closed, and rendered once, when another one begins on a complete line after it. The end of
the open block is shown as if its emphasis, code and links were closed. A line that may yet become a heading, a list, a
fence or a table is held back until that is decided.
"""

from __future__ import annotations

import re

from markdown_it.token import Token

from occ_app.hub.pages import markdown, terminal

_CONTEXT = 2_000  # characters before the end that are examined: the patterns may take quadratic time
_MOST_MARKS, _LONGEST_MARK = 20, 200
_MOST_HELD = 3  # lines: a table's head, its delimiter row, and the line that is being written

_UNDECIDED_LINE = re.compile(r"[\s>*+#=_~`0-9.)-]*(?:\[[ xX]?\]?[ \t]*)?\Z")
_UNDECIDED_END = re.compile(r"(?:[*_~`#|\\\[\]!<&+=>-]+|&\w{1,10}|<[^\s>]*|\x1b[^a-zA-Z]*)\Z")
_RULE_ROW = re.compile(r"[\s|:-]*\Z")
_CODE_SPAN = re.compile(r"(?<!`)(`+)(?!`)(?:[^`]|(?!\1(?!`))`+)*?(?<!`)\1(?!`)")
_OPEN_LINK = re.compile(r"!?\[((?:[^\[\]\\]|\\.)*)(?:\](?:\([^()\s]*(?:\s[^()]*)?)?)?\Z")
_MARKS = re.compile(r"\\.|(\*{1,3}|_{1,3}|~~)")
_FENCE_END = re.compile(r"[ \t>]*(`{1,}|~{1,})[ \t]*\Z")


class LiveText:
    """A growing text, whose elements `closed` and `open` are HTML."""

    def __init__(self) -> None:
        self._closed = list[str]()
        self._lines = ""  # complete lines of the open block
        self._partial = ""  # the line that is being written

    def feed(self, text: str) -> None:
        """Add a piece of text."""
        self._partial += text
        end = self._partial.rfind("\n") + 1
        if end:
            self._lines += terminal.plain(self._partial[:end])
            self._partial = self._partial[end:]

    @property
    def closed(self) -> list[str]:
        """Return the blocks that will not change any more, as HTML."""
        self._close()
        return self._closed

    @property
    def open(self) -> list[str]:
        """Return the open block as HTML, with the last complete one before it.

        Returns an empty list when nothing can be shown yet.
        """
        self._close()
        text = self._lines + terminal.plain(self._partial)
        shown, closing = visible(text)
        return markdown.open_blocks(shown, closing) if shown.strip() else []

    def _close(self) -> None:
        starts = [token.map[0] for token in markdown.leaves(self._lines) if _begins(token) and token.map]
        if len(starts) < 2:
            return
        lines = self._lines.split("\n")
        self._closed += markdown.blocks("\n".join(lines[: starts[-1]]))
        self._lines = "\n".join(lines[starts[-1] :])


def _begins(token: Token) -> bool:
    return token.level == 0 and token.nesting >= 0


def visible(text: str) -> tuple[str, str]:
    """Return the part of an open block that can be shown, and its closing Markdown.

    The closing Markdown ends the code, emphasis and links that are still open.
    """
    tokens = [token for token in markdown.leaves(text) if token.type in ("inline", "fence", "code_block")]
    if tokens and tokens[-1].type != "inline" and _reaches_end(tokens[-1], text):
        return _in_code(text), ""
    lines = text.split("\n")
    for _ in range(_MOST_HELD):
        if lines and _is_undecided(lines):
            lines.pop()
    shown = "\n".join(lines)
    if not shown.strip():
        return "", ""
    # The marks of a paragraph may begin on one of its earlier lines.
    leaf = next((token for token in reversed(markdown.leaves(shown)) if token.type == "inline" and token.content), None)
    return _balanced(shown, leaf.content if leaf else "")


def _reaches_end(token: Token, text: str) -> bool:
    return token.map is not None and token.map[1] >= len(text.rstrip("\n").split("\n"))


def _in_code(text: str) -> str:
    """Return a text that ends in a code block, without an undecided last line.

    A last line is undecided when it may become the end of the block's fence.
    """
    before, line_break, last = text.rpartition("\n")
    return before + line_break if _FENCE_END.match(last) and line_break else text


def _is_undecided(lines: list[str]) -> bool:
    """Return whether the last line may still become something other than text."""
    last = lines[-1]
    if not last.strip():
        return len(lines) > 1 and "|" in lines[-2] and not _in_table(lines)
    if _UNDECIDED_LINE.match(last):
        return True
    looks_like_row = "|" in last or (len(lines) > 1 and "|" in lines[-2] and bool(_RULE_ROW.match(last)))
    return looks_like_row and not _in_table(lines)


def _in_table(lines: list[str]) -> bool:
    """Return whether the last line is in a table, below its delimiter row."""
    tokens = markdown.leaves("\n".join(lines))
    last = next((token for token in reversed(tokens) if token.type in ("table_open", "paragraph_open")), None)
    if last is None or last.map is None or last.type != "table_open":
        return False
    return last.map[1] >= len(lines) - (not lines[-1].strip()) > last.map[0] + (2 if lines[-1].strip() else 1)


def _balanced(text: str, inline: str) -> tuple[str, str]:
    """Return a text without ambiguous marks at its end, and the closing marks.

    Marks at the end are ambiguous when the next characters decide their meaning. The closing marks end the code and
    emphasis that are still open.
    """
    head, line_break, last = text.rpartition("\n")
    if not last.strip() or _RULE_ROW.match(last):
        return _after_line(text, inline)
    row = last.rpartition("|")[0] + "|" if last.lstrip(" >").startswith("|") else ""
    tail = last.removeprefix(row)
    kept, whole = tail.rstrip(" \t"), (tail if row else inline).rstrip(" \t")[-_CONTEXT:]
    for _ in range(_MOST_MARKS):
        found = _UNDECIDED_END.search(kept, max(0, len(kept) - _LONGEST_MARK))
        if not found or _ends(whole, found[0]):
            break
        kept, whole = kept[: found.start()].rstrip(), whole[: len(whole) - len(found[0])].rstrip()
    before, end = kept[:-_CONTEXT], kept[-_CONTEXT:]
    link = _OPEN_LINK.search(_without_code(end))
    if link and "`" not in end[link.start() :]:
        words = end[link.start() :].lstrip("!").removeprefix("[").partition("](")[0].rstrip("]")
        whole = whole[: max(0, len(whole) - (len(end) - link.start()))] + words
        kept = before + end[: link.start()] + words
    spaces = tail[len(kept) :] if tail.rstrip(" \t") == kept else ""
    return head + line_break + row + kept + spaces, "".join(_open_marks(whole))


def _after_line(text: str, inline: str) -> tuple[str, str]:
    """Return the same as `_balanced` for a text that ends with a complete line."""
    lines = text.rstrip("\n").split("\n")
    if not inline or _FENCE_END.match(lines[-1]) or _RULE_ROW.match(lines[-1]):
        return text.rstrip("\n") + "\n\n", ""
    return text.rstrip("\n"), "".join(_open_marks(inline[-_CONTEXT:]))


def _ends(inline: str, marks: str) -> bool:
    """Return whether the marks at the end of an inline text close earlier marks."""
    if _CODE_SPAN.search(inline) and _without_code(inline).endswith("x" * len(marks)):
        return True
    before = inline[: len(inline) - len(marks)]
    # An underscore before a letter closes nothing, and the next words may begin with a letter.
    return (
        before[-1:].strip() != ""
        and marks[0] != "_"
        and marks in ("".join(_open_marks(before)[:count]) for count in (1, 2))
    )


def _without_code(text: str) -> str:
    return _CODE_SPAN.sub(lambda found: "x" * len(found[0]), text)


def _open_marks(inline: str) -> list[str]:
    """Return the marks that close the code and emphasis still open, innermost first."""
    rest = _without_code(inline)
    ticks = re.search(r"(?<!\\)(`+)", rest)
    if ticks:
        return [ticks[1], *_open_marks(rest[: ticks.start()])]
    found_marks = list[str]()
    for found in _MARKS.finditer(rest):
        marks = found[1]
        if not marks:
            continue
        before, after = rest[: found.start()][-1:], rest[found.end() : found.end() + 1]
        if marks in found_marks and before.strip():
            del found_marks[found_marks.index(marks) :]
        elif after.strip() and not (marks[0] == "_" and before.isalnum()):
            found_marks.append(marks)
    return found_marks[::-1]
