"""The hub's Slack process: it receives, handles, composes and sends."""
