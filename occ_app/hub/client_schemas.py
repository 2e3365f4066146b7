"""Bodies of keys, one-time codes and sessions, and a hub's additions to others.

The additions are for calls that need more fields on a hub than on an agent.
"""

from __future__ import annotations

import re
from typing import Any

from marshmallow import Schema, ValidationError, fields, validate

from occ_app.config import permission_rules
from occ_app.hub.fields import LINE_PATTERN, Line
from occ_app.hub.keys import ROLES
from occ_app.web import schemas
from occ_app.web.fields import ID_PATTERN, Amount, Id, TrueOrFalse, WholeNumber, check_one_line, check_text

_WORKSPACE_PATTERN = f"{ID_PATTERN[:-1]}(@{LINE_PATTERN[1:-2]}{{1,200}})?$"


class KeyBody(Schema):
    """The body of POST /keys."""

    name = Line(1, 100, required=True)
    kind = fields.String(required=True, data_key="for", validate=validate.OneOf(["agent", "client"]))
    admin = TrueOrFalse(load_default=None)
    role = fields.String(validate=validate.OneOf(ROLES))
    owner = Line(1, 100, load_default=None, allow_none=True)
    most = WholeNumber(validate=validate.Range(1, 1_000_000))
    days = Amount(100_000)


class KeyRotation(Schema):
    """The body of POST /keys/{name}/rotate, which may be empty."""

    days = Amount(100_000)


class KeyRecord(Schema):
    """A key without its secret."""

    key_id = fields.String(data_key="keyId")
    name = fields.String()
    kind = fields.String(data_key="for")
    admin = fields.Boolean()
    role = fields.String(validate=validate.OneOf(ROLES))
    owner_id = fields.String(data_key="ownerId")
    owner = fields.String()
    most = fields.Integer(allow_none=True)
    created_at = fields.String(data_key="createdAt")
    expires_at = fields.String(data_key="expiresAt", allow_none=True)
    revoked_at = fields.String(data_key="revokedAt", allow_none=True)


class KeyMade(KeyRecord):
    """A new key with its secret, which is shown only once."""

    key = fields.String()


class KeyList(Schema):
    """All keys, including revoked ones."""

    keys = fields.List(fields.Nested(KeyRecord))


class PairingBody(Schema):
    """The body of POST /pairings, which may be empty.

    Without `owner` the session is for the caller's owner, or the operator's.
    """

    role = fields.String(load_default="owner", validate=validate.OneOf(ROLES))
    owner = Line(1, 100, load_default=None, allow_none=True)


class PairingMade(Schema):
    """A one-time code.

    `path` is the address on this hub that redeems it, with the code in the fragment.
    """

    code = fields.String()
    path = fields.String()
    owner_id = fields.String(data_key="ownerId")
    owner = fields.String()
    role = fields.String(validate=validate.OneOf(ROLES))
    expires_at = fields.String(data_key="expiresAt")


class SessionRecord(Schema):
    """A session of the hub's pages.

    `key` names the key that opened it; null for a one-time code.
    """

    id = fields.String()
    device = fields.String()
    owner_id = fields.String(data_key="ownerId")
    owner = fields.String(allow_none=True)
    role = fields.String(validate=validate.OneOf(ROLES))
    key = fields.String(allow_none=True)
    created_at = fields.String(data_key="createdAt")
    used_at = fields.String(data_key="usedAt")
    expires_at = fields.String(data_key="expiresAt")


class SessionList(Schema):
    """The valid sessions, most recently used first."""

    sessions = fields.List(fields.Nested(SessionRecord))


class _WorkspaceName(fields.String):
    """The id of a workspace, or the alias of a project: NAME@MACHINE."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(validate=_check_workspace, metadata={"pattern": _WORKSPACE_PATTERN}, **kwargs)


def _check_workspace(value: str) -> None:
    check_text(value)
    if not re.fullmatch(_WORKSPACE_PATTERN, value):
        raise ValidationError("Must be the id of a workspace, or a project as NAME@MACHINE.")


class HubExecuteBody(schemas.ExecuteBody):
    """The body of POST /execute on a hub: an agent's, and where to run.

    `workspaceId` may be a project's alias.
    """

    workspace_id = _WorkspaceName(data_key="workspaceId")

    agent = Line(1, 200)
    labels = fields.List(Line(1, 100), validate=validate.Length(max=100))
    notify = TrueOrFalse()


class RulesQuery(schemas.RequestSchema):
    """The query of GET and DELETE of rules on a hub.

    It names the workspace whose machine keeps the rules.
    """

    workspace_id = Id(data_key="workspaceId", required=True)


class HubRuleBody(schemas.RequestSchema):
    """The body of POST /rules on a hub."""

    decision = fields.String(required=True, validate=validate.OneOf(permission_rules.DECISIONS))
    rule = fields.String(required=True, validate=[validate.Length(1, permission_rules.MAX_CHARACTERS), check_one_line])
    workspace_id = Id(data_key="workspaceId", required=True)
