"""Claude's Markdown as HTML that cannot inject anything.

It has no raw HTML, no images, and links only to the web and to mail. This is the only module that turns a text into
markup; a browser receives its output, also while the text streams.
"""

from __future__ import annotations

import re
from collections.abc import Callable, MutableMapping, Sequence
from functools import cache, lru_cache
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.common.utils import escapeHtml
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token
from markupsafe import Markup

from occ_app.hub.pages import highlight

_CUT_BYTES = 8_000  # after so many characters a block at the top level begins a new piece
_PLAIN_BYTES = 32_000  # a longer piece is shown as plain text: some constructs take quadratic time
_MAX_BYTES = 250_000
_MAX_CELLS, _MAX_BRACKETS = 5_000, 2_000
_TABLE = re.compile(r"[-:][ \t]*\||\|[ \t]*[-:]")  # part of a table's delimiter row

COPY = '<button type="button" class="copy">Copy</button>'
"""The button that copies the text before it; it is hidden without the script."""

_TAIL = "\ue0f0"  # a private-use character; removed from the input
_TAIL_HTML = '<span class="tail"></span>'
_SAFE_LINK = re.compile(r"(https?://|mailto:)", re.IGNORECASE)

_References = tuple[tuple[str, str, str], ...]
_Rule = Callable[[RendererHTML, Sequence[Token], int, Any, MutableMapping[str, Any]], str]


def html(text: str) -> Markup:
    """Return a whole text as HTML."""
    return finished("\n".join(blocks(text)))


def blocks(text: str) -> list[str]:
    """Return a text as HTML, one element for each block at the top level."""
    if len(text) > _MAX_BYTES:
        return [_plain(text)]
    pieces, references = _pieces(text)
    return [block for piece in pieces for block in _one(piece, references)]


def open_blocks(text: str, closing: str) -> list[str]:
    """Return an unfinished text as `blocks` does, marked where it will grow.

    An element of class `tail` marks the place. `closing` is Markdown that ends the open blocks.
    """
    return [str(finished(block)) for block in blocks(text.replace(_TAIL, "") + _TAIL + closing)]


def finished(html: str) -> Markup:
    """Return HTML made by this module as Markup."""
    return Markup(html.replace(_TAIL, ""))  # noqa: S704 - made by the rules below, which escape all text


@lru_cache(maxsize=64)  # only the last piece of a streaming answer is new
def _one(piece: str, references: _References) -> tuple[str, ...]:
    if len(piece) > _PLAIN_BYTES or _is_costly(piece):
        return (_plain(piece),)
    links = {label: {"href": href, "title": title} for label, href, title in references}
    environment: dict[str, Any] = {"references": links} if links else {}
    parser = _parser()
    tokens, made, begin, depth = parser.parse(piece, environment), list[str](), 0, 0
    for index, token in enumerate(tokens):
        depth += token.nesting
        if depth == 0:
            made.append(parser.renderer.render(tokens[begin : index + 1], parser.options, environment).strip("\n"))
            begin = index + 1
    return tuple(made)


def _is_costly(piece: str) -> bool:
    """Return whether rendering takes long.

    It does for a table padded with many empty cells, and for many unclosed brackets.
    """
    widest = max((line.count("|") for line in piece.split("\n")), default=0)
    cells = widest * piece.count("\n") if _TABLE.search(piece) else 0
    return cells > _MAX_CELLS or piece.count("[") > _MAX_BRACKETS


def _plain(text: str) -> str:
    return f'<p class="plain">{_escaped(text)}</p>'


def _pieces(text: str) -> tuple[list[str], _References]:
    """Return a text cut at the top level, and the links its pieces may refer to.

    Cutting keeps the time to render a text proportional to its length. The rest after a very long block is one piece.
    """
    if len(text) < _CUT_BYTES:
        return [text], ()
    text = re.sub(r"\r\n?", "\n", text)
    pieces, links, begin, size = list[str](), dict[str, tuple[str, str]](), 0, _PLAIN_BYTES
    while True:
        cuts, new_links = _cuts(text[begin : begin + size])
        links = {label: (href, title) for label, href, title in new_links} | links
        for cut in cuts:
            pieces.append(text[begin : begin + cut])
            begin += cut
        if cuts:
            size = _PLAIN_BYTES
        elif begin + size >= len(text) or size > _PLAIN_BYTES:
            return [*pieces, text[begin:]], tuple((label, *link) for label, link in links.items())
        else:
            size *= 2


@lru_cache(maxsize=64)  # only the last part of a streaming answer is new
def _cuts(text: str) -> tuple[list[int], _References]:
    """Return the lengths of pieces that end at the top level, and all links.

    Each piece has at least _CUT_BYTES characters.
    """
    environment: dict[str, Any] = {}
    blocks = _block_parser().parse(text, environment)
    starts = {block.map[0] for block in blocks if block.level == 0 and block.map and block.nesting >= 0}
    links = tuple((label, link["href"], link["title"]) for label, link in environment.get("references", {}).items())
    cuts, length, lines = list[int](), 0, text.split("\n")
    for number, line in enumerate(lines):
        # The last line may be incomplete.
        if length >= _CUT_BYTES and number in starts and number < len(lines) - 1:
            cuts.append(length)
            length = 0
        length += len(line) + 1
    return cuts, links


def last_cut(text: str) -> int:
    """Return where the last piece of a long text begins; 0 for a single piece."""
    pieces, _ = _pieces(text.replace("\r\n", " \n").replace("\r", "\n"))
    return len(text) - len(pieces[-1])


def ends_in_code(text: str) -> bool:
    """Return whether a text ends inside a fenced code block."""
    tokens, lines = leaves(text), text.rstrip("\n").split("\n")
    return bool(tokens) and tokens[-1].type == "fence" and not re.match(r"\s*(```+|~~~+)\s*$", lines[-1])


@cache
def _block_parser() -> MarkdownIt:
    """Return a parser with the renderer's block rules only.

    It has no tables: a text is cut there as in a paragraph, never inside.
    """
    parser = MarkdownIt("commonmark", {"html": False, "linkify": False})
    parser.core.ruler.enableOnly(["normalize", "block"])
    return parser


def leaves(text: str) -> list[Token]:
    """Return the block tokens of a text: those with content, and their parents."""
    return _leaf_parser().parse(text)


@cache
def _leaf_parser() -> MarkdownIt:
    parser = MarkdownIt("commonmark", {"html": False, "linkify": False}).enable("table")
    parser.core.ruler.enableOnly(["normalize", "block"])
    return parser


@cache
def _parser() -> MarkdownIt:
    parser = MarkdownIt("commonmark", {"html": False, "linkify": False}).enable(["table", "strikethrough"])
    for name, rule in _RULES.items():
        parser.add_render_rule(name, rule)
    return parser


def _escaped(text: str) -> str:
    return escapeHtml(text).replace(_TAIL, _TAIL_HTML)


def _text(_: RendererHTML, tokens: Sequence[Token], index: int, *__: Any) -> str:
    return _escaped(tokens[index].content)


def _code_inline(_: RendererHTML, tokens: Sequence[Token], index: int, *__: Any) -> str:
    return f"<code>{_escaped(tokens[index].content)}</code>"


def _code(_: RendererHTML, tokens: Sequence[Token], index: int, *__: Any) -> str:
    content, language = tokens[index].content, (tokens[index].info.split() or [""])[0]
    # Colours are added when the block is complete: an unclosed string would colour everything after it.
    inner = _escaped(content) if _TAIL in content or _TAIL in language else highlight.code(content, language)
    return f'<div class="code"><pre tabindex="0"><code>{inner}</code></pre>{COPY}</div>'


def _link_open(_: RendererHTML, tokens: Sequence[Token], index: int, *__: Any) -> str:
    return _opening(str(tokens[index].attrGet("href") or ""))


def _link_close(_: RendererHTML, tokens: Sequence[Token], index: int, *__: Any) -> str:
    # The nearest opening tag before it is its own, because links are not nested.
    opened = next(token for token in reversed(tokens[:index]) if token.type == "link_open")
    return _closing(str(opened.attrGet("href") or ""))


def _image(_: RendererHTML, tokens: Sequence[Token], index: int, *__: Any) -> str:
    source = str(tokens[index].attrGet("src") or "")
    return f"{_opening(source)}{_escaped(tokens[index].content or source)}{_closing(source)}"


def _opening(target: str) -> str:
    """Return the start of a link, or of plain emphasis for an unsafe target."""
    if not _SAFE_LINK.match(target):
        return "<em>"
    return f'<a href="{escapeHtml(target)}" rel="noopener noreferrer nofollow" target="_blank">'


def _closing(target: str) -> str:
    return "</a>" if _SAFE_LINK.match(target) else "</em>"


def _heading(closing: str) -> _Rule:
    def rule(_: RendererHTML, tokens: Sequence[Token], index: int, *__: Any) -> str:
        # The page has higher headings, and an answer starts with a heading of level 1 or 2.
        level = min(max(int(tokens[index].tag[1:]) + 1, 3), 6)
        return f"<{closing}h{level}>"

    return rule


def _cell(name: str) -> _Rule:
    def rule(_: RendererHTML, tokens: Sequence[Token], index: int, *__: Any) -> str:
        # The renderer sets alignment as an inline style, which the pages' policy forbids.
        side = re.search(r"text-align:(right|center)", str(tokens[index].attrGet("style") or ""))
        return f'<{name} class="{side[1]}">' if side else f"<{name}>"

    return rule


def _fixed(markup: str) -> _Rule:
    return lambda *_: markup


_RULES: dict[str, _Rule] = {
    "text": _text,
    "code_inline": _code_inline,
    "code_block": _code,
    "fence": _code,
    "link_open": _link_open,
    "link_close": _link_close,
    "image": _image,
    "heading_open": _heading(""),
    "heading_close": _heading("/"),
    "th_open": _cell("th"),
    "td_open": _cell("td"),
    "table_open": _fixed('<div class="scroll" tabindex="0"><table>'),
    "table_close": _fixed("</table></div>"),
}
