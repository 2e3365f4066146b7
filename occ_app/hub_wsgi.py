"""The hub's web process, wired top to bottom.

`python -m occ_app.hub_wsgi` serves on the socket the supervisor bound, or on the configured address by itself.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from typing import IO

from flask import Flask, request

from occ_app import errors
from occ_app.api.app import create_app
from occ_app.api.services import Services
from occ_app.config import config as configuration
from occ_app.config.config import HubConfig
from occ_app.database import database as db
from occ_app.home.state import TokenFile
from occ_app.hub import (
    agent_lists,
    api,
    health,
    inputs,
    keys,
    local_api,
    measures,
    pages,
    placement,
    rule_api,
    session_api,
    slack_requests,
)
from occ_app.hub import workspaces as hub_workspaces
from occ_app.hub.agent_clients import Calls
from occ_app.hub.agents import Agents
from occ_app.hub.approvals import HubApprovals
from occ_app.hub.client_schemas import HubExecuteBody
from occ_app.hub.links import INSTANCE_HEADER, Links, add_link
from occ_app.hub.pages.login import OPEN_TO_VIEWERS, visitor
from occ_app.hub.remote_files import RemoteFiles
from occ_app.hub.services import HubServices
from occ_app.queue import upload_enqueuer, waker
from occ_app.streams import followers as streams
from occ_app.streams.doorbell import Ringer
from occ_app.streams.tail import Tail
from occ_app.system.inheritance import prepare_daemon
from occ_app.system.kernel import max_open_files
from occ_app.system.leaving import leave
from occ_app.web.callers import Caller, bearer, caller, same_secret, slow_down
from occ_app.web.serve import serve
from occ_app.workspaces.workspace import Workspace

_ZIP_OVERHEAD_BYTES = 64 << 20  # of names and headers, for as many files as a workspace may have


def make_app(config: HubConfig) -> Flask:
    """Return the hub's application, ready to serve; its tail runs."""
    database = db.Database(config.database)
    tail = Tail(database, config.run / "tail")
    tail.start()

    def end() -> None:
        tail.join_thread()
        database.close()  # SQLite empties the log when the last process closes the database

    agents = Agents(database, config.heartbeat_seconds, config.forget_agents_days)
    calls = Calls(agents, config.run / "links")
    app = create_app(
        Services(
            config=config,
            db=database,
            tail=tail,
            readers=Ringer(config.run / "tail"),
            workers=Ringer(config.run / "worker"),
            streams=streams.StreamLimit(min(config.max_streams, max_open_files() // 2)),
            identify=_identify(database, TokenFile(config.state)),
            wake_worker=waker(config),
            enqueue_upload=upload_enqueuer(config),
            health=lambda: health.health(config, database, agents, calls.via),
            pack=lambda workspace, output: _pack(config, agents, calls, workspace, output),
            delete_workspace=lambda workspace_id, visible_to, generation: hub_workspaces.delete(
                database, workspace_id, visible_to, generation
            ),
            approvals=HubApprovals(database, agents, calls),
            files=RemoteFiles(config, database, agents, calls),
            execute_body=HubExecuteBody,
            send_input=partial(inputs.forward, database, agents, calls),
            measures=(measures.of_hub(database, agents, calls),),
            resolve_workspace=partial(placement.resolve, agents),
            admit=lambda connection, request: placement.admit(agents, connection, request, caller().visible_to),
            open_to_viewers=OPEN_TO_VIEWERS,
            title="OCC hub",
        )
    )
    links = Links(config.run / "links", refused=partial(agent_lists.refused, agents))
    app.extensions["occ_hub"] = HubServices(config, agents, calls, links)
    app.register_blueprint(api.bp)
    app.register_blueprint(local_api.bp)
    app.register_blueprint(rule_api.bp)
    app.register_blueprint(session_api.bp)
    app.extensions["occ_slack"] = slack = Ringer(config.run / "slack")
    app.register_blueprint(slack_requests.bp)
    pages.add_pages(app)
    add_link(app, links, partial(_admit_link, agents))

    def stop() -> None:
        tail.close()
        links.close()
        slack.close()

    app.occ_on_stop = stop  # type: ignore[attr-defined]  # the server calls it when it stops,
    app.occ_on_end = end  # type: ignore[attr-defined]  # and this one when it is about to leave
    return app


def _identify(database: db.Database, token_file: TokenFile) -> Callable[[str], Caller | None]:
    """Return the function that identifies a caller.

    It accepts a client's key, the hub's token for programs that can read it, and the cookie of a page. Endpoints for
    agents check an agent's credentials themselves; one without that check is closed to agents.
    """

    def identify(secret: str) -> Caller | None:
        if request.path.startswith(api.FROM_AGENTS) and api.authenticates_agents():
            return Caller(key_id="", admin=False, machine=True)  # which owns nothing here
        if request.endpoint in slack_requests.OPEN:
            return Caller(key_id="", admin=False, known=False)
        if pages.asked_for():
            return visitor(database)
        token = token_file.current()
        if token is not None and same_secret(secret, token):
            return Caller()
        key = keys.find(database, secret, "client") if secret else None
        return None if key is None else Caller(key.key_id, key.owner_id, key.admin, key.viewer, refused=key.expired)

    return identify


def _admit_link(agents: Agents, agent_id: str) -> None:
    agent = agents.find(agent_id)
    if agent is None or not agents.holds(agent_id, bearer()):
        slow_down()
        raise api.not_registered()
    if request.headers.get(INSTANCE_HEADER, agent.instance) != agent.instance:  # a copy of its home has its token, too
        raise api.not_registered()


def _pack(config: HubConfig, agents: Agents, calls: Calls, workspace: Workspace, output: IO[bytes]) -> None:
    """Write an uploaded workspace as it is now.

    These are its agent's files, or the stored zip while no agent has it.
    """
    where = workspace.placement
    if where is None or not where.is_current:
        with hub_workspaces.zip_path(config, workspace).open("rb") as stored:
            shutil.copyfileobj(stored, output)
        return
    agent = agents.find(where.agent_id)
    try:
        if agent is None:
            raise errors.Unreachable("Its agent was removed.")
        most = config.max_unpacked_bytes + _ZIP_OVERHEAD_BYTES
        calls.client(agent).archive(workspace.workspace_id, output, most, workspace.agent_generation)
    except (errors.Unreachable, errors.Refused) as error:
        raise errors.Unavailable(
            "AGENT_UNREACHABLE", f"The agent with this workspace does not send it: {error}"
        ) from None


def main() -> None:
    prepare_daemon()
    config = configuration.load_hub()
    serve(config, lambda: make_app(config))
    leave()


if __name__ == "__main__":
    main()
