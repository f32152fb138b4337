"""Search at inference: best-of-N reranking. Takes functions, never a trainer or a config."""
