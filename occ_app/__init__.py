"""OCC drives a machine's Claude Code from anywhere.

occ_app is OCC and its HTTP API; occ_worker does the work.
"""

__version__ = "0.2.0"
