"""The hub's pages as a person has them: a real browser, a real hub, a real agent."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.browser import Browser, Page, browser_in, in_browser
from tests.conftest import Occ, make_zip, steps, wait_until
from tests.real_hub import Hub, hub_in
from tests.test_live_text import ANSWER

pytestmark = in_browser

REFUSED = "Failed to load resource: the server responded with a status of 4"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser_in(tmp_path_factory.mktemp("browser")) as browser:
        yield browser


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    with hub_in(tmp_path_factory.mktemp("pages")) as hub:
        yield hub.start()


@pytest.fixture(scope="module")
def box(hub: Hub) -> Occ:
    """The hub's machine; on the hub is the workspace `work`."""
    box = hub.agent("box", OCC_WORKERS="4", OCC_LABELS="linux,gpu")
    hub.client.upload("work", make_zip({"README.md": "hello\n"}))
    return box


@pytest.fixture
def page(browser: Browser, hub: Hub, box: Occ) -> Iterator[Page]:
    """The hub's first page in a browser that is logged in; afterwards nothing may have gone wrong on it."""
    page = browser.page()
    log_in(page, hub)
    yield page
    assert [error for error in page.errors if not error.startswith(REFUSED)] == []
    assert all(address.startswith((hub.url, "about:", "data:")) for address in page.requests)
    page.close()


def log_in(page: Page, hub: Hub) -> None:
    page.go(f"{hub.url}/login")
    page.fill("#key", hub.client_key)
    page.click("button.main")
    page.wait("document.querySelector('#prompt')")
    page.settled()


def start(page: Page, prompt: str, zip_path: Path | None = None, workspace: str = "work") -> str:
    """Fill in the form, send it, and return the execution's id once its page is there."""
    page.fill("#prompt", prompt)
    if zip_path is not None:
        page.choose("#zip", zip_path)
    else:
        page.js(f"document.querySelector('#workspace').value = {json.dumps(workspace)}")
    page.click("#start button.main")
    page.wait("location.pathname.startsWith('/runs/page-')")
    page.settled()
    return str(page.js("location.pathname.split('/')[2]"))


def zipped(folder: Path, name: str = "notes.zip") -> Path:
    path = folder / name
    path.write_bytes(make_zip({"notes.txt": "buy milk\n"}).read())
    return path


def waiting(name: str) -> str:
    """A prompt that waits after its first words until `let_go` is called with the same name."""
    return steps({"say": "begun **and** "}, {"wait": name}, {"say": "ended."})


def let_go(box: Occ, name: str, workspace: str = "work") -> None:
    (box.home / "workspaces" / workspace / name).touch()


def on(execution_id: str, hub: Hub) -> str:
    return str(hub.client.execution(execution_id)["workspaceId"])


def test_a_zip_is_uploaded_run_and_watched_and_a_reload_loses_nothing(
    page: Page, hub: Hub, box: Occ, tmp_path: Path
) -> None:
    many = [{"say": f"word{number} ", "every": 0.02} for number in range(40)]
    execution_id = start(
        page,
        steps(*many[:5], {"wait": "more"}, *many[5:], {"wait": "go"}, *many, {"say": "\n\n**bold end**"}),
        zipped(tmp_path),
    )
    workspace = on(execution_id, hub)
    page.shows("word3 ", ".answer")
    assert "word5" not in page.text(".answer")
    let_go(box, "more", workspace)
    page.shows("word5", ".answer")
    page.shows("Running", ".now")
    page.reload()
    page.shows("word39", ".answer")
    let_go(box, "go", workspace)
    page.shows("Done", ".outcome")
    expected = " ".join(f"word{number}" for number in [*range(40), *range(40)])
    assert page.text(".answer").split("\n")[0].strip() == expected
    assert page.js("document.querySelector('.answer strong').textContent") == "bold end"
    assert "$0.25" in page.text(".outcome")
    page.wait("document.querySelector('#cancel') === null")


def test_what_grew_live_is_what_a_reload_shows(page: Page, box: Occ) -> None:
    text = "# Title\n\n- one\n- two\n\n```py\nx = 1\n\ny = 2\n```\n\n| a | b |\n|---|--:|\n| 1 | 2 |\n\nAn *end*.\n\n"
    said = [{"say": piece, "every": 0.01} for piece in (text[i : i + 3] for i in range(0, len(text), 3))]
    tool = {"tool": "Read", "input": {"file_path": "notes.txt"}, "result": "buy milk"}
    broken = {"tool": "Bash", "input": {"command": "false"}, "result": "exit 1", "error": True}
    start(page, steps(*said, tool, *said, broken, tool, *said, {"result": {}}))
    page.shows("Done", ".outcome")
    markup = "document.querySelector('.answer').innerHTML.replace(/\\s+/g, ' ').replaceAll('> <', '><').trim()"
    live = page.js(markup)
    page.reload()
    assert page.js(markup) == live
    assert page.js("document.querySelectorAll('.text h3, .text li, .text pre code, .text table').length") == 15
    assert (
        page.js("[...document.querySelectorAll('.tool summary b')].map(b => b.textContent).join()") == "Read,Bash,Read"
    )


# What a person could see of raw Markdown: its marks outside of code, or text of a table or a fence in a paragraph.
RAW = """(() => {
  window.samples = 0; window.raw = []; window.first = 0;
  const look = () => {
    const answer = document.querySelector('.answer');
    if (!answer) return;
    window.samples += 1;
    if (!window.first && answer.innerText.trim()) window.first = Date.now();
    for (const block of answer.querySelectorAll('p, li, th, td, h3, h4')) {
      const copy = block.cloneNode(true);
      copy.querySelectorAll('code, pre, ul, ol').forEach((one) => one.remove());
      if (/[|`#]|\\*\\S|\\S\\*|--/.test(copy.textContent)) window.raw.push(copy.textContent);
    }
  };
  new MutationObserver(look).observe(document.body, {subtree: true, childList: true, characterData: true});
  setInterval(look, 50);
})()"""


def test_live_text_never_shows_raw_markdown_at_400_ms_of_latency(page: Page, hub: Hub, box: Occ) -> None:
    said = [{"say": ANSWER[begin : begin + 4], "every": 0.025} for begin in range(0, len(ANSWER), 4)]
    page.call(
        "Network.emulateNetworkConditions", offline=False, latency=400, downloadThroughput=-1, uploadThroughput=-1
    )
    execution_id = start(page, steps({"wait": "go-raw"}, *said, {"result": {}}))
    page.shows("Running", ".now")
    page.js(RAW)
    let_go(box, "go-raw")
    page.shows("Done", ".outcome", 60)
    assert page.js("window.samples") >= 70
    assert page.js("window.raw") == []
    assert page.js("document.querySelectorAll('.text table').length") == 2
    events = hub.client.events(execution_id, follow=False)
    begun = next(event for event in events if event.name == "output")
    waited = page.js("window.first") - begun.data["timestamp"]
    print(f"the first words were on the page {waited} ms after their event, with {page.js('window.samples')} samples")
    assert waited < 3000  # about 100 ms on an idle machine


def test_a_tool_is_folded_and_stays_open_while_the_answer_goes_on(page: Page, box: Occ) -> None:
    tool = {"tool": "Read", "input": {"file_path": "notes.txt"}, "result": "buy milk"}
    start(
        page, steps({"say": "I look.\n\n"}, tool, {"say": "Now "}, {"wait": "go-4"}, {"say": "done."}, {"result": {}})
    )
    page.shows("notes.txt", ".tool summary")
    assert "buy milk" not in page.text(".answer")
    page.click(".tool summary")
    page.shows("buy milk", ".tool")
    let_go(box, "go-4")
    page.shows("Now done.", ".answer")
    page.shows("Done", ".outcome")
    assert page.js("document.querySelector('.tool').open")


def test_cancel_ends_it(page: Page, hub: Hub, box: Occ) -> None:
    execution_id = start(page, steps({"say": "begun"}, {"sleep": 60}))
    page.shows("begun", ".answer")
    page.click("#cancel button")
    page.shows("Cancelled", ".outcome")
    page.shows("Cancelled after", ".outcome")
    assert hub.client.execution(execution_id)["state"] == "cancelled"
    assert "begun" in page.text(".answer")


def test_what_waits_says_for_what_and_begins_by_itself(page: Page, hub: Hub, box: Occ, browser: Browser) -> None:
    start(page, waiting("go-6"))
    page.shows("begun and", ".answer")
    other = browser.page()
    other.go(hub.url)
    start(other, "and then")
    other.shows("Begins when the run in its workspace is over", ".waits")
    other.shows("Waiting", ".now")
    let_go(box, "go-6")
    other.shows("You said: and then", ".answer")
    other.shows("Done", ".outcome")


def test_an_error_is_told_with_its_code(page: Page, box: Occ) -> None:
    start(page, steps({"say": "hm"}, {"exit": 3}))
    page.shows("Failed", ".outcome")
    page.shows("CLAUDE_EXIT", ".outcome")


def test_one_goes_on_where_it_ended(page: Page, hub: Hub, box: Occ) -> None:
    first = start(page, "one")
    page.shows("Done", ".outcome")
    page.fill("#prompt", "two")
    page.click("#reply button.main")
    page.shows("You said: two")
    assert page.js("location.pathname") != f"/runs/{first}"


def test_a_hub_that_comes_back_goes_on_where_it_was(page: Page, hub: Hub, box: Occ) -> None:
    start(page, waiting("go-9"))
    page.shows("begun and", ".answer")
    hub.stop()
    hub.start()
    let_go(box, "go-9")
    page.wait("document.querySelector('.outcome')?.innerText.includes('Done')", 40)
    assert page.text(".answer").strip() == "begun and ended."
    page.errors.clear()  # that it was away


def test_a_page_nobody_sees_leaves_its_connection_to_others_and_catches_up(page: Page, hub: Hub, box: Occ) -> None:
    """A browser has six connections for a hub: with as many executions in its tabs nothing else would load."""
    start(page, waiting("go-unseen"))
    page.shows("begun and", ".answer")
    assert streams(hub) == 1
    see(page, seen=False)
    wait_until(lambda: streams(hub) == 0, "the stream to end")
    let_go(box, "go-unseen")
    wait_until(lambda: hub.client.executions(limit=1)["executions"][0]["state"] == "succeeded", "it is done")
    assert page.text(".answer").strip() == "begun and"
    see(page, seen=True)
    page.shows("begun and ended.", ".answer")
    page.shows("Done", ".outcome")


def see(page: Page, *, seen: bool) -> None:
    """Turn to the page, or away from it."""
    hidden = json.dumps(not seen)
    page.js(f"Object.defineProperty(document, 'hidden', {{value: {hidden}, configurable: true}})")
    page.js("document.dispatchEvent(new Event('visibilitychange'))")


def streams(hub: Hub) -> int:
    """How many streams of this hub are open."""
    found = re.search(r"^occ_streams_open (\d+)", hub.request("GET", "/metrics").data.decode(), re.MULTILINE)
    assert found is not None
    return int(found[1])


def test_a_refused_upload_leaves_the_form_as_it_was(page: Page, tmp_path: Path) -> None:
    broken = tmp_path / "broken.zip"
    broken.write_bytes(b"no zip")
    page.fill("#prompt", "keep me")
    page.click("#start button.main")
    page.shows("Choose a project, a workspace, or files to send first.", "#problem")
    page.choose("#zip", broken)
    page.shows("broken.zip", "#chosen")
    page.click("#start button.main")
    page.shows("zip", "#problem")
    page.wait("document.activeElement.id === 'problem' && !document.querySelector('#start button.main').disabled")
    assert page.js("document.querySelector('#prompt').value") == "keep me"
    assert page.js("document.querySelector('#zip').files[0].name") == "broken.zip"
    assert page.js("location.pathname") == "/"


def log_out_elsewhere(browser: Browser, hub: Hub) -> Page:
    """Log out in another tab of the same browser."""
    other = browser.page()
    other.go(hub.url + "/")
    other.js("document.querySelector('form.who button').click()")
    other.wait("document.querySelector('#key')")
    return other


def test_a_login_that_ends_keeps_what_is_written_and_the_next_login_sends_it(
    page: Page, hub: Hub, browser: Browser
) -> None:
    page.fill("#prompt", "ten minutes of writing")
    page.js("document.querySelector('#workspace').value = 'work'")
    other = log_out_elsewhere(browser, hub)
    page.call("Page.bringToFront")
    page.shows("You are logged out", "#logged-out")
    page.click("#start button.main")
    page.shows("You are logged out", "#problem")
    assert page.js("document.querySelector('#prompt').value") == "ten minutes of writing"
    log_in(other, hub)
    other.close()
    page.call("Page.bringToFront")
    page.click("#start button.main")  # with the token of the former login
    page.wait("location.pathname.startsWith('/runs/')")
    page.shows("ten minutes of writing", ".prompt")
    page.errors.clear()


def test_a_lost_reply_keeps_the_text_and_an_edited_form_is_another_run(page: Page, hub: Hub, box: Occ) -> None:
    page.fill("#prompt", "the first")
    page.js("document.querySelector('#workspace').value = 'work'")
    # The form arrives, and the page does not learn of it.
    page.js(
        "fetch('/runs', {method: 'POST', body: new FormData(document.querySelector('#start')), redirect: 'manual'})"
        ".then(() => true)"
    )
    page.fill("#prompt", "the first, edited")
    page.click("#start button.main")
    page.shows("already started", "#problem")
    page.click("#start button.main")
    page.wait("location.pathname.startsWith('/runs/')")
    page.shows("edited", ".prompt")
    prompts = [one["prompt"] for one in hub.client.executions(limit=2)["executions"]]
    assert sorted(map(len, prompts)) == [len("the first"), len("the first, edited")]
    page.errors.clear()


SELECT = """(selector => { const range = document.createRange();
    range.selectNodeContents(document.querySelector(selector));
    getSelection().removeAllRanges(); getSelection().addRange(range); })"""


def test_a_growing_answer_keeps_selection_scroll_and_focus(page: Page, box: Occ) -> None:
    wide = "x = 1234567890 " * 40
    start(page, steps({"say": f"Long over.\n\n```\n{wide}\n```\n\nSecond: "}, {"wait": "go-21"}, {"say": "grown\n"}))
    page.wait("document.querySelector('.text pre') && document.querySelector('.text p + .code + p')")
    page.js(f"{SELECT}('.text p')")
    page.js("document.querySelector('.text pre').scrollLeft = 200")
    page.js("document.querySelector('.text pre').focus({preventScroll: true})")
    look = "[getSelection().toString(), document.querySelector('.text pre').scrollLeft, document.activeElement.tagName]"
    before = page.js(look)
    assert before[1:] == [200, "PRE"]
    let_go(box, "go-21")
    page.shows("Second: grown", ".text")
    page.shows("Done")
    assert page.js(look) == before


def test_a_list_that_is_refreshed_keeps_a_selection_and_takes_a_click(page: Page, hub: Hub, box: Occ) -> None:
    list(hub.client.execute("work", "to be clicked", executionId="clicked"))
    page.reload()
    page.wait("document.querySelector('a[href=\"/runs/clicked\"]')")
    page.js("window.old = document.querySelector('a[href=\"/runs/clicked\"]')")
    page.js(f"{SELECT}('a[href=\"/runs/clicked\"] .what')")
    chosen = page.js("getSelection().toString()")
    list(hub.client.execute("work", "another", executionId="another"))
    page.wait("document.querySelector('a[href=\"/runs/another\"]')")
    assert page.js("getSelection().toString()") == chosen != ""
    assert page.js("window.old === document.querySelector('a[href=\"/runs/clicked\"]')")
    page.js("document.querySelectorAll('.machines li').forEach(one => one.remove())")
    page.wait("document.querySelector('.machines li')")  # another refresh
    assert page.js("window.old.isConnected")


def test_a_zip_can_be_dropped_anywhere(page: Page) -> None:
    page.js(
        "(() => { const data = new DataTransfer(); data.items.add(new File(['x'], 'dropped.zip'));"
        " for (const name of ['dragover', 'drop'])"
        " document.body.dispatchEvent(new DragEvent(name, {dataTransfer: data, bubbles: true, cancelable: true})) })()"
    )
    page.shows("dropped.zip", "#chosen")
    assert page.js("document.querySelector('#zip').files.length") == 1


def test_the_lists_follow_by_themselves_and_lose_neither_scroll_nor_focus(page: Page, hub: Hub, box: Occ) -> None:
    page.window(1280, 300)
    page.reload()
    page.js("document.body.style.minHeight = '2000px'")  # long enough to scroll, however many runs it lists
    page.js("document.querySelector('.tabs a').focus(); window.scrollTo(0, 150)")
    assert page.js("window.scrollY") == 150
    events = hub.client.execute("work", waiting("go-12"), executionId="seen-by-itself")
    while next(events).name != "output":
        pass
    page.wait("document.querySelector('a[href=\"/runs/seen-by-itself\"] .state.running')")
    page.wait("document.querySelector('.machines .load').innerText.includes('1 of 4')")
    let_go(box, "go-12")
    page.wait("document.querySelector('a[href=\"/runs/seen-by-itself\"] .state.succeeded')")
    assert page.js("window.scrollY") == 150
    assert page.js("document.activeElement.innerText").startswith("All")


def test_the_pages_work_without_a_script(page: Page, hub: Hub, box: Occ, tmp_path: Path) -> None:
    page.without_scripts()
    page.reload()
    page.fill("#prompt", waiting("go-13"))
    page.choose("#zip", zipped(tmp_path))
    page.click("#start button.main")
    page.wait("location.pathname.startsWith('/runs/page-')")
    page.shows("begun and", ".answer", 30)  # it loads itself anew

    def cancelled() -> bool:
        """Click until it counts: the page loads itself again every few seconds, and that may swallow a click."""
        with contextlib.suppress(AssertionError, TypeError):  # the page changed under the click
            if page.js("document.querySelector('#cancel button') !== null"):
                page.click("#cancel button")
        return bool(page.js("document.querySelector('.outcome')?.innerText.includes('Cancelled')"))

    wait_until(cancelled, "it to be cancelled", 30)


def test_nothing_hostile_runs_in_the_browser(page: Page, hub: Hub, box: Occ) -> None:
    evil = "<img src=x onerror=alert(1)><script>alert(1)</script>"
    tool = {"tool": evil, "input": {"path": evil}, "result": evil}
    start(page, steps({"say": evil}, {"sleep": 0.3}, {"say": f"\n\n{evil}"}, tool, {"say": evil}, {"exit": 1}))
    page.shows("Failed", ".outcome")
    page.click(".tool summary")
    assert page.js("document.querySelectorAll('script:not([src^=\"/static/\"])').length") == 0
    assert page.js("document.querySelectorAll('img').length") == 1  # the hub's own sign
    assert page.text(".answer").count("<script>alert(1)</script>") >= 4


def test_every_field_has_its_label_and_every_button_its_name(page: Page) -> None:
    unnamed = (
        "[...document.querySelectorAll('input:not([type=hidden]), select, textarea')]"
        ".filter(field => !field.hidden && !field.labels.length).map(field => field.outerHTML)"
    )
    assert page.js(unnamed) == []
    assert page.js("[...document.querySelectorAll('button, a')].filter(one => !one.innerText.trim()).length") == 0
    assert page.js("document.documentElement.lang") == "en"


@pytest.mark.parametrize("path", ["/", "/login", "/runs/wide", "/runs/none"])
def test_a_phone_shows_everything_without_scrolling_sideways(page: Page, hub: Hub, box: Occ, path: str) -> None:
    word = "verylongname" * 10
    if path == "/runs/wide":
        hub.client.upload(word[:120], make_zip({"a": "a"}))
        table = f"|{word}|b|\n|---|---|\n|{word * 3}|{'x ' * 100}|\n\n```\n{word * 5}\n```\n\n{word * 5}"
        tool = {"tool": f"mcp__{word}", "input": {"command": word * 9}, "result": word * 50}
        list(hub.client.execute(word[:120], steps({"say": table}, tool), executionId="wide", model=word))
    page.window(360, 640, phone=True)
    page.go(hub.url + path)
    assert page.js("document.documentElement.scrollWidth") == 360


@pytest.mark.parametrize("dark", [False, True])
def test_text_stands_out_from_what_it_stands_on(page: Page, dark: bool) -> None:
    """The contrast of WCAG's level AA, for each colour that is used for text."""
    page.window(1280, 900, dark=dark)
    wanted = ("--ink", "--quiet", "--accent", "--good", "--bad", "--paper", "--card", "--sunk", "--on-accent")
    colours = page.js(
        f"{json.dumps(wanted)}.map(name => {{ const s = document.createElement('i'); document.body.append(s);"
        " s.style.color = `var(${name})`; const c = getComputedStyle(s).color; s.remove(); return c })"
    )
    light = dict(zip(wanted, map(luminance, colours), strict=True))
    for text in ("--ink", "--quiet", "--accent", "--good", "--bad"):
        for ground in ("--paper", "--card"):
            assert contrast(light[text], light[ground]) >= 4.5, (text, ground)
    assert contrast(light["--ink"], light["--sunk"]) >= 4.5
    assert contrast(light["--on-accent"], light["--accent"]) >= 4.5


def luminance(colour: str) -> float:
    parts = [int(part) / 255 for part in colour.removeprefix("rgb(").removesuffix(")").split(",")]
    linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: float, other: float) -> float:
    return (max(one, other) + 0.05) / (min(one, other) + 0.05)


def test_text_is_laid_out_by_its_own_direction(page: Page, box: Occ) -> None:
    text = "שלום, הקובץ README.md מוכן."
    page.fill("#prompt", text)
    assert page.js("getComputedStyle(document.querySelector('#prompt')).direction") == "rtl"
    page.js("document.querySelector('#prompt').value = ''")
    start(page, steps({"say": f"{text}\n\n- {text}\n\nAnd English.\n\n    code"}))
    page.shows("Done")
    look = "getComputedStyle(document.querySelector('.answer {}')).{}"
    assert page.js(look.format(".text", "direction")) == "rtl"
    for tag in ("p", "li"):
        assert page.js(look.format(tag, "unicodeBidi")) == "plaintext"
    assert page.js(look.format("pre", "direction")) == "ltr"


def press(page: Page, key: str, code: str | None = None) -> None:
    """Press a key of the keyboard."""
    text = {"text": key} if len(key) == 1 else {"text": "\r"} if key == "Enter" else {}
    for kind in ("keyDown", "keyUp"):
        page.call("Input.dispatchKeyEvent", type=kind, key=key, code=code or key, **(text if kind == "keyDown" else {}))


def test_the_keyboard_reaches_everything(page: Page, hub: Hub, box: Occ) -> None:
    for number in range(2):
        list(hub.client.execute("work", f"keys {number}", executionId=f"keys-{number}"))
    page.reload()
    page.wait("document.querySelectorAll('a.row').length > 1")
    press(page, "j")
    page.wait("document.activeElement.matches('a.row')")
    first = page.js("document.activeElement.href")
    press(page, "j")
    page.wait(f"document.activeElement.matches('a.row') && document.activeElement.href !== {json.dumps(first)}")
    press(page, "k")
    page.wait(f"document.activeElement.href === {json.dumps(first)}")
    press(page, "/")
    page.wait("document.activeElement.id === 'find'")
    press(page, "Escape")
    page.wait("document.activeElement === document.body")
    press(page, "r")
    page.wait("document.activeElement.id === 'prompt'")
    press(page, "Escape")
    press(page, "?")
    page.wait("document.querySelector('#keys').open")
    press(page, "Escape")
    page.wait("!document.querySelector('#keys').open")
    page.go(first)
    press(page, "g")
    press(page, "h")
    page.wait("location.pathname === '/'")


def test_enter_queues_a_reply_while_a_turn_runs_and_the_page_goes_on_with_it(page: Page, hub: Hub, box: Occ) -> None:
    start(page, waiting("go-queue"))
    page.shows("begun and", ".answer")
    page.shows("Queue", "#reply")
    page.fill("#prompt", "and then this")
    press(page, "Enter")
    page.shows("Runs after the turn before it", ".waits")
    assert page.js("document.querySelector('#prompt').value") == ""
    let_go(box, "go-queue")
    page.shows("You said: and then this")
    page.wait("document.querySelectorAll('.outcome.succeeded').length === 2")
    assert page.js("document.querySelectorAll('[data-turn]').length") == 2


def test_a_folder_is_zipped_in_the_browser(page: Page, hub: Hub, box: Occ, tmp_path: Path) -> None:
    folder = tmp_path / "my site"
    (folder / "src").mkdir(parents=True)
    (folder / "node_modules").mkdir()
    (folder / "src" / "größe.txt").write_text("word " * 5_000)
    (folder / "index.html").write_text("hello")
    (folder / "node_modules" / "left.js").write_text("out")
    page.js("document.querySelector('#prompt').focus()")
    page.choose("#folder", folder)
    page.shows("my site, 2 files", "#chosen")
    page.fill("#prompt", "look")
    page.click("#start button.main")
    page.wait("location.pathname.startsWith('/runs/page-')")
    workspace = on(str(page.js("location.pathname.split('/')[2]")), hub)
    wait_until((box.home / "workspaces" / workspace / "index.html").exists, "the files to be there")
    stored = box.home / "workspaces" / workspace
    assert (stored / "src" / "größe.txt").read_text() == "word " * 5_000
    assert not (stored / "node_modules").exists()
    page.shows("Done", ".outcome")
