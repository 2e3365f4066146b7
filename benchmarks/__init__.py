"""How fast OCC is, measured beside a bare pipe; `python -m benchmarks.bench` prints the table."""
