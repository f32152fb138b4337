"""What a DPO run is refused for before anything is drawn."""

from __future__ import annotations

from trl import DPOConfig

from rl.errors import RewindError
from trainers.common.preflight import above_zero
from trainers.common.refusals import DPO, refuse_ignored

# In TRL 1.16; a kind of its own is refused in the first loss only.
PLAIN = {"sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "robust", "discopop", "sft"}
"""Losses that see nothing but the difference of chosen and rejected, for which every divergence is defined."""
LOSSES = {*PLAIN, "nca_pair", "bco_pair", "sppo_hard", "aot", "aot_unpaired", "apo_zero", "apo_down"}
DIVERGENCES = ("reverse_kl", "forward_kl", "js_divergence", "alpha_divergence")
METRICS = ("loss", "rewards/accuracies", "rewards/margins", "rewards/chosen", "mean_token_accuracy")
"""What an evaluation measures, by which the best checkpoint can be chosen."""


def check_options(args: DPOConfig) -> None:
    """Check TRL's options that mean nothing here or go wrong; nothing needs to be loaded for it.

    Raises:
        RewindError: in a sentence, what cannot be used and what to do.
    """
    refuse_ignored(args, DPO)
    above_zero(beta=args.beta)
    unknown = [kind for kind in args.loss_type if kind not in LOSSES]
    if unknown:
        raise RewindError(f"--loss_type is one or more of {', '.join(sorted(LOSSES))}, not '{unknown[0]}'")
    if args.loss_weights is not None and len(args.loss_weights) != len(args.loss_type):
        raise RewindError(f"--loss_weights has {len(args.loss_weights)} numbers for {len(args.loss_type)} --loss_type")
    if args.f_divergence_type not in DIVERGENCES:
        raise RewindError(f"--f_divergence_type is one of {', '.join(DIVERGENCES)}, not '{args.f_divergence_type}'")
    others = sorted(set(args.loss_type) - PLAIN)
    if args.f_divergence_type != "reverse_kl" and others:
        raise RewindError(f"--f_divergence_type {args.f_divergence_type} is not defined for --loss_type {others[0]}")
    if "exo_pair" in args.loss_type and not args.label_smoothing > 0:
        raise RewindError("--loss_type exo_pair needs --label_smoothing above 0: its paper recommends 0.001")
    if not 0 <= args.label_smoothing < 0.5:
        raise RewindError(f"--label_smoothing must lie from 0 to below 0.5, not be {args.label_smoothing:g}")
