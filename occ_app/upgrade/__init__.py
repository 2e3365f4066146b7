"""An upgrade of OCC: the installation, and the daemons that run from it."""
