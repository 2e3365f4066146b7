"""Count phrases in code and docs that read as translated. `make check` runs it: the number may only go down.

python -m tests.style            print the count for each file and compare the total with the limit
"""

from __future__ import annotations

import io
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
LIMIT = 45
_AFTER_WHAT = (
    "a an the it they he no of was were comes came has had does did run runs ran wait waits tell tells say says said "
    "stand stands end ends began begins only such one two any every each nobody somebody other others this that can "
    "may must make makes change changes goes went could should follows lies is"
)
PHRASES = re.compile(
    rf"(?<!\w)(?:what (?:{_AFTER_WHAT.replace(' ', '|')})|told|anew|whoever|whatever"
    r"|of (?:its|their|his|our) own|stands?|stood)(?!\w)",
    re.IGNORECASE,
)


def texts(path: Path) -> Iterator[str]:
    """The sentences of a file: all of a page, the comments and strings of code."""
    if path.suffix != ".py":
        yield path.read_text()
        return
    for token in tokenize.generate_tokens(io.StringIO(path.read_text()).readline):
        if token.type in (tokenize.COMMENT, tokenize.STRING) or token.type == getattr(tokenize, "FSTRING_MIDDLE", -1):
            yield token.string


def count(path: Path) -> int:
    return sum(len(PHRASES.findall(text)) for text in texts(path))


def sources() -> list[Path]:
    code = [path for folder in ("occ_app", "occ_worker", "migrations") for path in (ROOT / folder).rglob("*.py")]
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("occ_app/**/*.html")]
    return sorted([*code, *pages])


def main() -> int:
    counts = {path.relative_to(ROOT).as_posix(): count(path) for path in sources()}
    total = sum(counts.values())
    if "-v" in sys.argv or total > LIMIT:
        for name, number in sorted(counts.items(), key=lambda item: -item[1]):
            if number:
                print(f"{number:5} {name}")
    print(f"{total} phrases that read as translated, at most {LIMIT} allowed")
    return 1 if total > LIMIT else 0


if __name__ == "__main__":
    sys.exit(main())
