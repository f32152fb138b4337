"""GRPO of the forward model, with image tokens for completions, or of the inverse one, with sentences."""
