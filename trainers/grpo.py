"""GRPO on TRL's `GRPOTrainer`, with image tokens for completions (arXiv 2402.03300; for world models 2509.23958).

What is ours: rollouts by our sampler, log-probabilities by our distribution (one and the same for sampler, policy, old
policy and reference), rewards by our contract. What is TRL's: everything else.

Seams of TRL 1.16 that it touches: `rollout_func` (prompts arrive repeated), `_get_per_token_logps_and_entropies`
(policy, old and reference), `_generate_and_score_completions` (wrapped, to compare the sampler's log-probabilities with
the trainer's).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from math import lcm
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from datasets import Dataset
from torch import Tensor
from transformers import TrainerCallback
from transformers.integrations import TensorBoardCallback
from trl import GRPOConfig, GRPOTrainer

from rewards import Batch, Reward, score
from rl.data.store import CandidateStore
from rl.errors import RewindError
from rl.models.distribution import TokenDistribution
from rl.models.dynamics import token_ids
from rl.models.noise import Noise
from rl.models.sampler import MAX_ROWS, sample_tokens
from rl.report.grids import candidate_row, sheet
from rl.triplets import Candidate, Scored, Triplet
from rl.unified import UnifiedVLM
from trainers.advantages import Importance, dead_groups, dead_rows, parts_of_groups, shaped, token_weights
from trainers.checkpoints import WholeCheckpoints
from trainers.monitors import Monitors
from trainers.scoring import IGNORED, score_under
from trainers.sharding import ShardingCheck, gathered, keep_head_whole

VALIDATION_NOISE = 2**31 - 1
"""The step under which validation candidates are drawn: the same noise every time, and none of training's."""
GRID_ROWS = 6
GAP_TOLERANCE = 1e-3
"""Largest difference in nats between sampler and trainer in the log-probability of a token (float32: near 1e-6)."""
GAP_TOLERANCE_HALF = 0.2
"""The same in half precision, where cached and uncached attention round differently."""


class WorldModelGRPOTrainer(WholeCheckpoints, GRPOTrainer):
    """GRPO of a forward dynamics model.

    Args:
        vlm: the backbone, its policy adapter `default` trainable.
        triplets: sources and actions; targets only for rewards that ask for them.
        rewards: loaded rewards with their weights.
        validation: sources and actions to evaluate on (`eval_strategy`); the best checkpoint is chosen by the reward on
            them (`load_best_model_at_end`, `metric_for_best_model="eval_reward"`).
        monitors: watch every rollout of training, and may stop the run.
        store: gets every candidate that is drawn and scored in training.
        oracle: `(triplets, candidates) -> numbers` that are logged with an evaluation and decide nothing.
        dead_group_retries: how often a group whose rewards are all alike is replaced by one of another source and
            action; what is then still alike stays out of the loss.
        spread_floor: divide a group's advantages by its standard deviation, or by this where it is smaller; None
            leaves them to `scale_rewards`.
        importance_advantages: weigh a token's advantage by whether it changes (`trainers.advantages.token_weights`).
        guidance: the policy is the guided distribution (`TokenDistribution`), in sampler, loss and reference alike.
        args: `GRPOConfig`; completion length and temperature are the model's, top-k and top-p are refused.
    """

    def __init__(
        self,
        vlm: UnifiedVLM,
        triplets: Sequence[Triplet],
        rewards: Sequence[Reward],
        args: GRPOConfig,
        *,
        validation: Sequence[Triplet] = (),
        oracle: Callable[[Sequence[Triplet], Sequence[Candidate]], dict[str, float]] | None = None,
        dead_group_retries: int = 0,
        spread_floor: float | None = None,
        importance_advantages: Importance = "none",
        guidance: float = 1.0,
        monitors: Monitors | None = None,
        store: CandidateStore | None = None,
        callbacks: list[TrainerCallback] | None = None,
    ) -> None:
        if args.top_k or args.top_p != 1.0 or args.min_p:
            raise RewindError("top-k, top-p and min-p move the support of the policy: leave them out when training")
        if not triplets:
            raise RewindError("there is no source and action to train on")
        needed = args.generation_batch_size // args.num_generations
        if len(triplets) < needed:
            raise RewindError(
                f"a step draws {needed} groups and there are {len(triplets)} sources and actions: give more, or lower "
                "--per_device_train_batch_size"
            )
        # In optimizer steps, of which each takes some of the passes that a rollout serves.
        cycle = lcm(args.steps_per_generation * args.num_iterations, args.gradient_accumulation_steps)
        cycle //= args.gradient_accumulation_steps
        if cycle > 1 and args.save_strategy not in ("no", "steps"):
            raise RewindError(
                f"a rollout serves {cycle} optimizer steps and a checkpoint can only stand at its end: use "
                f"--save_strategy steps with a multiple of {cycle}, not '{args.save_strategy.value}'"
            )
        if args.save_strategy == "steps" and args.save_steps % cycle:
            raise RewindError(
                f"a rollout serves {cycle} optimizer steps and a checkpoint can only stand at its end: make "
                f"--save_steps a multiple of {cycle}, not {args.save_steps:g}"
            )
        if spread_floor is not None and (spread_floor <= 0 or args.scale_rewards not in ("none", False)):
            raise RewindError(
                "--spread_floor must be above 0 and takes the place of --scale_rewards: leave that 'none'"
            )
        if importance_advantages == "target" and any(triplet.target is None for triplet in triplets):
            raise RewindError("--importance_advantages target needs the true target of every source: use 'group'")
        if (args.eval_strategy != "no") != bool(validation):
            raise RewindError(
                "evaluation while training needs both sources and actions to evaluate on (--validation) and "
                "--eval_strategy steps"
            )
        self.vlm, self.triplets, self.rewards_of_ours = vlm, [*triplets, *validation], list(rewards)
        self.oracle, self.num_training = oracle, len(triplets)
        self.dead_group_retries, self.spread_floor = dead_group_retries, spread_floor
        self.importance_advantages: Importance = importance_advantages
        self.monitors, self.store = monitors, store
        self.distribution = TokenDistribution(vlm.layout.image_ids_V, args.temperature, guidance)
        self.source_ids = vlm.encode([triplet.source for triplet in self.triplets]).tolist()
        self.last_scored: list[Scored] = []
        self.last_rows: list[tuple[int, int]] = []
        self._validated: list[tuple[Triplet, list[Scored]]] = []
        self.sampler_trainer_gap = 0.0
        args.max_completion_length = vlm.layout.tokens_per_image
        args.remove_unused_columns = False
        args.disable_dropout = True  # else the loss sees another policy than the sampler
        weights = [reward.weight for reward in rewards]
        args.reward_weights = weights
        # No column of a data set reaches a rollout, so a row's number travels as its prompt.
        rows = Dataset.from_dict({"prompt": [str(number) for number in range(len(self.triplets))]})
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*'rollout_func'")  # experimental in TRL; pinned and tested here
            super().__init__(
                model=vlm.model,
                reward_funcs=[self._column(reward) for reward in rewards],
                args=args,
                train_dataset=rows.select(range(len(triplets))),
                eval_dataset=rows.select(range(len(triplets), len(rows))) if validation else None,
                processing_class=vlm.tokenizer,
                callbacks=[*(callbacks or []), *([monitors] if monitors is not None else [])],
                rollout_func=self._rollout,
            )
        score_under(vlm, self.distribution, entropy=True)
        keep_head_whole(self, vlm)
        self.add_callback(ShardingCheck(self))

    # ---- evaluation

    def evaluate(self, *arguments: Any, **settings: Any) -> dict[str, float]:
        """TRL's evaluation on the validation rows, always with the same noise; a grid of candidates beside it."""
        found: dict[str, float] = super().evaluate(*arguments, **settings)
        self._draw_validation()
        return found

    def _draw_validation(self) -> None:
        """A grid for TensorBoard: a few validation rows with their candidates from best to worst."""
        shown, self._validated = self._validated[:GRID_ROWS], []
        if not shown or not self.is_world_process_zero():
            return
        grid = np.asarray(sheet([candidate_row(triplet, group) for triplet, group in shown], 96))
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, TensorBoardCallback) and callback.tb_writer is not None:
                callback.tb_writer.add_image("validation", grid, self.state.global_step, dataformats="HWC")

    # ---- rollouts and rewards

    def _rollout(self, prompts: list[str], trainer: Any) -> dict[str, list[Any]]:
        """Draw and score this process's part of the groups, whose rows stand together: TRL repeats prompts."""
        parts = self._parts(prompts)
        with gathered(self):
            rows = self._draw_and_score(parts)
            if self.model.training:
                self._replace_dead_groups(parts, rows, self.accelerator.process_index * len(prompts))
        self.last_scored = [scored for part in rows for scored in part]
        self.last_rows = [(number, member) for number, members in parts for member in members]
        if not self.model.training:
            self._note_validation(parts, rows)
        elif self.monitors is not None:
            triplets = [self.triplets[number] for number, _ in self.last_rows]
            group, step = self.num_generations, self.state.global_step
            self.monitors.observe(triplets, self.last_scored, group, self._log_metric, step)
        if self.model.training and self.store is not None:
            self._keep(self.store, parts, rows)
        return {
            "prompt_ids": [self._prompt_ids(number) for number, _ in self.last_rows],
            "completion_ids": [scored.candidate.ids.tolist() for scored in self.last_scored],
            "logprobs": [scored.candidate.logprobs.tolist() for scored in self.last_scored],
        }

    def _keep(self, store: CandidateStore, parts: Sequence[tuple[int, range]], rows: Sequence[list[Scored]]) -> None:
        """Append what was drawn and scored; a process that drew a part of a group keeps that part's numbers."""
        for first in dict.fromkeys(members.start for _, members in parts):
            pairs = zip(parts, rows, strict=True)
            groups = [(self.triplets[number], part) for (number, those), part in pairs if those.start == first]
            store.append(groups, seed=self.args.seed, step=self.state.global_step, first=first)

    def _prompt_ids(self, number: int) -> list[int]:
        return self.vlm.fdm_prompt(self.source_ids[number], self.triplets[number].action)

    def _draw_and_score(self, parts: Sequence[tuple[int, range]]) -> list[list[Scored]]:
        """Candidates of each part of a group, scored once under our contract; TRL's reward columns only read that."""
        noise = Noise(self.args.seed, self.state.global_step if self.model.training else VALIDATION_NOISE)
        drawn: dict[tuple[int, range], list[Candidate]] = {}
        for members in dict.fromkeys(members for _, members in parts):
            numbers = [number for number, those in parts if those == members]
            with self.vlm.using("default", merged=True), self.accelerator.autocast():
                found = sample_tokens(
                    self.vlm,
                    [self._prompt_ids(number) for number in numbers],
                    self.distribution,
                    num_samples=len(members),
                    first=members.start,
                    max_tokens=self.vlm.layout.tokens_per_image,
                    noise=noise,
                    unconditional=[self.vlm.fdm_prompt(self.source_ids[number], "") for number in numbers],
                    max_rows=max(MAX_ROWS, self.args.per_device_train_batch_size),  # the loss needs more memory
                )
            groups = zip(found.ids_PGT.cpu().numpy(), found.logprobs_PGT.cpu().numpy(), strict=True)
            for number, (ids, logprobs) in zip(numbers, groups, strict=True):
                drawn[number, members] = [Candidate(a, b, self.vlm) for a, b in zip(ids, logprobs, strict=True)]
        rows = [self.triplets[number] for number, members in parts for _ in members]
        batch = Batch(
            [row.action for row in rows],
            [candidate for part in parts for candidate in drawn[part]],
            [row.source for row in rows],
            [row.target for row in rows],
            [row.task for row in rows],
            log_metric=self._log_metric,
            trainer_state=self.state,
        )
        scored = iter(score(self.rewards_of_ours, batch))
        return [[next(scored) for _ in members] for _, members in parts]

    def _replace_dead_groups(self, parts: list[tuple[int, range]], rows: list[list[Scored]], first_row: int) -> None:
        """Draw other sources and actions in the place of groups whose totals are all alike, within the budget.

        The replacement depends on seed, step and the group's number alone, so that every process takes the same.
        """
        group, rng_of = self.num_generations, (self.args.seed, self.state.global_step)
        starts = np.cumsum([0, *(len(members) for _, members in parts[:-1])]) + first_row
        for attempt in range(self.dead_group_retries + 1):
            totals = [scored.total for part in rows for scored in part]
            everyone = gather_object(totals) if self.accelerator.num_processes > 1 else totals
            dead = dead_groups(everyone, group)
            if attempt == 0:
                self._log_metric("dead_groups", float(dead.mean()))
            if attempt == self.dead_group_retries or not dead.any():
                return
            again = [i for i, start in enumerate(starts) if dead[start // group]]
            for i in again:
                drawn = np.random.default_rng((*rng_of, attempt, int(starts[i]) // group)).integers(self.num_training)
                parts[i] = (int(drawn), parts[i][1])
            for i, part in zip(again, self._draw_and_score([parts[i] for i in again]), strict=True) if again else ():
                rows[i] = part

    def _parts(self, prompts: list[str]) -> list[tuple[int, range]]:
        """(number of the triplet, members of its group) of this process's rows: a group may span processes.

        Raises:
            RewindError: the rows of all processes, one after the other, are no whole groups.
        """
        group = self.num_generations if self.model.training else self.num_generations_eval
        everyone = gather_object(prompts) if self.accelerator.num_processes > 1 else prompts
        if everyone != [prompt for prompt in everyone[::group] for _ in range(group)]:
            raise RewindError("TRL did not repeat a group's prompts one after the other: this release is not supported")
        first = self.accelerator.process_index * len(prompts)
        return [(int(everyone[row]), members) for row, members in parts_of_groups(first, len(prompts), group)]

    def _note_validation(self, parts: Sequence[tuple[int, range]], rows: Sequence[list[Scored]]) -> None:
        self._validated += [(self.triplets[number], part) for (number, _), part in zip(parts, rows, strict=True)]
        if self.oracle is not None:
            triplets = [self.triplets[number] for number, _ in self.last_rows]
            for name, value in self.oracle(triplets, [scored.candidate for scored in self.last_scored]).items():
                self._log_metric(name, value)

    def _column(self, reward: Reward) -> Any:
        """A reward as TRL takes it. TRL adds up what is not None; here a candidate without a total has no reward."""

        def column(prompts: list[str], **_: Any) -> list[float | None]:
            return [None if s.total is None else s.scores[reward.name] for s in self.last_scored]

        column.__name__ = reward.name
        return column

    # ---- one distribution

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        compute_aux_loss: bool = False,
        **_: Any,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        log_probs, entropies = [], []
        for ids, mask in zip(
            input_ids.split(batch_size or len(input_ids)),
            attention_mask.split(batch_size or len(input_ids)),
            strict=True,
        ):
            positions = (mask.cumsum(-1) - 1).clamp(min=0)
            labels = torch.full_like(ids, IGNORED)
            labels[:, -logits_to_keep:] = ids[:, -logits_to_keep:]
            with self.accelerator.autocast():
                scores = model(
                    input_ids=ids, attention_mask=mask, position_ids=positions, labels=labels, fused_lm_head=True
                )
            log_probs.append(scores.log_probs[:, -logits_to_keep:])
            if compute_entropy:
                entropies.append(scores.entropy[:, -logits_to_keep:])
        return torch.cat(log_probs), torch.cat(entropies) if compute_entropy else None, None

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        output: dict[str, Any] = super()._generate_and_score_completions(inputs)
        if self.model.training:
            if self.state.global_step == 0:
                self._check_identity(output)
            self._shape_advantages(output)
        return output

    def _shape_advantages(self, output: dict[str, Any]) -> None:
        """Leave groups that are all alike out of the loss, their KL term too; divide and weigh as configured."""
        group, here = self.num_generations, output["advantages"]
        first = self.accelerator.process_index * len(here)
        part = slice(first, first + len(here))
        everyone = self.accelerator.gather(here)
        output["completion_mask"] = output["completion_mask"].masked_fill(dead_rows(everyone, group)[part, None], 0)
        weights = None
        if self.importance_advantages != "none":
            weights = token_weights(
                self.accelerator.gather(self._changed().to(here.device)), group, self.importance_advantages
            )
        output["advantages"] = shaped(everyone, group, spread_floor=self.spread_floor, weights_BK=weights)[part]

    def _changed(self) -> Tensor:
        """Where a row's candidate (or, for `target`, its true target) differs from its source, bool [B, K]."""
        sources = torch.tensor([self.source_ids[number] for number, _ in self.last_rows])
        if self.importance_advantages == "target":
            targets = [self.triplets[number].target for number, _ in self.last_rows]
            known = token_ids(self.vlm, [target for target in targets if target is not None])
            return torch.tensor(known) != sources
        return torch.tensor(np.stack([scored.candidate.ids for scored in self.last_scored])) != sources

    def _check_identity(self, output: dict[str, Any]) -> None:
        """At step 0 the loss must see the very distribution that was sampled from, in train mode.

        Raises:
            RewindError: log-probabilities that differ by more than `GAP_TOLERANCE`.
        """
        ids = torch.cat([output["prompt_ids"], output["completion_ids"]], 1)
        mask = torch.cat([output["prompt_mask"], output["completion_mask"]], 1)
        keep = output["completion_ids"].shape[1]
        with torch.no_grad():
            ours, _, _ = self._get_per_token_logps_and_entropies(self.model, ids, mask, keep)
        drawn = torch.tensor([scored.candidate.logprobs.tolist() for scored in self.last_scored], device=ours.device)
        self.sampler_trainer_gap = float((ours - drawn).abs().max())
        exact = self.vlm.head_weight().dtype == torch.float32 and not (self.args.bf16 or self.args.fp16)
        if self.sampler_trainer_gap > (GAP_TOLERANCE if exact else GAP_TOLERANCE_HALF):
            raise RewindError(
                f"the sampler and the loss disagree by up to {self.sampler_trainer_gap:.2g} nats a token: dropout that "
                "is live in training, another adapter or a reduced precision would do that; training would be wrong"
            )
