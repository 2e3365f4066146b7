"""What people do most on the pages, in Chromium and in Firefox: a real hub, two machines, and a network that is lost.

One of the machines has the real CLI, which asks before it runs a command.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import wire
from tests.browser import Browser, Screen, browser_in, in_browser
from tests.conftest import Occ, make_zip, steps, wait_until
from tests.firefox import Firefox, firefox_in
from tests.model_api import FAKE_KEY, serve
from tests.real_hub import Hub, hub_in
from tests.test_approvals import BASH
from tests.test_hub_questions import prompt

pytestmark = in_browser

_BROWSERS = {"chromium": browser_in, "firefox": firefox_in}
_RUN = "location.pathname.startsWith('/runs/page-')"
_ID = "location.pathname.split('/')[2]"
# Whether a tap on Allow is ignored in the frame in which the page has grown.
_IGNORED = """(async () => {
  document.body.style.paddingTop = `${Math.random() * 9}px`;
  await new Promise((drawn) => requestAnimationFrame(() => requestAnimationFrame(drawn)));
  const button = document.querySelector(".approval button.main");
  let taken = false;
  const look = (event) => { taken = !event.defaultPrevented; event.preventDefault(); };  // never an answer itself
  button.addEventListener("click", look);
  button.dispatchEvent(new MouseEvent("click", { detail: 1, bubbles: true, cancelable: true }));
  button.removeEventListener("click", look);
  return !taken;
})()"""


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    with hub_in(tmp_path_factory.mktemp("journeys")) as hub:
        yield hub.start()


@pytest.fixture(scope="module")
def box(hub: Hub) -> Occ:
    """A machine with the stand-in CLI."""
    return hub.agent("box", OCC_WORKERS="4")


@pytest.fixture(scope="module")
def asker(hub: Hub, real_claude: Path, release: str) -> Iterator[Occ]:
    """A machine with the real CLI, which asks; one for each release."""
    with serve() as model:
        reach = {"OCC_CLAUDE_BIN": str(real_claude), "ANTHROPIC_BASE_URL": model.url, "ANTHROPIC_API_KEY": FAKE_KEY}
        yield hub.agent(f"asker-{release.replace('.', '-')}", **reach, OCC_PERMISSIONS="ask", OCC_HOLD_SECONDS="600")


@pytest.fixture(scope="module", params=list(_BROWSERS))
def browser(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, hub: Hub
) -> Iterator[Browser | Firefox]:
    """A browser that is logged in by a link."""
    with _BROWSERS[request.param](tmp_path_factory.mktemp(request.param)) as browser:
        with opened(browser, hub.command("pair", "--role", "admin", "--owner", "tester").stdout.strip()) as page:
            page.wait("document.querySelector('#code').value")
            assert page.js("location.hash") == ""
            page.tap("#pair button")
            page.wait("document.querySelector('#prompt')")
        yield browser


@pytest.fixture
def page(browser: Browser | Firefox, hub: Hub, box: Occ) -> Iterator[Screen]:
    """The hub's first page, on which no script may fail."""
    with opened(browser, hub.url) as page:
        yield page
        assert [error for error in page.errors if "Failed to load resource" not in error] == []
        assert all(address.startswith((hub.url, "about:", "data:")) for address in page.requests)


@pytest.fixture
def workspace(hub: Hub, request: pytest.FixtureRequest) -> str:
    """A new workspace, named after the test."""
    name = "".join(letter if letter.isalnum() else "-" for letter in request.node.name)[-60:].strip("-")
    hub.client.upload(name, make_zip({"app.py": "x = 1\n"}))
    return name


@contextlib.contextmanager
def opened(browser: Browser | Firefox, url: str) -> Iterator[Screen]:
    page = browser.page()
    try:
        page.go(url)
        yield page
    finally:
        page.close()


def begin(page: Screen, workspace: str, text: str, machine: str = "box", permissions: str = "") -> str:
    """Write a new task and start it; returns the execution's id once its page is open."""
    page.reload()  # the form lists the new workspace
    page.fill("#prompt", text)
    page.js(f"document.querySelector('#workspace').value = {json.dumps(workspace)}")
    options = "[...document.querySelectorAll('#agent option')]"  # a machine whose heartbeats are late is there, too
    page.js(f"({options}.find((one) => one.text.split(' (')[0] === {json.dumps(machine)}).selected = true)")
    page.js(f"document.querySelector('#permissions').value = {json.dumps(permissions)}")
    page.tap("#start button.main")
    page.wait(_RUN)
    page.settled()
    return str(page.js(_ID))


def let_go(box: Occ, workspace: str, name: str = "go") -> None:
    (box.home / "workspaces" / workspace / name).touch()


def turns(page: Screen) -> int:
    return int(page.js("document.querySelectorAll('[data-turn]').length"))


def test_a_task_is_written_watched_and_followed_up_and_its_changes_are_read(
    page: Screen, hub: Hub, box: Occ, workspace: str
) -> None:
    change = {"sh": "echo 'x = 2' > app.py"}
    first = begin(page, workspace, steps({"say": "begun **and** "}, {"wait": "go"}, change, {"say": "ended."}))
    page.shows("begun and", ".answer")
    page.shows("Running", ".now")
    let_go(box, workspace)
    page.shows("begun and ended.", ".answer")
    page.shows("Done", ".outcome")
    assert page.js("document.querySelector('.answer strong').textContent") == "and"
    page.shows("Send", "#reply")
    page.fill("#prompt", "and then")
    page.press("Enter")
    page.shows("You said: and then")
    page.wait("document.querySelectorAll('.outcome.succeeded').length === 2")
    assert hub.request("GET", f"/executions/{first}/changes").status == 200  # waits for them
    page.reload()
    page.tap(f"a[href='/runs/{first}/changes']")
    page.wait("location.pathname.endsWith('/changes')")
    page.shows("app.py", "main")
    page.wait("document.querySelector('.add') && document.querySelector('.del')")
    page.back()
    page.shows("begun and ended.", ".answer")
    page.shows("You said: and then")
    assert turns(page) == 2


def test_cancel_ends_a_run(page: Screen, hub: Hub, box: Occ, workspace: str) -> None:
    execution = begin(page, workspace, steps({"say": "begun"}, {"wait": "never"}))
    page.shows("begun", ".answer")
    page.tap("#cancel button")
    page.shows("Cancelled after", ".outcome")
    assert hub.client.execution(execution)["state"] == "cancelled"


def test_a_command_is_allowed_on_a_page_that_was_loaded_again_and_another_page_shows_it(
    page: Screen, hub: Hub, asker: Occ, browser: Browser | Firefox, request: pytest.FixtureRequest
) -> None:
    name = f"{asker.home.name}-{request.node.callspec.params['browser']}"
    hub.client.upload(name, make_zip({"a.txt": "a\n"}))
    begin(page, name, prompt({"tools": [BASH]}, {"text": "All is done."}), asker.home.name, "ask")
    with opened(browser, str(page.js("location.href"))) as desk:
        page.window(390, 844)
        for each in (page, desk):
            each.front()
            each.shows("touch made-by-bash && echo done", ".approval")
        page.front()
        page.reload()
        page.shows("touch made-by-bash && echo done", ".approval")
        wait_until(lambda: page.js(_IGNORED), "a tap on what has just moved to do nothing")
        page.tap(".approval button.main")
        page.reload()  # before the machine can have answered
        page.shows("All is done.", ".answer", 120)
        page.shows("Done", ".outcome")
        assert page.js("document.querySelector('.approval')") is None
        desk.front()
        desk.shows("All is done.", ".answer")
        desk.wait("document.querySelector('.approval') === null")
    assert (asker.home / "workspaces" / name / "made-by-bash").exists()


def test_two_clicks_start_one_run_and_back_does_not_start_another(
    page: Screen, hub: Hub, box: Occ, workspace: str
) -> None:
    page.reload()
    page.fill("#prompt", "once")
    page.js(f"document.querySelector('#workspace').value = {json.dumps(workspace)}")
    page.js("(document.querySelector('#start').requestSubmit(), document.querySelector('#start').requestSubmit())")
    page.wait(_RUN)
    page.shows("Done", ".outcome")
    page.back()
    page.wait("location.pathname === '/'")
    listed = hub.client.executions(limit=50)["executions"]
    assert [one["prompt"] for one in listed if one["workspaceId"] == workspace] == ["once"]


def test_a_reply_in_one_tab_is_in_the_other(
    page: Screen, hub: Hub, box: Occ, browser: Browser | Firefox, workspace: str
) -> None:
    begin(page, workspace, steps({"say": "one "}, {"wait": "go"}, {"say": "two"}))
    page.shows("one", ".answer")
    with opened(browser, str(page.js("location.href"))) as other:
        other.shows("one", ".answer")
        other.fill("#prompt", "from the other tab")
        other.press("Enter")
        other.shows("Runs after the turn before it", ".waits")
        let_go(box, workspace)
        other.shows("You said: from the other tab")
        page.front()
        page.shows("one two", ".answer")
        page.shows("You said: from the other tab")
        assert turns(page) == turns(other) == 2


def test_each_page_shows_that_the_hub_is_away_and_lets_its_ages_grow(page: Screen, hub: Hub) -> None:
    for path in ("/", "/find", "/costs", "/machines", "/settings", "/notifications"):
        page.go(hub.url + path)
        page.js("dispatchEvent(new Event('offline'))")
        page.shows("The hub does not answer", "#away")
        page.js("dispatchEvent(new Event('online'))")
        page.wait("document.querySelector('#away') === null")
    page.go(f"{hub.url}/machines")
    aged = "((one) => (one.dateTime = new Date(Date.now() - 7250e3).toISOString(), growOld(), one.textContent))"
    assert page.js(f"{aged}(document.querySelector('main time'))") == "2 h ago"


def test_a_network_that_is_lost_is_shown_and_nothing_is_missed(
    browser: Browser | Firefox, hub: Hub, box: Occ, workspace: str
) -> None:
    """The page's connection dies without an end, as with a phone that changes its network."""
    words = " ".join(f"word{number}" for number in range(200))
    text = steps({"say": "begun "}, {"wait": "go"}, {"say": words}, {"wait": "end"}, {"say": " the end."})
    execution = f"lost-{workspace[-40:]}"
    events = hub.client.execute(workspace, text, executionId=execution, agent="box")
    assert any(event.name == "output" for event in events)
    with wire.to(hub.url) as network, opened(browser, f"{network.url}/runs/{execution}") as page:
        page.shows("begun", ".answer")
        network.lose()
        page.js("(SILENCE = 500)")  # as after a longer time
        let_go(box, workspace)
        page.wait("document.querySelector('#away')")
        assert page.text(".answer").strip() == "begun"
        clock = page.text("#clock")
        network.restore()
        page.js("(SILENCE = 30000)")
        page.shows("word199", ".answer")
        page.wait("document.querySelector('#away') === null")
        page.wait(f"document.querySelector('#clock').innerText !== {json.dumps(clock)}")
        let_go(box, workspace, "end")
        page.shows("Done", ".outcome")
        assert page.text(".answer").strip() == f"begun {words} the end."
