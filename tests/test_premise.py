"""Does the inverse model know more than the forward model, and can the reward tell? Said before either is trusted."""

from __future__ import annotations

import numpy as np
import pytest

from rl.data.labels.calibration import SAME_NATS, rival_words
from rl.evaluation.premise import as_good_as_true, ordered, premise
from rl.triplets import Triplet


def asked(exact: float, right: float, order: str = "good", count: int = 40) -> dict:  # type: ignore[type-arg]
    """A premise with a share of sentences named right, the surest first, and a share of candidates that are right."""
    actions = [f"push number {n}" for n in range(count)]
    said = [words if n < exact * count else "sing" for n, words in enumerate(actions)]
    likeness_SN = np.zeros((count, 10))
    likeness_SN[:, : round(10 * right)] = 1.0
    totals_SN = likeness_SN if order == "good" else np.zeros_like(likeness_SN)
    return premise(actions, said, np.linspace(0, -4, count).tolist(), totals_SN, likeness_SN)


def test_labels_that_are_right_much_more_often_than_the_forward_model_are_worth_training_on() -> None:
    found = asked(exact=0.8, right=0.3)
    assert found["video"] == found["rl"] == "go"
    assert found["idm"]["exact"] == 0.8
    assert found["fdm"] == {"right": pytest.approx(0.3), "likeness": pytest.approx(0.3)}
    assert found["verdicts"][0] == "label video: labels are right for 80% and the forward model draws 30% right"


def test_only_the_surest_labels_where_they_alone_are_good() -> None:
    found = asked(exact=0.5, right=0.5)
    assert found["video"] == "above"
    assert [part["accuracy"] for part in found["labels"]] == [0.5, pytest.approx(2 / 3), 1.0, 1.0]
    assert "the surest 50% alone (score at least -1.949), of which 100% are right" in found["verdicts"][0]


def test_no_video_where_the_forward_model_knows_as_much() -> None:
    """The third party's world of a grid: the forward model draws 87 %, and labelled video took 25 points."""
    found = asked(exact=0.5, right=0.9)
    assert found["video"] == "no"
    assert "do not train on labelled video" in found["verdicts"][0]
    assert asked(exact=0.3, right=0.0)["video"] == "above"
    assert asked(exact=0.0, right=0.0)["idm"]["confused"][0] == ["push number 0", "sing", 1]


def test_no_training_by_a_reward_that_cannot_tell() -> None:
    assert asked(0.8, 0.3, order="none")["reward"]["ordered"] == 0.5
    assert "do not train by this reward" in asked(0.8, 0.3, order="none")["verdicts"][1]
    alike = asked(0.8, 0.0)
    assert "nothing to learn" in alike["verdicts"][1]
    assert alike["reward"]["ordered"] is None  # no NaN, which is no JSON


def test_who_says_nothing_is_not_the_surest() -> None:
    """The log-likelihood of no words at all is 0, above that of any sentence."""
    found = premise(
        ["a", "b", "c", "d"], ["a", "b", "", ""], [-1.0, -2.0, 0.0, 0.0], np.zeros((4, 2)), np.zeros((4, 2))
    )
    assert [part["accuracy"] for part in found["labels"]] == [0.5, pytest.approx(2 / 3), 1.0, 1.0]
    assert [part["min_score"] for part in found["labels"]] == [-2.0, -2.0, -2.0, -1.0]
    silent = premise(["a", "b"], ["", ""], [0.0, 0.0], np.zeros((2, 2)), np.zeros((2, 2)))
    assert silent["labels"][0]["min_score"] is None
    assert silent["video"] == "no"


def test_order_within_groups_only_and_ties_count_half() -> None:
    totals = np.array([[1.0, 2.0, 3.0], [9.0, 9.0, np.nan]])
    alike = np.array([[0.1, 0.2, 0.2], [0.0, 1.0, 0.5]])
    assert ordered(totals, alike) == pytest.approx((2 + 0.5) / 3)


class Foresees:
    """Gives a target of four tokens a log-likelihood by the words before it and the words that are true of it."""

    def __init__(self, nats: dict[str, float], wrong: float) -> None:
        self.nats, self.wrong, self.asked = nats, wrong, list[str]()

    def log_probs(self, sources: list[np.ndarray], targets: object, words: list[str]) -> list[np.ndarray]:
        self.asked += words
        told = zip(sources, words, strict=True)
        found = [self.nats[text] if text in self.nats and own.max() == 0 else self.wrong for own, text in told]
        return [np.full(4, value / 4, np.float32) for value in found]


SAID = ["push left", "shove to the left", "push right", "erase it", "", "Push left."]
NATS = {
    "push left": -8.0,
    "shove to the left": -8.0 - 0.9 * SAME_NATS,
    "push right": -8.0 - 1.1 * SAME_NATS,
    "Push left.": -8.0 - 5 * SAME_NATS,  # the same words, whatever a model makes of a capital
    "erase it": -8.0 + 1.1 * SAME_NATS,  # a forward model that likes what did not happen does not prove it
}


def pairs_of(said: list[str]) -> list[Triplet]:
    """Pairs whose true words are 'push left', and one of another action, whose words are the others' rival."""
    dark, bright = np.zeros((8, 8, 3), np.uint8), np.full((8, 8, 3), 255, np.uint8)
    return [*([Triplet(dark, "push left", dark)] * len(said)), Triplet(bright, "lift it", bright)]


def test_another_phrasing_of_the_action_counts_as_naming_it() -> None:
    fdm = Foresees(NATS, wrong=-20.0)
    named = as_good_as_true(fdm, pairs_of(SAID), [*SAID, "sing"])  # type: ignore[arg-type]
    assert named.tolist() == [True, True, False, False, False, True, False]
    assert "" not in fdm.asked
    named = named[:6]
    found = premise(["push left"] * 6, SAID, [-1.0] * 6, np.zeros((6, 2)), np.zeros((6, 2)), named)
    assert (found["idm"]["exact"], found["idm"]["named"]) == (pytest.approx(2 / 6), 0.5)
    assert found["labels"][0]["accuracy"] == 0.5


def test_a_forward_model_that_hardly_reads_words_vouches_for_none() -> None:
    deaf = Foresees(NATS, wrong=-8.0 - 0.9 * SAME_NATS)  # another pair's words leave the target nearly as likely
    named = as_good_as_true(deaf, pairs_of(SAID), [*SAID, "lift it"])  # type: ignore[arg-type]
    assert named.tolist() == [True, False, False, False, False, True, True]


def test_rivals_are_the_words_of_another_pair() -> None:
    assert rival_words(["left", "Left.", "right"]) == ["right", "right", "left"]
    assert rival_words(["left", "left"]) == ["left", "left"]
