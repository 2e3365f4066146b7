"""`python -m occ_app.cli` is `occ`."""

from occ_app.cli import main

main()
