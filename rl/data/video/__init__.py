"""Videos: read, key frames found, pairs mined clip by clip."""
