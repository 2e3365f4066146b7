"""OCC as a service of systemd: its unit, its installation, and whether it survives a logout and a reboot."""
