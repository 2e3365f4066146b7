"""GET /openapi.json: the API described by the schemas that check it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flask import Blueprint, Flask, Response, current_app
from marshmallow import Schema

from occ_app import __version__
from occ_app.api.services import Parts, parts
from occ_app.web import fields, schemas
from occ_app.web import requests as web

bp = Blueprint("openapi", __name__)

# The whole stream is a text. docs/protocol.md has its frames, and the fields of each event.
_EVENTS = {
    "type": "string",
    "description": "Server-sent events: `id`, `event`, and in `data` one JSON object.",
    "example": 'id: 1\nevent: queued\ndata: {"position":0,"timestamp":1790000000000}\n\n',
}
_STREAM = {"text/event-stream": {"schema": _EVENTS}}
_ZIP = {"application/zip": {"schema": {"type": "string", "format": "binary"}}}

# The parameters, body and replies of each endpoint; paths, methods and summaries come from the routes. A hub's further
# endpoints arrive with its parts.
_CONTRACTS: dict[str, dict[str, Any]] = {
    "health.health": {"reply": schemas.Health},
    "workspaces.init": {"form": schemas.InitUpload, "reply": schemas.InitReply},
    "workspaces.listing": {"reply": schemas.WorkspaceList},
    "workspaces.show": {"reply": schemas.WorkspaceRecord},
    "workspaces.delete": {"query": schemas.DeleteQuery, "reply": schemas.Deleted},
    "workspaces.archive": {"content": _ZIP},
    "executions.execute": {"content": _STREAM, "resumes": True},
    "executions.listing": {"query": schemas.ListQuery, "reply": schemas.ExecutionList},
    "executions.show": {"reply": schemas.ExecutionRecord},
    "executions.events": {
        "query": schemas.EventsQuery,
        "content": _STREAM,
        "resumes": True,
        "empty": "Last-Event-ID is the id of the final event: there is nothing to reconnect for",
    },
    "executions.cancel": {"reply": schemas.ExecutionRecord, "status": 202},
    "search.find": {"query": schemas.SearchQuery, "reply": schemas.SearchResults},
    "usage.report": {"query": schemas.UsageQuery, "reply": schemas.UsageReport},
    "metrics.metrics": {"content": {"text/plain": {"schema": {"type": "string"}}}},
    "openapi.openapi": {"content": {"application/json": {"schema": {"type": "object"}}}},
}


@bp.get("/openapi.json")
def openapi() -> Response:
    """This document."""
    web.query(schemas.NoQuery)
    return web.json_response(document(current_app, parts()))


def document(app: Flask, parts: Parts) -> dict[str, Any]:
    """The OpenAPI 3.1 document of an agent or a hub."""
    from apispec import APISpec
    from apispec.ext.marshmallow import MarshmallowPlugin

    contracts = {**_CONTRACTS, **parts.contracts}
    contracts["executions.execute"] = {**contracts["executions.execute"], "body": parts.execute_body}
    spec = APISpec(parts.title, __version__, "3.1.0", plugins=[MarshmallowPlugin(schema_name_resolver=_schema_name)])
    spec.components.security_scheme("bearer", {"type": "http", "scheme": "bearer"})
    spec.options["security"] = [{"bearer": []}]
    spec.options["servers"] = [{"url": "/", "description": "the agent or hub that serves this document"}]
    for rule in app.url_map.iter_rules():
        contract = contracts.get(rule.endpoint)
        if contract is None:
            continue
        view = app.view_functions[rule.endpoint]
        path = str(rule).replace("<", "{").replace(">", "}")
        for method in sorted((rule.methods or set()) - {"HEAD", "OPTIONS"}):
            operation = _operation(contract, view.__doc__ or "", rule.endpoint, sorted(rule.arguments))
            spec.path(path, operations={method.lower(): operation})
    described: dict[str, Any] = dict(spec.to_dict())
    _open_replies(described)
    return described


def _open_replies(described: dict[str, Any]) -> None:
    """Let objects have fields that the document does not name, but not the bodies of requests: replies may grow."""
    closed = set[str]()
    for operations in described["paths"].values():
        for operation in operations.values():
            for media in operation.get("requestBody", {}).get("content", {}).values():
                closed.add(media["schema"].get("$ref", "").rpartition("/")[2])
    for name, schema in described["components"]["schemas"].items():
        if name not in closed:
            schema.pop("additionalProperties", None)


def _operation(contract: Mapping[str, Any], summary: str, name: str, arguments: list[str]) -> dict[str, Any]:
    content = contract.get("content") or {"application/json": {"schema": contract["reply"]}}
    operation: dict[str, Any] = {
        "operationId": name,
        "summary": summary.strip(),
        "parameters": [
            {"in": "path", "name": argument, "required": True, "schema": {"type": "string"}} for argument in arguments
        ],
        "responses": {
            str(contract.get("status", 200)): {"description": "Success", "content": content},
            "default": {"description": "Refused", "content": {"application/json": {"schema": schemas.Error}}},
        },
    }
    if "empty" in contract:
        operation["responses"]["204"] = {"description": contract["empty"]}
    if "query" in contract:
        operation["parameters"].append({"in": "query", "schema": contract["query"]})
    if "resumes" in contract:
        last = {"type": "string", "pattern": fields.CURSOR_PATTERN}
        operation["parameters"].append({"in": "header", "name": "Last-Event-ID", "schema": last})
    if "body" in contract:
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": contract["body"]}}}
    if "form" in contract:
        operation["requestBody"] = {"required": True, "content": {"multipart/form-data": {"schema": contract["form"]}}}
    return operation


def _schema_name(schema: Schema | type[Schema]) -> str:
    return schema.__name__ if isinstance(schema, type) else type(schema).__name__
