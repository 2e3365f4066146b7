"""The speed of OCC, measured beside a bare pipe.

`python -m benchmarks.bench` prints the table.
"""
