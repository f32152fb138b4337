"""Search at inference: best of N, rollouts, refinement. Takes functions, never a trainer or a config."""
