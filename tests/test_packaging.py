"""The distribution: what a wheel holds, and what is said when another package hides one of ours."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT


@pytest.mark.slow
def test_a_wheel_works_from_another_folder(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", tmp_path / "wheel", ROOT],
        check=True,
        timeout=300,
    )
    (wheel,) = (tmp_path / "wheel").glob("rewind_rl-*.whl")
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
        assert "rl/report/page.html.j2" in archive.namelist()
        tops = {name.split("/")[0] for name in archive.namelist()}
    assert {t for t in tops if not t.endswith(".dist-info")} == {"rl", "rewards", "trainers"}
    code = (
        "import rl, rewards, trainers, sys; assert rl.__file__.startswith(sys.argv[1]); "
        "f = rl.load_fdm('tabletop-chameleon'); w = rl.load_world('tabletop'); import numpy as np; "
        "s, a = w.sample_task(np.random.default_rng(0)); "
        "print(f.sample(w.render(s, np.random.default_rng(0)), a)[0].image.size)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(site)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.strip() == "(64, 64)", done.stderr


def python(code: str, *path: Path, script: str | None = None) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter that finds the folders of `path` before ours."""
    what = ["-c", code] if script is None else [str(ROOT / "scripts" / script), "--help"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, [*path, ROOT]))}
    settings = {"cwd": path[0], "env": environment, "timeout": 120}
    return subprocess.run([sys.executable, *what], capture_output=True, text=True, **settings)  # type: ignore[call-overload, no-any-return]


RERANK = "rl.rerank(type('', (), {'check': lambda *_, **__: None}), None, object(), 'go', 2, ['copy_penalty'])"
"""As far as it comes without a model: rewards are loaded before anything is drawn."""


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("rewards", f"import rl; {RERANK}"),
        ("rewards", f"import rewards, rl; {RERANK}"),  # the user's has been imported already
        ("rewards", "import trainers"),
        ("rl", "import trainers"),
        ("rl", "import rewards"),
        ("rewards", "SCRIPT"),
        ("trainers", "SCRIPT"),
    ],
)
def test_a_package_that_hides_ours_is_named(name: str, code: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text("")
    done = python(code, tmp_path, script="sample.py" if code == "SCRIPT" else None)
    assert done.returncode != 0
    assert f"another package named '{name}' ({tmp_path}" in done.stderr.splitlines()[-1]


def test_the_users_own_folders_do_not_hide_what_is_not_needed(tmp_path: Path) -> None:
    """`import rl` beside packages of those names; rewards beside another `trainers`; folders that are no packages."""
    for name in ("rewards", "trainers"):
        (tmp_path / "packages" / name).mkdir(parents=True)
        (tmp_path / "packages" / name / "__init__.py").write_text("")
        (tmp_path / "folders" / name).mkdir(parents=True)
        (tmp_path / "folders" / name / "notes.py").write_text("")
    (tmp_path / "one" / "trainers").mkdir(parents=True)
    (tmp_path / "one" / "trainers" / "__init__.py").write_text("")
    rewards = "from rewards import load_rewards; load_rewards('copy_penalty')"
    for code, folder in (
        ("import rl, rewards; rl.load_world; assert not hasattr(rewards, 'score')", "packages"),
        (f"import rl; from rl.running.siblings import need; need('rewards'); {rewards}", "one"),
        (f"import rl, trainers; {rewards}", "folders"),
    ):
        done = python(code, tmp_path / folder)
        assert done.returncode == 0, done.stderr


def test_pins_and_ranges_agree() -> None:
    """constraints.txt is the one place with exact versions; every dependency of pyproject.toml is pinned there."""
    import tomllib

    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    pins = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            name, version = line.split("==")
            pins[canonicalize_name(name)] = version
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for text in project["dependencies"] + project["optional-dependencies"]["dev"]:
        requirement = Requirement(text)
        assert pins[canonicalize_name(requirement.name)] in requirement.specifier, text
