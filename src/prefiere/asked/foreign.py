"""What other tools call a setting, and which of it means the same here.

`HINTS` has a line for each name of TRL, transformers, LLaMA-Factory and Axolotl: what to write instead. `taken` reads
the names and values that say exactly what one of ours says; whatever differs is left to the hint. No torch here.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

_HINTS = {
    "per_device_train_batch_size gradient_accumulation_steps micro_batch_size": "batch_size: the examples"
    " of one update, which is per_device_train_batch_size x gradient_accumulation_steps x processes; memory has its own"
    " knob, tokens_per_microbatch",
    "global_batch_size train_batch_size": "batch_size",
    "per_device_eval_batch_size eval_batch_size": "tokens_per_microbatch sets the memory of training and validation",
    "auto_find_batch_size": "tokens_per_microbatch: auto does that",
    "model_name_or_path model_name base_model": "model",
    "adapter_name_or_path": "model; give the adapter's folder",
    "dataset dataset_name dataset_path datasets train_dataset train_file dataset_dir": "data",
    "eval_dataset test_dataset": "eval_data",
    "dataset_train_split split": "data_split",
    "dataset_config": "data, as owner/name:config",
    "dataset_test_split": "eval_data, as owner/name[split]",
    "val_size test_size val_set_size": "eval_size",
    "output_dir": "out",
    "logging_dir": "out; a tracker's files lie in the run folder",
    "overwrite_output_dir": "the flag --fresh",
    "resume_from_checkpoint": "nothing: the same command continues by itself, and --fresh starts over",
    "bf16 fp16 tf32 torch_dtype compute_type pure_bf16": "dtype (auto, float32, bfloat16, float16)",
    "load_in_4bit load_in_8bit quantization_bit quantization_method use_qlora": "quantize (none, nf4, int8)",
    "use_peft finetuning_type adapter": "lora (auto, true, false)",
    "lora_rank": "lora_r",
    "lora_target lora_target_linear": "lora_target_modules",
    "lora_modules_to_save modules_to_save additional_target init_lora_weights": "peft_config",
    "pref_beta dpo_beta": "beta",
    "pref_loss rl dpo_loss": "loss_type",
    "pref_ftx": "rpo_alpha",
    "dpo_label_smoothing": "label_smoothing",
    "cutoff_len max_seq_length max_seq_len sequence_len model_max_length": "max_length",
    "max_target_length": "max_completion_length",
    "truncation_mode": "nothing: prompts lose their beginning, completions their end; see max_length",
    "stage": "method (sft, dpo, reward), which is the command itself",
    "ref_model reference_model ref_model_name_or_path ref_adapter_name sync_ref_model": "nothing: the reference is"
    " the policy as it was before the run; to start elsewhere, give that as model",
    "reference_free": "loss_type (simpo, orpo and cpo have no reference)",
    "precompute_ref_log_probs": "nothing: the reference is always computed once and reused",
    "padding_free packing group_by_length use_liger_kernel": "nothing: batches are always packed, without padding",
    "train_on_prompt assistant_only_loss mask_history train_on_inputs": "completion_only_loss",
    "chat_template chat_template_path": "template (auto, always, never); the template itself is the model's own",
    "chat_template_kwargs enable_thinking reasoning_effort": "template_kwargs, a map of the template's variables",
    "lr": "learning_rate",
    "lr_scheduler learning_rate_scheduler": "lr_scheduler_type",
    "warmup_ratio": "warmup_steps: below 1 it is a share of all steps",
    "num_epochs epochs n_epochs": "num_train_epochs",
    "optim optimizer": "nothing: it is AdamW; see adam_beta1, adam_beta2, adam_epsilon, weight_decay",
    "clip_grad gradient_clipping": "max_grad_norm",
    "do_train do_eval do_predict": "nothing: a command trains and validates",
    "eval_strategy evaluation_strategy": "eval_steps",
    "save_strategy": "save_steps",
    "logging_strategy": "logging_steps",
    "load_best_model_at_end": "metric_for_best_model",
    "patience early_stopping": "early_stopping_patience",
    "attn_implementation flash_attn flash_attention": "attn",
    "push_to_hub hub_model_id": "nothing: `prefiere export` writes a folder to upload",
    "deepspeed fsdp fsdp_config ddp_timeout": "nothing: start several processes with `torchrun -m prefiere ...`",
    "fsdp_offload_params enable_cpu_offload offload_params offload_optimizer": "cpu_offload",
    "sp_size sequence_parallel_degree context_parallel_size ulysses_sequence_parallel_size": "sequence_parallel_size",
    "data_seed": "seed",
    "reward_model_path reward_model reward_funcs reward_adapters": "reward",
    "reward_clip_range": "reward_clip",
    "whiten_rewards ppo_whiten_rewards ppo_score_norm normalize_reward": "scale_rewards; whiten_advantages is on top",
    "normalize_advantages": "whiten_advantages",
    "sft_model_path": "model; the reference is what it was before the run",
    "value_model_path critic_model_path": "nothing: the critic begins as the reward model where the shapes agree",
    "response_length": "max_new_tokens",
    "generation_batch_size rollout_batch_size ppo_buffer_size": "batch_size: the prompts of one rollout",
    "local_rollout_forward_batch_size": "tokens_per_microbatch",
    "total_episodes": "max_steps, each of batch_size x num_generations answers; or num_train_epochs",
    "rloo_k n_samples_per_prompt": "num_generations",
    "num_iterations ppo_epochs": "num_ppo_epochs",
    "steps_per_generation": "num_mini_batches",
    "epsilon epsilon_high clip_range clip_ratio": "cliprange",
    "delta": "dual_clip",
    "init_kl_coef init_kl_coeff": "kl_coef",
    "adap_kl_ctrl kl_target ppo_target": "target_kl: nats per answer that kl_coef is steered towards; none keeps it",
    "kl_estimator": "nothing: k1 in the reward (kl_coef), k2 in the loss (kl_loss_coef), k3 in the log",
    "mask_truncated_completions": "missing_eos_penalty",
    "top_p top_k min_p repetition_penalty": "nothing: training samples from the policy that it optimises",
    "stop_token stop_token_id": "nothing: the model's own end tokens end an answer",
    "num_sample_generations log_completions": "sample_steps",
    "use_vllm vllm_mode vllm_server_base_url": "rollouts (the address of a vLLM server)",
    "remove_unused_columns preprocessing_num_workers dataloader_num_workers dataset_num_proc": "nothing: leave it out",
}
HINTS = {name: ours for names, ours in _HINTS.items() for name in names.split()}
# Where answers are sampled, what is a setting of another method here, too.
ON_POLICY_HINTS = {
    "beta": "kl_coef (the KL in the reward) or kl_loss_coef (the KL in the loss)",
    "loss_type": "nothing: the loss is a mean over the update's tokens; the method is the command",
}

# Ours, and other names for it whose values mean the same.
_SAME = {
    "model": "model_name_or_path model_name base_model",
    "data": "dataset_name dataset_path train_file train_dataset",
    "eval_data": "eval_dataset",
    "data_split": "dataset_train_split",
    "out": "output_dir",
    "max_length": "cutoff_len max_seq_length max_seq_len model_max_length",
    "beta": "pref_beta dpo_beta",
    "label_smoothing": "dpo_label_smoothing",
    "rpo_alpha": "pref_ftx",
    "lora_r": "lora_rank",
    "learning_rate": "lr",
    "lr_scheduler_type": "lr_scheduler learning_rate_scheduler",
    "num_train_epochs": "num_epochs epochs n_epochs",
    "max_grad_norm": "clip_grad gradient_clipping",
    "early_stopping_patience": "patience",
    "sequence_parallel_size": "sp_size sequence_parallel_degree context_parallel_size ulysses_sequence_parallel_size",
    "max_new_tokens": "response_length",
    "reward": "reward_model_path reward_model reward_funcs",
    "kl_coef": "init_kl_coef init_kl_coeff",
    "cliprange": "epsilon clip_range clip_ratio",
    "dual_clip": "delta",
    "num_generations": "rloo_k n_samples_per_prompt",
    "num_ppo_epochs": "num_iterations ppo_epochs",
}
_OURS = {name: ours for ours, names in _SAME.items() for name in names.split()}


def ours_of(key: str) -> str:
    """Our name for a setting that another tool calls otherwise and means alike; any other as it is."""
    return _OURS.get(key, key)


# A name and a value of theirs, and what that is here. Nothing: what is done here in any case.
_OPTIMIZERS = ("adamw", "adamw_hf", "adamw_torch", "adamw_torch_fused")
_VALUES: dict[str, dict[Hashable, dict[str, Any]]] = {
    "use_peft": {True: {"lora": True}, False: {"lora": False}},
    "finetuning_type": {"lora": {"lora": True}, "full": {"lora": False}},
    "adapter": {"lora": {"lora": True}, "qlora": {"lora": True, "quantize": "nf4"}},
    "load_in_4bit": {True: {"quantize": "nf4"}, False: {}},
    "load_in_8bit": {True: {"quantize": "int8"}, False: {}},
    "quantization_bit": {4: {"quantize": "nf4"}, 8: {"quantize": "int8"}, None: {}},
    "lora_target": {"all": {"lora_target_modules": "all-linear"}},
    "lora_target_linear": {True: {"lora_target_modules": "all-linear"}, False: {}},
    "torch_dtype": {t: {"dtype": t} for t in ("auto", "float32", "bfloat16", "float16")},
    "optim": {name: {} for name in _OPTIMIZERS},
    "optimizer": {name: {} for name in _OPTIMIZERS},
    "do_train": {True: {}},
    "do_eval": {True: {}},
    "overwrite_output_dir": {False: {}},
    "resume_from_checkpoint": {None: {}, True: {}},
    "push_to_hub": {False: {}},
    "eval_strategy": {"steps": {}},
    "evaluation_strategy": {"steps": {}},
    "save_strategy": {"steps": {}},
    "logging_strategy": {"steps": {}},
    "auto_find_batch_size": {True: {"tokens_per_microbatch": "auto"}},
}


def taken(key: str, value: Any) -> Mapping[str, Any] | None:
    """Our settings that say exactly what ``key: value`` of another tool says; None where none do."""
    if (ours := _OURS.get(key)) is not None:
        return {ours: value}
    if key == "warmup_ratio" and isinstance(value, int | float) and 0 <= value < 1:
        return {"warmup_steps": value}
    known = _VALUES.get(key)
    if known is None or not isinstance(value, Hashable):
        return None
    return next((said for theirs, said in known.items() if theirs == value and type(theirs) is type(value)), None)


def of_an_update(said: Mapping[str, Any]) -> str | None:
    """The ``batch_size`` that keys of transformers' trainer come to together, in words; None where they say none."""
    examples, steps = "per_device_train_batch_size", "gradient_accumulation_steps"
    each, several = said.get(examples), said.get(steps)
    if not isinstance(each, int) or not isinstance(several, int):
        return None
    return f"batch_size={each * several}: {examples} {each} x {steps} {several}, times the processes that train"
