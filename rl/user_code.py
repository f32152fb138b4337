"""Files and modules of the user's, imported as if they were started: what stands beside them is found."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType

_beside: set[str] = set()
"""Modules that a file of the user's has imported from its own folder."""


def load_file(path: Path) -> ModuleType:
    """Run a file as a module of its own; what it imports is looked for in its folder first.

    The module stands in `sys.modules`, where dataclasses look up theirs. Each call runs the file anew.

    Raises:
        Exception: whatever the file raises.
    """
    whole = path.expanduser().resolve()
    name = f"user_{whole.stem}_{hashlib.blake2b(str(whole).encode(), digest_size=4).hexdigest()}"
    spec = importlib.util.spec_from_file_location(name, whole)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    with _first_on_path(whole.parent):
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return module


def load_module(name: str) -> ModuleType:
    """A module by its dotted name, looked for in the working folder first: that of a script is the script's.

    Raises:
        Exception: whatever its import raises.
    """
    with _first_on_path(Path.cwd()):
        return importlib.import_module(name)


@contextmanager
def _first_on_path(folder: Path) -> Iterator[None]:
    """Look for modules in a folder first, and from then on last, so that a function may import from there when it is
    called and yet nothing there hides a library.
    """
    _forget_namesakes(folder)
    before = set(sys.modules)
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        with suppress(ValueError):  # the user's file may have changed the path itself
            sys.path.remove(str(folder))
        if str(folder) not in sys.path:
            sys.path.append(str(folder))
        new = {name for name in set(sys.modules) - before if "." not in name}
        _beside.update(name for name in new if _stands_in(sys.modules[name], folder))


def _forget_namesakes(folder: Path) -> None:
    """Another file's `helper` is not this one's, though both are imported by that name."""
    for name in [name for name in _beside if name in sys.modules and not _stands_in(sys.modules[name], folder)]:
        if (folder / f"{name}.py").is_file() or (folder / name).is_dir():
            for module in [key for key in sys.modules if key == name or key.startswith(f"{name}.")]:
                del sys.modules[module]


def _stands_in(module: ModuleType, folder: Path) -> bool:
    """Whether a module is a file, or a package, directly in a folder."""
    places = [getattr(module, "__file__", None) or "", *list(getattr(module, "__path__", []))]
    return any(Path(place).parent == folder for place in places if place)
