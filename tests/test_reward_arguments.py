"""Arguments of rewards, from files and from Python."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_rewards import batch  # noqa: F401

from rewards import Batch, Reward, load_rewards
from rewards.idm_likelihood import IDMLikelihood
from rewards.keep_unchanged import KeepUnchanged
from rl.errors import RewindError

OWN = """
class Own:
    def __init__(self, scale=1.0, idm=None, actions=()):
        self.scale, self.idm, self.actions = scale, idm, actions
    def __call__(self, prompts):
        return [self.scale] * len(prompts)

class Strict:
    def __init__(self, scale):
        self.scale = float(scale)
    def __call__(self, prompts):
        return [self.scale] * len(prompts)

def flat(prompts, level=1.0, **_):
    return [level] * len(prompts)

ready = Own()

class Opens:
    def __init__(self, path="none.txt"):
        self.text = open(path).read()

class Refuses:
    def __init__(self):
        from rl.errors import RewindError
        raise RewindError("there is no licence: buy one")
"""


def test_arguments_of_rewards(tmp_path: Path, batch: Batch) -> None:  # noqa: F811
    (tmp_path / "own.py").write_text(OWN)
    path = tmp_path / "own.py"
    names = ["keep_unchanged=0.5", f"{path}:Own", f"{path}:Strict=2", f"{path}:flat"]
    arguments = {"keep_unchanged": {"free": {"move": 1}, "default": 3}, "Own": {"scale": 4.0}}
    arguments |= {"Strict": {"scale": 2}, "flat": {"level": 0.25}}
    for given in (arguments, json.dumps(arguments)):
        keep, own, strict, flat = load_rewards(names, idm="model", actions=["go"], arguments=given)
        assert (keep.function.free, keep.function.default, keep.weight) == ({"move": 1}, 3, 0.5)  # type: ignore[attr-defined]
        assert (own(batch), strict(batch), strict.weight, flat(batch)) == ([4.0] * 3, [2.0] * 3, 2.0, [0.25] * 3)
        assert (own.function.idm, own.function.actions) == ("model", ["go"])  # type: ignore[attr-defined]
    assert load_rewards([IDMLikelihood], idm="model")[0].function.idm == "model"  # type: ignore[attr-defined]

    def same(source: Any, a: str, b: str) -> bool:
        return True

    (margin,) = load_rewards(
        ["idm_margin"], "model", ["go"], same_outcome=same, arguments={"idm_margin": {"num_rivals": 3, "floor": None}}
    )
    made: Any = margin.function
    rivals = made.rivals
    assert (rivals.sentences, made.num_rivals, rivals.same_outcome, made.floor) == (["go"], 3, same, -np.inf)


@pytest.mark.parametrize(
    ("names", "arguments", "sentence"),
    [
        (["copy_penalty"], {"keep_unchanged": {}}, "arguments for the reward 'keep_unchanged' and no such reward"),
        (["copy_penalty"], {"copy_penalty": {"most": 1}}, r"has no argument 'most': it has \['least'\]"),
        (["copy_penalty"], {"copy_penalty": {"least": "x"}}, "'copy_penalty' cannot be made with .*TypeError"),
        (["copy_penalty"], {"copy_penalty": 3}, "must be a mapping of names to values"),
        (["copy_penalty"], "least=3", "'least=3' is not JSON .*: write"),
        (["copy_penalty"], "[1]", "is no mapping: write"),
        (["FILE:Strict"], {}, r"""needs the argument 'scale': give --reward_arguments '{"Strict": {"scale": ...}}'"""),
        (["FILE:Strict"], {"Strict": {"scale": "x"}}, "'Strict' cannot be made with .*ValueError: could not convert"),
        (["FILE:flat"], {"flat": {"prompts": 1}}, r"has no argument 'prompts': it has \['level'\]"),
        (["FILE:ready"], {"ready": {"scale": 1}}, "is ready and takes no arguments"),
        ([KeepUnchanged()], {"keep_unchanged": {"default": 1}}, "is ready"),
        ([Reward.of(KeepUnchanged())], {"keep_unchanged": {"default": 1}}, "is ready"),
        (["ensemble"], {}, "the reward 'ensemble' needs the argument 'others'"),
        (["FILE:Opens"], {}, r"'Opens' cannot be made: FileNotFoundError: .* \(.*own.py, line 21\)"),
        (["FILE:Refuses"], {}, "the reward 'Refuses' cannot be made: there is no licence: buy one"),
    ],
)
def test_arguments_that_do_not_fit(names: list[Any], arguments: Any, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    names = [n.replace("FILE", str(tmp_path / "own.py")) if isinstance(n, str) else n for n in names]
    with pytest.raises(RewindError, match=sentence):
        load_rewards(names, idm="model", arguments=arguments)
