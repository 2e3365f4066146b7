"""The processes that do the work: executions in workers, everything periodic in control."""
