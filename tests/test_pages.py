"""The hub's pages over plain HTTP: who gets in, what is refused, what can never be injected."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from html import unescape
from typing import Any

import pytest
import urllib3

from occ_app.hub.pages import markdown, terminal
from occ_app.hub.pages.live_text import LiveText
from tests import sentences
from tests.conftest import make_zip, steps, wait_until
from tests.real_hub import Hub, hub_in

EVIL = "<script>alert(1)</script><img src=x onerror=alert(1)>"
PATHS = ("", "/part", "/live", "/files")


@dataclass
class Visitor:
    """Somebody with a browser, as far as HTTP goes: keeps the cookie, sends the forms."""

    url: str
    cookie: str = ""

    def get(self, path: str, **headers: str) -> urllib3.BaseHTTPResponse:
        return self._send("GET", path, None, headers)

    def post(self, path: str, fields: dict[str, Any] | None = None, **headers: str) -> urllib3.BaseHTTPResponse:
        return self._send("POST", path, fields or {}, headers)

    def _send(self, method: str, path: str, fields: Any, headers: dict[str, str]) -> urllib3.BaseHTTPResponse:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if self.cookie:
            sent["Cookie"] = self.cookie
        with urllib3.PoolManager(retries=False) as pool:
            answer = pool.request(method, self.url + path, fields=fields, headers=sent, redirect=False, timeout=30)
        if answer.headers.get("Set-Cookie"):
            self.cookie = answer.headers["Set-Cookie"].split(";")[0]
        return answer

    def log_in(self, key: str, **fields: str) -> urllib3.BaseHTTPResponse:
        return self.post("/login", {"key": key, **fields})

    def form(self, path: str = "/") -> dict[str, str]:
        """The hidden fields of a page's form."""
        page = self.get(path).data.decode()
        found = re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)"', page)
        return {name: unescape(value) for name, value in found}

    def run(self, prompt: str, **fields: Any) -> urllib3.BaseHTTPResponse:
        return self.post("/runs", self.form() | {"prompt": prompt, **fields})


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """A hub with one machine, `box`, and the workspace `work`."""
    with hub_in(tmp_path_factory.mktemp("pages")) as hub:
        hub.start()
        hub.agent("box", OCC_LABELS="linux,gpu")
        hub.client.upload("work", make_zip({"README.md": "hello\n"}))
        yield hub


@pytest.fixture
def visitor(hub: Hub) -> Visitor:
    """Somebody who is logged in with the admin's key."""
    visitor = Visitor(hub.url)
    assert visitor.log_in(hub.client_key).status == 303
    return visitor


def finished(hub: Hub, execution_id: str) -> dict[str, Any]:
    """The record of an execution, once it is over."""
    return wait_until(
        lambda: record if (record := hub.client.execution(execution_id))["finishedAt"] else None, "it is over"
    )


def run_id(answer: urllib3.BaseHTTPResponse) -> str:
    """The id of the execution whose page a form led to."""
    assert answer.status == 303, answer.data.decode()
    return answer.headers["Location"].removeprefix("/runs/")


def refusals(answer: urllib3.BaseHTTPResponse) -> str:
    """What a refused form says."""
    found = re.search(r'id="problem"[^>]*>(.*?)</div>', answer.data.decode(), re.DOTALL)
    assert found is not None
    return unescape(found[1])


# ---- Getting in


def test_an_address_that_is_nobody_s_is_a_page_for_a_browser_and_json_for_all_others(
    hub: Hub, visitor: Visitor
) -> None:
    as_json = Visitor(hub.url).get("/nosuchpage")
    assert (as_json.status, as_json.json()["code"]) == (401, "UNAUTHORIZED")
    for somebody, leads_to in ((visitor, 'href="/"'), (Visitor(hub.url), 'href="/login"')):
        page = somebody.get("/nosuchpage", Accept="text/html,*/*;q=0.8")
        assert page.status == 404
        assert "default-src 'self'" in page.headers["Content-Security-Policy"]
        assert sentences.NO_PAGE_AT_THIS_ADDRESS in page.data.decode()
        assert f'class="button" {leads_to}' in page.data.decode()
    assert visitor.get("/executions", Accept="text/html").json()["code"] == "UNAUTHORIZED"  # a cookie opens no API


def test_the_cookie_is_for_this_host_and_for_no_script(hub: Hub) -> None:
    told = Visitor(hub.url).log_in(hub.client_key).headers["Set-Cookie"]
    attributes = {part.strip() for part in told.split(";")[1:]}
    assert told.startswith("occ-")
    assert {"HttpOnly", "SameSite=Lax", "Path=/", f"Max-Age={30 * 86400}"} <= attributes
    assert not any(attribute.startswith(("Domain", "Secure")) for attribute in attributes)


def test_the_stored_login_is_not_the_cookie(hub: Hub, visitor: Visitor) -> None:
    secret = visitor.cookie.partition("=")[2].encode()
    for path in hub.home.glob("occ.db*"):
        assert secret not in path.read_bytes()


@pytest.mark.parametrize("key", ["", "wrong", "agent's"])
def test_only_a_client_s_key_logs_in_and_guessing_is_slow(hub: Hub, key: str) -> None:
    visitor, begun = Visitor(hub.url), time.monotonic()
    answer = visitor.log_in(hub.agent_key if key == "agent's" else key)
    assert time.monotonic() - begun >= 0.1
    assert answer.status == 401
    assert sentences.NOT_A_VALID_CLIENT_KEY in answer.data.decode()
    assert not visitor.cookie
    assert f"{sentences.A_WRONG_TOKEN_CAME_FROM} 127.0.0.1" in hub.logs()


def test_who_is_not_logged_in_is_led_to_the_log_in_page_and_back(hub: Hub) -> None:
    visitor = Visitor(hub.url)
    assert visitor.get("/").headers["Location"] == "/login"
    assert visitor.get("/runs/e1").headers["Location"] == "/login?next=%2Fruns%2Fe1"
    assert 'name="next" value="/runs/e1"' in visitor.get("/login?next=/runs/e1").data.decode()
    assert visitor.log_in(hub.client_key, next="/runs/e1").headers["Location"] == "/runs/e1"


@pytest.mark.parametrize(
    "target", ["//evil.example", "https://evil.example", "/\\evil.example", "/runs/a\nb", "/login"]
)
def test_logging_in_leads_to_the_hub_s_own_pages_alone(hub: Hub, target: str) -> None:
    assert Visitor(hub.url).log_in(hub.client_key, next=target).headers["Location"] == "/"


def test_everything_but_the_log_in_page_and_its_files_wants_a_login(hub: Hub) -> None:
    visitor = Visitor(hub.url)
    for path in (
        "/lists",
        "/runs",
        "/runs/e1/part",
        "/runs/e1/live",
        "/runs/e1/files",
        "/runs/e1/no/page",
        "/logout",
    ):
        answer = visitor.get(path)
        assert answer.status == 401, path
        assert answer.headers["Content-Type"].startswith("text/html"), path
    for path in ("/runs", "/runs/e1/cancel", "/runs/e1/change", "/logout"):
        assert visitor.post(path, {"csrf": ""}).status == 401, path
    assert visitor.get("/login").status == 200
    assert visitor.get("/static/hub.css").status == 200


def test_the_log_in_page_takes_no_large_body(hub: Hub) -> None:
    answer = Visitor(hub.url).log_in("x" * 20_000)
    assert answer.status == 413
    assert answer.headers["Content-Type"].startswith("text/html")


def test_the_cookie_opens_no_address_of_the_api(hub: Hub, visitor: Visitor) -> None:
    for path in (
        "/executions",
        "/executions/e1",
        "/workspaces",
        "/agents",
        "/keys",
        "/health",
        "/openapi.json",
        "/none",
    ):
        answer = visitor.get(path)
        assert answer.status == 401, path
        assert answer.json()["code"] == "UNAUTHORIZED", path
    csrf = visitor.form()["csrf"]
    for path in ("/execute", "/workspace/init", "/executions/e1/cancel", "/keys"):
        assert visitor.post(path, {"csrf": csrf}).status == 401, path


def test_a_key_or_the_hub_s_token_in_a_header_opens_no_page(hub: Hub) -> None:
    assert hub.request("GET", "/").headers["Location"] == "/login"
    assert hub.request("GET", "/lists").status == 401


@pytest.mark.parametrize("how", ["revoked", "expired", "logged out"])
def test_a_login_ends_with_its_key_at_once(hub: Hub, how: str) -> None:
    name = f"short-{how.replace(' ', '-')}"
    visitor = Visitor(hub.url)
    visitor.log_in(hub.key(name, "client"))
    cookie = visitor.cookie
    assert visitor.get("/lists").status == 200
    if how == "revoked":
        hub.command("keys", "revoke", name)
    elif how == "expired":
        with hub.database.write() as connection:
            connection.execute("UPDATE keys SET expires_at = '2020-01-01T00:00:00.000Z' WHERE name = ?", (name,))
    else:
        answer = visitor.post("/logout", {"csrf": visitor.form()["csrf"]})
        assert answer.headers["Location"] == "/login"
        assert "Max-Age=0" in answer.headers["Set-Cookie"]
    assert Visitor(hub.url, cookie).get("/lists").status == 401


# ---- Forms


def test_a_form_without_the_token_of_its_login_does_nothing(hub: Hub, visitor: Visitor) -> None:
    other = Visitor(hub.url)
    other.log_in(hub.client_key)
    filled = visitor.form() | {"workspace": "work", "prompt": "no"}
    for csrf in ("", "wrong", "é", other.form()["csrf"]):
        answer = visitor.post("/runs", filled | {"csrf": csrf})
        assert answer.status == 403
        assert sentences.RELOAD_THE_PAGE in answer.data.decode()
        assert visitor.post("/logout", {"csrf": csrf}).status == 403
    assert visitor.get("/lists").status == 200
    assert filled["run"] not in visitor.get("/lists").data.decode()


def test_a_form_from_another_site_is_refused(visitor: Visitor) -> None:
    for path in ("/runs", "/login", "/logout"):
        for origin in ("https://evil.example", "null"):
            answer = visitor.post(path, visitor.form(), Origin=origin)
            assert answer.status == 403, path
            assert answer.headers["Content-Type"].startswith("text/html")


def test_a_zip_becomes_a_workspace_and_its_execution(hub: Hub, visitor: Visitor) -> None:
    zipped = ("My project.zip", make_zip({"p/notes.txt": "buy milk\n", "p/.mcp.json": "{}"}).read())
    execution_id = run_id(visitor.run("what\r\nis in it?", zip=zipped, labels="gpu, linux", model="some-model"))
    record = finished(hub, execution_id)
    assert record["state"] == "succeeded"
    assert record["prompt"] == "what\nis in it?"
    assert re.fullmatch(r"My-project-[0-9a-f]{12}", record["workspaceId"])
    assert hub.client.call("GET", f"/workspaces/{record['workspaceId']}")["name"] == "My project"
    page = visitor.get(f"/runs/{execution_id}").data.decode()
    assert "You said: what" in page
    assert "<code>.mcp.json</code>" in page
    assert "1 left out of the upload" in page
    answer = visitor.get(f"/runs/{execution_id}/files")
    assert answer.data[:2] == b"PK"
    assert "attachment" in answer.headers["Content-Disposition"]


def test_the_same_form_sent_twice_is_one_execution(hub: Hub, visitor: Visitor) -> None:
    form = visitor.form() | {"prompt": "once", "zip": ("a.zip", make_zip({"a": "a"}).read())}
    first, again = run_id(visitor.post("/runs", form)), run_id(visitor.post("/runs", form))
    assert first == again
    assert [one["executionId"] for one in hub.client.executions(limit=1)["executions"]] == [first]


@pytest.mark.parametrize(
    "edited",
    [
        {"prompt": "other"},
        {"zip": ("a.zip", make_zip({"b": "b"}).read())},
        {"zip": ("b.zip", make_zip({"a": "a"}).read())},
        {"model": "other"},
        {"labels": "linux"},
    ],
    ids=["prompt", "zip", "name of the zip", "model", "labels"],
)
def test_an_edited_form_is_never_the_old_run(hub: Hub, visitor: Visitor, edited: dict[str, Any]) -> None:
    form = visitor.form() | {"prompt": "first", "zip": ("a.zip", make_zip({"a": "a"}).read())}
    first = run_id(visitor.post("/runs", form))
    answer = visitor.post("/runs", form | edited)
    assert answer.status == 409
    assert "already started" in refusals(answer)
    assert f">{edited.get('prompt', 'first')}</textarea>" in answer.data.decode()
    page = re.search(r'name="run" value="([^"]*)"', answer.data.decode())
    assert page is not None
    assert page[1] != form["run"]
    second = run_id(visitor.post("/runs", form | edited | {"run": page[1]}))
    assert first != second == page[1]
    finished(hub, first)
    finished(hub, second)


def test_a_form_of_an_older_login_keeps_its_text(hub: Hub, visitor: Visitor) -> None:
    old = visitor.form() | {"prompt": "ten minutes of writing", "workspace": "work"}
    visitor.log_in(hub.client_key)
    answer = visitor.post("/runs", old)
    assert answer.status == 403
    assert ">ten minutes of writing</textarea>" in answer.data.decode()
    csrf = re.search(r'name="csrf" value="([^"]*)"', answer.data.decode())
    assert csrf is not None
    finished(hub, run_id(visitor.post("/runs", old | {"csrf": unescape(csrf[1])})))


def test_a_form_without_a_login_shows_what_was_written(hub: Hub, visitor: Visitor) -> None:
    answer = Visitor(hub.url).post("/runs", visitor.form() | {"prompt": "<ten> minutes"})
    assert answer.status == 401
    assert ">&lt;ten&gt; minutes</textarea>" in answer.data.decode()


@pytest.mark.parametrize(
    ("wrong", "status", "told"),
    [
        ({"zip": ("a.zip", b"no zip at all")}, 422, "zip"),
        ({"zip": ("a.zip", make_zip({"../out": "x"}).read())}, 422, "out"),
        ({"zip": ("a.zip", make_zip({"a": "x"}).read()), "workspace": "work"}, 422, "one of them"),
        ({"workspace": ""}, 422, "Choose a project, a workspace, or files"),
        ({"workspace": "gone"}, 404, "no workspace gone"),
        ({"workspace": "work", "prompt": "  "}, 422, "Prompt: Must not be empty."),
        ({"workspace": "work", "model": "a model"}, 422, "Model: Must be the name of a model."),
        ({"workspace": "work", "run": "../x"}, 422, "reload"),
    ],
)
def test_a_refused_form_says_why_and_keeps_what_was_typed(
    visitor: Visitor, wrong: dict[str, Any], status: int, told: str
) -> None:
    answer = visitor.post("/runs", visitor.form() | {"prompt": "typed & kept", "labels": "a,b"} | wrong)
    page = answer.data.decode()
    assert answer.status == status
    assert told in refusals(answer)
    assert f">{'typed &amp; kept' if 'prompt' not in wrong else '  '}</textarea>" in page
    assert 'value="a,b"' in page


def test_a_machine_that_does_not_suit_is_told_and_the_upload_stays(hub: Hub, visitor: Visitor) -> None:
    box = hub.seen("box")["agentId"]
    first = finished(hub, run_id(visitor.run("one", zip=("a.zip", make_zip({"a": "a"}).read()), agent=box)))
    answer = visitor.run("two", workspace=first["workspaceId"], labels="windows")
    assert answer.status == 409
    assert f"{sentences.IS_ON_AGENT} box" in refusals(answer)
    assert f'value="{first["workspaceId"]}" selected' in answer.data.decode()


def test_one_goes_on_in_the_session_of_a_finished_execution(hub: Hub, visitor: Visitor) -> None:
    first = run_id(visitor.run("one", workspace="work"))
    finished(hub, first)
    form = visitor.form(f"/runs/{first}")
    assert form["continues"] == first
    second = run_id(visitor.post("/runs", form | {"prompt": "two"}))
    assert finished(hub, second)["state"] == "succeeded"
    turns = hub.client.call("GET", f"/conversations/{first}")["turns"]
    assert [turn["executionId"] for turn in turns] == [first, second]
    page = visitor.get(f"/runs/{second}").data.decode()
    assert page.index(f'id="turn-{first}"') < page.index(f'id="turn-{second}"')


# ---- Whose it is


def test_executions_and_workspaces_of_other_keys_are_not_there(hub: Hub, visitor: Visitor) -> None:
    stranger = Visitor(hub.url)
    stranger.log_in(hub.key("stranger", "client"))
    mine = run_id(visitor.run("a secret of mine", workspace="work"))
    finished(hub, mine)
    for path in PATHS:
        answer = stranger.get(f"/runs/{mine}{path}")
        assert answer.status == 404, path
        assert "secret of mine" not in answer.data.decode()
    assert stranger.post(f"/runs/{mine}/cancel", stranger.form()).status == 404
    page = stranger.get("/").data.decode()
    assert mine not in page
    assert 'value="work"' not in page
    assert stranger.run("use it", workspace="work").status == 404
    assert "secret of mine" in visitor.get(f"/runs/{mine}").data.decode()


# ---- What is answered


def test_every_answer_carries_the_strict_headers(hub: Hub, visitor: Visitor) -> None:
    done = run_id(visitor.run("hello", workspace="work"))
    finished(hub, done)
    for path in (
        "/",
        "/lists",
        "/login",
        f"/runs/{done}",
        f"/runs/{done}/live",
        "/runs/none",
        "/runs/a/b",
        "/static/hub.js",
    ):
        headers = visitor.get(path).headers
        policy = headers["Content-Security-Policy"]
        assert "default-src 'self'" in policy, path
        assert "frame-ancestors 'none'" in policy
        assert "form-action 'self'" in policy
        assert "unsafe" not in policy
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "same-origin"
        assert headers["Cache-Control"] == ("no-cache" if "static" in path else "no-store"), path


def test_no_page_has_a_script_or_style_of_its_own(hub: Hub, visitor: Visitor) -> None:
    done = run_id(visitor.run("hello", workspace="work"))
    finished(hub, done)
    places = ("/machines", "/settings", "/find?q=x", "/costs", "/notifications", "/pair", f"/runs/{done}/changes")
    for path in ("/", "/login", f"/runs/{done}", "/runs/none", *places):
        page = visitor.get(path).data.decode()
        assert re.findall(r"<script(?! src=\"/static/[\w-]+\.js\?[\w.]+\" defer></script>)", page) == [], path
        assert "<style" not in page, path
        assert not re.search(r"<[^>]+\s(on\w+|style)=", page), path


def test_an_error_on_a_page_is_a_page_and_one_of_the_api_json(hub: Hub, visitor: Visitor) -> None:
    for path, status in (("/runs/none", 404), ("/runs/a/b/c", 404), ("/runs/none/part?from=x", 400)):
        answer = visitor.get(path)
        assert answer.status == status
        assert answer.headers["Content-Type"].startswith("text/html")
        assert "<h1>" in answer.data.decode()
    assert hub.request("GET", "/executions/none").json()["code"] == "EXECUTION_NOT_FOUND"


def test_the_lists_are_narrowed_and_paged(hub: Hub, visitor: Visitor) -> None:
    for number in range(27):
        hub.client.cancel(run_id(visitor.run(f"numbered {number}", workspace="work")))
    newest = visitor.get("/").data.decode()
    assert "numbered 26" in newest
    older = re.search(r'href="(/\?before=[^"]+)">Older', newest)
    assert older is not None
    page = visitor.get(unescape(older[1])).data.decode()
    assert "numbered 26" not in page
    assert "numbered 0" in page
    assert "numbered 26" not in visitor.get("/?workspace=elsewhere").data.decode()
    assert "numbered 26" not in visitor.get("/?state=failed").data.decode()
    assert "numbered 26" in visitor.get("/?state=nonsense&before=x&other=1").data.decode()


# ---- Injection


def test_nothing_that_comes_from_outside_becomes_markup(hub: Hub, visitor: Visitor) -> None:
    hostile = hub.agent("evil", OCC_LABELS=f"gpu,{EVIL}")
    with hub.database.write() as connection:  # a name that a test's folder could not have
        connection.execute("UPDATE agents SET name = ? WHERE name = 'evil'", (f"evil {EVIL}",))
    prompt = steps(
        {"say": EVIL},
        {"say": "\n\n[click](javascript:alert(1)) ![x](javascript:alert(1)) <javascript:alert(1)>\n\n"},
        {"tool": f"Read{EVIL}", "input": {"file_path": EVIL, EVIL: "x"}, "result": EVIL},
        {"result": {"is_error": True, "errors": [EVIL]}},
    )
    execution_id = run_id(visitor.run(prompt, workspace="work"))
    finished(hub, execution_id)
    evil_zip = (f"{EVIL}.zip", make_zip({f"{EVIL.replace('/', '-')}": "x"}).read())
    named = run_id(visitor.run(EVIL, zip=evil_zip, labels=f"{EVIL} too"))
    wait_until(lambda: "Waits for" in visitor.get("/lists").data.decode(), "the hub has looked for such a machine")
    pages = [
        visitor.get(path).data.decode()
        for path in ("/", f"/runs/{execution_id}", f"/runs/{named}", f"/login?next={EVIL}")
    ]
    pages.append(visitor.run(EVIL, workspace=EVIL, agent=EVIL, labels=EVIL, model=EVIL, session=EVIL).data.decode())
    for page in pages:
        assert "<script>alert" not in page
        assert "<img src=x" not in page
        assert not re.search(r'(href|src)="\s*javascript:', page, re.IGNORECASE)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in pages[1]
    assert "evil &lt;script&gt;" in pages[0]
    hostile.stop()


@pytest.mark.parametrize(
    "text",
    [
        EVIL,
        f"```\n{EVIL}\n```",
        f"    {EVIL}",
        f"`{EVIL}`",
        f"# {EVIL}",
        f"| {EVIL} |\n|---|\n| {EVIL} |",
        "[a](javascript:alert(1))",
        "[a](JaVaScRiPt:alert(1))",
        "[a](&#106;avascript:alert(1))",
        "[a](\x01javascript:alert(1))",
        "[a](data:text/html,<script>alert(1)</script>)",
        "[a](vbscript:x)",
        "[a][b]\n\n[b]: javascript:alert(1)",
        "<javascript:alert(1)>",
        '[a](https://x.example/"onmouseover="alert(1))',
        '[a](https://x.example "onmouseover=alert(1) x=")',
        "![a](https://x.example/track.png)",
        '![" onerror="alert(1)](x)',
        '```js" onload="alert(1)\ncode\n```',
        "<a href='javascript:alert(1)'>x</a>",
        "<!-- --><svg onload=alert(1)>",
        "&lt;script&gt;alert(1)&lt;/script&gt;",
    ],
)
@pytest.mark.parametrize("live", [False, True])
def test_markdown_makes_only_the_tags_it_knows(text: str, live: bool) -> None:
    made = shown_live(text) if live else str(markdown.html(text))
    tags = re.findall(r"<[^>]*>", made)
    names = "p|em|strong|s|code|pre|button|h[1-6]|ul|ol|li|blockquote|hr|br|div|table|thead|tbody|tr|th|td|a|span"
    known = rf"</?({names})\b[^<]*>"
    assert all(re.fullmatch(known, tag) for tag in tags), made
    attributes = set(re.findall(r"\s([\w-]+)=", " ".join(re.sub(r'"[^"]*"', "", tag) for tag in tags)))
    assert attributes <= {"href", "rel", "target", "class", "tabindex", "type", "start"}, made
    for target in re.findall(r'href="([^"]*)"', made):
        assert target.startswith(("http://", "https://", "mailto:")), made
    assert "<img" not in made


def test_links_tell_nobody_where_they_are_followed_from() -> None:
    assert str(markdown.html("[a](https://x.example/?a=1&b=2)")) == (
        '<p><a href="https://x.example/?a=1&amp;b=2" rel="noopener noreferrer nofollow" target="_blank">a</a></p>'
    )
    assert "<em>tally.py</em>" in markdown.html("[tally.py](src/tally.py)")


def shown_live(text: str) -> str:
    """A text that is still being written, as HTML."""
    live = LiveText()
    live.feed(text)
    return "\n".join([*live.closed, *live.open])


TAIL = '<span class="tail"></span>'


@pytest.mark.parametrize(
    ("text", "made"),
    [
        ("one ", f"<p>one {TAIL}</p>"),
        ("- a\n- b", f"<ul>\n<li>a</li>\n<li>b{TAIL}</li>\n</ul>"),
        (
            "```py\nx = 1\n",
            f'<div class="code"><pre tabindex="0"><code>x = 1\n{TAIL}</code></pre>{markdown.COPY}</div>',
        ),
        ("```py", f'<div class="code"><pre tabindex="0"><code></code></pre>{markdown.COPY}</div>'),
        ("one **two", f"<p>one <strong>two{TAIL}</strong></p>"),
        ("a\ue0f0b", f"<p>ab{TAIL}</p>"),
        ("| a | b |\n|--", ""),
        ("one\n\n#", f"<p>one{TAIL}</p>"),
    ],
)
def test_what_follows_goes_where_the_markdown_would_have_it(text: str, made: str) -> None:
    assert shown_live(text) == made


CODE = "```python\ndef a():\n    return 1\n\n\ndef b():\n    return 2\n```\n"


def indented(text: str, by: int) -> str:
    return "".join(" " * by + line if line.strip() else line for line in text.splitlines(keepends=True))


@pytest.mark.parametrize(
    "text",
    [
        f"1. First do this:\n\n{indented(CODE, 4)}\n2. Then that.\n",
        "- Outer item\n\n  - Inner item\n\n    its second paragraph\n\n    its third\n",
        "````markdown\n# Title\n\n```bash\npip install x\n\nx --run\n```\n\nmore\n````\n\nAfter.\n",
        "```markdown\n# Title\n\n```bash\npip install x\n\nx --run\n```\n\nAfter.\n",
        "> quoted\n>\n> ```\n> code\n>\n> more\n> ```\n\nAfter.\n",
        "See [the docs][1].\n\n[1]: https://example.com/a\n",
        "a | b\n--|--\n1 | 2\n\nAfter.\n",
        f"~~~\n{'x' * 70}\n\n\n~~~\n\nAfter.\n",
    ],
    ids=[
        "code in a step",
        "list in a list",
        "fence in a fence",
        "three marks",
        "quote",
        "reference",
        "table",
        "tildes",
    ],
)
@pytest.mark.parametrize("before", [1598, 1, 4000])
def test_a_long_text_is_cut_only_where_nothing_changes(text: str, before: int, monkeypatch: pytest.MonkeyPatch) -> None:
    long = "word " * before + "\n\n" + text * 150 + "The end.\n"
    cut = str(markdown.html(long))
    monkeypatch.setattr(markdown, "_CUT_BYTES", 10**9)
    monkeypatch.setattr(markdown, "_PLAIN_BYTES", 10**9)
    monkeypatch.setattr(markdown, "_is_costly", lambda _: False)
    markdown._one.cache_clear()
    assert cut == str(markdown.html(long))
    markdown._one.cache_clear()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mFAILED\x1b[0m test_a\n\x1b]0;title\x07step 1\rstep 2\rstep 3\n", "FAILED test_a\nstep 3\n"),
        ("10%\r 50%\r100%\r\ndone\r\n", "100%\ndone\n"),
        ("\x1b]8;;https://x.example\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x1b[2K\x1b[1Gx\x1b(B\x1b[?25h", "x"),
        ("\x9b1mbold\x9b0m", "bold"),
        ("\x1b]0;never ended\nnext", "\nnext"),
        ("a\x08b_\x08c\x07", "bc"),
        ("old\rMac", "old\nMac"),
        ("tab\tstays, שלום too", "tab\tstays, שלום too"),
        ("\x1b", ""),
    ],
)
def test_what_was_written_for_a_terminal_is_plain(text: str, shown: str) -> None:
    assert terminal.plain(text) == shown


def test_colour_codes_and_progress_are_nowhere_on_a_page(hub: Hub, visitor: Visitor) -> None:
    out = "\x1b[31mFAILED\x1b[0m test_a\n\x1b]0;title\x07step 1\rstep 2\rstep 3\n"
    tool = {"tool": "Bash", "input": {"command": "\x1b[1mpytest"}, "result": out}
    execution_id = run_id(visitor.run(steps(tool, {"say": f"```\n{out}```\n"}), workspace="work"))
    finished(hub, execution_id)
    page = visitor.get(f"/runs/{execution_id}").data.decode()
    answer = page[page.index('class="answer"') :]
    assert answer.count("FAILED test_a\nstep 3\n") == 1
    assert answer.count('<span class="c1">FAILED</span> test_a\nstep 3') == 1
    assert "\x1b" not in answer
    assert "[31m" not in answer


def test_a_long_text_takes_time_in_proportion(hub: Hub) -> None:
    begun = time.thread_time()
    made = markdown.html("Some *text* with `code`.\n\n" * 8_000 + "```\n" + "x\n\n" * 3_000 + "```\nend")
    assert "<p>end</p>" in made
    assert made.count("<pre") == 1
    markdown.html("![" * 200_000)
    assert time.thread_time() - begun < 10
