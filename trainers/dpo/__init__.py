"""DPO of the forward model on pairs built from rewards (arXiv 2305.18290)."""
