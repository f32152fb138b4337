"""What a training run needs a GPU, from the shape of its model and its settings: arithmetic, nothing is loaded.

Weights, gradients and optimizer are `trainers.plan.state`'s.
Activations: a layer's input for each layer and all of one layer with checkpointing (arXiv 1604.06174), all of every
layer without; and what the backward pass of a layer, or the log-probabilities over the image's codes, take beside them.
What a rollout, the inverse model and the image tokenizer hold is `rl.models.costs`, which also decides how many rows
they take at once. Not counted: the image tokenizer's weights (under 1 GiB), the library's own buffers, fragmentation
(leave a tenth free).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rl.errors import RewindError
from rl.models import costs
from rl.models.costs import SHARED_FROM, Cost
from rl.models.known import LINEAR_LAYERS, MAX_ROWS
from trainers.plan.shapes import Shape
from trainers.plan.state import sent_bytes, state_bytes, strategies

DESCRIBED = 48
"""Tokens that an inverse model may say of a pair (`InverseDynamics.describe`)."""
PHASES = ("training", "rollout", "reward", "pictures")
LIVE_PARAMETERS = 10**9
"""`stage3_max_live_parameters` of the configs: what ZeRO-3 holds gathered at once while it trains."""


@dataclass(frozen=True)
class Job:
    """The settings that memory depends on, per GPU.

    Args:
        lora_r: rank of the trained adapter; 0 is full fine-tuning.
        targets: the layers that it changes.
        dropout: whether its dropout is on (SFT; RL switches it off).
        trained_adapters: 2 if both roles are trained at once.
        frozen_adapters: further adapters of the same size on the backbone: the reference's, the IDM's, a judge's.
        beside: parameters of models of their own: an IDM or a judge of another base.
        rows: sequences in one forward and backward pass.
        grouped: how many of them stand behind one prompt, which is read once if it is long (GRPO, DPO).
        rollout_rows: sequences drawn at once, if they fit; 0 if nothing is drawn.
        candidates: how many of them stand behind one prompt.
        scored: predictions whose pair of pictures the IDM reads at once, if they fit; 0 if none does.
        actions: actions that it scores on each: the one asked for and its rivals.
        judged: predictions that a judge IDM reads, each anew; 0 if there is none.
        max_rows: the most rows at once; None for those that fit.
        branches: how often a sequence is read: 2 with guidance, with and without its words.
        accumulation: passes an optimizer step.
        checkpointing: whether activations are computed again in the backward pass.
        action_tokens: tokens of an action.
        gather: whether ZeRO-3 gathers all weights for a rollout.
    """

    lora_r: int = 16
    targets: Sequence[str] = LINEAR_LAYERS
    dropout: bool = False
    trained_adapters: int = 1
    frozen_adapters: int = 2
    beside: int = 0
    rows: int = 8
    grouped: int = 1
    rollout_rows: int = 8
    candidates: int = 1
    scored: int = 0
    actions: int = 9
    judged: int = 0
    max_rows: int | None = None
    branches: int = 1
    accumulation: int = 1
    checkpointing: bool = True
    action_tokens: int = 24
    gather: bool = True

    def __post_init__(self) -> None:
        for name in ("lora_r", "frozen_adapters", "beside", "rollout_rows", "scored", "judged", "action_tokens"):
            if getattr(self, name) < 0:
                raise RewindError(f"{name} must be 0 or more, not {getattr(self, name)}")
        for name in ("rows", "branches", "accumulation", "trained_adapters", "grouped", "candidates", "actions"):
            if getattr(self, name) < 1:
                raise RewindError(f"{name} must be at least 1, not {getattr(self, name)}")


def activation_bytes(shape: Shape, job: Job) -> float:
    """Bytes kept for the backward pass of `job.rows` sequences, each read `job.branches` times, and beside them at its
    peak: where the loss is taken, or in a layer. A long prompt is read once for the rows behind it.
    """
    rows, picture = job.rows * job.branches, shape.tokens_per_image
    prompt = sequence_tokens(shape, job) - picture
    prompts = job.branches * -(-job.rows // job.grouped) if prompt >= SHARED_FROM else rows
    tokens, wide = prompts * prompt + rows * picture, shape.weight_bytes
    layer = tokens * shape.layer_activations(job.targets if job.dropout and job.lora_r else ())
    if prompts < rows:  # each row's keys and values with its prompt's before them; what attention gives, put together
        layer += 2 * rows * (prompt + picture) * shape.kv_heads * shape.head_dim * wide
        layer += tokens * shape.heads * shape.head_dim * wide
    inputs = tokens * shape.layers * shape.hidden * wide
    # Of the last norm its input, always float32, and output; the states that predict the picture.
    loss = tokens * shape.hidden * (8 + wide) + rows * picture * shape.hidden * wide
    loss += _logits_bytes(shape, job)
    # Backwards the gradients of a layer's widest tensors and of its input.
    back = tokens * wide * (2 * shape.intermediate + shape.hidden)
    if job.checkpointing:
        return inputs + max(loss, layer + back)
    return shape.layers * layer + max(loss, back)


def _logits_bytes(shape: Shape, job: Job) -> int:
    """The codes' logits, their log-probabilities and the gradient of one of them, in float32: of all tokens, or, where
    those are many under a frozen head, of some at a time, beside slopes, which then become a gradient.
    """
    logits = job.rows * shape.tokens_per_image * shape.image_codes
    if job.lora_r == 0 or logits <= costs.LOGITS_AT_ONCE:
        return 3 * 4 * job.branches * logits
    slopes = job.rows * job.branches * shape.tokens_per_image * shape.hidden * shape.weight_bytes
    return slopes + max(3 * 4 * job.branches * costs.LOGITS_AT_ONCE, slopes)


def sequence_tokens(shape: Shape, job: Job) -> int:
    """Tokens of action, source and target: begin of text, words, the source between its markers, begin of image."""
    return job.action_tokens + 2 * shape.tokens_per_image + 4


def rows_at_once(cost: Cost, rows: int, each: int, free: float) -> int:
    """How many of `rows`, `each` behind a prompt, are held together where so many bytes are free; at least one, whether
    it fits or not. Whole prompts, as `rl.models.memory.Portions` takes them.
    """
    most = max(1, min(rows, cost.fitting(each, free)))
    return most if most < each else most // each * each


def read_bytes(shape: Shape, prompt: int, prompts: int, streams: int = 1) -> int:
    """The peak of reading so many prompts of so many tokens."""
    if prompt < SHARED_FROM:
        return prompts * (streams * costs.kv_bytes(shape, prompt) + costs.pass_bytes(shape, prompt))
    return costs.prefill_peak(shape, prompt, prompts, streams)


def rollout_bytes(shape: Shape, job: Job, free: float) -> tuple[float, float, int]:
    """Of a rollout: keys and values, its peak, and how many rows it draws at once where so many bytes are free."""
    picture, prompt, each = shape.tokens_per_image, job.action_tokens + shape.tokens_per_image + 4, job.candidates
    shared = prompt >= SHARED_FROM
    cost = costs.sampling_cost(shape, prompt, picture, shape.image_codes, shared, job.branches)
    rows = rows_at_once(cost, min(job.rollout_rows, job.max_rows or MAX_ROWS), each, free)
    prompts = -(-rows // each)
    kept = prompts * prompt if shared else rows * prompt
    cache = job.branches * costs.kv_bytes(shape, kept + rows * picture)
    return cache, max(read_bytes(shape, prompt, prompts, job.branches), cost.held(rows, each)), rows


def reward_bytes(shape: Shape, job: Job, free: float) -> float:
    """The peak of an inverse model that describes pairs of pictures and scores actions on them, or of a judge."""
    pair, words, found = 2 * shape.tokens_per_image + 8, job.action_tokens, 0
    if job.scored:
        shared = pair >= SHARED_FROM
        text = max(1, shape.vocabulary - shape.image_codes)
        said = costs.sampling_cost(shape, pair, DESCRIBED, text, shared)
        rows = rows_at_once(said, min(job.scored, job.max_rows or MAX_ROWS), 1, free)
        cost = costs.scoring_cost(shape, pair, words, shared)
        most = min(job.scored * job.actions, job.max_rows or 4 * costs.USUAL_ROWS)
        scoring = rows_at_once(cost, most, job.actions, free)
        pairs = max(rows, -(-scoring // job.actions))
        found = max(
            read_bytes(shape, pair, pairs),
            said.held(rows, 1),
            cost.held(scoring, job.actions) + min(costs.logits_bytes(scoring * words, text), cost.logits),
        )
    if job.judged:
        cost = costs.scoring_cost(shape, pair, words, None)
        rows = rows_at_once(cost, min(job.judged, job.max_rows or costs.USUAL_ROWS), 1, free)
        found = max(found, cost.held(rows, 1) + min(cost.logits, costs.logits_bytes(rows * words, shape.vocabulary)))
    return found


def picture_rows_bytes(shape: Shape, job: Job, free: float) -> float:
    """The peak of the image tokenizer, which takes 64 pictures at once if they fit."""
    cost = Cost(0, costs.picture_bytes(shape.pixels, shape.vq_channels))
    return cost.held(rows_at_once(cost, min(64, job.max_rows or 64), 1, free), 1) if shape.pixels else 0.0


def memory(shape: Shape, job: Job, strategy: str, gpus: int, gpu_bytes: float = 80 * 2**30) -> dict[str, float]:
    """Bytes a GPU: the parts, the peaks of the phases of a step, and the largest of them.

    What one phase holds is freed before the next, so their peaks are alternatives. Rows are drawn, scored, encoded as
    many at once as fit into nine tenths of a GPU of `gpu_bytes`; where a phase is larger, not even one row does.
    """
    adapter = shape.lora_parameters(job.lora_r, job.targets)
    one = adapter if job.lora_r else shape.parameters()
    trainable = job.trained_adapters * one
    # Beside full fine-tuning, the reference and the IDM are models of their own.
    frozen = job.frozen_adapters * one + (shape.parameters() if job.lora_r else 0)
    found = state_bytes(trainable, frozen, strategy, gpus, shape.weight_bytes)
    found["weights"] += shape.weight_bytes * job.beside  # never divided
    state = found["weights"] + found["gradients"] + found["optimizer"]
    sharded = strategy.startswith("zero3") and (gpus > 1 or strategy.endswith("offload"))
    every = shape.weight_bytes * (trainable + frozen)
    live = min(every, shape.weight_bytes * LIVE_PARAMETERS) if sharded else 0.0
    gathered = (every if job.gather else live) if sharded else 0.0
    merged = shape.weight_bytes == 4 and job.lora_r > 0 and not sharded  # beside the weights, in layers that it changes
    gathered += 4 * shape.layers * sum(a * b for n, (a, b) in shape.linear().items() if n in job.targets) * merged
    still = state - found["gradients"] + gathered
    free = 0.9 * gpu_bytes - still
    found["activations"] = activation_bytes(shape, job)
    found["training"] = state + live + found["activations"]
    found["cache"] = found["rollout"] = found["at_once"] = found["reward"] = 0.0
    if job.rollout_rows:
        found["cache"], rollout, found["at_once"] = rollout_bytes(shape, job, free)
        found["rollout"] = still + rollout
    if job.scored or job.judged:
        found["reward"] = still + reward_bytes(shape, job, free)
    # SFT reads all of them before its weights are divided.
    still = still if job.rollout_rows else every + shape.weight_bytes * job.beside
    found["pictures"] = still + picture_rows_bytes(shape, job, 0.9 * gpu_bytes - still)
    found["peak"] = max(found[name] for name in PHASES)
    found["sent"] = sent_bytes(trainable, frozen, strategy, gpus, job.accumulation, shape.weight_bytes)
    return found


def plan(
    shape: Shape,
    job: Job,
    gpus: Sequence[int] = (1, 4, 8, 64),
    max_steps: int = 0,
    gpu_bytes: float = 80 * 2**30,
) -> dict[str, Any]:
    """The whole arithmetic as JSON values: `gpus[N][strategy]` in bytes, tokens, what one backbone for three saves."""
    adapter, sequence = shape.lora_parameters(job.lora_r, job.targets), sequence_tokens(shape, job)
    cache = sequence * shape.cache_bytes()
    found: dict[str, Any] = {
        "shape": {
            "name": shape.name,
            "source": shape.source,
            "parameters": shape.parameters(),
            "weight_bytes": shape.weight_bytes,
        },
        "adapter_parameters": adapter,
        "tokens": {"sequence": sequence, "image": shape.tokens_per_image, "cache_bytes_a_row": cache},
        "gpus": {n: {s: memory(shape, job, s, n, gpu_bytes) for s in strategies(n)} for n in gpus},
        "steps": {n: steps(shape, job, n, max_steps) for n in gpus},
    }
    if job.lora_r:
        found["model_state_ratio"] = model_state_ratio(shape, job)
    return found


def steps(shape: Shape, job: Job, gpus: int, max_steps: int) -> dict[str, int]:
    """Sequences and tokens of one optimizer step on all GPUs, and image tokens drawn in the whole run."""
    rows = job.rows * job.accumulation * gpus
    drawn = rows * shape.tokens_per_image if job.rollout_rows else 0
    return {"sequences": rows, "read": rows * sequence_tokens(shape, job), "drawn": drawn, "run": drawn * max_steps}


def computed(shape: Shape, job: Job) -> dict[str, float]:
    """One backbone against three models of a shape on one GPU: of state alone, and of the peak of a whole GRPO step.

    Returns:
        `ratio` of `model_state_ratio`; `peak` and `peak_of_three`, bytes, and their `peak_ratio`. Both free the cache
        of a rollout before the backward pass.
    """
    peak = memory(shape, job, "ddp", 1)["peak"]
    three = peak + 2 * shape.weight_bytes * shape.parameters()
    ratio = model_state_ratio(shape, job)
    return {"ratio": ratio, "peak": peak, "peak_of_three": three, "peak_ratio": peak / three}


def model_state_ratio(shape: Shape, job: Job) -> float:
    """Weights, gradients and optimizer of policy, reference and IDM on one backbone / as three models with adapters."""
    base, adapter = shape.parameters(), shape.lora_parameters(job.lora_r, job.targets)
    one = sum(state_bytes(adapter, base + 2 * adapter, "ddp", 1, shape.weight_bytes).values())
    three = sum(state_bytes(adapter, 3 * base + 2 * adapter, "ddp", 1, shape.weight_bytes).values())
    return one / three
