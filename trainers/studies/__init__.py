"""The main job, its repetition over seeds, and comparisons; imported by scripts alone."""
