"""Rows, texts and settings for Slack; occ_worker/slack is its process."""
