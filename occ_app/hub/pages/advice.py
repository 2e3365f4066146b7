"""The next steps for a person whose run failed, by error code."""

from __future__ import annotations

_ADVICE = {
    "CLAUDE_AUTH": "Log in on the machine: run `claude` there and enter /login. Then run this again.",
    "CLAUDE_NOT_FOUND": "Install Claude Code on the machine, or set OCC_CLAUDE_PATH. Then run this again.",
    "RATE_LIMITED": "The account has reached its limit. Wait until it resets, or run this on a machine with another"
    " login.",
    "API_UNAVAILABLE": "Anthropic's API did not answer. Run this again in a few minutes.",
    "EXECUTION_TIMEOUT": "It took longer than its time limit. Reply to continue from here, or split the task.",
    "EXECUTION_IDLE": "Claude Code printed nothing for too long, perhaps because of a command that never ends. Reply to"
    " continue from here.",
    "MAX_TURNS": "It used all its turns. Reply to continue from here.",
    "MAX_BUDGET": "It used all its budget. Reply to continue from here.",
    "SESSION_NOT_FOUND": "The machine no longer has this conversation. Start a new task in the same workspace.",
    "CLAUDE_EXIT": "Claude Code exited without a result. Run this again. If that fails, too, run `occ doctor` on"
    " the machine.",
    "CLAUDE_ERROR": "Read the message above. If it does not help, run this again.",
    "OUTPUT_TRUNCATED": "The output ended too early. Run this again.",
    "OUTPUT_LIMIT": "It printed more than the machine keeps (OCC_MAX_OUTPUT_BYTES). Ask for less output.",
    "WORKER_LOST": "OCC's process on the machine was killed. The files are as it left them; reply to continue.",
    "DAEMON_STOPPED": "OCC was stopped on the machine. Start it there with `occ start`, then run this again.",
    "AGENT_LOST": "The machine did not reconnect. Start OCC there, then run this again.",
    "NO_AGENT": "No suitable machine was online. Check the machines and labels, then run this again.",
    "AGENT_REFUSED": "The machine did not accept it. Read the message above.",
    "WORKSPACE_MISSING": "Its workspace was deleted. Send the files again.",
    "INTERNAL": "Internal error in OCC. See its logs on the machine.",
    "INVALID_EVENT": "The machine sent a result that the hub cannot read. Upgrade OCC there.",
}


def of(code: str | None) -> str:
    """Return the advice for an error code."""
    return _ADVICE.get(code or "", "Run this again, or reply to continue from here.")
