"""The HTTP client of the API, for `occ run` and for Python programs.

It keeps the promise of the API from the caller's side: a dropped connection is taken up again where it broke, and a
lost reply never runs a prompt twice.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, cast
from urllib.parse import quote, urlencode

import urllib3

from occ_app import __version__
from occ_app.client import bodies, replies, sse, streams
from occ_app.client.event_checks import RawEvent
from occ_app.client.pool_choice import choose_pool
from occ_app.client.sse import StreamEvent
from occ_app.errors import Refused, Unreachable, Untrusted
from occ_app.system import proofs, relayed
from occ_app.system.short_ids import new_execution_id

_CONNECT_SECONDS = 10.0
_SILENCE_SECONDS = 40.0  # a stream says something every 15 s, so this long a silence is a dead connection
_RELAYED_SILENCE_SECONDS = 22.0  # the same for a hub, which is there to notice
_CANCEL_SECONDS = 20.0


class AgentClient:
    """A client of an agent's or a hub's API.

    Every method raises Unreachable for no answer, Refused for one that is an error.
    """

    def __init__(
        self,
        url: str,
        token: str,
        pin: str | None = None,
        through: Path | None = None,
        admit: Callable[[str], None] | None = None,
        *,
        prove: bool = False,
    ) -> None:
        """Take an address, its token, and the terms of each connection.

        `pin` is the SHA-256 fingerprint of the only certificate to trust, for any host name. With `through` all calls
        use that Unix socket, the one a hub has for a linked agent. `admit` gets the IP address of every new connection
        before anything is sent, and raises when it must not be called. With `prove`, and no pin, each connection must
        prove that it leads to a holder of the token before the token is sent on it.
        """
        self.url = url.rstrip("/")
        self._pin, self._token = pin, token
        self._headers = {"Authorization": f"Bearer {token}", "User-Agent": f"occ/{__version__}"}
        self._pool = choose_pool(self.url, token, pin, through, admit, prove=prove)

    def close(self) -> None:
        self._pool.clear()

    def health(self, seconds: float = 60) -> dict[str, Any]:
        """How it is, asked for at most about so many seconds."""
        return self._json("GET", "/health", read_seconds=seconds)

    def instance(self, seconds: float = 60) -> str:
        """Return the id of the daemon's start, once it proves that it holds the token."""
        nonce = proofs.new_nonce()
        headers = {"Authorization": proofs.question(self._token, nonce)}
        reply = self._json("GET", proofs.PATH, headers=headers, read_seconds=seconds)
        if not proofs.same(str(reply.get("proof")), proofs.of_agent(self._token, nonce)):
            raise Unreachable(f"{self.url} does not prove that it holds the token.")
        return str(reply.get("instance"))

    def upload(
        self,
        workspace_id: str,
        archive: IO[bytes],
        *,
        name: str | None = None,
        policy: str = "overwrite",
        description: str = "",
        strip_root: bool = False,
        generation: int | None = None,
        headers: Mapping[str, str] | None = None,
        base: str | None = None,
        deletions: Sequence[str] = (),
    ) -> dict[str, Any]:
        """Create a workspace from a zip; returns the reply. `policy` is as on the wire.

        With `base`, the workspace's snapshot, it is updated: the zip has the changed files, an empty one none, and the
        paths of `deletions` are removed. With `strip_root` a zip whose only top entry is a folder becomes a workspace
        with the contents of that folder. With `generation` it is refused unless the workspace has that number, with 0
        unless there is none. `headers` are further ones of the request.
        """
        fields = {
            "workspaceId": workspace_id,
            "name": name or workspace_id,
            "processPolicy": policy,
            "description": description,
        }
        if strip_root:  # older agents do not know the field
            fields["stripRoot"] = "true"
        if base is not None:
            fields |= {"processPolicy": "update", "base": base, "deletions": json.dumps(list(deletions))}
        body, sent = bodies.form(fields, archive, empty_allowed=base is not None)
        if generation is not None:
            sent["OCC-Workspace-Generation"] = str(generation)
        return self._json("POST", "/workspace/init", body=body, headers={**sent, **(headers or {})}, read_seconds=300)

    def execute(self, workspace_id: str | None, prompt: str, **options: Any) -> Iterator[StreamEvent]:
        """Run a prompt and yield its events to the last; options as on the wire.

        `workspace_id` is None for one that `continues` another execution, in its workspace. With `executionId` among
        the options an execution that exists with the same body is followed instead. A connection that breaks is
        resumed; the prompt runs once in every case.
        """
        body = {"executionId": new_execution_id(), "prompt": prompt, **options}
        if workspace_id is not None:
            body["workspaceId"] = workspace_id
        return streams.follow(str(body["executionId"]), lambda after: self._open_execute(body, after), 0)

    def batches(
        self,
        execution_id: str,
        after: int,
        body: Mapping[str, Any] | None = None,
        *,
        new: bool = False,
        headers: Mapping[str, str] | None = None,
    ) -> Iterator[list[RawEvent]]:
        """Yield an execution's events above `after`, in batches as they arrive.

        They use one connection; with `body` the execution is started. An empty list is a sign of life. For callers
        that forward events and resume a broken stream themselves. With `new` an existing execution is refused, unless
        its reply repeats `headers`, further ones of the request.
        """
        if body is not None:
            response = self._open_execute(body, after, _RELAYED_SILENCE_SECONDS, {**(headers or {}), **relayed.MARK})
            own = bool(headers) and all(response.headers.get(name) == value for name, value in (headers or {}).items())
            if new and not own and response.headers.get("OCC-Execution") == "existing":
                response.close()
                raise Refused(f"execution {execution_id} exists with another body; choose another id.", 409)
            return sse.batches(response)
        return sse.batches(self._open_events(execution_id, after, seconds=_RELAYED_SILENCE_SECONDS))

    def events(self, execution_id: str, *, after: int = 0, follow: bool = True) -> Iterator[StreamEvent]:
        """Yield an execution's events above `after`; without `follow` only stored ones."""
        if not follow:
            stored = sse.batches(self._open_events(execution_id, after, follow=False))
            return (sse.parsed(raw) for batch in stored for raw in batch)
        return streams.follow(execution_id, lambda after: self._open_events(execution_id, after), after)

    def _open_execute(
        self,
        body: Mapping[str, Any],
        after: int,
        seconds: float = _SILENCE_SECONDS,
        headers: Mapping[str, str] | None = None,
    ) -> urllib3.BaseHTTPResponse:
        sent = {"Content-Type": "application/json", "Accept": "text/event-stream", "Last-Event-ID": str(after)}
        sent |= headers or {}
        return self._open("POST", "/execute", body=json.dumps(body).encode(), headers=sent, read_seconds=seconds)

    def _open_events(
        self, execution_id: str, after: int, *, follow: bool = True, seconds: float = _SILENCE_SECONDS
    ) -> urllib3.BaseHTTPResponse:
        # As a header the cursor would be answered with 204 once it is the final event's.
        query = f"after={after}" + ("" if follow else "&follow=0")
        path = f"/executions/{quote(execution_id, safe='')}/events?{query}"
        return self._open("GET", path, read_seconds=seconds)

    def execution(self, execution_id: str) -> dict[str, Any]:
        return self._json("GET", f"/executions/{quote(execution_id, safe='')}")

    def executions(self, **filters: Any) -> dict[str, Any]:
        """Return a page of executions, newest first; filters as on the wire."""
        return self._json("GET", "/executions?" + urlencode(filters))

    def search(self, query: str, **paging: int) -> dict[str, Any]:
        """Return a page of executions that contain `query`; paging as on the wire."""
        return self._json("GET", "/search?" + urlencode({"q": query, **paging}))

    def usage(self, by: str = "day", **span: str) -> dict[str, Any]:
        """Return the usage by day, workspace, agent or key; span as on the wire."""
        return self._json("GET", "/usage?" + urlencode({"by": by, **span}))

    def machine_names(self, agent_ids: Iterable[str]) -> dict[str, str]:
        """Return the names of a hub's machines by id, as far as it lists them."""
        names, wanted = dict[str, str](), set(agent_ids)
        after: str | None = ""
        while after is not None and not names.keys() >= wanted:
            try:
                page = self.call("GET", f"/agents?after={quote(after, safe='')}" if after else "/agents")
            except Refused:  # an agent has no machines
                return names
            names |= {each["agentId"]: each["name"] for each in page["agents"]}
            after = page["next"]
        return names

    def call(
        self, method: str, path: str, content: Mapping[str, Any] | None = None, seconds: float = 60
    ) -> dict[str, Any]:
        """Make a call that has no method here, with a JSON body if any; returns the reply."""
        if content is None:
            return self._json(method, path, read_seconds=seconds)
        body, headers = json.dumps(content).encode(), {"Content-Type": "application/json"}
        return self._json(method, path, body=body, headers=headers, read_seconds=seconds)

    def cancel(self, execution_id: str, generation: int | None = None) -> dict[str, Any]:
        """End an execution; with `generation` only one of the workspace with that number."""
        path = f"/executions/{quote(execution_id, safe='')}/cancel{_only(generation)}"
        return self._json("POST", path, read_seconds=_CANCEL_SECONDS)

    def workspaces(self) -> list[dict[str, Any]]:
        return cast(list[dict[str, Any]], self._json("GET", "/workspaces")["workspaces"])

    def workspace(self, workspace_id: str) -> dict[str, Any]:
        return self._json("GET", f"/workspaces/{quote(workspace_id, safe='')}")

    def delete_workspace(self, workspace_id: str) -> None:
        self._json("DELETE", f"/workspaces/{quote(workspace_id, safe='')}")

    def archive(
        self, workspace_id: str, output: IO[bytes], limit: int | None = None, generation: int | None = None
    ) -> None:
        """Write the workspace as it is now to `output` as a zip.

        With `generation` only the one with that number. Raises Unreachable when it is over `limit` bytes, or slower
        than 60 s and the time of its size at a low rate.
        """
        self.download(f"/workspaces/{quote(workspace_id, safe='')}/archive{_only(generation)}", output, limit)

    def download(
        self, path: str, output: IO[bytes], limit: int | None = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, Mapping[str, str]]:
        """Write the body of a reply to `output`; returns its status and headers.

        Raises Unreachable when it is over `limit` bytes, or slower than 60 s and the time of its size at a low rate.
        """
        response = self._open("GET", path, headers=headers)
        bodies.receive(response, self.url, output, limit)
        return response.status, response.headers

    def _json(
        self,
        method: str,
        path: str,
        *,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        read_seconds: float = 60,
    ) -> dict[str, Any]:
        response = self._open(method, path, body=body, headers=headers, read_seconds=read_seconds)
        return replies.body(response, self.url, time.monotonic() + read_seconds, replies.LARGEST_PATIENT)

    def _open(
        self,
        method: str,
        path: str,
        *,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        read_seconds: float = _SILENCE_SECONDS,
    ) -> urllib3.BaseHTTPResponse:
        try:
            response = self._pool.request(
                method,
                self.url + path,
                body=body,
                headers={**self._headers, **(headers or {})},
                preload_content=False,
                redirect=False,
                decode_content=False,  # none was requested, and a few bytes could become gigabytes
                timeout=urllib3.Timeout(connect=min(_CONNECT_SECONDS, read_seconds), read=read_seconds),
            )
        except urllib3.exceptions.SSLError as error:
            raise Untrusted(replies.distrust(error, self.url, "--pin")) from None
        except urllib3.exceptions.HTTPError as error:
            reason = replies.reason(error)
            raise Unreachable(f"{self.url} does not answer ({reason}); check that the agent runs there.") from None
        if response.status >= 300:
            refusal = replies.refusal(response, self.url)
            if refusal.status == 401:  # its sentence is for people who make requests by hand
                why = "it is wrong, expired or revoked"
                where = "`occ token` prints an agent's, `occ hub keys create` makes a hub's"
                raise Refused(f"{self.url} refuses this token or key: {why}; {where}.", 401, refusal.code)
            raise refusal
        return response


def _only(generation: int | None) -> str:
    """Return the query that restricts a call to one workspace number, if any."""
    return "" if generation is None else f"?generation={generation}"
