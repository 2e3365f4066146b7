"""The checks of `occ doctor`.

Each checks one thing and returns findings with the next step for a person.
"""
