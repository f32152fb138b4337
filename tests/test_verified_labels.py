"""Which of several sentences a pair gets, how it is scored, and how far that can be trusted."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from script_runs import start

from rl.data.labels.calibration import LEAST, calibrate, evidence, fit_weight, same_words
from rl.data.labels.labelling import Choice, Naming, Proposal, choose, label_pairs, name_pairs, named, propose
from rl.data.triplet_files import write_triplets
from rl.errors import RewindError
from rl.models.families.chameleon import ChameleonVLM
from rl.models.roles import ForwardDynamics, InverseDynamics
from rl.triplets import Triplet

pytestmark = pytest.mark.usefixtures("one_thread")


def noise_pairs(count: int, seed: int = 0) -> list[Triplet]:
    pictures = np.random.default_rng(seed).integers(0, 256, (count, 2, 32, 32, 3), dtype=np.uint8)
    return [Triplet(a, "", b) for a, b in pictures]


def test_self_consistency_share_and_margin_by_hand() -> None:
    drawn = [Proposal("left", -1.0, 2), Proposal("right", -3.0, 4), Proposal("up", -0.5, 1)]
    assert choose(drawn, 8) == Choice("right", -3.0, {"share": 0.5, "margin": -2.5})
    tied = [Proposal("left", -1.0, 2), Proposal("right", -3.0, 2)]
    assert choose(tied, 4) == Choice("left", -1.0, {"share": 0.5, "margin": 2.0})
    assert choose([Proposal("left", -1.0, 3)], 4) == Choice("left", -1.0, {"share": 0.75})
    assert choose([Proposal("left", -1.0)]) == Choice("left", -1.0, {})  # one greedy sentence, as ever
    assert choose([], 4) is None


def test_a_pair_that_is_named_again_keeps_nothing_of_its_earlier_words() -> None:
    earlier = {"share": 0.75, "margin": -17.0, "confidence": 0.9, "idm_logprob": -1.0, "fdm_logprob": -2.0, "motion": 3}
    pair = Triplet(np.zeros((8, 8, 3), np.uint8), "old", more=earlier)
    again = choose([Proposal("new", -3.0, 2)], 2)
    assert again is not None
    assert named(pair, again).more == {"share": 1.0, "motion": 3}


def test_verified_choice_by_hand_and_the_score_stays_the_inverse_model_s() -> None:
    drawn = [Proposal("left", -1.0, 3, -20.0), Proposal("right", -2.0, 1, -10.0)]
    assert choose(drawn, 4) == Choice(
        "right", -2.0, {"share": 0.25, "margin": 9.0, "both_logprob": -12.0, "idm_logprob": -2.0, "fdm_logprob": -10.0}
    )
    of_idm = choose(drawn, 4, weight=0.0)
    assert of_idm is not None
    assert (of_idm.text, of_idm.score, of_idm.columns["margin"]) == ("left", -1.0, 1.0)
    half = choose(drawn, 4, weight=0.1)
    assert half is not None
    assert half.columns["both_logprob"] == pytest.approx(-3.0)


def test_sentences_are_verified_by_the_forward_model(tiny: ChameleonVLM) -> None:
    """The sum over the target's tokens, or over those that change; counted once a distinct sentence."""
    pairs = noise_pairs(3)
    idm, fdm = InverseDynamics(tiny), ForwardDynamics(tiny)
    how = Naming(1.0, 4, seed=1)
    found = propose(idm, pairs, how, fdm)
    plain = propose(idm, pairs, how)
    assert [[one._replace(verified=None) for one in group] for group in found] == plain
    assert all(sum(one.times for one in group) <= 4 for group in found)
    for pair, group in zip(pairs, found, strict=True):
        assert pair.target is not None
        for one in group:
            (log_probs,) = fdm.log_probs(pair.source, [pair.target], one.text)
            assert one.verified == pytest.approx(log_probs.sum(), abs=1e-4)
    labels = label_pairs(idm, pairs, temperature=1.0, num_samples=4, seed=1, fdm=fdm, weight=0.5)
    chosen = [one for group in found if (one := choose(group, 4, 0.5))]
    assert [(label.action, label.score, label.more) for label in labels] == chosen
    same = Triplet(pairs[0].source, "", pairs[0].source)
    (still,) = propose(idm, [same], Naming(1.0, 2, changed_only=True), fdm)
    assert [one.verified for one in still] == [0.0] * len(still)  # nothing changes, so nothing is counted


def test_one_greedy_sentence_is_that_of_name_pairs(tiny: ChameleonVLM) -> None:
    pairs = noise_pairs(4)
    idm = InverseDynamics(tiny)
    chosen = [choose(group) for group in propose(idm, pairs, Naming())]
    assert [(one.text, one.score) for one in chosen if one] == [said for said in name_pairs(idm, pairs) if said[0]]


def simulated(count: int, truth: float, seed: int = 0) -> tuple[list[list[Proposal]], list[Any]]:
    """Sentences whose right one is drawn by exp(logprob + truth * verified), the law that the fit assumes."""
    rng = np.random.default_rng(seed)
    groups, right = [], []
    for _ in range(count):
        logprobs, verified = rng.normal(-3, 1, 5), rng.normal(-50, 6, 5)
        logits = logprobs + truth * verified
        place = int(rng.choice(5, p=np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()))
        groups.append([Proposal(f"word{n}", float(logprobs[n]), 1, float(verified[n])) for n in range(5)])
        right.append(same_words(f"Word{place}."))
    return groups, right


@pytest.mark.parametrize("truth", [0.1, 0.5, 2.0])
def test_the_fitted_weight_is_the_true_one(truth: float) -> None:
    groups, right = simulated(1500, truth)
    assert fit_weight(list(zip(groups, right, strict=True))) == pytest.approx(truth, rel=0.25)
    nobody = [same_words("something else")] * len(right)
    assert fit_weight(list(zip(groups, nobody, strict=True))) == 1.0


def test_a_forward_model_that_knows_nothing_gets_no_say() -> None:
    groups, _ = simulated(800, 0.5)
    noise = np.random.default_rng(9).normal(-50, 6, (800, 5))
    blind = [[one._replace(verified=float(noise[n, m])) for m, one in enumerate(g)] for n, g in enumerate(groups)]
    likeliest = [same_words(max(group, key=lambda one: one.logprob).text) for group in blind]
    assert fit_weight(list(zip(blind, likeliest, strict=True))) < 0.05


def test_confidence_is_the_expected_accuracy() -> None:
    """On pairs that the fit has not seen, labels of a confidence are right as often as it says."""
    groups, right = simulated(1200, 0.3)
    found = calibrate(groups[:600], right[:600], num_samples=5)
    choices = [choose(group, 5, found.weight) for group in groups[600:]]
    expected = np.array([found.confidence(one) for one in choices if one])
    hits = np.array([hit(one.text) for one, hit in zip(choices, right[600:], strict=True) if one])
    assert expected.mean() == pytest.approx(hits.mean(), abs=0.06)
    top = expected >= np.quantile(expected, 0.75)
    assert expected[top].mean() == pytest.approx(hits[top].mean(), abs=0.1)
    assert hits[top].mean() > hits[~top].mean() + 0.1
    report = found.report
    assert report["right"] >= max(report["right_by_idm"], report["right_by_fdm"]) - 0.02
    assert report["right_among_drawn"] == 1.0
    above = report["right_at"]
    assert [above[at]["share"] for at in sorted(above)] == sorted(
        (one["share"] for one in above.values()), reverse=True
    )
    json.dumps(found.card)


def test_calibration_of_one_sentence_needs_no_samples() -> None:
    rng = np.random.default_rng(0)
    logprobs = rng.normal(-2, 2, 400)
    hits = rng.random(400) < 1 / (1 + np.exp(-logprobs - 2))
    groups = [[Proposal("yes", float(x))] for x in logprobs]
    found = calibrate(groups, [same_words("yes" if hit else "no") for hit in hits], 1)
    assert found.confidence(Choice("yes", 0.0, {})) == pytest.approx(1 / (1 + np.exp(-2)), abs=0.08)
    assert len(evidence(Choice("yes", 0.0, {}))) == 1
    with pytest.raises(RewindError, match="calibrated as they were drawn"):
        found.confidence(Choice("yes", 0.0, {"share": 1.0}))
    with pytest.raises(RewindError, match=f"19 labelled pairs .* at least {LEAST}"):
        calibrate(groups[:19], [same_words("yes")] * 19, 1)


def test_several_right_phrasings_of_a_pair_count_alike() -> None:
    """Neither their order nor that there are several says anything of how far a forward model is to be trusted."""
    rng = np.random.default_rng(0)

    def some(word: str, count: int, own: float, other: float) -> list[Proposal]:
        drawn = zip(rng.normal(own, 1, count), rng.normal(other, 1, count), strict=True)
        return [Proposal(f"{word} {n}", float(a), 1, float(b)) for n, (a, b) in enumerate(drawn)]

    def drawn(phrasings: int) -> list[tuple[list[Proposal], Callable[[str], bool]]]:
        groups = [[*some("yes", phrasings, -3, -10), *some("no", 4, -4, -12)] for _ in range(300)]
        return [(group, lambda text: text.startswith("yes")) for group in groups]

    one, several = fit_weight(drawn(1)), fit_weight(drawn(3))
    assert several == pytest.approx(one, rel=0.5)
    turned = [(group[::-1], right) for group, right in drawn(3)]
    assert fit_weight(turned) == pytest.approx(several, rel=0.5)


def test_evidence_that_seems_to_speak_against_a_label_counts_for_nothing() -> None:
    rng = np.random.default_rng(0)
    logprobs, hits = rng.normal(-2, 2, 300), rng.random(300) < 0.5
    groups = [[Proposal("yes", float(x), 8, -50.0 - 5.0 * hit)] for x, hit in zip(logprobs, hits, strict=True)]
    found = calibrate(groups, [same_words("yes" if hit else "no") for hit in hits], 8)
    slopes = dict(zip(("idm", "fdm", "share", "margin"), found.slopes, strict=True))
    assert slopes["fdm"] == 0.0
    assert min(slopes.values()) >= 0


@pytest.mark.parametrize("right", [True, False])
def test_labels_that_are_all_right_or_all_wrong_calibrate_too(right: bool) -> None:
    groups = [[Proposal("yes", -float(n))] for n in range(30)]
    found = calibrate(groups, [same_words("yes" if right else "no")] * 30, 1)
    assert (found.confidence(Choice("yes", -3.0, {})) > 0.9) is right


def test_wrong_naming() -> None:
    with pytest.raises(RewindError, match="at temperature 0 all 4 sentences are the same"):
        Naming(0.0, 4)
    with pytest.raises(RewindError, match="at least 1 sentence"):
        Naming(1.0, 0)


def test_label_script_verifies_and_calibrates(tmp_path: Path) -> None:
    """With a base in both roles, which describes pictures in other words than any label."""
    pictures = np.random.default_rng(0).integers(0, 256, (LEAST + 1, 2, 64, 64, 3), dtype=np.uint8)
    rows = [Triplet(a, "move the red circle left", b) for a, b in pictures]
    data = write_triplets(rows, tmp_path / "data")
    command = ["scripts/label.py", "--idm", "tabletop-chameleon", "--pairs", data, "--seed", 1]
    refused = start(*command, "--verify_weight", 0.5, "--output", tmp_path / "refused")
    assert refused.returncode == 2
    assert "name one, --verify" in refused.stderr
    refused = start(*command, "--verify", "no", "--verify_weight", -2, "--output", tmp_path / "refused")
    assert "--verify_weight must be a number from 0 on, not -2" in refused.stderr
    verify = ["--verify", "tabletop-chameleon", "--num_samples", 2, "--labelled", data, "--output", tmp_path / "out"]
    done = start(*command, *verify)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^\d+\.\d% of 21 labelled pairs are named rightly; weight \d", done.stdout, re.MULTILINE)
    entries = json.loads((tmp_path / "out" / "triplets.json").read_text())
    weight = json.loads((tmp_path / "out" / "calibration.json").read_text())["weight"]
    for entry in entries:
        assert entry["score"] == entry["idm_logprob"]
        assert entry["both_logprob"] == pytest.approx(entry["idm_logprob"] + weight * entry["fdm_logprob"])
        assert entry["share"] in (0.5, 1.0)
        assert 0 <= entry["confidence"] <= 1
        assert ("margin" in entry) == (entry["share"] == 0.5)
    assert json.loads((tmp_path / "out" / "calibration.json").read_text())["pairs"] == LEAST + 1
