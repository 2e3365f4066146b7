"""Slack as rows, texts and settings; occ_worker/slack is the process that talks to it."""
