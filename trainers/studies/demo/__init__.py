"""The main job on a world, stage by stage: from video without labels to a forward model improved by rewards."""
