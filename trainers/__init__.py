"""Training: a folder a method, `common` for all, the studies that use them. The only room that imports TRL."""

from pathlib import Path

import rl

# `rl` is a common name: say so instead of failing on a missing module somewhere.
if rl.__file__ is None or Path(rl.__file__).parent.parent != Path(__file__).parent.parent:
    raise ImportError(
        f"another package named 'rl' ({rl.__file__ or list(rl.__path__)}) hides Rewind's: uninstall it, remove it from "
        "PYTHONPATH, or use an environment of its own"
    )
