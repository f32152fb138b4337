"""Unified vision-language models: families, distribution, sampling, scoring, the two roles, and opening them."""
