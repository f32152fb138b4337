"""Rooms import only what the design allows."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OURS = ("rl", "rewards", "trainers", "scripts")

# Room -> rooms of ours that it may import (itself is always allowed). 'rl' is the root of the library: its nouns.
_LIBRARY = {"rl", "rl.running", "rl.models", "rl.data", "rl.worlds", "rl.search", "rl.evaluation", "rl.report"}
_SHARED = {*_LIBRARY, "rewards", "trainers", "trainers.common"}
_METHODS = {"trainers.sft", "trainers.grpo", "trainers.dpo", "trainers.best_of_n", "trainers.pretraining"}
ALLOWED: dict[str, set[str]] = {
    "rl": set(),
    "rl.running": {"rl"},
    "rl.models": {"rl", "rl.running"},
    "rl.data": {"rl", "rl.running"},
    "rl.worlds": {"rl"},
    "rl.search": {"rl"},
    "rl.evaluation": {"rl", "rl.data"},
    "rl.report": {"rl"},
    "rewards": _LIBRARY,
    "trainers": {"rl", "rl.running"},
    "trainers.common": _SHARED,
    "trainers.sft": _SHARED,
    "trainers.grpo": _SHARED,
    "trainers.dpo": _SHARED,
    "trainers.best_of_n": {*_SHARED, "trainers.sft"},  # it fine-tunes on what it keeps
    "trainers.pretraining": _SHARED,
    "trainers.alternate": {*_SHARED, "trainers.grpo"},  # its judge
    "trainers.rerank": _SHARED,
    "trainers.plan": {"rl", "rl.running", "rl.models"},
    "trainers.studies": {*_SHARED, *_METHODS, "trainers.rerank"},  # it fits mixes as fit_reward.py does
    "trainers.bench": {*_SHARED, *_METHODS, "trainers.plan"},
}
ALLOWED["scripts"] = {*ALLOWED}
# The public door turns names into models, and (inside functions) into rewards; who may use it is listed below.
DOORS = {"rl/api.py": {"rl.models", "rl.search", "rl.running", "rewards"}, "rl/__init__.py": {"rl.worlds", "rl.models"}}
MAY_USE_THE_DOOR = ("rl/__init__.py", "scripts/", "trainers/")


def room_of(module: str) -> str:
    parts = module.split(".")
    nested = ".".join(parts[:2])
    return nested if nested in ALLOWED else parts[0]


def nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """Everything that runs, function bodies included; what stands under `if TYPE_CHECKING` is no arrow but a type."""
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        yield child
        yield from nodes(child)


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in nodes(ast.parse(path.read_text())):
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
    wrong += [m for m in modules if m.split(".")[0] == "trl" and room.split(".")[0] not in ("trainers", "scripts")]
    wrong += [m for m in modules if m == "rl.api" and not path.startswith(MAY_USE_THE_DOOR)]
    return sorted(wrong)


FILES = sorted(str(p.relative_to(ROOT)) for top in OURS for p in (ROOT / top).rglob("*.py"))


def file_of(module: str) -> str | None:
    """The file that an import of a module or of a name in it runs."""
    for name in (module, module.rpartition(".")[0]):
        stem = name.replace(".", "/")
        for file in (f"{stem}.py", f"{stem}/__init__.py"):
            if file in FILES:
                return file
    return None


def circle(arrows: dict[str, set[str]]) -> list[str]:
    """Files that import one another in a circle, in order; empty if there are none."""
    done: set[str] = set()

    def walk(file: str, way: list[str]) -> list[str]:
        if file in way:
            return [*way[way.index(file) :], file]
        if file in done:
            return []
        for other in sorted(arrows.get(file, set())):
            if found := walk(other, [*way, file]):
                return found
        done.add(file)
        return []

    return next((found for file in sorted(arrows) if (found := walk(file, []))), [])


@pytest.mark.parametrize("path", FILES)
def test_arrows(path: str) -> None:
    assert wrong_arrows(path, imports(ROOT / path)) == []


def test_a_wrong_arrow_is_found() -> None:
    assert wrong_arrows("rl/models/sampling.py", {"rl.data.frames", "trl"}) == ["rl.data.frames", "trl"]
    assert wrong_arrows("rl/evaluation/oracle.py", {"rl.models.sampling"}) == ["rl.models.sampling"]
    assert wrong_arrows("trainers/pretraining/language.py", {"scripts.sample"}) == ["scripts.sample"]
    assert wrong_arrows("trainers/sft/trainer.py", {"trainers.grpo.trainer"}) == ["trainers.grpo.trainer"]
    assert wrong_arrows("rewards/ensemble.py", {"rl.api"}) == ["rl.api"]


def test_no_circle_of_files() -> None:
    arrows = {path: {file for m in imports(ROOT / path) if (file := file_of(m)) and file != path} for path in FILES}
    # A package's own `__init__` re-exports its modules: that is its purpose and no circle.
    packages = {
        path: {f for f in files if f != f"{path.rpartition('/')[0]}/__init__.py"} for path, files in arrows.items()
    }
    assert circle(packages) == []


def test_a_circle_is_found(tmp_path: Path) -> None:
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []
    (tmp_path / "x.py").write_text("def f():\n    from rl.models import roles\nif TYPE_CHECKING:\n    import rl.api\n")
    assert imports(tmp_path / "x.py") == {"rl.models", "rl.models.roles"}


def test_no_unsafe_loading() -> None:
    """No pickle, no remote code: weights are safetensors, configs are safe YAML."""
    for path in FILES:
        text = (ROOT / path).read_text()
        assert "trust_remote_code" not in text, path
        assert "import pickle" not in text, path
        assert "yaml.load(" not in text, path
        if path != "rl/models/pickles.py":  # Meta publishes its weights as pickles of tensors
            assert "torch.load(" not in text, path
        assert text.count("torch.load(") == text.count("weights_only=True"), path


def test_all_training_ends_as_the_scripts_do() -> None:
    """By `fit`: memory that ends is a sentence, weights that are no numbers are told. The bench measures bare steps."""
    bare = {path for path in FILES if "trainer.train(" in (ROOT / path).read_text()}
    assert bare == {"trainers/common/checkpoints.py", "trainers/bench/grpo_step.py"}
