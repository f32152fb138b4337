"""Training: a folder a method, `common` for all, the studies that use them. The only room that imports TRL."""

from pathlib import Path

import rl

# `rl` is a common name: say so instead of failing on a missing module somewhere.
_found = getattr(rl, "__file__", None)
if _found is None or Path(_found).resolve().parent.parent != Path(__file__).resolve().parent.parent:
    raise ImportError(
        f"another package named 'rl' ({_found or list(getattr(rl, '__path__', []))}) hides Rewind's: uninstall it, "
        "remove it from PYTHONPATH, or use an environment of its own"
    )

from rl.running import siblings  # noqa: E402  (only now is it ours)

siblings.need("rewards")  # every method asks them
