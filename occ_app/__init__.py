"""OCC: a machine's Claude Code, driven from anywhere. What OCC is stands here; what does the work in occ_worker."""

__version__ = "0.1.0"
