"""Best-of-N training (rejection sampling): fine-tune on the best candidate of each group."""
