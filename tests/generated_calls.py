"""Call every operation of a generated client once, and print the status of each reply as JSON.

It runs in the environment of openapi-python-client, without OCC: `python generated_calls.py FOLDER`, with the generated
package `generated` in FOLDER and on standard input a JSON object with `url`, `token`, `values` (of path parameters),
`bodies` (by operation), `schemas` (of the document), `zip` (a file to upload) and `last` (the operations to call at the
end, in order). For other ids and bodies something is made up, and `made_up` in the output is true.
"""

import inspect
import io
import json
import pkgutil
import sys
import typing
from importlib import import_module

sys.path.insert(0, sys.argv[1])
from generated import AuthenticatedClient, types
from generated.api import default


def body_of(operation, annotation, given):
    if "zip" in annotation.__annotations__ or "zip_" in annotation.__annotations__:
        with open(given["zip"], "rb") as file:
            archive = types.File(payload=io.BytesIO(file.read()), file_name="a.zip", mime_type="application/zip")
        fields = given["bodies"][operation]
        policy = typing.get_type_hints(annotation)["process_policy"](fields.pop("processPolicy"))
        return annotation(process_policy=policy, zip_=archive, **fields)
    return annotation.from_dict(given["bodies"].get(operation) or example(given["schemas"], annotation.__name__))


def example(schemas, name):
    """Return an object of a schema with something for each required field."""
    schema = schemas[name]
    return {field: value(schemas, schema["properties"][field]) for field in schema.get("required", ())}


def value(schemas, schema):
    if "$ref" in schema:
        return example(schemas, schema["$ref"].rpartition("/")[2])
    if "enum" in schema:
        return schema["enum"][0]
    kind = schema.get("type", "object")
    kind = kind if isinstance(kind, str) else kind[0]
    return {"string": "x", "integer": 1, "number": 1, "boolean": True, "array": [], "object": {}}[kind]


def call(operation, client, given):
    module = import_module(f"generated.api.default.{operation}")
    hints = typing.get_type_hints(module.sync_detailed)
    arguments, made_up = {}, False
    for name, parameter in inspect.signature(module.sync_detailed).parameters.items():
        if name == "client":
            arguments[name] = client
        elif name == "body":
            arguments[name] = body_of(operation, hints[name], given)
            made_up = made_up or operation not in given["bodies"]
        elif parameter.default is inspect.Parameter.empty:
            known = given["values"]["*"] | given["values"].get(operation, {})
            arguments[name] = known.get(name, "unknown")
            made_up = made_up or name not in known
    reply = module.sync_detailed(**arguments)
    shown = reply.parsed if isinstance(reply.parsed, str) else type(reply.parsed).__name__
    if reply.status_code >= 300:
        shown = f"{reply.parsed.code}: {reply.parsed.message} {reply.parsed.details}"
    return {"status": int(reply.status_code), "parsed": shown, "made_up": made_up}


def main():
    given = json.load(sys.stdin)
    names = [module.name for module in pkgutil.iter_modules(default.__path__)]
    ordered = [name for name in names if name not in given["last"]] + [name for name in given["last"] if name in names]
    found = {}
    with AuthenticatedClient(base_url=given["url"], token=given["token"]) as client:
        for name in ordered:
            found[name] = call(name, client, given)
    json.dump(found, sys.stdout)


main()
