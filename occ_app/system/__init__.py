"""Linux and Python below everything else; knows no execution."""
