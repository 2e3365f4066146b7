"""The process that talks to Slack: receives, handles, composes, sends."""
