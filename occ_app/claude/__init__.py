"""The Claude Code CLI as a program."""
