"""A draft changes how many passes there are and nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from opened_families import opened, pictures
from test_grpo import low_tokens, trainer

from rewards import Reward
from rl import rollout
from rl.errors import RewindError
from rl.models import drafting, graphs
from rl.models.distribution import TokenDistribution, Truncation
from rl.models.noise import Noise
from rl.models.roles import ForwardDynamics
from rl.models.sampling import Drawn, sample_tokens
from rl.models.saying import USUAL_TOKENS
from rl.models.unified import UnifiedVLM
from trainers.grpo.checks import check_role_options

PROMPTS = [[0, 40, 41, 42], [0, 50, 51, 52, 53, 54, 55, 56], [0, 60]]
TOKENS = 12


def drawn(vlm: UnifiedVLM, draft: torch.Tensor | None = None, **settings: Any) -> Drawn:
    distribution = settings.pop("distribution", None) or TokenDistribution(vlm.layout.image_ids_V)
    prompts = settings.pop("prompts", PROMPTS)
    how = {"num_samples": 3, "max_tokens": TOKENS, "noise": Noise(5), "draft_PT": draft, **settings}
    return sample_tokens(vlm, prompts, distribution, **how)


def drafts(vlm: UnifiedVLM, plain: Drawn) -> dict[str, torch.Tensor]:
    """A candidate itself, with a few other tokens, and one that has nothing to do with it."""
    ids = vlm.layout.image_ids_V
    spoilt = plain.ids_PGT[:, 0].clone()
    spoilt[:, [3, 7]] = ids[(torch.searchsorted(ids, spoilt[:, [3, 7]]) + 1) % len(ids)]
    other = ids[torch.randint(len(ids), spoilt.shape, generator=torch.Generator().manual_seed(0))]
    return {"true": plain.ids_PGT[:, 0], "spoilt": spoilt, "other": other}


def assert_same(a: Drawn, b: Drawn) -> None:
    assert a.ids_PGT.tolist() == b.ids_PGT.tolist()
    assert torch.allclose(a.logprobs_PGT, b.logprobs_PGT, atol=1e-5)


@torch.no_grad()
def test_the_same_candidates_in_any_case(tiny: UnifiedVLM) -> None:
    """Prompts of different lengths, kept tokens, truncation, greedy, guidance, later candidates, chunks."""
    ids = tiny.layout.image_ids_V
    kept = torch.full((3, TOKENS), -1)
    kept[0, 2], kept[1, 0], kept[1, 11] = ids[[3, 1, 7]]
    cases: list[dict[str, Any]] = [
        {},
        {"kept_PT": kept},
        {"truncation": Truncation(top_k=5, top_p=0.9)},
        {"distribution": TokenDistribution(ids, temperature=0.0), "num_samples": 1},
        {"distribution": TokenDistribution(ids, guidance=2.0), "unconditional": [[[0], [0, 50], [0]]]},
        {"first": [4, 0, 2], "max_rows": 2},
    ]
    for case in cases:
        plain = drawn(tiny, **case)
        for name, draft in drafts(tiny, plain).items():
            found = drawn(tiny, draft, **case)
            assert_same(found, plain)
            assert 0 <= found.counts.accepted <= found.counts.drafted, name
            assert found.counts.drafted > 0


@torch.no_grad()
def test_a_draft_that_does_not_pay_is_given_up(tiny: UnifiedVLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a token's pass is a CUDA graph, rows begin anew after some passes, a token a pass: the same candidates."""
    plain = drawn(tiny)
    monkeypatch.setattr(drafting, "TRIED_PASSES", 3)
    assert drawn(tiny, drafts(tiny, plain)["other"]).counts.passes < TOKENS
    monkeypatch.setattr(drafting, "_pays", lambda tried, done, end, dearer: done > 4)
    found = {name: drawn(tiny, draft) for name, draft in drafts(tiny, plain).items()}
    for each in found.values():
        assert_same(each, plain)
    assert found["other"].counts.passes == 3 + TOKENS - 1
    assert drawn(tiny, drafts(tiny, plain)["true"], num_samples=1).counts.passes < TOKENS - 1
    parts = drawn(tiny, drafts(tiny, plain)["other"], max_rows=3)
    assert_same(parts, plain)
    assert parts.counts.passes == 3 + 3 * (TOKENS - 1)  # it is tried for the first rows alone


def test_when_a_draft_pays(tiny: UnifiedVLM) -> None:
    """Where a token's pass is a CUDA graph: by what the slowest row has come to, and what is left to draw."""
    rows: Any = SimpleNamespace(recorded=None, vlm=tiny)
    assert drafting._dearer(rows) == 0
    rows.recorded = graphs.Recorded()
    dearer = drafting._dearer(rows)
    assert dearer == 1.4
    rows.recorded.calls = 8  # and nothing recorded: it was tried in vain
    assert drafting._dearer(rows) == 0
    rows = SimpleNamespace(recorded=graphs.Recorded(), vlm=SimpleNamespace(step=print))
    assert drafting._dearer(rows) == 1.6
    for tried in (8, 64):
        ways: list[tuple[float, float, bool]] = [
            (1, 0, True),
            (1, dearer, False),
            (1.4, dearer, tried == 64),  # a tenth of it is there then
            (1.6, dearer, True),
        ]
        for each, way, pays in ways:
            assert drafting._pays(tried, 1 + int(each * tried), 1024, way) == pays, (tried, each)
    looked = [tried for tried in range(1, 80) if drafting._is_time(tried)]
    assert looked == [8, 16, 32, 64]


@torch.no_grad()
def test_tokens_that_stand_by_rule_come_true() -> None:
    """Emu3 ends each row of a picture with a token that nobody draws: windows reach over it, what counts is drawn."""
    vlm = opened("emu3")
    layout = vlm.layout
    source, other = vlm.codes(pictures(vlm, 2))
    count, ends = layout.tokens_per_image, sum(map(bool, layout.grammar.after[:-1]))
    assert ends == 2
    kept = torch.full((2, count), -1)
    kept[1, [2, 3]] = layout.image_ids_V[[5, 9]]
    ids = layout.image_ids_V
    cases: list[dict[str, Any]] = [
        {},
        {"kept_PT": kept},
        {"distribution": TokenDistribution(ids, guidance=2.0), "unconditional": [vlm.free_prompts(source, 1) * 2]},
    ]
    for case in cases:
        how: dict[str, Any] = {
            "prompts": [vlm.fdm_prompt(source, "go left"), vlm.fdm_prompt(other, "open it")],
            "max_tokens": count,
            "after": layout.grammar.after,
            **case,
        }
        plain = drawn(vlm, **how)
        for draft in drafts(vlm, plain).values():
            found = drawn(vlm, draft, **how)
            assert_same(found, plain)
            assert 0 <= found.counts.accepted <= found.counts.drafted > 0
    one = {**how, "prompts": how["prompts"][:1], "num_samples": 1, "kept_PT": None}
    one |= {"distribution": None, "unconditional": None}
    true = drawn(vlm, drawn(vlm, **one).ids_PGT[:, 0], **one)
    assert (true.counts.passes, true.counts.drafted, true.counts.accepted) == (1, count - 2, count - 2)


@torch.no_grad()
def test_passes_and_what_came_true(tiny: UnifiedVLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """One candidate: a draft that is right takes one pass behind the prompt's, two wrong tokens two more."""
    plain = drawn(tiny, num_samples=1)
    assert plain.counts.passes == TOKENS - 1
    one = {"prompts": PROMPTS[:1], "num_samples": 1}
    guesses = {name: draft[:1] for name, draft in drafts(tiny, plain).items()}
    seen: list[int] = []
    original = UnifiedVLM.hidden_states
    monkeypatch.setattr(
        UnifiedVLM, "hidden_states", lambda self, ids, **k: (seen.append(ids.shape[1]), original(self, ids, **k))[1]
    )
    true = drawn(tiny, guesses["true"], **one)
    assert (true.counts.passes, true.counts.accepted) == (1, TOKENS - 2)
    assert seen == [len(PROMPTS[0]), TOKENS - 1]  # the prompt, and all but the last token
    spoilt = drawn(tiny, guesses["spoilt"], **one)
    assert spoilt.counts.passes == 3
    assert spoilt.counts.accepted == TOKENS - 4  # but for the first token and the last of each pass
    assert drawn(tiny, guesses["other"], **one).counts.passes <= TOKENS - 1
    monkeypatch.setattr(drafting, "TOKENS_A_PASS", 4 * 9 - 1)  # three tokens for each of nine rows: not worth it
    many = drawn(tiny, drafts(tiny, plain)["true"])
    assert (many.counts.passes, many.counts.drafted) == (TOKENS - 1, 0)


def test_roles_draft_with_the_source(tiny: UnifiedVLM, picture: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted over all calls; the same candidates as without."""
    fdm = ForwardDynamics(tiny)
    found = fdm.sample(picture, "remove all rings", 3, seed=1)
    assert fdm.counts.drafted > 0
    before = replace(fdm.counts)
    steps = rollout(fdm, picture, ["remove all rings"] * 2)
    assert sum(step.passes for step in steps) == fdm.counts.passes - before.passes > 0
    assert sum(step.accepted for step in steps) == fdm.counts.accepted - before.accepted
    passes = fdm.counts.passes
    monkeypatch.setattr(drafting, "TOKENS_A_PASS", 0)
    plain = fdm.sample(picture, "remove all rings", 3, seed=1)
    assert [c.ids.tolist() for c in found] == [c.ids.tolist() for c in plain]
    assert fdm.counts.passes == passes + tiny.layout.tokens_per_image - 1


def test_grpo_draws_the_same_with_a_draft(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """`passes` and `accepted` are logged; it is said once where nothing is guessed; an inverse model has none."""
    found = {}
    for draft in (False, True):
        run = trainer(tmp_path / str(draft), [Reward.of(low_tokens)], extra={"draft": draft}, beta=0.1)
        run.train()
        assert run.sampler_trainer_gap < 1e-4
        found[draft] = [scored.candidate.ids.tolist() for scored in run.last_scored]
        (log,) = [row for row in run.state.log_history if "reward" in row]
        assert ("draft/passes" in log) == draft
    assert found[False] == found[True]
    counts = run.role.counts  # type: ignore[attr-defined]
    assert log["draft/passes"] == counts.passes > 0
    assert log["draft/accepted"] == pytest.approx(counts.accepted / counts.drafted)
    assert not caplog.text
    monkeypatch.setattr(drafting, "TOKENS_A_PASS", 8)
    run = trainer(tmp_path / "many", [Reward.of(low_tokens)], extra={"draft": True}, max_steps=2)
    run.train()
    assert caplog.text.count("--draft: up to 32 candidates at once have one, and 8 are drawn here") == 1
    with pytest.raises(RewindError, match="--draft True is not used with --role idm: a sentence has no source"):
        check_role_options("idm", USUAL_TOKENS, draft=True)
