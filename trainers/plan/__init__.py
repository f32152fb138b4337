"""Memory and token arithmetic of a run, nothing loaded."""
