"""Which options of TRL's configs our trainers honour, and what they say of the others.

Every field of every config stands here once: what nobody has sorted fails a test (`tests/test_refusals.py`), so that a
release of TRL that brings an option cannot have it accepted and ignored. A refused option is one that our losses,
samplers and backbones never look at, or that would break them; its sentence names what to use instead.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rl.errors import RewindError


@dataclass(frozen=True)
class Options:
    """The fields of a config: those that are honoured, and of the others a sentence each."""

    honoured: frozenset[str]
    refused: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        both = sorted(self.honoured & self.refused.keys())
        assert not both, f"sorted twice: {', '.join(both)}"

    def with_(self, honoured: str = "", refused: Mapping[str, str] | None = None) -> Options:
        """These and further ones; what is refused now is no longer honoured, and the other way round."""
        here, refused = frozenset(honoured.split()), refused or {}
        kept = {name: said for name, said in self.refused.items() if name not in here}
        return Options((self.honoured | here) - refused.keys(), {**kept, **refused})


NONE = Options(frozenset())


def refuse_ignored(config: Any, options: Options) -> None:
    """Check that a config asks for nothing that would be ignored.

    Args:
        config: one of TRL's, or a subclass.
        options: how its fields are sorted.

    Raises:
        RewindError: for the first option with another value than its default that is not honoured.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what there is to say of the defaults, TRL has said of the config
        usual = type(config)()  # some defaults are settled only when a config is made
    for name, sentence in options.refused.items():
        value = getattr(config, name)
        if value != getattr(usual, name):
            shown = "" if name == "hub_token" else _shown(value)
            raise RewindError(f"--{name}{shown} is not used: {sentence}")


def _shown(value: Any) -> str:
    """A value as it was typed, behind a blank; nothing for what cannot be typed in a word."""
    if isinstance(value, bool):
        return f" {value}".lower()
    return f" {getattr(value, 'value', value)}" if isinstance(value, str | int | float) else ""


def _each(names: str, sentence: str) -> dict[str, str]:
    return dict.fromkeys(names.split(), sentence)


# No file of ours may hold the word of its own: tests/test_arrows.py.
REMOTE_CODE = "trust_" + "remote_code"
_TOKENS = "rows are token ids already, and no text is tokenised, templated or cut"
_ONE_DISTRIBUTION = (
    "log-probabilities are taken over the role's own tokens, which TRL's and Liger's kernels do not know"
)
_LOSSES_ONLY = "an evaluation keeps its losses and no predictions: leave it out"
_BASE = "the model is given by its folder: use --base, or --fdm for a run"

# Fields of transformers' TrainingArguments. Both values of remove_unused_columns and prediction_loss_only mean the
# same here: rows have no other columns, and an evaluation never keeps predictions.
COMMON = NONE.with_(
    """output_dir per_device_train_batch_size num_train_epochs max_steps learning_rate lr_scheduler_type
    lr_scheduler_kwargs warmup_steps optim optim_args weight_decay adam_beta1 adam_beta2 adam_epsilon
    gradient_accumulation_steps max_grad_norm bf16 fp16 tf32 activation_checkpointing
    activation_checkpointing_kwargs gradient_checkpointing gradient_checkpointing_kwargs
    torch_empty_cache_steps logging_strategy logging_steps
    logging_first_step log_on_each_node logging_nan_inf_filter log_level log_level_replica disable_tqdm report_to
    run_name project trackio_space_id trackio_bucket_id trackio_static_space_id eval_strategy eval_steps eval_delay
    per_device_eval_batch_size eval_on_start do_eval prediction_loss_only save_only_model save_strategy save_steps
    save_on_each_node save_total_limit enable_jit_checkpoint load_best_model_at_end metric_for_best_model
    greater_is_better ignore_data_skip full_determinism seed data_seed use_cpu dataloader_drop_last
    dataloader_num_workers dataloader_pin_memory dataloader_persistent_workers dataloader_prefetch_factor
    dataloader_multiprocessing_context dataloader_in_order remove_unused_columns ddp_find_unused_parameters
    ddp_bucket_cap_mb ddp_broadcast_buffers ddp_static_graph ddp_backend ddp_timeout deepspeed debug
    skip_memory_metrics local_rank include_num_input_tokens_seen""",
    {
        "resume_from_checkpoint": "a run goes on from the last whole checkpoint of its own folder: use --resume true",
        **_each("do_train do_predict", "this script trains, and evaluates with --validation: leave it out"),
        **_each(
            "bf16_full_eval fp16_full_eval", "an evaluation computes in the precision of training: use --bf16 true"
        ),
        **_each(
            "eval_do_concat_batches eval_use_gather_object eval_accumulation_steps include_for_metrics "
            "batch_eval_metrics label_names",
            _LOSSES_ONLY,
        ),
        "average_tokens_across_devices": "the loss is always the mean over all processes: leave it true",
        "label_smoothing_factor": f"{_ONE_DISTRIBUTION}, and each loss is a likelihood: leave it 0",
        **_each("use_liger_kernel liger_kernel_config", f"{_ONE_DISTRIBUTION}: leave it out"),
        **_each(
            "torch_compile torch_compile_backend torch_compile_mode",
            "a loss picks its tokens out of a batch by the data, which a compiled graph cannot follow: leave it out",
        ),
        "use_cache": "a cache helps sampling, which has its own, and no loss: leave it out",
        "neftune_noise_alpha": "the loss must see the very model that is sampled from: leave it out",
        "auto_find_batch_size": "the batch would change in silence, and with it the run: lower "
        "--per_device_train_batch_size and raise --gradient_accumulation_steps",
        "optim_target_modules": "GaLore's and APOLLO's optimizers divide whole matrices and LoRA trains small ones: "
        "choose another --optim",
        **_each(
            "push_to_hub hub_token hub_private_repo hub_model_id hub_strategy hub_always_push hub_revision",
            "nothing is uploaded while training: upload OUTPUT_DIR/adapter, or what export.py writes, with 'hf upload'",
        ),
        "restore_callback_states_from_checkpoint": "--resume true always does: leave it out",
        **_each(
            "accelerator_config parallelism_config",
            "how processes share the work is the launcher's: use a file of configs/accelerate",
        ),
        **_each("fsdp fsdp_config", "FSDP is not supported: use configs/accelerate/zero2.yaml or zero3.yaml"),
        **_each(
            "train_sampling_strategy length_column_name",
            "rows are drawn at random, as they are nearly alike in length: leave it out",
        ),
    },
)
"""What every trainer has from transformers."""

_TRL = {
    "model_init_kwargs": f"{_BASE}, which is opened as it was saved",
    REMOTE_CODE: "no code of a checkpoint is ever run: leave it out",
    "router_aux_loss_coef": "the backbones are no mixtures of experts: leave it out",
    "pad_to_multiple_of": "rows are padded to the longest of their batch: leave it out",
}
_OFFLOAD = "activation_offloading"

SFT = COMMON.with_(
    f"z_loss neftune_noise_alpha train_sampling_strategy length_column_name {_OFFLOAD}",
    {
        **_TRL,
        **_each(
            "chat_template_path dataset_text_field dataset_kwargs dataset_num_proc eos_token pad_token max_length "
            "truncation_mode",
            f"{_TOKENS}: leave it out",
        ),
        **_each(
            "packing packing_strategy padding_free eval_packing",
            "every row is a sequence of its own: choose --per_device_train_batch_size by the memory",
        ),
        **_each(
            "completion_only_loss assistant_only_loss",
            "the loss is always that of what the role predicts, target or action: leave it out",
        ),
        "shuffle_dataset": "rows are shuffled every epoch: leave it out, or use --train_sampling_strategy sequential",
        "loss_type": "the loss is the weighted negative log-likelihood of the role's tokens: leave it 'nll'",
    },
)
"""`RoleConfig`: `train_idm.py`, `train_fdm.py`, `train_best_of_n.py`."""

DPO = COMMON.with_(
    f"loss_type loss_weights ld_alpha f_divergence_type f_alpha_divergence_coef label_smoothing beta discopop_tau "
    f"pad_to_multiple_of {_OFFLOAD}",
    {
        **{name: said for name, said in _TRL.items() if name != "pad_to_multiple_of"},
        "disable_dropout": "dropout is off, or the loss would see another policy than the sampler: leave it true",
        **_each("dataset_num_proc max_length truncation_mode pad_token", f"{_TOKENS}: leave it out"),
        "padding_free": "TRL has switched it off itself: leave it out",
        **_each(
            "precompute_ref_log_probs precompute_ref_batch_size",
            "TRL would take them over the whole vocabulary, before our distribution is set: leave it out",
        ),
        "use_weighting": f"{_ONE_DISTRIBUTION}, and WPO's weights need sums over the whole vocabulary: leave it out",
        **_each(
            "sync_ref_model ref_model_mixup_alpha ref_model_sync_steps",
            "the reference is a copy of the adapter that a round starts from: use more --rounds",
        ),
    },
)
"""`RewindDPOConfig`: `train_dpo.py`."""

# Both values of disable_dropout mean the same here: it is off, or the loss would see another policy than the sampler.
GRPO = COMMON.with_(
    """disable_dropout num_generations num_generations_eval shuffle_dataset generation_batch_size steps_per_generation
    temperature beta num_iterations epsilon delta epsilon_high sapo_temperature_neg sapo_temperature_pos vespo_k_pos
    vespo_lambda_pos vespo_k_neg vespo_lambda_neg importance_sampling_level reward_weights multi_objective_aggregation
    scale_rewards loss_type top_entropy_quantile entropy_coef use_adaptive_entropy entropy_coef_min entropy_coef_max
    entropy_coef_delta entropy_target off_policy_mask_threshold use_bias_correction_kl""",
    {
        **_TRL,
        "data_seed": "the order of the prompts follows --seed: leave it out",
        "include_num_input_tokens_seen": "TRL logs num_tokens, which are as many in every step: leave it out",
        "cast_lm_head_to_fp32": "the head is read as it was saved: leave it out",
        "max_completion_length": "a prediction has as many tokens as the base's pictures: leave it out",
        "ds3_gather_for_generation": "divided weights are always gathered once a rollout: leave it true",
        **_each(
            "top_k top_p min_p",
            "it would move the support of the policy: leave it out when training (sample.py and rerank.py have it)",
        ),
        "repetition_penalty": "image tokens are drawn from the policy as it is: leave it at 1",
        **_each(
            "generation_kwargs cache_implementation",
            "image tokens are drawn by a sampler of our own: use --temperature or --guidance",
        ),
        "chat_template_kwargs": f"{_TOKENS}: leave it out",
        **_each(
            """use_vllm vllm_mode vllm_model_impl vllm_enable_sleep_mode vllm_structured_outputs_regex
            vllm_server_base_url vllm_server_host vllm_server_port vllm_server_timeout vllm_group_port
            vllm_gpu_memory_utilization vllm_max_model_length vllm_tensor_parallel_size
            vllm_importance_sampling_correction vllm_importance_sampling_mode vllm_importance_sampling_clip_max
            vllm_importance_sampling_clip_min vllm_importance_sampling_cap""",
            "image tokens are drawn by a sampler of our own on the policy's weights, and vLLM is not: leave it out",
        ),
        **_each(
            "use_transformers_continuous_batching transformers_continuous_batching_config use_transformers_paged",
            "image tokens are drawn by a sampler of our own, all candidates at once: leave it out",
        ),
        "max_tool_calling_iterations": "there are no tools: leave it out",
        "mask_truncated_completions": "it would mask every prediction, as none ends with an end-of-text token, and "
        "nothing would be trained: leave it false",
        **_each(
            "sync_ref_model ref_model_mixup_alpha ref_model_sync_steps",
            "the reference is a copy of the adapter that training starts from: use --beta alone",
        ),
        **_each(
            "log_completions log_multimodal num_completions_to_print log_unique_prompts log_completions_hub_repo",
            "a prediction is no text to be printed: OUTPUT_DIR/candidates keeps them, and TensorBoard shows those of "
            "--validation",
        ),
    },
)
"""`RewindGRPOConfig`: `train_grpo.py`."""

GRPO_OF_SENTENCES = GRPO.with_(
    "mask_truncated_completions",
    {
        "max_completion_length": "a sentence ends by itself: use --max_sentence_tokens",
        "repetition_penalty": "words are drawn from the policy as it is: leave it at 1",
        **_each(
            "generation_kwargs cache_implementation",
            "words are drawn by a sampler of our own: use --temperature or --max_sentence_tokens",
        ),
        **_each(
            "log_completions log_multimodal num_completions_to_print log_unique_prompts log_completions_hub_repo",
            "OUTPUT_DIR/sentences keeps what was said, and TensorBoard shows that of --validation",
        ),
    },
)
"""The same with `--role idm`."""

MODEL = NONE.with_(
    "use_peft lora_r lora_alpha lora_dropout lora_target_modules lora_modules_to_save use_rslora use_dora "
    "dtype attn_implementation load_in_8bit load_in_4bit",
    {
        **_each("model_name_or_path model_revision", _BASE),
        **_each(
            "bnb_4bit_quant_type use_bnb_nested_quant bnb_4bit_quant_storage",
            "four bits are NF4, computed in --dtype: use --load_in_4bit alone",
        ),
        "lora_target_parameters": "adapters stand on linear layers: use --lora_target_modules",
        "lora_task_type": "both roles are causal language models: leave it out",
    },
)
"""`LoraModelConfig`: `train_idm.py` and `train_fdm.py`."""
