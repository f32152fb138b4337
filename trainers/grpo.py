"""GRPO on TRL's `GRPOTrainer`, with image tokens for completions (arXiv 2402.03300; for world models 2509.23958).

What is ours: rollouts by our sampler, log-probabilities by our distribution (one and the same for sampler, policy, old
policy and reference), rewards by our contract. What is TRL's: everything else.

Seams of TRL 1.16 that it touches: `rollout_func` (prompts arrive repeated), `_get_per_token_logps_and_entropies`
(policy, old and reference), `_generate_and_score_completions` (wrapped, to compare the sampler's log-probabilities with
the trainer's).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
from rl.errors import RewindError
from rl.models.distribution import TokenDistribution
from rl.models.noise import Noise
from rl.models.sampler import MAX_ROWS, sample_tokens
from rl.report.grids import candidate_row, sheet
from rl.triplets import Candidate, Scored, Triplet
from rl.unified import UnifiedVLM
from trainers.checkpoints import WholeCheckpoints
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
        oracle: `(triplets, candidates) -> numbers` that are logged with an evaluation and decide nothing.
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
        cycle = max(1, args.steps_per_generation * args.num_iterations // args.gradient_accumulation_steps)
        if args.save_strategy == "steps" and args.save_steps % cycle:
            raise RewindError(
                f"a rollout serves {cycle} optimizer steps and a checkpoint can only stand at its end: make "
                f"--save_steps a multiple of {cycle}, not {args.save_steps:g}"
            )
        if (args.eval_strategy != "no") != bool(validation):
            raise RewindError(
                "evaluation while training needs both sources and actions to evaluate on (--validation) and "
                "--eval_strategy steps"
            )
        self.vlm, self.triplets, self.rewards_of_ours = vlm, [*triplets, *validation], list(rewards)
        self.oracle = oracle
        self.distribution = TokenDistribution(vlm.layout.image_ids_V, args.temperature)
        self.source_ids = vlm.encode([triplet.source for triplet in self.triplets]).tolist()
        self.last_scored: list[Scored] = []
        self._validated: list[tuple[Triplet, list[Scored]]] = []
        self.sampler_trainer_gap = 0.0
        args.max_completion_length = vlm.layout.tokens_per_image
        args.remove_unused_columns = False
        args.disable_dropout = True  # else the loss sees another policy than the sampler
        weights = [reward.weight for reward in rewards]
        args.reward_weights = weights
        # No column of a data set reaches a rollout, so a row's number travels as its prompt.
        rows = Dataset.from_dict({"prompt": [str(number) for number in range(len(self.triplets))]})
        super().__init__(
            model=vlm.model,
            reward_funcs=[self._column(reward) for reward in rewards],
            args=args,
            train_dataset=rows.select(range(len(triplets))),
            eval_dataset=rows.select(range(len(triplets), len(rows))) if validation else None,
            processing_class=vlm.tokenizer,
            callbacks=callbacks,
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
        """Draw this process's part of the groups; TRL repeats the prompts, so a group's rows stand together."""
        parts = self._parts(prompts)
        noise = Noise(self.args.seed, self.state.global_step if self.model.training else VALIDATION_NOISE)
        token_prompts = {n: self.vlm.fdm_prompt(self.source_ids[n], self.triplets[n].action) for n, _ in parts}
        drawn: dict[tuple[int, range], tuple[Tensor, Tensor]] = {}
        with gathered(self):
            for members in dict.fromkeys(members for _, members in parts):
                numbers = [n for n, those in parts if those == members]
                with self.vlm.using("default", merged=True), self.accelerator.autocast():
                    found = sample_tokens(
                        self.vlm,
                        [token_prompts[n] for n in numbers],
                        self.distribution,
                        num_samples=len(members),
                        first_candidate=members.start,
                        max_tokens=self.vlm.layout.tokens_per_image,
                        noise=noise,
                        max_rows=max(MAX_ROWS, self.args.per_device_train_batch_size),  # the loss needs more memory
                    )
                groups = zip(found.ids_PGT.cpu(), found.logprobs_PGT.cpu(), strict=True)
                drawn |= {(n, members): group for n, group in zip(numbers, groups, strict=True)}
            ids, logprobs = (torch.cat([drawn[part][i] for part in parts]) for i in (0, 1))
            self._score(parts, ids, logprobs)
        return {
            "prompt_ids": [token_prompts[n] for n, members in parts for _ in members],
            "completion_ids": ids.tolist(),
            "logprobs": logprobs.tolist(),
        }

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
        parts, row = [], first
        while row < first + len(prompts):
            stop = min(row - row % group + group, first + len(prompts))
            parts.append((int(everyone[row]), range(row % group, row % group + stop - row)))
            row = stop
        return parts

    def _score(self, parts: Sequence[tuple[int, range]], ids_BK: Tensor, logprobs_BK: Tensor) -> None:
        """Score a rollout once, under our contract; the columns that TRL asks for are then only read."""
        rows = [self.triplets[number] for number, members in parts for _ in members]
        candidates = [Candidate(a, b, self.vlm) for a, b in zip(ids_BK.numpy(), logprobs_BK.numpy(), strict=True)]
        batch = Batch(
            [row.action for row in rows],
            candidates,
            [row.source for row in rows],
            [row.target for row in rows],
            [row.task for row in rows],
            log_metric=self._log_metric,
            trainer_state=self.state,
        )
        self.last_scored = score(self.rewards_of_ours, batch)
        if self.model.training:
            return
        scored = iter(self.last_scored)
        self._validated += [(self.triplets[n], [next(scored) for _ in members]) for n, members in parts]
        if self.oracle is not None:
            for name, value in self.oracle(rows, candidates).items():
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
        if self.state.global_step == 0 and self.model.training:
            self._check_identity(output)
        return output

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
