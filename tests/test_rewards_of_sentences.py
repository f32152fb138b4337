"""Rewards of the inverse role: a frozen forward model, or a function of one's own, scores sentences about pairs."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_tiny
from peft import LoraConfig
from PIL import Image

from rewards import load_rewards
from rewards.fdm_likelihood import FDMLikelihood
from rewards.fdm_margin import FDMMargin
from rewards.sentences import SentenceBatch
from rl import load_fdm, load_idm
from rl.data.candidates.sentence_store import SentenceStore
from rl.errors import RewindError
from rl.models.families.chameleon import ChameleonVLM
from rl.models.known import LINEAR_LAYERS
from rl.models.roles import ForwardDynamics
from rl.models.saving import save_base
from rl.sentences import Sentence
from trainers.common.adapters import add_adapter, save_adapter
from trainers.common.arguments import parse
from trainers.grpo.arguments import GRPOArguments, RewindGRPOConfig
from trainers.grpo.recipe import train_grpo

pytestmark = pytest.mark.usefixtures("one_thread")
LEFT, REMOVE, PAINT = "move the red circle left", "remove all rings", "paint the blue star green"


@pytest.fixture(scope="module")
def pictures(tiny: ChameleonVLM) -> tuple[np.ndarray, np.ndarray]:
    """A source and its true target, of which some tokens have changed and some have not."""
    rng = np.random.default_rng(0)
    source = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
    while True:
        target = source.copy()
        target[:8, :8] = rng.integers(0, 256, 3)
        first, second = tiny.encode([source, target]).numpy()
        if 0 < tiny.changed(second, first).sum() < len(first):
            return source, target


def test_likelihood_is_the_forward_models_own(tiny: ChameleonVLM, pictures: tuple[np.ndarray, np.ndarray]) -> None:
    source, target = pictures
    fdm = ForwardDynamics(tiny)
    said = [LEFT, "", REMOVE, "  ", "[0.1, 0.2]"]  # the model knows no ranges of vectors: it cannot read the last one
    sources, targets = [source] * 5, [target] * 5
    left, remove = fdm.log_probs([source] * 2, [target] * 2, [LEFT, REMOVE])
    chance = -4 * math.log(16)
    assert FDMLikelihood(fdm)(said, sources, targets) == pytest.approx(
        [float(left.sum()), chance, float(remove.sum()), chance, chance], abs=1e-4
    )
    first, second = tiny.encode([source, target]).numpy()
    changed = tiny.changed(second, first)
    assert 0 < changed.sum() < 4
    found = FDMLikelihood(fdm, changed=True)(said, sources, targets)
    assert found[0] == pytest.approx(float(left[changed].sum()), abs=1e-4)
    assert found[1] == pytest.approx(-int(changed.sum()) * math.log(16))
    means = FDMLikelihood(fdm, changed=True, mean=True)(said, sources, targets)
    assert means == pytest.approx([x / changed.sum() for x in found if x is not None])
    assert FDMLikelihood(fdm, changed=True, mean=True)([LEFT], [source], [source]) == [0.0]  # nothing changes


def test_sums_are_not_rounded_in_half_precision(pictures: tuple[np.ndarray, np.ndarray]) -> None:
    """SWIRL's third trap: near 4,900 a sum in bfloat16 moves in steps of 32."""
    vlm = make_tiny()
    vlm.model.to(torch.bfloat16)
    fdm = ForwardDynamics(vlm)
    source, target = pictures
    (each,) = fdm.log_probs([source], [target], [LEFT])
    assert each.dtype == np.float32
    (total,) = FDMLikelihood(fdm)([LEFT], [source], [target])
    assert total == pytest.approx(math.fsum(each.tolist()), abs=1e-9)
    assert total != float(torch.tensor(total).to(torch.bfloat16))


def test_margin_is_the_posterior_among_what_the_group_says(
    tiny: ChameleonVLM, pictures: tuple[np.ndarray, np.ndarray]
) -> None:
    source, target = pictures
    fdm = ForwardDynamics(tiny)
    said = [LEFT, REMOVE, LEFT, "please remove all of the rings", ""]
    sources, targets = [source] * 5, [target] * 5
    likely = {text: float(fdm.log_probs([source], [target], [text])[0].sum()) for text in said[:4]}
    by_hand = {
        LEFT: likely[LEFT] - np.logaddexp.reduce([*likely.values()]),
        REMOVE: likely[REMOVE] - np.logaddexp(likely[REMOVE], likely[LEFT]),  # in other words it is no rival
    }
    found = FDMMargin(fdm, num_rivals=1, floor=None)(said, sources, targets)
    assert found[:3] == pytest.approx([by_hand[LEFT], by_hand[REMOVE], by_hand[LEFT]], abs=1e-4)
    levelled = FDMMargin(fdm, num_rivals=1, floor=-5.0)(said, sources, targets)
    assert levelled[4] == pytest.approx(-5.0 - np.logaddexp(0.0, -5.0))
    assert all(x is not None and levelled[4] <= x <= 0 for x in levelled)  # type: ignore[operator]
    alone = FDMMargin(fdm, num_rivals=1)([LEFT], [source], [target])
    assert alone[0] is not None  # the tabletop's table has others
    assert FDMMargin(fdm, num_rivals=1)(["hm"], [source], [target]) == [None]  # nothing to compare with
    more = FDMMargin(fdm, [PAINT, REMOVE], num_rivals=3)([LEFT] * 2, sources[:2], targets[:2])
    assert more[0] == more[1]
    assert more[0] < alone[0]  # type: ignore[operator]
    with pytest.raises(RewindError, match="needs at least one rival, not 0"):
        FDMMargin(fdm, num_rivals=0)
    with pytest.raises(RewindError, match="the floor of fdm_margin must be below 0"):
        FDMMargin(fdm, floor=1.0)


def batch(vlm: ChameleonVLM, pictures: tuple[np.ndarray, np.ndarray]) -> SentenceBatch:
    said: list[Any] = [Sentence(np.array([n, 5]), np.zeros(2, np.float32), text) for n, text in enumerate([LEFT, ""])]
    source, target = pictures
    more = [{"mask": 1}, {}]
    return SentenceBatch(
        ["", ""], said, [source] * 2, [target] * 2, ["move", None], more=more, true_action=[LEFT, None], vlm=vlm
    )


def test_ones_own_reward_gets_sentences(tiny: ChameleonVLM, pictures: tuple[np.ndarray, np.ndarray]) -> None:
    seen: dict[str, Any] = {}

    def every(prompts, completions, **columns):  # type: ignore[no-untyped-def]  # as in TRL
        seen.update(columns, prompts=prompts, completions=completions)
        return [float(len(text)) for text in completions]

    def named(  # type: ignore[no-untyped-def]
        completion_ids, target_ids, source_ids, changed_tokens, true_action, mask, target_image
    ):
        assert [len(ids) for ids in (*target_ids, *source_ids, *changed_tokens)] == [4] * 6
        assert (completion_ids, true_action, mask) == ([[0, 5], [1, 5]], [LEFT, None], [1, None])
        return [1.0 if true else None for true in true_action]

    one = batch(tiny, pictures)
    found = load_rewards([every, named], role="idm", columns=one.columns)
    assert [reward(one) for reward in found] == [[24.0, 0.0], [1.0, None]]
    assert seen["completions"] == [LEFT, ""]
    assert {"source_image", "target_image", "completion_ids", "task", "mask"} <= set(seen)
    assert "predicted_ids" not in seen

    def fails(completions):  # type: ignore[no-untyped-def]
        return [1 / len(text) for text in completions]

    with pytest.raises(
        RewindError, match=r"the reward 'fails' failed on candidate 1 \(''\): ZeroDivisionError.*; completions are sen"
    ):
        load_rewards(fails, role="idm")[0](one)


def test_rewards_of_the_other_role_are_refused(tiny: ChameleonVLM) -> None:
    fdm = ForwardDynamics(tiny)
    for name in ("idm_margin", "keep_unchanged=0.5", "judge"):
        with pytest.raises(RewindError, match="scores predicted pictures and here sentences are scored"):
            load_rewards([name], fdm=fdm, role="idm")
    with pytest.raises(
        RewindError, match=r"scores sentences, for train_grpo.py --role idm, and here predicted pictures"
    ):
        load_rewards(["fdm_likelihood"])
    with pytest.raises(RewindError, match="needs a forward model that judges: give --fdm"):
        load_rewards(["fdm_likelihood"], role="idm")

    def of_pictures(candidates: list[Any]) -> list[float]:
        return [0.0] * len(candidates)

    with pytest.raises(RewindError, match="asks for 'candidates', so it scores predicted pictures"):
        load_rewards(of_pictures, role="idm", columns=())


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`base`, runs `fdm`, `fdm_2` and `idm` on it, and six pairs without words."""
    folder = tmp_path_factory.mktemp("runs")
    vlm = make_tiny()
    vlm.name = str(folder / "base")
    save_base(vlm, folder / "base", {"pretraining": {}})
    for name in ("fdm", "fdm_2", "idm"):
        add_adapter(vlm, LoraConfig(r=2, target_modules=LINEAR_LAYERS, init_lora_weights=False), name)
        save_adapter(vlm, folder / name, name, role="idm" if name == "idm" else "fdm")
    rows = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)
    for number, row in enumerate(rows):
        Image.fromarray(row).save(folder / f"{number}.png")
    entries = [{"input": f"{2 * n}.png", "output": f"{2 * n + 1}.png"} for n in range(6)]
    (folder / "pairs.json").write_text(json.dumps(entries))
    return folder


def trained(runs: Path, output: Path, *flags: Any) -> dict[str, Any]:
    """The script's work in this process; the totals of what was said, in order, by prompt and number."""
    small = ["--per_device_train_batch_size", 8, "--num_generations", 4, "--max_steps", 2, "--save_steps", 1]
    small += ["--learning_rate", 0.01, "--report_to", "none", "--max_sentence_tokens", 5, "--logging_steps", 1]
    small += ["--role", "idm", "--idm", runs / "idm", "--triplets", runs / "pairs.json", "--output_dir", output]
    given = [*small, *(["--fdm", runs / "fdm"] if "--fdm" not in flags else []), *flags]
    train_grpo(*parse((GRPOArguments, RewindGRPOConfig), list(map(str, given))))
    rows = SentenceStore(output / "sentences").rows()
    return {f"{row['step']} {row['source']} {row['number']}": (row["text"], row["total"]) for row in rows}


def test_a_run_on_pairs_without_words(runs: Path, tmp_path: Path) -> None:
    """The recipe: the run opens as an inverse model alone, goes on exactly, and is judged by whoever `--fdm` names."""
    said = trained(runs, tmp_path / "run", "--profile", "true", "--judge_idm", runs / "idm")
    assert len(said) == 16
    assert load_idm(tmp_path / "run").adapter == "idm"
    with pytest.raises(RewindError, match="was trained as an inverse model"):
        load_fdm(tmp_path / "run")
    weights = tmp_path / "run" / "adapter" / "adapter_model.safetensors"
    metrics = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert {"profile/draw", "profile/reward/fdm_likelihood", "profile/log_probs"} <= set(metrics[0])
    assert "exact_match" not in metrics[0]  # no pair has words
    few = trained(runs, tmp_path / "few", "--max_rows", 3)
    assert {key: text for key, (text, _) in few.items()} == {key: text for key, (text, _) in said.items()}
    trained(runs, tmp_path / "run", "--judge_idm", runs / "idm", "--resume", "true", "--max_steps", 3)
    assert weights.is_file()
    other = trained(runs, tmp_path / "other", "--fdm", runs / "fdm_2")  # SWIRL's seventh trap: one path for all roles
    first = [key for key in said if key.startswith("0 ")]
    assert [said[key][0] for key in first] == [other[key][0] for key in first]
    assert [said[key][1] for key in first] != [other[key][1] for key in first]
    card = json.loads((tmp_path / "run" / "run.json").read_text())["config"]
    assert (card["role"], card["rewards"]) == ("idm", ["fdm_likelihood=1.0"])
