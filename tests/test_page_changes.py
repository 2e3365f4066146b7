"""The pages of changes, files, search, usage, machines and settings, over a real hub and a machine."""

from __future__ import annotations

import io
import json
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator
from html import escape
from urllib.parse import quote

import pytest

from tests.browser import Browser, browser_in, in_browser
from tests.conftest import make_zip, steps, wait_until
from tests.real_hub import Hub, hub_in
from tests.test_pages import Visitor

EVIL = "<img src=x onerror=alert(1)>.html"
SESSION = "11111111-1111-4111-8111-111111111111"


def png(colour: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0)
    content = zlib.compress(bytes((0, colour)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", content) + chunk(b"IEND", b"")


FILES: dict[str, str | bytes] = {
    "app.py": "import os\n\n\ndef run():\n    return 1\n",
    "src/deep/a.txt": "one\n",
    "src/b.txt": "b\n",
    "logo.png": png(10),
    "next.png": png(200),
    "page.svg": "<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>",
}
COMMAND = f"""
sed -i 's/return 1/return 2/' app.py
mv next.png logo.png
printf '<script>alert(2)</script>\\n' > '{EVIL}'
"""


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """A hub with a machine, on which the run e1 changed the workspace `work`."""
    with hub_in(tmp_path_factory.mktemp("changes")) as hub:
        hub.start()
        hub.agent("box")
        hub.client.upload("work", make_zip(FILES))
        list(hub.client.execute("work", steps({"say": "The needle is here."}, {"sh": COMMAND}), executionId="e1"))
        assert hub.request("GET", "/executions/e1/changes").status == 200  # waits for them
        yield hub


@pytest.fixture(scope="module")
def visitor(hub: Hub) -> Visitor:
    visitor = Visitor(hub.url)
    visitor.log_in(hub.client_key)
    return visitor


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser_in(tmp_path_factory.mktemp("browser")) as browser:
        yield browser


def page(visitor: Visitor, path: str) -> str:
    answer = visitor.get(path)
    assert answer.status == 200, answer.data.decode()
    return answer.data.decode()


def plain(html: str) -> str:
    """The text of the lines, without the colours."""
    return re.sub(r"</?span[^>]*>", "", html)


@pytest.mark.parametrize("view", ["unified", "split"])
def test_changes_show_each_file_with_its_lines_and_no_markup_of_theirs(visitor: Visitor, view: str) -> None:
    html = page(visitor, f"/runs/e1/changes?view={view}")
    assert EVIL not in html
    assert escape(EVIL) in html
    text = plain(html)
    assert "return 1" in text
    assert "return 2" in text
    assert "&lt;script&gt;alert(2)" in text
    assert "<script>alert" not in html
    assert "+2" in text  # in all
    assert not re.search(r"\sstyle=", html)


def test_one_file_of_a_run_has_a_page(visitor: Visitor) -> None:
    html = page(visitor, "/runs/e1/changes?path=app.py")
    assert "return 2" in plain(html)
    assert "alert(2)" not in html
    assert visitor.get("/runs/e1/changes?path=none").status == 404


def test_a_conversation_has_the_changes_of_its_turns(hub: Hub, visitor: Visitor) -> None:
    conversation = hub.client.execution("e1")["conversationId"]
    html = page(visitor, f"/conversations/{conversation}/changes")
    assert "Turn 1" in html
    assert "return 2" in plain(html)


def test_the_patch_and_the_files_can_be_downloaded(hub: Hub, visitor: Visitor) -> None:
    patch = visitor.get("/runs/e1/changes.patch")
    assert patch.data == hub.request("GET", "/executions/e1/diff").data
    assert patch.headers["Content-Disposition"].startswith("attachment")
    found = visitor.get("/runs/e1/file?path=app.py")
    assert found.data.endswith(b"return 2\n")
    assert found.headers["Content-Disposition"].startswith("attachment")
    assert visitor.get("/runs/e1/file?path=app.py&at=start").data.endswith(b"return 1\n")
    assert "return 1" in plain(page(visitor, "/runs/e1/whole?path=app.py&at=start"))


def test_pictures_are_shown_before_and_after_and_a_picture_with_scripts_is_not(visitor: Visitor) -> None:
    html = page(visitor, "/runs/e1/changes")
    assert 'src="/runs/e1/file?at=start&amp;path=logo.png"' in html
    for at, colour in (("start", 10), ("end", 200)):
        picture = visitor.get(f"/runs/e1/file?at={at}&path=logo.png")
        assert (picture.headers["Content-Type"], picture.data) == ("image/png", png(colour))
        assert picture.headers["X-Content-Type-Options"] == "nosniff"
    vector = visitor.get("/files/work/content?path=page.svg")
    assert vector.headers["Content-Type"] == "application/octet-stream"
    assert vector.headers["Content-Disposition"].startswith("attachment")


@pytest.mark.parametrize("path", ["../x", "a/../../x", "/etc/passwd", "", ".", "a//b"])
def test_no_path_leads_out_of_the_workspace(visitor: Visitor, path: str) -> None:
    for address in ("/runs/e1/file", "/runs/e1/whole", "/files/work/content", "/files/work/view"):
        assert visitor.get(f"{address}?path={quote(path)}").status == 404
    if path:
        assert visitor.get(f"/files/work?path={quote(path)}").status == 404
        assert visitor.get(f"/files/work/zip?path={quote(path)}").status == 404


def test_folders_can_be_looked_through_and_a_file_read(visitor: Visitor) -> None:
    html = page(visitor, "/files/work")
    assert html.index("src/") < html.index("app.py")  # folders first
    assert escape(EVIL) in html
    assert "deep/" in page(visitor, "/files/work?path=src")
    assert "one" in page(visitor, "/files/work/view?path=src/deep/a.txt")
    assert 'src="/files/work/content?path=logo.png"' in page(visitor, "/files/work/view?path=logo.png")
    assert visitor.get("/files/work?path=none").status == 404


def test_a_folder_can_be_downloaded(visitor: Visitor) -> None:
    with zipfile.ZipFile(io.BytesIO(visitor.get("/files/work/zip?path=src").data)) as packed:
        files = [name for name in packed.namelist() if not name.endswith("/")]
        assert sorted(files) == ["src/b.txt", "src/deep/a.txt"]
        assert packed.read("src/b.txt") == b"b\n"
    with zipfile.ZipFile(io.BytesIO(visitor.get("/files/work/zip").data)) as packed:
        assert "app.py" in packed.namelist()


def test_a_turn_is_undone_and_made_again_after_a_question(hub: Hub, visitor: Visitor) -> None:
    def content() -> bytes:
        return hub.request("GET", "/workspaces/work/files/app.py").data

    assert "Undo this turn" in page(visitor, "/runs/e1/changes")
    assert "app.py" in page(visitor, "/runs/e1/undo")
    assert b"return 2" in content()  # a question changes nothing
    for to, done in (("start", b"return 1"), ("end", b"return 2")):
        answer = visitor.post("/runs/e1/undo", visitor.form(f"/runs/e1/undo?to={to}"))
        assert answer.status == 303, answer.data.decode()
        assert done in content()
        assert 'class="done"' in page(visitor, answer.headers["Location"])


def test_an_undo_that_would_lose_edits_asks_once_more(hub: Hub, visitor: Visitor) -> None:
    list(hub.client.execute("work", steps({"sh": "echo first > edited.txt"}), executionId="e2"))
    assert hub.request("GET", "/executions/e2/changes").status == 200
    list(hub.client.execute("work", steps({"sh": "echo second > edited.txt"}), executionId="e3"))
    assert hub.request("GET", "/executions/e3/changes").status == 200
    answer = visitor.post("/runs/e2/undo", visitor.form("/runs/e2/undo"))
    assert answer.status == 409
    html = answer.data.decode()
    assert "Replace these files, too" in html
    form = dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)"', html.partition("/runs/e2/undo")[2]))
    assert visitor.post("/runs/e2/undo", form).status == 303
    assert hub.request("GET", "/workspaces/work/files/edited.txt").status == 404


def test_a_viewer_sees_the_changes_and_no_actions(hub: Hub) -> None:
    viewer = Visitor(hub.url)
    viewer.log_in(hub.key("looker", "client", "--role", "viewer", "--owner", "tester"))
    html = page(viewer, "/runs/e1/changes")
    assert "return 2" in plain(html)
    assert "Undo" not in html
    assert viewer.post("/runs/e1/undo", viewer.form("/runs/e1/changes")).status == 403


def test_another_owner_s_changes_and_files_are_not_there(hub: Hub) -> None:
    stranger = Visitor(hub.url)
    stranger.log_in(hub.key("stranger", "client"))
    conversation = hub.client.execution("e1")["conversationId"]
    for path in (
        *("/runs/e1/changes", "/runs/e1/changes.patch", "/runs/e1/file?path=app.py", "/runs/e1/whole?path=app.py"),
        *("/runs/e1/undo", f"/conversations/{conversation}/changes", "/files/work", "/files/work/zip"),
        *("/files/work/view?path=app.py", "/files/work/content?path=app.py"),
    ):
        assert stranger.get(path).status == 404, path
    assert stranger.post("/runs/e1/undo", stranger.form("/settings")).status == 404
    assert "/runs/e1" not in page(stranger, "/find?q=needle")


def test_who_is_not_logged_in_is_led_back_to_these_pages(hub: Hub) -> None:
    visitor = Visitor(hub.url)
    for path in ("/runs/e1/changes", "/files/work?path=src%2Fdeep", "/find?q=a+b", "/costs", "/machines", "/settings"):
        answer = visitor.get(path)
        assert answer.status == 303, path
        again = Visitor(hub.url).log_in(hub.client_key, next=path)
        assert again.headers["Location"] == path


def test_a_search_is_narrowed_and_its_hits_lead_to_the_run(hub: Hub, visitor: Visitor) -> None:
    wait_until(lambda: "/runs/e1" in page(visitor, "/find?q=needle"), "the run to be indexed")
    html = page(visitor, "/find?q=needle")
    assert "<mark>needle</mark>" in html
    agent_id = hub.client.execution("e1")["agentId"]
    for narrowed, found in (
        *(("workspace=work", True), ("workspace=other", False), ("state=succeeded", True), ("state=failed", False)),
        *((f"machine={agent_id}", True), ("machine=none", False), ("days=1", True), ("days=1000", True)),
    ):
        assert ("/runs/e1" in page(visitor, f"/find?q=needle&{narrowed}")) is found, narrowed
    assert "Nothing found" in page(visitor, f"/find?q={quote('<script>')}zzz")
    assert page(visitor, "/find")


def test_usage_is_shown_by_each_group_with_one_chart(hub: Hub, visitor: Visitor) -> None:
    list(hub.client.execute("work", json.dumps([{"result": {"total_cost_usd": 0.75}}]), executionId="dear"))
    for by, name in (("day", ""), ("workspace", "work"), ("agent", "box"), ("key", "tester"), ("owner", "tester")):
        html = page(visitor, f"/costs?by={by}&days=7")
        assert html.count('<svg viewBox="0 0 720') == 1
        assert html.count('class="bar-of-day"') in (1, 2)  # at midnight the runs are of two days
        assert name in html.partition("<tbody>")[2]
    assert page(visitor, "/costs?by=nonsense&days=x")


def test_each_page_takes_less_than_sixty_kilobytes_of_styles_and_scripts(visitor: Visitor) -> None:
    for path in ("/runs/e1/changes", "/files/work", "/find", "/costs", "/machines", "/settings", "/notifications", "/"):
        links = re.findall(r'(?:src|href)="(/static/[\w-]+\.(?:css|js))', page(visitor, path))
        assert sum(len(visitor.get(link).data) for link in links) < 60_000, path


@in_browser
def test_a_phone_logs_in_by_a_link_and_its_address_has_no_code_afterwards(hub: Hub, browser: Browser) -> None:
    link = hub.command("pair", "--role", "admin", "--owner", "tester").stdout.strip()
    code = link.partition("#")[2]
    phone = browser.page()
    phone.window(390, 844, phone=True)
    phone.go(link)
    phone.wait("document.querySelector('#code').value")
    assert phone.js("document.querySelector('#code').value") == code
    assert phone.js("location.href") == f"{hub.url}/pair"
    phone.click("#pair button")
    phone.wait("location.pathname === '/'")
    assert not any(code in address for address in phone.requests if "#" not in address)
    phone.go(link)
    phone.wait("document.querySelector('#code').value")
    phone.click("#pair button")
    phone.shows("used before")
    assert code not in hub.logs()
    assert phone.errors == [] or all("401" in error for error in phone.errors)
    phone.close()


@in_browser
@pytest.mark.parametrize("width", [320, 390, 720])
def test_no_page_scrolls_sideways(hub: Hub, browser: Browser, width: int) -> None:
    """720 pixels are a window of 1,440 at twice the size."""
    word = "averylongname" * 8
    hub.client.upload(word[:100], make_zip({f"{word}/{word}.txt": f"{word * 9}\n"}))
    command = f"echo {word * 9} > {word}/{word}.txt; echo x > {word}.bin"
    list(hub.client.execute(word[:100], steps({"sh": command}), executionId=f"wide{width}"))
    assert hub.request("GET", f"/executions/wide{width}/changes").status == 200
    screen = browser.page()
    screen.go(f"{hub.url}/login")
    screen.fill("#key", hub.client_key)
    screen.click("button.main")
    screen.wait("location.pathname === '/'")
    screen.window(width, 700, phone=width < 700)
    for path in (
        *(f"/runs/wide{width}/changes", f"/runs/wide{width}/changes?view=split", f"/runs/wide{width}/undo"),
        *(f"/runs/wide{width}/whole?path={word}/{word}.txt", f"/files/{word[:100]}?path={word}"),
        *(f"/files/{word[:100]}/view?path={word}/{word}.txt", f"/find?q={word}", "/costs?by=workspace"),
        *("/machines", "/settings", "/pair"),
    ):
        screen.go(hub.url + path)
        sideways = "document.documentElement.scrollWidth - document.documentElement.clientWidth"  # without the bar
        assert screen.js(sideways) <= 0, path  # less where room is kept for the bar
    assert screen.errors == []
    screen.close()


@in_browser
def test_the_list_of_machines_is_kept_fresh(hub: Hub, browser: Browser) -> None:
    screen = browser.page()
    screen.go(f"{hub.url}/login")
    screen.fill("#key", hub.client_key)
    screen.click("button.main")
    screen.wait("location.pathname === '/'")
    screen.go(f"{hub.url}/machines")
    screen.shows("online", "#machines")
    hub.command("agents", "drain", "box")
    screen.shows("draining", "#machines", 60)
    hub.command("agents", "resume", "box")
    screen.shows("online", "#machines", 60)
    screen.close()


def test_the_page_of_a_run_leads_to_its_changes_and_files(visitor: Visitor) -> None:
    html = page(visitor, "/runs/e1")
    assert 'href="/runs/e1/changes"' in html
    assert 'href="/files/work"' in html
    for form in re.findall(r'<form action="(/[^"]*)" role="search"', html):
        assert visitor.get(f"{form}?q=needle").headers["Content-Type"].startswith("text/html")
