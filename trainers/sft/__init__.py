"""Supervised fine-tuning of either role, with a weight a token (arXiv 2506.06006)."""
