"""A hub's application in the test's own process, without a server: for what is decided within one request."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from occ_app.config.config import HubConfig
from occ_app.database import database as db
from occ_app.home import state
from occ_app.hub_wsgi import make_app
from tests.databases import make_database


@dataclass
class HubApp:
    """The application, and calls of it as the operator or with a key."""

    config: HubConfig
    app: Flask
    database: db.Database

    def call(self, method: str, path: str, key: str | None = None, **options: Any) -> TestResponse:
        """One call with this key, or with the operator's token."""
        known = state.load(self.config.state)
        assert known is not None
        headers = {"Authorization": f"Bearer {key or known.token}", **options.pop("headers", {})}
        return self.app.test_client().open(path, method=method, headers=headers, **options)

    def key(self, name: str, kind: str, **more: Any) -> str:
        """The secret of a new key."""
        reply = self.call("POST", "/keys", json={"name": name, "for": kind, **more})
        assert reply.json is not None, reply.text
        return str(reply.json["key"])

    def workspace(self, workspace_id: str) -> None:
        """Add a workspace's row, without a zip."""
        with self.database.write() as connection:
            connection.execute(
                """
                INSERT INTO workspaces (workspace_id, name, description, path, files, bytes, skipped, created_at,
                    updated_at)
                VALUES (:id, :id, '', '', 1, 1, '[]', '2026-01-01T00:00:00.000Z', '2026-01-01T00:00:00.000Z')
                """,
                {"id": workspace_id},
            )

    def register(self, key: str, name: str, agent_id: str | None = None, workers: int = 1) -> TestResponse:
        """Register a machine."""
        body = {"protocol": 1, "agentId": agent_id, "name": name, "version": "9", "port": 1, "workers": workers}
        return self.call("POST", "/api/agents/register", key, json=body)

    def browser(self) -> FlaskClient:
        """A browser as far as cookies go."""
        return self.app.test_client()


@contextlib.contextmanager
def hub_app(folder: Path, **settings: Any) -> Iterator[HubApp]:
    """The application of a hub with its home in `folder`."""
    config = replace(HubConfig(home=folder / "hub"), **settings)
    config.make_folders()
    make_database(config.database)
    state.ensure(config.state)
    app = make_app(config)
    database = db.Database(config.database)
    try:
        yield HubApp(config, app, database)
    finally:
        app.occ_on_stop()  # type: ignore[attr-defined]
        app.occ_on_end()  # type: ignore[attr-defined]
        for ringer in (app.extensions["occ"].readers, app.extensions["occ"].workers):
            ringer.close()
        database.close()
