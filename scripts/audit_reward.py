"""Try a reward before training on it: does anything else score as well as the true target?

python scripts/audit_reward.py --idm runs/idm --triplets data/test.json --rewards idm_margin keep_unchanged=0.25 \\
    --output runs/audit

With --fdm also against the model's own samples and against tokens optimised for the reward; with --world the world's
oracle says which of them are right, and whether more selection by the reward still helps.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trainers  # noqa: F401  (says so if another package named 'rl' hides ours)
from rl.errors import RewindError
from rl.running.command_line import mapping, parse_with_config, plain, run
from rl.running.data_flags import add_data_flags, check_data_flags, reading
from rl.running.files import write_whole
from rl.running.model_flags import add_model_flags, opening

if TYPE_CHECKING:
    import numpy as np

    from rewards import Reward
    from rl.evaluation.oracle import Task
    from rl.evaluation.reward_probes import Case
    from rl.models.unified import UnifiedVLM
    from rl.triplets import Triplet

AT_ONCE = 8
"""Groups scored in one call."""
SHOWN = 6
PREMISE_CANDIDATES = 8
"""Candidates of each triplet on which the premise is looked at."""


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--idm", help="a base or a run folder for the rewards that need an inverse model")
    p.add_argument("--fdm", help="the forward model to be trained: its samples are tried too")
    p.add_argument(
        "--triplets", type=Path, help="held-out triplets, any data set of docs/guide/data.md; or --world alone"
    )
    p.add_argument("--limit", type=int, default=200, help="only the first triplets; with --world alone, so many scenes")
    p.add_argument(
        "--rewards",
        nargs="+",
        required=True,
        help="built-in names, file.py:function or package.module:function, each with =WEIGHT if it is not 1",
    )
    p.add_argument("--reward_arguments", type=mapping, help='JSON by reward: \'{"keep_unchanged": {"default": 3}}\'')
    p.add_argument("--world", help="a world's name or file.py:Class, whose oracle tells right from wrong; needs --fdm")
    p.add_argument("--split", help="a split of the world, if it has any (default: test)")
    p.add_argument(
        "--num_scenes",
        type=int,
        help="cases on which the samples of --fdm are tried, and those made of them (default: 40)",
    )
    p.add_argument("--best_of", type=int, help="the largest N of the best of N samples of --fdm (default: 64)")
    p.add_argument(
        "--queries",
        type=int,
        help="scores that tokens optimised from a copy may ask for a case, with --fdm (default: 256)",
    )
    p.add_argument("--seed", type=int, default=0)
    add_data_flags(p)
    add_model_flags(p)
    p.add_argument("--output", type=Path, required=True)
    p.add_argument("--overwrite", action="store_true", help="replace what is in --output")
    return p


def main() -> None:
    a = parse_with_config(parser())
    _check(a)
    from rewards import load_rewards
    from rewards.rivals import word_edits
    from rl.data.left_out import LeftOut, list_left_out
    from rl.data.triplet_files import read_triplets
    from rl.evaluation import reward_probes
    from rl.evaluation.adversaries import adversaries
    from rl.evaluation.audit import audit, score_probes, worst_first
    from rl.evaluation.oracle import sample_tasks
    from rl.report.audit_page import audit_page, lines
    from rl.running.run_folder import claim
    from rl.search.attack import greedy
    from rl.search.best_of_n import expected_best
    from rl.triplets import Triplet, columns_of
    from rl.worlds import load_split

    left_out: list[LeftOut] = []
    given: Sequence[Triplet] = []
    if a.triplets is not None:
        given = read_triplets(a.triplets, a.limit, with_targets=True, **reading(a), left_out=left_out)
    _check_sizes(a.image_size, given)
    fdm, idm = _models(a)
    vlm = (fdm or idm).backbone
    _check_sizes(str(vlm.image_size), given)
    world = load_split(a.world, a.split) if a.world is not None else None
    tasks = sample_tasks(world, max(a.limit if a.triplets is None else 0, a.num_scenes), a.seed) if world else []
    from_world = [Triplet(t.source, t.action, t.target, _family(world, t.action)) for t in tasks]
    triplets = given or from_world[: a.limit]
    if idm is not None:
        idm.backbone.check_named(triplet.action for triplet in triplets)
    actions, columns = [triplet.action for triplet in triplets], [*columns_of(triplets), *columns_of(from_world)]
    rewards = load_rewards(a.rewards, idm, actions, columns=columns, arguments=a.reward_arguments)
    inputs = [a.idm, a.fdm, a.triplets]
    output = claim(a.output, "audit_reward.py", plain(vars(a)), inputs=inputs, overwrite=a.overwrite)
    list_left_out(output, left_out)

    score = scorer(rewards, vlm, fdm)
    leads_there = _leads_there(world, tasks) if a.triplets is None else None
    cases = reward_probes.build(triplets, vlm, word_edits, leads_there, a.seed)
    scores = score_probes(cases, score)
    told = {"rewards": a.rewards, **({"reward_arguments": a.reward_arguments} if a.reward_arguments else {})}
    found: dict[str, Any] = {**told, **audit(scores, [t.task for t in triplets], used=[r.name for r in rewards])}
    pictures = _pictures(vlm, cases[:SHOWN], scores)
    if fdm is not None:
        tried = (from_world if world else triplets)[: a.num_scenes]
        settings: dict[str, Any] = {
            "threshold": found["threshold"],
            "best_of": a.best_of,
            "queries": a.queries,
            "seed": a.seed,
        }
        settings |= {"world": world, "tasks": tasks[: a.num_scenes]}
        more, rows = adversaries(fdm, tried, score, greedy, expected_best, **settings)
        found["probes"] |= more.pop("probes")
        found |= more
        pictures += rows[:SHOWN]
    if fdm is not None and idm is not None:
        found["premise"] = _premise(fdm, idm, triplets, rewards, a.seed)
    found["verdict"] = worst = worst_first(found)
    write_whole(output / "results.json", json.dumps(found, indent=1) + "\n")
    title = f"Audit of {' '.join(a.rewards)}"
    write_whole(output / "report.html", audit_page(title, found, worst, pictures))
    print(lines(found))
    print("\n" + "\n".join(f"- {sentence}" for sentence in worst or ["no probe scores as well as the truth too often"]))
    for sentence in [found[part]["verdict"] for part in ("selection",) if part in found] + _premise_said(found):
        print(f"- {sentence}")
    print(f"\nresults.json and report.html in {output}")


def _check(a: argparse.Namespace) -> None:
    check_data_flags(a, a.triplets)
    from rewards.mix import resolve
    from rewards.table import weight_of
    from rl.search.attack import PROPOSALS

    resolve(a)
    if a.triplets is None and a.world is None:
        raise RewindError("give something to audit on: --triplets data/test.json, or --world with --fdm")
    if a.world is not None and a.fdm is None:
        raise RewindError("--world judges what a forward model draws: give --fdm too")
    if a.fdm is None and a.idm is None:
        raise RewindError("pictures are tried as image tokens, so give a model whose tokens they are: --idm or --fdm")
    if a.fdm is None and any(weight_of(item)[0] == "fdm_confidence" for item in a.rewards):
        raise RewindError("the reward 'fdm_confidence' asks how likely a forward model finds a picture: give --fdm")
    usual = {"split": ("test", "world"), "num_scenes": (40, "fdm"), "best_of": (64, "fdm"), "queries": (256, "fdm")}
    for name, (value, needs) in usual.items():
        if getattr(a, name) is None:
            setattr(a, name, value)
        elif getattr(a, needs) is None:
            raise RewindError(f"--{name} is about --{needs}: give that too, or leave it out")
    if a.best_of < 2 or a.num_scenes < 2 or a.limit < 2:
        raise RewindError("--best_of, --num_scenes and --limit must be at least 2")
    if a.fdm is not None and a.queries < PROPOSALS:
        raise RewindError(
            f"--queries must be at least {PROPOSALS}, the scores of one round of optimising tokens, not {a.queries}"
        )


def _check_sizes(image_size: str | None, triplets: Sequence[Triplet]) -> None:
    """Raise a `RewindError` for pictures of several sizes or views, whose tokens the probes could not exchange."""
    from rl.pictures import views_of

    several = f"--image_size {image_size}" if str(image_size).startswith("own:") else ""
    several = several or next((f"'{t.action}' with several views" for t in triplets if views_of(t.source) > 1), "")
    if several:
        raise RewindError(f"an audit needs pictures of one size and one view, not {several}")


def _models(a: argparse.Namespace) -> tuple[Any, Any]:
    """The forward and the inverse model that were given, on one backbone where they can share it; None for neither."""
    from rl import load_fdm
    from rl.models.opening import load_idm_beside

    fdm = load_fdm(a.fdm, **opening(a)) if a.fdm is not None else None
    if a.idm is None:
        return fdm, None
    return fdm, load_idm_beside(a.idm, fdm.backbone if fdm is not None else None, **opening(a))


def _leads_there(world: Any, tasks: Sequence[Task]) -> Callable[[int, str], bool]:
    return lambda number, action: tasks[number].outcome in world.outcomes(tasks[number].scene, action)


def scorer(rewards: Sequence[Reward], vlm: UnifiedVLM, fdm: Any) -> Any:
    """Scores of groups of cases, as in training: what shares a source stands in one batch, side by side."""
    import numpy as np
    from tqdm.auto import tqdm

    from rewards import Batch
    from rewards import score as score_all
    from rl.triplets import Candidate

    def candidates(cases: Sequence[Case]) -> list[Candidate]:
        # Without a forward model nobody knows how likely a picture is, so a reward that asks is told NaN, never 0.
        made = [Candidate(case.ids_K, np.full(len(case.ids_K), np.nan, np.float32), vlm) for case in cases]
        if fdm is None or not any("candidates" in reward.asks_for for reward in rewards):
            return made
        likely = fdm.log_probs([case.source for case in cases], made, [case.action for case in cases])
        return [Candidate(case.ids_K, logprobs, vlm) for case, logprobs in zip(cases, likely, strict=True)]

    def score(groups: Sequence[Sequence[Case]]) -> list[list[float | None]]:
        found: list[list[float | None]] = []
        for start in tqdm(range(0, len(groups), AT_ONCE), desc="score", disable=len(groups) < 4 * AT_ONCE):
            part = groups[start : start + AT_ONCE]
            cases = [case for group in part for case in group]
            batch = Batch(
                [case.action for case in cases],
                candidates(cases),
                [case.source for case in cases],
                [case.target for case in cases],
                [case.task for case in cases],
                more=[case.more for case in cases],
            )
            totals = iter(score_all(rewards, batch))
            found += [[next(totals).total for _ in group] for group in part]
        return found

    return score


def _premise(fdm: Any, idm: Any, triplets: Sequence[Triplet], rewards: Sequence[Reward], seed: int) -> dict[str, Any]:
    """Whether the inverse model knows more than the forward model, and whether the reward can tell its candidates."""
    import numpy as np

    from rl.data.labels.labelling import name_pairs
    from rl.evaluation.premise import as_good_as_true, premise
    from trainers.common.candidates import scored_groups
    from trainers.rerank.fitting import likeness_of

    groups = list(scored_groups(fdm, rewards, triplets, PREMISE_CANDIDATES, seed=seed))
    named = name_pairs(idm, triplets)
    totals = [[float("nan") if one.total is None else one.total for one in group] for _, group in groups]
    return premise(
        [triplet.action for triplet in triplets],
        [words for words, _ in named],
        [score for _, score in named],
        np.array(totals),
        likeness_of(fdm.backbone, groups),
        as_good_as_true(fdm, triplets, [words for words, _ in named]),
    )


def _premise_said(found: dict[str, Any]) -> list[str]:
    return list(found["premise"]["verdicts"]) if "premise" in found else []


def _family(world: Any, action: str) -> str | None:
    family = getattr(world, "family", None)
    return None if family is None else family(action)


def _pictures(vlm: UnifiedVLM, cases: Sequence[dict[str, Case]], scores: dict[str, np.ndarray]) -> list[Any]:
    """For the first triplets: the source with its action, then every probe with its score."""
    import numpy as np

    rows = []
    for number, row in enumerate(cases):
        images = vlm.decode(np.stack([case.ids_K for case in row.values()]))
        first = next(iter(row.values()))
        cells: list[Any] = [(first.source, first.action)]
        for kind, case, image in zip(row, row.values(), images, strict=True):
            asked = f" '{case.action}'" if case.action != first.action else ""
            cells.append((image, f"{kind}{asked} {scores[kind][number]:.2f}"))
        rows.append(cells)
    return rows


if __name__ == "__main__":
    run(main)
