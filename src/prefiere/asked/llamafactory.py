"""Files of LLaMA-Factory: ``llamafactory-cli train FILE``. Sources: src/llamafactory/hparams/*.py (0.9)."""

from __future__ import annotations

from typing import Any

from prefiere.asked.translation import Keys, Leave, Take, Tool, as_ours, batch_size, left_out, with_revision

_STAGES = {"sft": "sft", "dpo": "dpo", "kto": "dpo", "rm": "reward", "ppo": "ppo", "pt": "sft"}
_NAMED = "is a name in dataset_info.json there: give the file or hub id that it stands for"


def _method_of(keys: Keys) -> tuple[str, dict[str, Any], set[str]] | None:
    """Our method, the settings that say it, and the keys used up; None where the keys do not say."""
    stage = keys.get("stage", "sft")
    if stage not in _STAGES:
        return None
    said: dict[str, dict[str, Any]] = {"kto": {"loss_type": "kto"}, "pt": {"completion_only_loss": False}}
    return _STAGES[stage], said.get(stage, {}), {"stage"}


def _loss(value: Any, keys: Keys) -> Take | Leave:
    if keys.get("stage") == "kto":
        return Take()
    return Leave("kto learns from single answers: stage kto") if value == "kto_pair" else Take({"loss_type": value})


def _modules(value: Any, keys: Keys) -> Take | Leave:
    names = [n.strip() for n in str(value).split(",")]
    return Take({"lora_target_modules": "all-linear" if names == ["all"] else names})


def _tuning(value: Any, keys: Keys) -> Take | Leave:
    if value in ("lora", "full"):
        return Take({"lora": value == "lora"})
    return Leave("there is lora, full, or any adapter of PEFT by peft_config")


def _bits(value: Any, keys: Keys) -> Take | Leave:
    return Take({"quantize": {4: "nf4", 8: "int8"}[value]}) if value in (4, 8) else Leave("quantize has nf4 and int8")


def _defaults(method: str, keys: Keys) -> dict[str, Any]:
    """What LLaMA-Factory does where a file says nothing, and prefiere otherwise."""
    found: dict[str, Any] = {"learning_rate": 5e-5, "num_train_epochs": 3.0, "warmup_steps": 0.0, "max_length": 2048}
    found["lr_scheduler_type"] = "linear"
    steps, each = keys.get("gradient_accumulation_steps") or 1, keys.get("per_device_train_batch_size") or 8
    if isinstance(each, int) and isinstance(steps, int):
        found["batch_size"] = each * steps
    if keys.get("finetuning_type", "lora") == "lora":
        rank = keys.get("lora_rank") or 8
        found |= {"lora": True, "lora_r": rank, "lora_alpha": 2.0 * rank if isinstance(rank, int) else 16.0}
    if method == "dpo":
        found["beta"] = 0.1
        if keys.get("pref_loss") == "simpo":
            found["simpo_gamma"] = 0.5
    return found


LLAMA_FACTORY = Tool(
    "LLaMA-Factory",
    frozenset({"stage", "finetuning_type", "cutoff_len", "pref_loss", "pref_beta", "lora_target", "do_train",
               "template", "dataset_dir", "plot_loss", "quantization_bit"}),
    _method_of,
    {
        "per_device_train_batch_size": batch_size("per_device_train_batch_size", 8),
        "gradient_accumulation_steps": batch_size("per_device_train_batch_size", 8, "gradient_accumulation_steps"),
        "dataset": left_out(f"it {_NAMED}, as data"),
        "eval_dataset": left_out(f"it {_NAMED}, as eval_data"),
        "dataset_dir": left_out("data is named by its file, folder or hub id"),
        "model_name_or_path": lambda value, keys: (
            Take() if keys.get("adapter_name_or_path") else with_revision(value, keys)
        ),
        "adapter_name_or_path": lambda value, keys: (
            Take({"model": value}, "the adapter's folder names its base") if "," not in str(value)
            else Leave("one adapter at a time")
        ),
        "finetuning_type": _tuning,
        "lora_target": _modules,
        "lora_alpha": as_ours("lora_alpha"),
        "quantization_bit": _bits,
        "quantization_method": lambda value, keys: (
            Take() if value in ("bnb", "bitsandbytes") else Leave("quantize holds a base by bitsandbytes' nf4 or int8")
        ),
        "pref_loss": _loss,
        "kto_chosen_weight": as_ours("desirable_weight"),
        "kto_rejected_weight": as_ours("undesirable_weight"),
        "ppo_epochs": as_ours("num_ppo_epochs"),
        "ppo_target": as_ours("target_kl", "in nats per answer"),
        "ppo_whiten_rewards": left_out("nothing: scale_rewards divides by their deviation, whiten_advantages is on"),
        "reward_model": as_ours("reward"),
        "template": left_out("nothing: the model's own chat template is used; template here is auto, always or never"),
        "enable_thinking": lambda value, keys: Take({"template_kwargs": {"enable_thinking": value}}),
        "train_on_prompt": lambda value, keys: Take({"completion_only_loss": not value}),
        "val_size": as_ours("eval_size", "held out by prompt"),
        "max_samples": left_out("all of data is read: make a smaller file, or set max_steps"),
        "plot_loss": left_out("nothing: report.html has the curves"),
        "save_only_model": left_out("nothing: checkpoints hold what a resume needs; model/ is the result"),
        "disable_gradient_checkpointing": lambda value, keys: Take({"gradient_checkpointing": not value}),
        "flash_attn": left_out("nothing: the kernel is chosen by the device"),
        "pure_bf16": lambda value, keys: Leave("what is trained is held in fp32") if value else Take(),
        "early_stopping_steps": left_out("early_stopping_patience, with metric_for_best_model"),
    },
    _defaults,
)  # fmt: skip
