"""The operator's variables that reach the Claude Code CLI.

config.py reads the environment.
"""

from __future__ import annotations

import contextlib
import os
import pwd
from collections.abc import Collection, Mapping
from pathlib import Path

# What reaches the CLI from the operator's environment: how to find the model, how to get out, where its files are.
# Everything else stays behind; docs/configuration.md lists them by purpose.
NAMES = frozenset(
    [
        "PATH",
        "HOME",
        "USER",
        "LOGNAME",
        "SHELL",
        "LANG",
        "LANGUAGE",
        "TZ",
        "TMPDIR",
        "CLAUDE_CONFIG_DIR",
        "CLAUDE_CODE_OAUTH_TOKEN",
        "CLAUDE_CODE_MAX_OUTPUT_TOKENS",
        "CLAUDE_CODE_CLIENT_CERT",
        "CLAUDE_CODE_CLIENT_KEY",
        "CLAUDE_CODE_CLIENT_KEY_PASSPHRASE",
        "API_TIMEOUT_MS",
        "MAX_THINKING_TOKENS",
        "CLOUD_ML_REGION",
        "GOOGLE_APPLICATION_CREDENTIALS",
        "GOOGLE_CLOUD_PROJECT",
        "GCLOUD_PROJECT",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "NO_PROXY",
        "ALL_PROXY",
        "http_proxy",
        "https_proxy",
        "no_proxy",
        "all_proxy",
        "NODE_EXTRA_CA_CERTS",
        "SSL_CERT_FILE",
        "SSL_CERT_DIR",
    ]
)
PREFIXES = (
    "ANTHROPIC_",
    "AWS_",
    "CLAUDE_CODE_USE_",
    "CLAUDE_CODE_SKIP_",
    "LC_",
    "VERTEX_REGION_",
)


def chosen(environ: Mapping[str, str], more: Collection[str], home: Path) -> dict[str, str]:
    """Return the variables of `environ` that reach the CLI, with those in `more`.

    Without HOME, and for a user whom the user database does not know, as in containers, HOME is `home`.
    """
    environment_of_cli = {
        name: value for name, value in environ.items() if name in NAMES or name in more or name.startswith(PREFIXES)
    }
    # Without HOME the CLI falls back to the password file; setting it keeps both the same.
    if "HOME" not in environment_of_cli:
        environment_of_cli["HOME"] = str(home)
        with contextlib.suppress(KeyError):
            environment_of_cli["HOME"] = pwd.getpwuid(os.getuid()).pw_dir
    environment_of_cli.setdefault("PATH", os.defpath)
    return environment_of_cli
