"""Rooms import only what the design allows."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OURS = ("rl", "rewards", "trainers", "scripts")

# Room -> rooms of ours that it may import (itself is always allowed). 'rl' is the root of the library: its nouns.
ALLOWED: dict[str, set[str]] = {
    "rl": set(),
    "rl.models": {"rl"},
    "rl.data": {"rl"},
    "rl.worlds": {"rl"},
    "rl.search": {"rl"},
    "rl.evaluation": {"rl", "rl.data"},
    "rl.report": {"rl"},
    "rewards": {"rl", "rl.models", "rl.data", "rl.worlds", "rl.search", "rl.evaluation", "rl.report"},
    "trainers": {"rl", "rl.models", "rl.data", "rl.worlds", "rl.search", "rl.evaluation", "rl.report", "rewards"},
}
ALLOWED["scripts"] = {*ALLOWED["trainers"], "trainers"}
# The public door may reach further: it turns names into models, and (inside functions) into rewards.
DOORS = {"rl/api.py": {"rl.models", "rewards", "rl.search"}, "rl/__init__.py": {"rl.worlds", "rl.models"}}
TRL_ROOMS = {"trainers", "scripts"}


def room_of(module: str) -> str:
    parts = module.split(".")
    nested = ".".join(parts[:2])
    return nested if nested in ALLOWED else parts[0]


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: write imports in full, so that arrows can be read"
            assert node.module is not None
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return found


def wrong_arrows(path: str, modules: set[str]) -> list[str]:
    room = room_of(path.removesuffix(".py").replace("/", ".").removesuffix(".__init__"))
    allowed = ALLOWED[room] | DOORS.get(path, set()) | {room}
    wrong = [m for m in modules if m.split(".")[0] in OURS and room_of(m) not in allowed]
    wrong += [m for m in modules if m.split(".")[0] == "trl" and room not in TRL_ROOMS]
    return sorted(wrong)


FILES = sorted(str(p.relative_to(ROOT)) for top in OURS for p in (ROOT / top).rglob("*.py"))


@pytest.mark.parametrize("path", FILES)
def test_arrows(path: str) -> None:
    assert wrong_arrows(path, imports(ROOT / path)) == []


def test_a_wrong_arrow_is_found() -> None:
    assert wrong_arrows("rl/models/sampler.py", {"rl.data.frames", "trl"}) == ["rl.data.frames", "trl"]
    assert wrong_arrows("rl/evaluation/oracle.py", {"rl.models.sampler"}) == ["rl.models.sampler"]
    assert wrong_arrows("trainers/language.py", {"scripts.sample"}) == ["scripts.sample"]


def test_no_unsafe_loading() -> None:
    """No pickle, no remote code: weights are safetensors, configs are safe YAML."""
    for path in FILES:
        text = (ROOT / path).read_text()
        assert "trust_remote_code" not in text, path
        assert "import pickle" not in text, path
        assert "yaml.load(" not in text, path
        assert "torch.load(" not in text, path
