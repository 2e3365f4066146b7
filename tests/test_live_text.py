"""Markdown while it is being written: what is shown is a beginning of what it will be, in the same blocks."""

from __future__ import annotations

import time
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from occ_app.hub.pages import markdown
from occ_app.hub.pages.live_text import LiveText

_BLOCKS = ("p", "li", "th", "td", "pre", "h3", "h4", "h5", "h6", "blockquote", "code", "strong", "em", "s")

# What a model writes: each part of it could show raw marks, or text in a block that it leaves again.
ANSWER = """## What was wrong

`total()` added **floats**, so `0.1 + 0.2` became `0.30000000000000004`, and the *rounding* came too late.

| Step | Before | After |
|---|--:|--:|
| Sum | 9.99 | `10.00` |
| Tax | **1.90** | 1.90 |

```python
def total(items: list[Item]) -> Decimal:
    return sum((item.price for item in items), Decimal(0))  # ```
```

1. `src/invoice.py`: sums are exact.
2. A test, with [the docs](https://docs.python.org/3/library/decimal.html) beside it.
   - [ ] nested and ***both***
   - [x] done ~~not~~

> Credit notes use **the
> same** function.

~~~sh
ls -l | wc -l
~~~

Use `**kwargs` and __dunder__, snake_case_name, 2 * 3 and 5 - 3 = 2; a < b & c > d.

---

1) one

   para in item

   | h1 | h2 |
   |----|:--:|
   | d | *e* |

The **end**.
"""


class _Characters(HTMLParser):
    """Every visible character with the elements that it is in, but links and the paragraphs of a list's items."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, tuple[str, ...]]] = []
        self._open: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if "button" in self._open:
            return
        kinds = {tag for tag in self._open if tag in _BLOCKS} - ({"p"} if "li" in self._open else set())
        self.found += [(character, tuple(sorted(kinds))) for character in data if not character.isspace()]


def characters(html: str) -> list[tuple[str, tuple[str, ...]]]:
    parser = _Characters()
    parser.feed(html)
    return parser.found


def shown(live: LiveText) -> str:
    return "\n".join([*live.closed, *live.open])


@pytest.mark.parametrize("step", [1, 7])
def test_a_growing_text_is_always_a_beginning_of_the_whole_in_the_same_blocks(step: int) -> None:
    whole, live, before = characters(str(markdown.html(ANSWER))), LiveText(), 0
    for begin in range(0, len(ANSWER), step):
        live.feed(ANSWER[begin : begin + step])
        now = characters(shown(live))
        assert now == whole[: len(now)], ANSWER[max(0, begin - 60) : begin + step]
        assert len(now) >= before - 3  # the end of a mark may have been a letter
        before = len(now)


@pytest.mark.parametrize(
    ("text", "raw"),
    [
        ("| a | b |\n|---|", "|"),
        ("| a | b |\n", "|"),
        ("text\n```", "`"),
        ("```py", "py"),
        ("**bold", "*"),
        ("a *", "*"),
        ("see [docs](https://x.exa", "]("),
        ("see [docs", "["),
        ("# ", "#"),
        ("- ", "-"),
        ("12.", "12"),
        ("> ", ">"),
        ("Title\n==", "="),
        ("`code", "`"),
        ("``a ` b", "``"),
        ("\x1b[3", "["),
    ],
)
def test_raw_marks_are_never_shown(text: str, raw: str) -> None:
    live = LiveText()
    live.feed(text)
    assert raw not in "".join(character for character, _ in characters(shown(live)))


def test_words_are_shown_at_once() -> None:
    live = LiveText()
    live.feed("I look")
    assert "I look" in shown(live)


def test_what_is_closed_is_rendered_once(monkeypatch: pytest.MonkeyPatch) -> None:
    live = LiveText()
    for number in range(200):
        live.feed(f"Paragraph {number}.\n\n")
    longest = []
    monkeypatch.setattr(markdown, "open_blocks", lambda text, _: longest.append(len(text)) or [])
    live.feed("The last")
    assert live.open == []
    assert max(longest) < 40


@pytest.mark.parametrize(
    "piece",
    [
        "-",
        "1",
        "*",
        "`",
        "``a`",
        "[",
        "<",
        "* ",
        "**a ",
        "|",
        "| a |\n",
        "&",
        "[x](",
        "~ ",
        "\x1b[",
        "> ",
        "a | b\n",
        "_a_ ",
    ],
)
def test_hostile_text_takes_time_in_proportion(piece: str) -> None:
    live = LiveText()
    live.feed(piece * (60_000 // len(piece)))
    begun = time.thread_time()
    live.feed("x")
    assert isinstance(live.open, list)
    assert time.thread_time() - begun < 5


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.sampled_from(["a", "b c", " ", "\n", "\n\n", "*", "**", "`", "```", "|", "-", "# ", "1. ", "> ", "["]))
)
def test_any_text_is_closed_in_the_end(pieces: list[str]) -> None:
    live = LiveText()
    for piece in pieces:
        live.feed(piece)
        assert "\ue0f0" not in shown(live)
    live.feed("\n\nThe end of it.\n\nMore.\n\n")
    assert "The end of it." in shown(live)
