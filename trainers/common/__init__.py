"""What all training methods share: arguments, adapters, checkpoints, sharding, candidates, metrics."""
