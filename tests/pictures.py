"""Take the pictures of the pages: a real hub, two machines with the real CLI, and made-up projects.

    python -m tests.pictures [--out docs/pictures] [--browser chromium|firefox] [--all]

Each page is taken at 1440 and at 390 px, light and dark. With `--all` further states are taken, to be looked at.
"""

from __future__ import annotations

import argparse
import contextlib
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from occ_app.system.timestamps import iso
from tests import picture_data as data
from tests import real_cli
from tests.browser import Page, Screen, browser_in
from tests.conftest import make_zip, wait_until
from tests.firefox import firefox_in
from tests.model_api import FAKE_KEY, serve
from tests.real_hub import Hub, hub_in

WIDTHS = {"": (1440, 900), "-phone": (390, 844)}
FOLDER = Path(__file__).parent.parent / "docs" / "pictures"


# The pictures on the page are here.
_LOADED = "[...document.images].every((one) => one.complete)"


@dataclass(frozen=True)
class Shot:
    """A picture of the page at `path`, once `ready`, after `act`; in the docs only if `kept`."""

    name: str
    path: str
    ready: str = "true"
    act: Callable[[Screen], object] = lambda page: None
    kept: bool = True


def names() -> list[str]:
    """Return the names of the files that belong into docs/pictures."""
    kept = [shot.name for shot in SHOTS if shot.kept]
    return [f"{name}{suffix}{theme}.png" for name in kept for suffix in WIDTHS for theme in ("", "-dark")]


def _open(page: Screen) -> None:
    calls = "[...document.querySelectorAll('.answer details')].filter((one) => /^(Edit|Bash)/.test(one.innerText))"
    page.js(f"{calls}.forEach((one) => {{ one.open = true }})")
    page.js("scrollTo(0, 0)")


SHOTS = (
    Shot("home", "/", "document.querySelectorAll('a.row').length > 4"),
    Shot("conversation", "/runs/invoices", "document.querySelector('.outcome')", _open),
    Shot("running", "/runs/photos", "document.body.innerText.includes('harbour')"),
    Shot("approval", "/runs/summary", "document.querySelector('.approval')"),
    Shot("question", "/runs/currency", "document.querySelector('.approval')"),
    Shot("plan", "/runs/plan", "document.querySelector('.approval')", kept=False),
    Shot("failed", "/runs/deploy", "document.querySelector('.outcome')", kept=False),
    Shot("queued", "/runs/photos-2", "document.querySelector('.waits')", kept=False),
    Shot("local", "/runs/menu", "document.querySelector('.outcome')", kept=False),
    Shot("changes", "/runs/invoices/changes"),
    Shot("changes-split", "/runs/invoices/changes?view=split", kept=False),
    Shot("changes-picture", "/runs/logo/changes", kept=False),
    Shot("files", "/files/billing"),
    Shot("file", "/files/billing/view?path=shop/invoice.py", kept=False),
    Shot("search", "/find?q=cent"),
    Shot("search-none", "/find?q=zebra", kept=False),
    Shot("usage", "/costs"),
    Shot("machines", "/machines"),
    Shot("settings", "/settings"),
    Shot("notifications", "/notifications", kept=False),
    Shot("offline", "/", act=lambda page: page.js("dispatchEvent(new Event('offline'))"), kept=False),
    Shot("composer", "/", act=lambda page: page.js("document.querySelector('#prompt').focus()"), kept=False),
    Shot("keys", "/", act=lambda page: page.press("?"), kept=False),
    Shot("not-found", "/runs/none", kept=False),
)


def main() -> None:
    """Take them all."""
    parser = argparse.ArgumentParser(description="Take the pictures of the pages.")
    parser.add_argument("--out", type=Path, default=FOLDER)
    parser.add_argument("--browser", choices=tuple(_CAMERAS), default="chromium")
    parser.add_argument("--all", action="store_true", help="take further states, too")
    parser.add_argument("--stay", action="store_true", help="print a link, and leave everything open until Enter")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name, scene(Path(name)) as hub:
        if options.stay:
            input(f"{hub.command('pair', '--role', 'admin', '--owner', 'tester').stdout}Enter ends it.\n")
            return
        for dark in (False, True):
            with _CAMERAS[options.browser](Path(name), dark) as page:
                log_in(page, hub)
                for shot in SHOTS:
                    if shot.kept or options.all:
                        take(page, hub, shot, options.out, "-dark" if dark else "")


def log_in(page: Screen, hub: Hub) -> None:
    page.go(hub.command("pair", "--role", "admin", "--owner", "tester").stdout.strip())
    page.wait("document.querySelector('#code').value")
    page.tap("#pair button")
    page.wait("document.querySelector('#prompt')")


def take(page: Screen, hub: Hub, shot: Shot, folder: Path, theme: str) -> None:
    """Take one page at each width."""
    for suffix, size in WIDTHS.items():
        page.window(*size)
        page.go(hub.url + shot.path)
        page.wait(shot.ready)
        page.js("document.querySelectorAll('img').forEach((one) => { one.loading = 'eager' })")
        page.wait(_LOADED)
        shot.act(page)
        page.js("new Promise((drawn) => requestAnimationFrame(() => requestAnimationFrame(drawn)))")
        path = folder / f"{shot.name}{suffix}{theme}.png"
        page.screenshot(path)
        _shrink(path)


def _shrink(path: Path) -> None:
    """Store a picture with a palette of 128 colours, in about a third of its bytes."""
    from PIL import Image

    with Image.open(path) as taken:
        small = taken.convert("RGB").quantize(128, dither=Image.Dither.NONE)
    small.save(path, optimize=True)


@contextlib.contextmanager
def _chromium(folder: Path, dark: bool) -> Iterator[Screen]:
    with browser_in(folder) as browser:
        page = browser.page()
        features = {"prefers-color-scheme": "dark" if dark else "light", "prefers-reduced-motion": "reduce"}
        page.call("Emulation.setEmulatedMedia", features=[{"name": k, "value": v} for k, v in features.items()])
        page.window = lambda width, height: Page.window(  # type: ignore[method-assign]
            page, width, height, phone=width < 600, dark=dark, still=True
        )
        yield page


@contextlib.contextmanager
def _firefox(folder: Path, dark: bool) -> Iterator[Screen]:
    settings = {"layout.css.prefers-color-scheme.content-override": 0 if dark else 1, "ui.prefersReducedMotion": 1}
    with firefox_in(folder, settings) as browser:
        yield browser.page()


_CAMERAS = {"chromium": _chromium, "firefox": _firefox}


@contextlib.contextmanager
def scene(folder: Path) -> Iterator[Hub]:
    """A hub on which runs have ended, are under way and need someone."""
    with serve(scripts=data.SCRIPTS) as model, hub_in(folder) as hub:
        cli = str(real_cli.install(real_cli.default_cache()))
        reach = {"OCC_CLAUDE_BIN": cli, "ANTHROPIC_BASE_URL": model.url, "ANTHROPIC_API_KEY": FAKE_KEY}
        reach |= {"OCC_PERMISSIONS": "full", "OCC_HOLD_SECONDS": "3000", "OCC_TOOLS": _TOOLS}
        hub.start()
        hub.agent("studio", OCC_WORKERS="4", OCC_LABELS="linux,gpu", **reach)
        laptop = hub.agent("laptop", "--share-local", OCC_WORKERS="2", **reach)
        for workspace, files in data.FILES.items():
            if workspace != "kitchen":
                hub.client.upload(workspace, make_zip(files))
        _end(hub, "invoices", "billing", data.INVOICES, permissions="full")
        _end(hub, "logo", None, data.LOGO, continues="invoices", permissions="full")
        _end(hub, "deploy", "website", data.DEPLOY)
        laptop.client.upload("kitchen", make_zip(data.FILES["kitchen"]))
        list(laptop.client.execute("kitchen", data.MENU, executionId="menu"))
        wait_until(lambda: _state(hub, "menu") == "succeeded", "the local run to be on the hub")
        _age(hub)
        for name, workspace, prompt, permissions in _OPEN:
            next(hub.client.execute(workspace, prompt, executionId=name, permissions=permissions))
        for name, prompt in (("photos-2", "Then write the names into one page"), ("photos-3", "Mail it to me")):
            next(hub.client.execute(None, prompt, executionId=name, continues="photos"))
        wait_until(lambda: len(hub.client.call("GET", "/approvals")["approvals"]) == 3, "three to need someone", 120)
        yield hub


_TOOLS = "Read,Edit,Write,Grep,Glob,TaskCreate,TaskUpdate"  # with a todo list
_OPEN = (
    ("photos", "notes", data.PHOTOS, "full"),
    ("summary", "blog", data.SUMMARY, "ask"),
    ("currency", "shop", data.CURRENCY, "ask"),
    ("plan", "prices", data.PLAN, "plan"),
)


def _end(hub: Hub, name: str, workspace: str | None, prompt: str, **options: object) -> None:
    list(hub.client.execute(workspace, prompt, executionId=name, **options))


def _state(hub: Hub, name: str) -> str:
    found = {one["executionId"]: one["state"] for one in hub.client.executions(limit=50)["executions"]}
    return str(found.get(name, ""))


def _age(hub: Hub) -> None:
    """Give the runs that have ended made-up times and costs, so that they are some days old."""
    ages = {"invoices": (26, 0.73, 96), "logo": (25, 0.21, 41), "deploy": (3, 0.05, 12), "menu": (50, 0.09, 22)}
    with sqlite3.connect(hub.home / "occ.db", timeout=60) as connection:
        for name, (hours, cost, seconds) in ages.items():
            begun = datetime.now(UTC) - timedelta(hours=hours)
            connection.execute(
                "UPDATE executions SET created_at = :begun, started_at = :begun, finished_at = :ended,"
                " cost_usd = :cost WHERE execution_id = :name",
                {"begun": iso(begun), "ended": iso(begun + timedelta(seconds=seconds)), "cost": cost, "name": name},
            )
    connection.close()


if __name__ == "__main__":
    main()
