"""OCC: a machine's Claude Code, driven from anywhere. What OCC is lives here; what runs the work lives in occ_worker."""

__version__ = "0.1.0"
