"""Serving an application on the socket that the supervisor bound."""

from __future__ import annotations

import logging
from collections.abc import Callable

from flask import Flask

from occ_app.config.child_processes import inherited_socket, report_ready
from occ_app.config.config import Config
from occ_app.database import schema
from occ_app.home import certificate as tls
from occ_app.home import daemon, state
from occ_app.system.kernel import allow_many_files
from occ_app.system.logs import log_to_stderr
from occ_app.web.server import Application


def serve(config: Config, make_app: Callable[[], Flask]) -> None:
    """Run the web process of an agent or a hub.

    It listens on the socket that the supervisor bound or, under a plain Procfile runner, on the configured address.
    """
    log_to_stderr("web", config.log_format, config.logs / "web.log")
    allow_many_files()
    logging.getLogger("huey").setLevel(logging.WARNING)
    config.make_folders()
    schema.prepare_schema(config)
    descriptor = inherited_socket()
    if descriptor is None:
        state.ensure(config.state)
        daemon.take_work(config)
    bind = f"fd://{descriptor}" if descriptor is not None else f"{config.bind_address}:{config.http_port}"
    Application(make_app, report_ready, bind, config.max_streams, tls.certificate(config)).run()
