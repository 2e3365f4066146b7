"""OCC as a service of systemd.

Its unit, its installation, and whether it survives a logout and a reboot.
"""
