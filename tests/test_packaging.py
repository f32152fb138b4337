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


@pytest.mark.parametrize(
    ("name", "code"), [("rewards", "import rl"), ("trainers", "import rl"), ("rl", "import trainers")]
)
def test_a_package_that_hides_ours_is_named(name: str, code: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text("")
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode != 0
    assert f"another package named '{name}'" in done.stderr.splitlines()[-1]


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
