"""GRPO of the forward model, with image tokens for completions (arXiv 2402.03300, 2509.23958)."""
