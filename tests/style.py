"""Check the style of code and docs; `make check` runs it.

It counts phrases that read as translated, which may only become fewer, and long first lines of docstrings.
`python -m tests.style -v` prints the count for each file.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
LIMIT = 14
FIRST_LINE = 80  # characters of a docstring's first line
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


def long_first_lines(path: Path) -> Iterator[str]:
    """Yield the place of each docstring whose first line is too long."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(ast.parse(path.read_text())):
        text = (ast.get_docstring(node) or "") if isinstance(node, documented) else ""
        if len(text.partition("\n")[0]) > FIRST_LINE:
            yield f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 1)}"


def main() -> int:
    counts = {path.relative_to(ROOT).as_posix(): count(path) for path in sources()}
    total = sum(counts.values())
    if "-v" in sys.argv or total > LIMIT:
        for name, number in sorted(counts.items(), key=lambda item: -item[1]):
            if number:
                print(f"{number:5} {name}")
    print(f"{total} phrases that read as translated, at most {LIMIT} allowed")
    code = [*(path for path in sources() if path.suffix == ".py"), *sorted(ROOT.glob("benchmarks/*.py"))]
    long = [place for path in code for place in long_first_lines(path)]
    for place in long:
        print(f"{place}: the first line of the docstring has more than {FIRST_LINE} characters")
    return 1 if total > LIMIT or long else 0


if __name__ == "__main__":
    sys.exit(main())
