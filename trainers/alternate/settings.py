"""What a run of rounds is asked for, and the commands of its stages: existing scripts, each with a run folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from os.path import commonpath
from pathlib import Path
from typing import Any

from rewards.mix import FITTED, MIX_FILE
from rewards.table import weight_of
from rl.errors import RewindError
from rl.running.command_line import read_yaml

_PRESERVING = ["--rewards", "idm_margin=1.0", "keep_unchanged=1.0"]
REWARDS: dict[str, dict[str, list[str]]] = {
    "elbo": {
        "fdm": _PRESERVING,
        "idm": [
            *("--rewards", "fdm_likelihood=1.0", "--beta", "1.0"),
            *("--loss_type", "dr_grpo", "--scale_rewards", "none"),
        ],
    },
    "margin": {
        "fdm": _PRESERVING,
        "idm": ["--rewards", "fdm_margin=1.0"],
    },
    "swirl": {
        "fdm": [
            *("--rewards", "idm_likelihood=1.0", "--scale_rewards", "group", "--beta", "0.1"),
            *("--importance_advantages", "none"),
        ],
        "idm": [
            *("--rewards", "fdm_likelihood=1.0", "--scale_rewards", "group", "--beta", "0.1"),
            *("--reward_arguments", json.dumps({"fdm_likelihood": {"mean": True}})),
        ],
    },
    "config": {"fdm": [], "idm": []},
}
"""What rewards each role, by `--reward`: the forward one is held against rivals, with preservation, and the inverse one
maximises the ELBO of log p(target | source), its start the prior; both are held against rivals; SWIRL's own, mean
log-probabilities divided by their group's spread, with the KL weight of its paper (arXiv 2602.06130); or what the
configs of the two trainings say."""
CHECKPOINTS = 4
"""A stage keeps as many, unless its config says when: one that is cut off goes on from the last."""
CONTROLS = ("alternate", "fdm_only", "relabel_only")


@dataclass(frozen=True)
class Settings:
    """Of `scripts/alternate.py`.

    Args:
        fdm: the forward model that is improved.
        idm: the inverse model that names and rewards, and is improved.
        pairs: a file of pairs of pictures, words or not.
        output: gets a folder a round.
        rounds: each on a shard of its own.
        fdm_steps: of GRPO of the forward model, a round.
        idm_steps: of GRPO of the inverse model, a round.
        fdm_config: YAML of `train_grpo.py` for the forward model, None for its defaults.
        idm_config: the same for the inverse model.
        reward: a key of `REWARDS`.
        control: `alternate`; `relabel_only`: the inverse model names every shard and never trains; `fdm_only`: nor does
            it name anything after the first round, which is on all pairs.
        temperature: at which pairs are named: 0 the likeliest words, 1 sampled.
        judge_idm: an inverse model that never trains, labels or rewards.
        validation: labelled triplets on which both roles are measured after every round.
        validation_limit: the first so many of them.
        judge_fall: rounds end after one whose judge score lies so much below the best so far; inf never.
        seed: of the shards and, with the round's number, of every stage.
        token_cache: a folder of encode_images.py for all stages and for what is measured; None encodes anew in each.
        launch: words before the script in the commands of stages, such as a launcher's.
        opening: how models are opened, as arguments of `load_fdm`.
        reading: how files of pairs are read, `image_root` and `strict`.
    """

    fdm: str
    idm: str
    pairs: Path
    output: Path
    rounds: int = 3
    fdm_steps: int = 96
    idm_steps: int = 32
    fdm_config: Path | None = None
    idm_config: Path | None = None
    reward: str = "elbo"
    control: str = "alternate"
    temperature: float = 0.0
    judge_idm: str | None = None
    validation: Path | None = None
    validation_limit: int = 200
    judge_fall: float = 0.0
    seed: int = 0
    token_cache: Path | None = None
    launch: tuple[str, ...] = ()
    opening: Mapping[str, Any] = field(default_factory=dict)
    reading: Mapping[str, Any] = field(default_factory=dict)

    def check(self) -> None:
        """Raise a `RewindError` for numbers that are none, or a judge without cases."""
        for name in ("rounds", "fdm_steps", "idm_steps", "validation_limit"):
            if getattr(self, name) < 1:
                raise RewindError(f"--{name} must be at least 1, not {getattr(self, name)}")
        if not (self.temperature >= 0 and isfinite(self.temperature)):
            raise RewindError(f"--temperature must be 0 or more, not {self.temperature}")
        if not self.judge_fall >= 0:
            raise RewindError(f"--judge_fall is how far the judge's score may fall, 0 or more, not {self.judge_fall}")
        if (self.judge_idm is None) != (self.validation is None):
            raise RewindError(
                "after each round a judge reads what the forward model draws for labelled cases: give both --judge_idm "
                "runs/judge_idm and --validation held-out.json, or neither"
            )
        for name in ("judge_fall", "validation_limit"):
            if self.judge_idm is None and getattr(self, name) != getattr(Settings, name):
                raise RewindError(
                    f"--{name} is about what a judge reads: give --judge_idm and --validation, or leave it"
                )
        for name in ("idm_steps", "idm_config"):
            if self.control != "alternate" and getattr(self, name) != getattr(Settings, name):
                raise RewindError(
                    f"--{name} is about training the inverse model, and --{self.control} trains none: leave it"
                )
        if self.judge_idm is not None and Path(self.judge_idm).resolve() == Path(self.idm).resolve():
            raise RewindError(
                f"--judge_idm {self.judge_idm} is the very model that names and rewards, and would find all well: give "
                "one of other labels and another seed"
            )
        if self.launch and shutil.which(self.launch[0]) is None:
            raise RewindError(f"there is no program '{self.launch[0]}', with which --launch begins")
        for name in ("fdm_config", "idm_config"):
            file = getattr(self, name)
            if file is not None and not file.is_file():
                raise RewindError(f"there is no file {file} (--{name})")
            if file is None and self.reward == "config" and not (name == "idm_config" and self.control != "alternate"):
                raise RewindError(f"--reward config takes the rewards of --{name}: give that too")
        if self.reward == "config" and self.rounds > 1 and self.fdm_config is not None:
            told = read_yaml(self.fdm_config).get("rewards") or []
            if any(weight_of(str(item))[0] == FITTED for item in ([told] if isinstance(told, str) else told)):
                raise RewindError(
                    f"'{FITTED}' in {self.fdm_config} is a mix that is kept with a run, and from the second round on "
                    f"the runs are new: write its file there, {self.fdm}/{MIX_FILE}"
                )

        for role in self._roles():
            told, own = self.told(role), self._objective(role)
            for name in ("rewards", "reward_arguments", "reward_weights"):
                if self.reward != "config" and name in told and not _same(told[name], own.get(name)):
                    raise RewindError(
                        f"{self._config(role)} says {name}, and rewards are those of --reward {self.reward}: take it "
                        "out of there, or let the configs say them by --reward config"
                    )

    def _roles(self) -> tuple[str, ...]:
        return ("fdm", "idm") if self.control == "alternate" else ("fdm",)

    def _config(self, role: str) -> Path | None:
        return self.fdm_config if role == "fdm" else self.idm_config

    def told(self, role: str) -> dict[str, Any]:
        """What the config of a role's training says."""
        file = self._config(role)
        return {} if file is None else read_yaml(file)

    def _objective(self, role: str) -> dict[str, list[str]]:
        """What `--reward` says of a role's training, by argument."""
        found: dict[str, list[str]] = {}
        for word in REWARDS[self.reward][role]:
            if word.startswith("--"):
                name = word[2:]
                found[name] = []
            else:
                found[name].append(word)
        return found

    def overruled(self) -> list[str]:
        """Sentences on what the configs say and the rounds do not do."""
        found = []
        for role in self._roles():
            steps = {"max_steps": ([str(self._steps(role))], f"--{role}_steps")}
            by_reward = {name: (values, f"--reward {self.reward}") for name, values in self._objective(role).items()}
            told = self.told(role)
            for name, (values, flag) in (steps | by_reward).items():
                if name in told and not _same(told[name], values):
                    found.append(
                        f"{flag} takes {name} {' '.join(values)}, not the {told[name]} of {self._config(role)}"
                    )
        return found

    def _steps(self, role: str) -> int:
        return self.fdm_steps if role == "fdm" else self.idm_steps

    def label(self, number: int, idm: str, pairs: Path, folder: Path) -> list[str]:
        """The command that names pairs."""
        how: list[Any] = [*_image_root(pairs), "--temperature", self.temperature, "--seed", self.seed_of(number)]
        how += ["--output", folder, "--link_pictures", "--resume"]
        return ["label.py", *map(str, ["--idm", idm, "--pairs", pairs, *how]), *self._flags(training=False)]

    def train(self, role: str, number: int, fdm: str, idm: str, data: Path, folder: Path) -> list[str]:
        """The command that improves a role by the other one, which stands still."""
        steps, config, told = self._steps(role), self._config(role), self.told(role)
        given: list[Any] = [] if config is None else ["--config", config]
        given += ["--role", role, "--fdm", fdm, "--idm", idm, "--triplets", data, *_image_root(data)]
        given += ["--max_steps", steps]
        given += [] if {"save_steps", "save_strategy"} & told.keys() else ["--save_steps", -(-steps // CHECKPOINTS)]
        given += [] if self.judge_idm is None else ["--judge_idm", self.judge_idm]
        given += ["--seed", self.seed_of(number), "--output_dir", folder, "--resume", "true"]
        return ["train_grpo.py", *map(str, given), *REWARDS[self.reward][role], *self._flags(training=True)]

    def seed_of(self, number: int) -> int:
        """Of a round's stages: no two rounds draw the same noise."""
        return self.seed * 1000 + number

    def _flags(self, training: bool) -> list[str]:
        """How models are opened; trainers and launchers decide on devices themselves, and trainers compile nothing."""
        launched = training or bool(self.launch)
        here = {
            k: v for k, v in self.opening.items() if not ((training and k == "compile") or (launched and "device" in k))
        }
        here |= {} if self.token_cache is None else {"token_cache": self.token_cache}
        return [word for k, v in here.items() for word in ([f"--{k}"] if v is True else [f"--{k}", _text(v)])]


def _same(told: Any, own: Sequence[str] | None) -> bool:
    """Whether a value of YAML is what the words after a flag say."""
    values = [_text(value) for value in (told if isinstance(told, list) else [told])]
    try:
        return [float(value) for value in values] == [float(value) for value in own or ()]
    except ValueError:
        return values == list(own or ())


def _image_root(file: Path) -> list[Any]:
    """The folder that holds all pictures of a list that names them by their full paths, as a flag."""
    if not file.is_file():
        return []
    entries = json.loads(file.read_text(encoding="utf-8"))
    names = [Path(entry[key]) for entry in entries for key in ("input", "output") if isinstance(entry[key], str)]
    if not names or not all(name.is_absolute() for name in names):
        return []
    return ["--image_root", commonpath([name.parent for name in names])]


def _text(value: Any) -> str:
    return json.dumps(value) if isinstance(value, dict) else str(value)
