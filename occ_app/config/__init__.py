"""Settings, and the environment of the Claude Code CLI."""
