"""The made-up projects and conversations of the pictures: files, and the model's turns for each prompt."""

from __future__ import annotations

import struct
import zlib
from typing import Any

Turns = list[dict[str, Any]]

_INVOICE = '''"""Invoices of the shop."""

from decimal import Decimal

from shop.items import Item


def total(items: list[Item]) -> float:
    s = 0.0
    for i in items:
        s = s + i.price * i.count
    return round(s, 2)


def lines(items: list[Item]) -> list[str]:
    """Return one line of text for each item."""
    return [f"{item.name:<30}{item.price:>10}" for item in items]
'''
_OLD = """def total(items: list[Item]) -> float:
    s = 0.0
    for i in items:
        s = s + i.price * i.count
    return round(s, 2)"""
_NEW = '''def total(items: list[Item]) -> Decimal:
    """Return the sum of the prices, exact to the cent."""
    return sum((item.price * item.count for item in items), Decimal(0))'''
_TEST = """from decimal import Decimal

from shop.invoice import total


def test_a_total_is_exact_to_the_cent(items):
    assert total(items) == Decimal("10.00")
"""
_CHECK = r"""#!/bin/sh
printf '\033[32m....\033[31mF\033[0m                            [100%%]\n'
printf '\033[1m=== FAILURES ===\033[0m\n'
printf "\033[31mE   AssertionError: assert Decimal('9.99') == Decimal('10.00')\033[0m\n"
printf '1 failed, 4 passed in 0.31s\n'
exit 1
"""


def picture(colour: tuple[int, int, int], side: int = 96) -> bytes:
    """Return a PNG of a disc of one colour."""

    def row(y: int) -> bytes:
        inside = [(x - side / 2) ** 2 + (y - side / 2) ** 2 < (side / 2.4) ** 2 for x in range(side)]
        return b"\0" + b"".join(bytes((*colour, 255)) if each else bytes(4) for each in inside)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", side, side, 8, 6, 0, 0, 0)
    rows = zlib.compress(b"".join(map(row, range(side))), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


FILES: dict[str, dict[str, str | bytes]] = {
    "billing": {
        "README.md": "# Billing\n\nInvoices of the shop.\n",
        "shop/__init__.py": "",
        "shop/invoice.py": _INVOICE,
        "shop/items.py": "from dataclasses import dataclass\n",
        "check.sh": _CHECK,
        "logo.png": picture((29, 84, 201)),
        "new-logo.png": picture((15, 122, 95)),
    },
    "website": {"index.html": "<!doctype html>\n<title>Shop</title>\n", "deploy.sh": "#!/bin/sh\n"},
    "blog": {"posts/hello.md": "# Hello\n", "posts/summer.md": "# Summer\n", "feed.xml": "<rss/>\n"},
    "shop": {"rates.csv": "EUR,1\nUSD,1.08\n", "main.py": "x = 1\n"},
    "notes": {"todo.md": "- [ ] photos\n", "photos.txt": "a.jpg\nb.jpg\n"},
    "prices": {"menu.py": "prices = 'prices.csv'\n", "prices.csv": "soup,4.50\n"},
    "kitchen": {"menu.md": "# Menu\n", "prices.csv": "soup,4.50\n"},
}

INVOICES = "Invoices are off by a cent for some customers. Find out why, fix it and add a test."
LOGO = "Take the new logo, too, and shorten the invoice lines to 24 characters"
DEPLOY = "Build the website and deploy it to staging"
SUMMARY = "Summarise the blog for the front page and publish it"
CURRENCY = "Add a currency switch to the shop"
PLAN = "Move the prices from the CSV file into SQLite"
PHOTOS = "Compare the photo folders and list the files that are missing from the backup"
MENU = "Translate the menu into French"
_LOOK = "Read the photo lists of both folders and return the names that differ."


def _bash(command: str, description: str) -> dict[str, Any]:
    return {"name": "Bash", "input": {"command": command, "description": description}}


def _tool(name: str, **values: Any) -> dict[str, Any]:
    return {"name": name, "input": values}


_ASKED = {
    "question": "Where do the exchange rates come from?",
    "header": "Rates",
    "options": [
        {"label": "The file rates.csv", "description": "As today; someone must keep it up to date"},
        {"label": "The European Central Bank", "description": "Once a day, cached in the database"},
    ],
    "multiSelect": False,
}
_PLAN = """## Prices in SQLite

1. Create the table `prices` with the columns **dish** and **cents**.
2. Import `prices.csv` once, in one transaction.
3. Let the menu read from the table and delete the file.

| file | change |
|---|---|
| `menu.py` | reads the table |
| `prices.csv` | removed |
"""
_ANSWER = """The cause was **binary floating point**: `0.1 + 0.2` is not `0.3`, and the sum was rounded only at the end.

| step | before | now |
|---|--:|--:|
| sum of 3.33 + 3.33 + 3.33 | 9.99 | 9.99 |
| sum of 0.1 + 0.2 + 9.70 | 9.99 | 10.00 |

`total()` adds decimals now, and a test holds the cent. To run it yourself:

```sh
python -m pytest -q tests/test_invoice.py
```
"""

SCRIPTS: dict[str, Turns] = {
    INVOICES: [
        {
            "thinking": "A cent is lost by rounding, most likely of floats. I read the function and its test first.",
            "text": "I'll look at the code first, then fix the rounding in `invoice.py`.",
            "tools": [_tool("Read", file_path="shop/invoice.py"), _tool("Grep", pattern="round\\(", path="shop")],
        },
        {"tools": [_tool("Edit", file_path="shop/invoice.py", old_string=_OLD, new_string=_NEW)]},
        {"tools": [_bash("sh check.sh", "Run the tests")]},
        {
            "text": "One test still expects a float.",
            "tools": [_tool("Write", file_path="tests/test_invoice.py", content=_TEST)],
        },
        {"text": _ANSWER},
    ],
    LOGO: [
        {"tools": [_bash("mv new-logo.png logo.png && sed -i 's/:<30/:<24/' shop/invoice.py", "Replace the logo")]},
        {"text": "The new logo is in place, and the lines are 24 characters wide."},
    ],
    DEPLOY: [{"error": 400, "message": "The credit of this key is used up."}],
    SUMMARY: [
        {
            "text": "I have the summary. Publishing it replaces the page that is online.",
            "tools": [
                _bash("npm run build && rsync -a --delete public/ web@example.com:/srv/blog/", "Publish the blog")
            ],
        },
        {"text": "The front page is online."},
    ],
    CURRENCY: [
        {
            "text": "I need to know one thing before I start.",
            "tools": [_tool("AskUserQuestion", questions=[_ASKED])],
        },
        {"text": "The shop has a switch now."},
    ],
    PLAN: [{"tools": [_tool("ExitPlanMode", plan=_PLAN)]}, {"text": "Done."}],
    PHOTOS: [
        {
            "thinking": "Two lists, and one of them is long. A helper can read them.",
            "text": "I compare the two lists.",
            "tools": [
                _tool("TaskCreate", subject="Read both lists", description="Read"),
                _tool("TaskCreate", subject="Compare the names", description="Compare"),
                _tool("TaskCreate", subject="Write missing.txt", description="Write"),
            ],
        },
        {
            "tools": [
                _tool("TaskUpdate", taskId="1", status="completed"),
                _tool("TaskUpdate", taskId="2", status="in_progress"),
            ]
        },
        {"tools": [_tool("Agent", description="Read the lists", prompt=_LOOK, subagent_type="general-purpose")]},
        {
            "text": "Missing from the backup so far:\n\n- `2024/lake.jpg`\n- `2024/harbour.jpg`\n\nI am at folder **3",
            "hang": "mid",
        },
    ],
    _LOOK: [{"text": "I read.", "tools": [_tool("Read", file_path="photos.txt")]}, {"text": "Two names differ."}],
    MENU: [
        {
            "text": "The menu is in `menu.fr.md`.",
            "tools": [_tool("Write", file_path="menu.fr.md", content="# Carte\n")],
        },
        {"text": "Bon appétit."},
    ],
}
