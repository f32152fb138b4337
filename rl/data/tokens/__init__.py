"""Pictures as tokens on disk: encoded once, read as memory maps."""
