"""Wake-ups between processes, and the readers that follow events."""
