"""The coordination server: the face of OCC that knows many agents."""
