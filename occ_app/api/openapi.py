"""GET /openapi.json: the API described by the schemas that check it."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from flask import Blueprint, Flask, Response, current_app
from marshmallow import Schema

from occ_app import __version__
from occ_app.api.services import Services, services
from occ_app.web import requests as web
from occ_app.web import schemas
from occ_app.web.contracts import Contract, contract, contract_of

bp = Blueprint("openapi", __name__)


@bp.get("/openapi.json")
@contract(content={"application/json": {"schema": {"type": "object"}}})
def openapi() -> Response:
    """Return this document."""
    described = current_app.extensions.get("occ_openapi")
    if described is None:  # making it takes a tenth of a second, which a caller could ask for again and again
        described = current_app.extensions["occ_openapi"] = document(current_app, services())
    return web.json_response(described)


def document(app: Flask, services: Services) -> dict[str, Any]:
    """Return the OpenAPI 3.1 document of an agent or a hub."""
    from apispec import APISpec
    from apispec.ext.marshmallow import MarshmallowPlugin

    spec = APISpec(services.title, __version__, "3.1.0", plugins=[MarshmallowPlugin(schema_name_resolver=_schema_name)])
    spec.components.security_scheme("bearer", {"type": "http", "scheme": "bearer"})
    spec.options["security"] = [{"bearer": []}]
    spec.options["servers"] = [{"url": "/", "description": "the agent or hub that serves this document"}]
    for rule in app.url_map.iter_rules():
        view = app.view_functions[rule.endpoint]
        agreed = contract_of(view)
        if agreed is None:
            continue
        if rule.endpoint == "executions.execute":  # a hub's body has more fields than an agent's
            agreed = replace(agreed, body=services.execute_body)
        path = re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", str(rule))
        for method in sorted((rule.methods or set()) - {"HEAD", "OPTIONS"}):
            operation = _operation(agreed, view.__doc__ or "", rule.endpoint, sorted(rule.arguments))
            spec.path(path, operations={method.lower(): operation})
    described: dict[str, Any] = dict(spec.to_dict())
    _open_replies(described)
    return described


def _open_replies(described: dict[str, Any]) -> None:
    """Allow objects of replies to have fields that the document does not name.

    Bodies of requests may not have them: only replies may grow.
    """
    closed = set[str]()
    for operations in described["paths"].values():
        for operation in operations.values():
            for media in operation.get("requestBody", {}).get("content", {}).values():
                closed.add(media["schema"].get("$ref", "").rpartition("/")[2])
    for name, schema in described["components"]["schemas"].items():
        if name not in closed:
            schema.pop("additionalProperties", None)


def _operation(contract: Contract, documented: str, name: str, arguments: list[str]) -> dict[str, Any]:
    summary, _, description = documented.strip().partition("\n")
    content = contract.content or {"application/json": {"schema": contract.reply}}
    operation: dict[str, Any] = {
        "operationId": name,
        "summary": summary,
        "description": " ".join(description.split()),
        "parameters": [
            {"in": "path", "name": argument, "required": True, "schema": {"type": "string"}} for argument in arguments
        ],
        "responses": {
            str(contract.status): {"description": "Success", "content": content},
            "default": {"description": "Refused", "content": {"application/json": {"schema": schemas.Error}}},
        },
    }
    if not operation["description"]:
        del operation["description"]
    if contract.empty is not None:
        operation["responses"]["204"] = {"description": contract.empty}
    if contract.accepted is not None:
        operation["responses"]["202"] = {"description": contract.accepted, "content": content}
    if contract.query is not schemas.NoQuery:
        operation["parameters"].append({"in": "query", "schema": contract.query})
    for header, schema in contract.headers.items():
        operation["parameters"].append({"in": "header", "name": header, "schema": dict(schema)})
    if contract.body is not None:
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": contract.body}}}
    if contract.form is not None:
        operation["requestBody"] = {"required": True, "content": {"multipart/form-data": {"schema": contract.form}}}
    return operation


def _schema_name(schema: Schema | type[Schema]) -> str:
    return schema.__name__ if isinstance(schema, type) else type(schema).__name__
