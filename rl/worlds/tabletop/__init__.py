"""The embedded tabletop world: a procedural, seeded stand-in for the domains of AURORA-Bench."""

from rl.worlds.tabletop.scene import Scene
from rl.worlds.tabletop.tabletop import Tabletop

__all__ = ["Scene", "Tabletop"]
