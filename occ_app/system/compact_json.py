"""JSON without spaces, as it is stored and sent."""

from __future__ import annotations

import json

to_json = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode
