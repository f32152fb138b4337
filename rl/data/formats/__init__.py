"""Data sets as they are published, each read into entries with the keys of AURORA's files."""
