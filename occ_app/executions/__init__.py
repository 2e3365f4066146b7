"""Executions and their events: rows, states, queries."""
