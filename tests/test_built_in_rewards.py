"""The built-in rewards by hand: on models whose answers are known, and on a tiny base."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from conftest import make_tiny

from rewards import Batch, Reward, load_rewards, score
from rewards.copy_penalty import CopyPenalty
from rewards.ensemble import Ensemble, calibration
from rewards.fdm_confidence import FDMConfidence
from rewards.idm_choice import IDMChoice
from rewards.idm_likelihood import IDMLikelihood
from rewards.idm_margin import IDMMargin
from rewards.idm_match import IDMMatch
from rewards.idm_token_f1 import IDMTokenF1
from rewards.idm_yes_no import IDMYesNo
from rewards.keep_unchanged import KeepUnchanged
from rewards.rivals import word_edits
from rewards.target_distance import TargetDistance
from rl.errors import RewindError
from rl.models.families.chameleon import ChameleonVLM
from rl.models.roles import ForwardDynamics, InverseDynamics
from rl.triplets import Candidate

ACTION = "move the red circle left"


@pytest.fixture
def batch(tiny: ChameleonVLM, picture: np.ndarray) -> Batch:
    candidates = ForwardDynamics(tiny).sample(picture, ACTION, 3, seed=1)
    return Batch([ACTION] * 3, candidates, [picture] * 3, task=["move"] * 3)


class Says:
    """An inverse model with fixed words for the token of a picture, and fixed log-probabilities of sentences."""

    def __init__(self, words: dict[int, str] | None = None, logs: dict[str, list[float]] | None = None) -> None:
        self.words, self.logs, self.asked = words or {}, logs or {}, 0

    def describe(self, sources: list[Any], targets: list[Candidate]) -> list[str]:
        self.asked += len(targets)
        return [self.words[int(target.ids[0])] for target in targets]

    def log_probs(self, sources: list[Any], targets: list[Any], actions: list[str]) -> list[np.ndarray]:
        return [np.array(self.logs[action]) for action in actions]

    def score(self, sources: list[Any], targets: list[Candidate], actions: list[str]) -> list[float]:
        return [self.logs[str(int(target.ids[0]))][0] for target in targets]


def candidate(token: int, logprobs: tuple[float, ...] = (0.0,), backbone: Any = None) -> Candidate:
    return Candidate(np.array([token] * len(logprobs)), np.array(logprobs, np.float32), backbone)


def ask(reward: Any, tokens: list[int], picture: np.ndarray, actions: list[str] | None = None) -> list[float | None]:
    return Reward.of(reward)(
        Batch(actions or [ACTION] * len(tokens), [candidate(token) for token in tokens], [picture] * len(tokens))
    )


def test_the_open_answer(picture: np.ndarray) -> None:
    idm: Any = Says({0: "Move the red circle LEFT.", 1: "move the red circle right", 2: "", 3: "shift it to the left"})
    assert ask(IDMMatch(idm), [0, 1, 2, 3, 0], picture) == [1.0, 0.0, 0.0, 0.0, 1.0]
    assert idm.asked == 4  # equal pictures are described once
    same = IDMMatch(idm, same_outcome=lambda source, a, b: "left" in a and "left" in b)
    assert ask(same, [0, 1, 2, 3], picture) == [1.0, 0.0, 0.0, 1.0]
    # Of 5 and 5 words 4 are common; of 5 and 5 words 'the', 'left'.
    assert ask(IDMTokenF1(idm), [0, 1, 2, 3], picture) == pytest.approx([1.0, 0.8, 0.0, 0.4])


def test_multiple_choice(picture: np.ndarray) -> None:
    logs = {"go": [math.log(0.5)], "stop": [math.log(0.2), math.log(0.5)], "turn": [math.log(0.4)]}
    idm: Any = Says(logs=logs)
    choice = IDMChoice(idm, ["stop", "GO!", "turn", "stop"], num_options=3)
    assert sorted(choice.options(picture, "go")[1:]) == ["stop", "turn"]  # neither the action itself nor one twice
    assert ask(choice, [0], picture, ["go"]) == pytest.approx([0.5 / (0.5 + 0.1 + 0.4)])
    assert ask(IDMChoice(idm), [0], picture, ["go"]) == [None]  # nothing to choose from
    same = IDMChoice(idm, ["stop", "turn"], same_outcome=lambda source, a, b: b == "turn")
    assert ask(same, [0], picture, ["go"]) == pytest.approx([0.5 / 0.6])
    edits = IDMChoice(idm, num_options=2).options(picture, ACTION)
    assert edits == [ACTION, "move the red circle right"]
    with pytest.raises(RewindError, match="at least 2 options, not 1"):
        IDMChoice(idm, num_options=1)


def test_yes_or_no(picture: np.ndarray) -> None:
    idm: Any = Says(logs={"0": [-0.1], "1": [-1.0], "2": [-0.7]})
    assert ask(IDMYesNo(idm), [0, 1, 2], picture) == [1.0, 0.0, 0.0]
    assert ask(IDMYesNo(idm, threshold=-0.7), [0, 1, 2], picture) == [1.0, 0.0, 1.0]
    for wrong in (0.5, math.nan):
        with pytest.raises(RewindError, match="is a log-probability, below 0"):
            IDMYesNo(idm, wrong)


def test_copies_are_charged() -> None:
    source = [[1, 2, 3, 4]] * 3
    predicted = [[1, 2, 3, 4], [9, 2, 3, 4], [9, 9, 3, 4]]
    changed = list(np.array(predicted) != source)
    assert CopyPenalty()(changed) == [-1.0, 0.0, 0.0]
    assert CopyPenalty(2)(changed) == [-1.0, -0.5, 0.0]
    with pytest.raises(RewindError, match="at least 1 changed token"):
        CopyPenalty(0)


def test_distance_to_the_true_target(tiny: ChameleonVLM, picture: np.ndarray) -> None:
    target = np.random.default_rng(1).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    ids = tiny.encode([target]).cpu().numpy()[0]
    other = ids.copy()
    other[0] = next(i for i in tiny.layout.image_ids_V.tolist() if i != ids[0])
    drawn = [Candidate(row, np.zeros(4, np.float32), tiny) for row in (ids, other, ids)]
    batch = Batch([ACTION] * 3, drawn, [picture] * 3, [target, target, None])
    assert Reward.of(TargetDistance())(batch) == [0.0, -0.25, None]
    assert all("image" not in vars(c) for c in drawn)  # tokens need no picture
    pixels = [-float(np.abs(np.asarray(c.image).astype(int) - target).mean()) / 255 for c in drawn[:2]]
    assert Reward.of(TargetDistance("pixels"))(batch) == pytest.approx([*pixels, None])
    found = Reward.of(TargetDistance("features"))(batch)
    truth, drawn_features = tiny.features([target])[0], tiny.features([c.image for c in drawn[:2]])
    by_hand = [-float(((features - truth) ** 2).sum(-1).sqrt().mean()) for features in drawn_features]
    assert found == pytest.approx([*by_hand, None])
    assert Reward.of(TargetDistance())(Batch([ACTION], drawn[:1], [picture])) == [None]
    with pytest.raises(RewindError, match="measures tokens, pixels, features, not 'words'"):
        TargetDistance("words")


def test_confidence_of_the_forward_model(tiny: ChameleonVLM, picture: np.ndarray) -> None:
    fdm = ForwardDynamics(tiny)
    drawn = [*fdm.sample(picture, ACTION, 2, seed=1), *fdm.sample(picture, ACTION, 1, temperature=0.0)]
    batch = Batch([ACTION] * 3, drawn, [picture] * 3)
    found = Reward.of(FDMConfidence())(batch)
    assert found == pytest.approx([float(drawn[0].logprobs.mean()), float(drawn[1].logprobs.mean()), None])
    asked = Reward.of(FDMConfidence(fdm))(batch)
    assert asked[:2] == pytest.approx(found[:2], abs=1e-5)
    assert asked[2] is not None  # greedy candidates have no log-probabilities of their own, but a likelihood
    assert asked[2] < 0


def test_an_ensemble_by_hand(picture: np.ndarray) -> None:
    members: list[Any] = [Says(logs={"0": [-1.0], "1": [-2.0]}), Says(logs={"0": [-3.0], "1": [-2.0]})]
    ensemble = Ensemble(members[0], members[1:], k=0.5)
    logged: dict[str, float] = {}
    batch = Batch([ACTION] * 2, [candidate(0), candidate(1)], [picture] * 2, log_metric=logged.__setitem__)
    assert Reward.of(ensemble)(batch) == [-2.5, -2.0]
    assert logged == {"ensemble/spread": 0.5}
    found = score([Reward.of(ensemble), Reward.of(ensemble.spread, "spread", 0.0)], batch)
    assert [s.scores["spread"] for s in found] == [1.0, 0.0]
    assert [s.total for s in found] == [-2.5, -2.0]
    choice = Ensemble(members[0], members[1:], form="idm_choice")  # without rivals no member has a score
    batch.prompts = ["jump", "jump"]
    for member in members:
        member.logs["jump"] = [-1.0]
    assert Reward.of(choice)(batch) == [None, None]
    yes = Ensemble(members[0], members[1:], form="idm_yes_no", form_arguments={"threshold": -1.5})
    batch.prompts = [ACTION] * 2
    assert Reward.of(yes)(batch) == [0.5 - 0.5, 0.0]  # one yes and one no; two noes


def test_an_ensemble_of_bases_and_adapters(tiny: ChameleonVLM, picture: np.ndarray) -> None:
    other = InverseDynamics(make_tiny(seed=5))
    drawn = ForwardDynamics(tiny).sample(picture, ACTION, 3)
    first = InverseDynamics(tiny)
    (reward,) = load_rewards(["ensemble"], first, arguments={"ensemble": {"others": [other], "k": 2}})
    a, b = (np.array(idm.score(picture, drawn, ACTION)) for idm in (first, other))
    by_hand = (a + b) / 2 - 2 * np.abs(a - b) / 2
    assert reward(Batch([ACTION] * 3, drawn, [picture] * 3)) == pytest.approx(by_hand.tolist(), abs=1e-5)
    for wrong, sentence in [
        ({"others": []}, "needs a list of inverse models beside the first"),
        ({"others": "no/such/idm"}, "no base"),  # a text is a list of one
        ({"others": [other], "k": -1}, "k of an ensemble must be 0 or more"),
        ({"others": [other], "form": "ensemble"}, "an ensemble of ensembles"),
        ({"others": [other], "form": "brightness"}, "there is no reward 'brightness'"),
        ({"others": ["no/such/run"]}, "no base"),
    ]:
        with pytest.raises(RewindError, match=sentence):
            load_rewards(["ensemble"], first, arguments={"ensemble": wrong})


def test_calibration_by_hand() -> None:
    # Two are right, so the two highest scores are taken for right: the first rightly, the second wrongly.
    found = calibration([4.0, 3.0, 2.0, 1.0, None], [0.1, 0.9, 0.5, 0.5, 9.0], [True, False, True, False, True])
    # Wrong: the second (0.9) and the third (0.5); right: the first (0.1) and the fourth (0.5).
    assert found == {"n": 4, "wrong": 0.5, "auc": (1 + 1 + 1 + 0.5) / 4}
    assert calibration([2.0, 1.0], [0.1, 0.2], [True, False]) == {"n": 2, "wrong": 0.0}
    with pytest.raises(RewindError, match="2 scores, 1 spreads and 2 truths"):
        calibration([1.0, 2.0], [1.0], [True, False])
    with pytest.raises(RewindError, match="no candidate has a score"):
        calibration([None], [1.0], [True])


def test_idm_likelihood_is_the_score_of_the_idm(batch: Batch, tiny: ChameleonVLM, picture: np.ndarray) -> None:
    idm = InverseDynamics(tiny)
    assert Reward.of(IDMLikelihood(idm))(batch) == pytest.approx(idm.score(picture, batch.candidates, ACTION), abs=1e-6)


def test_an_idm_on_another_base_reads_the_pictures(batch: Batch, picture: np.ndarray) -> None:
    other = InverseDynamics(make_tiny(seed=5))
    found = Reward.of(IDMLikelihood(other))(batch)
    assert found == pytest.approx(other.score(picture, [c.image for c in batch.candidates], ACTION), abs=1e-6)


def test_idm_margin_by_hand(batch: Batch, tiny: ChameleonVLM, picture: np.ndarray) -> None:
    idm = InverseDynamics(tiny)
    edits = ["move the red circle right", "move the blue circle left", "move the red square left"]
    assert word_edits(ACTION) == edits
    # Four rivals at most: the word edits, then one sentence of the data set; the action itself is none.
    reward = IDMMargin(
        _Silent(idm), [ACTION.upper(), "remove all rings", "paint it"], num_rivals=4, floor=None, rivals="first"
    )  # type: ignore[arg-type]
    expected = []
    for candidate in batch.candidates:
        words = (ACTION, *edits, "remove all rings")
        totals = [float(idm.log_probs(picture, [candidate], w)[0].sum()) for w in words]
        expected.append(totals[0] - np.logaddexp.reduce(totals))
    found = reward(batch.prompts, batch.source_image, batch.candidates)
    assert found == pytest.approx(expected, abs=1e-4)
    assert max(expected) <= 0
    # The background is one more rival, of a fixed likelihood, and stands alone where there is no other.
    background = sorted(expected)[1]
    with_it = IDMMargin(_Silent(idm), num_rivals=3, floor=None, background=background, rivals="first")  # type: ignore[arg-type]
    found, expected = with_it(batch.prompts, batch.source_image, batch.candidates), []
    for candidate in batch.candidates:
        totals = [float(idm.log_probs(picture, [candidate], w)[0].sum()) for w in (ACTION, *edits)]
        expected.append(totals[0] - np.logaddexp.reduce([*totals, background]))
    assert found == pytest.approx(expected, abs=1e-4)
    with pytest.raises(RewindError, match="0 or less"):
        IDMMargin(idm, background=0.5)


class _Silent:
    """An inverse model that describes nothing, so that the rivals of a test are known."""

    def __init__(self, idm: InverseDynamics) -> None:
        self.idm = idm

    def describe(self, sources: list[Any], targets: list[Any]) -> list[str]:
        return [""] * len(sources)

    def log_probs(self, *arguments: Any) -> Any:
        return self.idm.log_probs(*arguments)


def test_rivals_never_name_the_same_outcome(batch: Batch, tiny: ChameleonVLM, picture: np.ndarray) -> None:
    same = IDMMargin(InverseDynamics(tiny), num_rivals=8, same_outcome=lambda source, a, b: True)
    assert same._rivals(picture, ACTION, ["push it"]) == []
    assert same(batch.prompts, batch.source_image, batch.candidates) == [None] * 3
    some = IDMMargin(InverseDynamics(tiny), num_rivals=2)
    assert some._rivals(picture, ACTION, ["Move the red circle left!", "", "push it"])[0] == "push it"
    assert len(some._rivals(picture, ACTION, ["push it"])) == 2
    with pytest.raises(RewindError, match="at least one rival"):
        IDMMargin(InverseDynamics(tiny), num_rivals=0)


def test_keep_unchanged_by_hand() -> None:
    reward = KeepUnchanged({"move": 1}, default=3)
    source = [[1, 2, 3, 4]] * 3
    predicted = [[1, 2, 3, 4], [9, 9, 3, 4], [9, 9, 9, 9]]
    changed = list(np.array(predicted) != source)
    assert reward(changed, ["move"] * 3) == [0.0, -1.0, -3.0]  # 0, 1 and 3 tokens beyond the 1 that is free
    assert reward(changed, [None, "other", "other"]) == [0.0, 0.0, pytest.approx(-1 / 3)]
    assert KeepUnchanged(default=0)(changed, [None] * 3) == [0.0, -2.0, -4.0]
    with pytest.raises(RewindError, match="0 or more"):
        KeepUnchanged(default=-1)


def test_a_margin_has_a_floor_and_equal_pictures_are_scored_once(tiny: ChameleonVLM, picture: np.ndarray) -> None:
    target = np.random.default_rng(1).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    first, second = (
        Candidate(ids, np.zeros(4, np.float32), tiny) for ids in tiny.encode([picture, target]).cpu().numpy()
    )
    call = [ACTION] * 3, [picture] * 3, [second, first, second]
    free = IDMMargin(InverseDynamics(tiny), ["go"], num_rivals=4, floor=None)(*call)
    assert free[0] == free[2]
    low, high = sorted(value for value in free[:2] if value is not None)
    assert low < high
    between = (low + high) / 2
    bounded = IDMMargin(InverseDynamics(tiny), ["go"], num_rivals=4, floor=between)(*call)
    expected = [np.log((np.exp(x) + np.exp(between)) / (1 + np.exp(between))) for x in (low, high)]
    assert sorted(value for value in bounded[:2] if value is not None) == pytest.approx(expected)
    assert between < expected[0] < expected[1] < 0  # nothing is below the floor, and the order stays
    with pytest.raises(RewindError, match="must be below 0"):
        IDMMargin(InverseDynamics(tiny), floor=0.5)
