"""GRPO on TRL's `GRPOTrainer` (arXiv 2402.03300): of a forward model, with image tokens for completions (2509.23958),
or of an inverse model, with sentences (2602.06130). What differs between them is a `trainers.grpo.role.PolicyRole`.

What is ours: rollouts by our sampler, log-probabilities by our distribution (one and the same for sampler, policy, old
policy and reference), rewards by our contract. What is TRL's: everything else.

Seams of TRL 1.16 that it touches: `rollout_func` (prompts arrive repeated), `_get_per_token_logps_and_entropies`
(policy, old and reference), `_generate_and_score_completions` (wrapped, to compare the sampler's log-probabilities with
the trainer's, and to shape advantages), `_prepare_inputs` (wrapped, to put groups together again), `num_generations`
and `num_generations_eval` (rows a group, which TRL reads in its samplers and advantages), `eos_token_ids` (what a
sentence ends with).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from rewards import Reward
from rewards.loading import TABLES
from rl.data.candidates.sentence_store import SentenceStore
from rl.data.candidates.store import CandidateStore
from rl.data.chains import chains
from rl.models.noise import Noise
from rl.models.roles import IDM_ADAPTER, JUDGE_ADAPTER, Role
from rl.models.saying import USUAL_TOKENS
from rl.models.unified import UnifiedVLM
from rl.triplets import Candidate, Scored, Triplet, columns_of
from trainers.common.checkpoints import WholeCheckpoints
from trainers.common.log_probs import IGNORED, score_under
from trainers.common.sharding import ShardingCheck, gathered, keep_head_whole
from trainers.common.validation import GRID_ROWS, VALIDATION_NOISE, show_validation
from trainers.grpo.advantages import AdvantageWeights, Credit
from trainers.grpo.checks import check_grpo, check_role_options, check_trajectories, weighted
from trainers.grpo.draws_pictures import DrawsPictures
from trainers.grpo.groups import Groups
from trainers.grpo.identity import CAP, LIMIT, LIMIT_HALF, ComparesWithSampler, check_correction
from trainers.grpo.monitors import Monitors
from trainers.grpo.names_actions import NamesActions
from trainers.grpo.role import Part, PolicyRole
from trainers.grpo.shaping import shape_advantages
from trainers.grpo.together import KeepsGroupsTogether
from trainers.grpo.trajectories import step_means


class WorldModelGRPOTrainer(ComparesWithSampler, KeepsGroupsTogether, WholeCheckpoints, GRPOTrainer):
    """GRPO of a forward dynamics model, or of an inverse one.

    Args:
        vlm: the backbone, its policy adapter `default` trainable.
        triplets: sources and actions; targets only for rewards that ask for them. For the inverse role pairs of
            pictures, whose words, if any, only `exact_match` is measured by.
        rewards: loaded rewards with their weights, or with those of `args.reward_weights` if it has any.
        validation: sources and actions to evaluate on (`eval_strategy`); the best checkpoint is chosen by the reward on
            them (`load_best_model_at_end`, `metric_for_best_model="eval_reward"`).
        monitors: watch every rollout of training, and may stop the run.
        store: gets every candidate that is drawn and scored in training, those of replaced groups too.
        oracle: `(triplets, candidates) -> numbers` that are logged with an evaluation and decide nothing.
        dead_group_retries: how often a group whose rewards are all alike is replaced by one of another source and
            action; what is then still alike stays out of the loss.
        spread_floor: divide a group's advantages by its standard deviation, or by this where it is smaller; None
            leaves them to `scale_rewards`.
        importance_advantages: weigh a token's advantage by whether it changes (`advantages.token_weights`).
        guidance: the policy is the guided distribution (`TokenDistribution`), in sampler, loss and reference alike.
        draft: guess that targets go on as their sources do (`rl.models.drafting`).
        rollout_steps: actions of a trajectory, M: each prediction is the next one's source. Above 1, what is trained on
            is the chains among the triplets (`rl.data.chains`), a group is `num_generations` trajectories of one chain,
            and batch sizes count predictions, of which such a group has M times as many. Store, oracle and grids get
            those of the first step, the only ones that start from a picture.
        rollout_credit: what a prediction of a trajectory is credited with (`advantages.trajectory_advantages`).
        max_sampler_gap: the run stops where sampler and loss differ by more nats a token on average; None: 1e-4 in
            float32, 0.05 in half precision.
        role: what is trained, `fdm` or `idm`. Guidance, weights of tokens and rollouts of several steps are the forward
            role's alone; a `store` is then a `SentenceStore`.
        max_sentence_tokens: the most tokens of a sentence of the inverse role, its end included.
        importance_correction: cap of the importance weights that correct for that difference; 0 is off, None: 2 in half
            precision and off in float32, where there is nothing to correct.
        args: `GRPOConfig`; completion length is the role's, top-k and top-p are refused.
    """

    elsewhere = (IDM_ADAPTER, JUDGE_ADAPTER)  # the one that rewards is frozen, and the run names it

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
        importance_advantages: AdvantageWeights = "none",
        guidance: float = 1.0,
        draft: bool = False,
        rollout_steps: int = 1,
        rollout_credit: Credit = "reward_to_go",
        max_sampler_gap: float | None = None,
        importance_correction: float | None = None,
        monitors: Monitors | None = None,
        store: CandidateStore | SentenceStore | None = None,
        callbacks: list[TrainerCallback] | None = None,
        role: Role = "fdm",
        max_sentence_tokens: int = USUAL_TOKENS,
    ) -> None:
        forward = {"guidance": guidance, "importance_advantages": importance_advantages, "rollout_steps": rollout_steps}
        check_role_options(role, max_sentence_tokens, rollout_credit=rollout_credit, draft=draft, **forward)
        check_trajectories(args, rollout_steps, rollout_credit)
        training, evaluated = chains(triplets, rollout_steps), chains(validation, rollout_steps)
        check_grpo(
            args,
            training,
            evaluated,
            rollout_steps=rollout_steps,
            spread_floor=spread_floor,
            importance_advantages=importance_advantages,
            role=role,
        )
        columns = list(dict.fromkeys([*columns_of(triplets), *columns_of(validation)]))
        given, rewards = (args.reward_weights, args.max_completion_length), weighted(rewards, args.reward_weights)
        rewards = [reward.on(columns, TABLES[role]) for reward in rewards]
        self.vlm, self.rewards_of_ours, self.oracle = vlm, rewards, oracle
        self.rollout_steps, self.rollout_credit = rollout_steps, rollout_credit
        self.spread_floor = spread_floor
        self.importance_advantages: AdvantageWeights = importance_advantages
        self.monitors, self.store = monitors, store
        if monitors is not None and monitors.watches is not None:
            monitors.watches.vlm = vlm
        self.role: PolicyRole
        if role == "fdm":
            every = training + evaluated
            self.role = DrawsPictures(vlm, every, args.temperature, guidance, importance_advantages, draft)
        else:
            self.role = NamesActions(vlm, [*triplets, *validation], args.temperature, max_sentence_tokens)
        self.distribution = self.role.distribution
        self.last_rows: list[Any] = []
        self._validated: list[tuple[Triplet, list[Scored]]] = []
        self.sampler_trainer_gap = 0.0
        check_correction(max_sampler_gap, importance_correction)
        exact = vlm.head_weight().dtype == torch.float32 and not (args.bf16 or args.fp16)
        self.gap_limit = max_sampler_gap or (LIMIT if exact else LIMIT_HALF)
        self.correction_cap = (0.0 if exact else CAP) if importance_correction is None else importance_correction
        args.max_completion_length = self.role.longest
        args.remove_unused_columns = False
        args.disable_dropout = True  # else the loss sees another policy than the sampler
        args.reward_weights = [reward.weight for reward in rewards]
        # No column of a data set reaches a rollout, so a row's number travels as its prompt.
        count = len(training) + len(evaluated)
        rows = Dataset.from_dict({"prompt": [str(number) for number in range(count)]})
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*'rollout_func'")  # experimental in TRL; pinned and tested here
            super().__init__(
                model=vlm.model,
                reward_funcs=[self._column(reward) for reward in rewards],
                args=args,
                train_dataset=rows.select(range(len(training))),
                eval_dataset=rows.select(range(len(training), count)) if evaluated else None,
                processing_class=vlm.tokenizer,
                callbacks=[*(callbacks or []), *([monitors] if monitors is not None else [])],
                rollout_func=self._rollout,
            )
        self.groups = Groups(
            self.role, rewards, len(training), dead_group_retries, args.seed, self.accelerator, self._log_metric
        )
        # TRL has read ours; the config may serve other rewards next
        args.reward_weights, args.max_completion_length = given
        if self.role.ends is not None:
            self.eos_token_ids = self.role.ends
        # Every prediction is a row of TRL's, so its groups are all steps of all trajectories of one chain.
        self.num_generations *= rollout_steps
        self.num_generations_eval *= rollout_steps
        score_under(vlm, self.distribution, ["entropy"], entropy_learns=self._entropy_bonus_enabled)
        keep_head_whole(self, vlm)
        self.add_callback(ShardingCheck(self))

    # ---- evaluation

    def evaluate(self, *arguments: Any, **settings: Any) -> dict[str, float]:
        """TRL's evaluation on the validation rows, always with the same noise; a grid of candidates beside it."""
        found: dict[str, float] = super().evaluate(*arguments, **settings)
        shown, self._validated = self._validated[:GRID_ROWS], []
        rows = [self.role.shown(triplet, group) for triplet, group in shown]
        show_validation(self, [row for row in rows if row is not None])
        return found

    # ---- rollouts and rewards

    def _rollout(self, prompts: list[str], trainer: Any) -> dict[str, list[Any]]:
        """Draw and score this process's part of the groups, whose rows stand together: TRL repeats prompts."""
        group = self.num_generations if self.model.training else self.num_generations_eval
        parts = self.groups.parts(prompts, group)
        replaced: list[list[Any]] = []
        with gathered(self):
            rows = self._draw_and_score(parts)
            if self.model.training:
                first = self.accelerator.process_index * len(prompts)
                replaced = self.groups.replace_dead(
                    parts, rows, first, group, self.state.global_step, self._draw_and_score
                )
            self.last_rows = [row for part in rows for row in part]
            if self.model.training and self.monitors is not None:
                self._observe(self.monitors, group // self.rollout_steps)
        for number, mean in step_means(self.last_rows, self.rollout_steps).items():
            self._log_metric(f"reward_step_{number}", mean)
        firsts = [[row for row in part if row.step == 0] for part in rows]
        if not self.model.training:
            self._note_validation(firsts)
        if self.model.training and self.store is not None:
            # The same source and action in both is the same draw, for noise goes by content: it is kept once.
            kept = [*([row for row in part if row.step == 0] for part in replaced), *firsts]
            self.role.keep(self.store, kept, seed=self.args.seed, step=self.state.global_step)
        for name, value in self.role.figures(self.last_rows).items():
            self._log_metric(name, value)
        return self.role.told(self.last_rows)

    def _observe(self, monitors: Monitors, members: int) -> None:
        """Show the monitors the last rollout, all of a step side by side; a judge may stand on the same weights."""
        ordered = [row for step in range(self.rollout_steps) for row in self.last_rows[step :: self.rollout_steps]]
        triplets, scored = [row.triplet for row in ordered], [row.scored for row in ordered]
        monitors.observe(triplets, scored, members, self._log_metric, self.state.global_step)

    def _draw_and_score(self, parts: Sequence[Part]) -> list[list[Any]]:
        """Completions of each part of a group with their scores; TRL's reward columns only read those."""
        noise = Noise(self.args.seed, self.state.global_step if self.model.training else VALIDATION_NOISE)
        with self.accelerator.autocast(), self.vlm.using("default", merged=True):
            rows = self.role.draw(parts, noise)
        return self.groups.scored(parts, rows, self.state)

    @property
    def last_scored(self) -> list[Scored]:
        """What the last rollout drew in this process, in the order of its rows."""
        return [row.scored for row in self.last_rows]

    def _note_validation(self, parts: Sequence[Sequence[Any]]) -> None:
        """Of each group, the first step's predictions: those after it have no source that an oracle would know."""
        self._validated += [(part[0].triplet, [row.scored for row in part]) for part in parts]
        if self.oracle is not None:
            rows = [row for part in parts for row in part]
            for name, value in self.oracle([row.triplet for row in rows], [row.candidate for row in rows]).items():
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
            labels[self.role.unread(ids, mask)] = IGNORED
            inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": positions, "labels": labels}
            with self.accelerator.autocast():
                scores = model(**inputs, fused_lm_head=True, own=logits_to_keep, entropy=compute_entropy)
            log_probs.append(scores.log_probs[:, -logits_to_keep:])
            if compute_entropy:
                entropies.append(scores.entropy[:, -logits_to_keep:])
        found = torch.cat(log_probs)
        self._compare_with_sampler(found)
        return found, torch.cat(entropies) if compute_entropy else None, None

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        output: dict[str, Any] = super()._generate_and_score_completions(inputs)
        if self.model.training:
            if self.state.global_step == 0:
                self.sampler_trainer_gap = self._check_identity(output)
            shape_advantages(self, output)
        return output
