"""Files of Axolotl: ``axolotl train FILE``. Sources: src/axolotl/utils/schemas/*.py, core/builders/rl.py (0.12)."""

from __future__ import annotations

from typing import Any

from prefiere.asked.translation import (
    OF_ALL,
    Keys,
    Leave,
    Take,
    Tool,
    as_ours,
    batch_size,
    dataset,
    half_precision,
    left_out,
    with_revision,
)

_RL = {"dpo": ("dpo", None), "ipo": ("dpo", "ipo"), "orpo": ("dpo", "orpo"), "kto": ("dpo", "kto"),
       "simpo": ("dpo", "simpo"), "grpo": ("grpo", None)}  # fmt: skip
_WATCHED = "a loss that is not finite stops the run, and the guard reads sampled answers"
_OFTEN = "counts updates here; auto makes up to ten a run"


def _method_of(keys: Keys) -> tuple[str, dict[str, Any], set[str]] | None:
    """Our method, the settings that say it, and the keys used up; None where the keys do not say."""
    if keys.get("reward_model"):
        return "reward", {}, {"reward_model", "num_labels", "rl"}
    wanted = keys.get("rl")
    if not wanted:
        return "sft", {}, {"rl", "reward_model"}
    if wanted not in _RL:
        return None
    method, loss = _RL[wanted]
    return method, {"loss_type": loss} if loss else {}, {"rl", "reward_model"}


def _of_trl(value: Any, keys: Keys) -> Take | Leave:
    """The map ``trl`` of a file for GRPO."""
    names = {"beta": "kl_loss_coef", "max_completion_length": "max_new_tokens", "num_generations": "num_generations",
             "temperature": "temperature", "epsilon": "cliprange", "num_iterations": "num_ppo_epochs"}  # fmt: skip
    if not isinstance(value, dict):
        return Leave("a map was expected")
    if any(key in value for key in ("reward_funcs", "reward_weights")):
        rest = "reward_funcs: write reward: module:function"
    else:
        rest = ""
    others = sorted(value.keys() - names.keys() - {"reward_funcs"})
    said = "; ".join(filter(None, [rest, f"{', '.join(others)} have no counterpart" if others else ""]))
    return Take({names[k]: v for k, v in value.items() if k in names and v is not None}, said)


def _tracker(setting: str, tracker: str) -> Any:
    return lambda value, keys: Take({setting: value, "report_to": [tracker]})


def _modules(value: Any, keys: Keys) -> Take | Leave:
    if keys.get("lora_target_linear"):
        return Take() if not value else Leave("lora_target_linear says all of them")
    return Take({"lora_target_modules": value})


def _defaults(method: str, keys: Keys) -> dict[str, Any]:
    """What Axolotl does where a file says nothing, and prefiere otherwise."""
    found: dict[str, Any] = {"num_train_epochs": 1.0, "max_length": 512, "lr_scheduler_type": "cosine"}
    steps, each = keys.get("gradient_accumulation_steps") or 1, keys.get("micro_batch_size") or 1
    if isinstance(each, int) and isinstance(steps, int):
        found["batch_size"] = each * steps
    if not keys.get("adapter"):
        found["lora"] = False
    if method == "dpo":
        found["beta"] = 0.1
    return found


AXOLOTL = Tool(
    "Axolotl",
    frozenset({"base_model", "micro_batch_size", "sequence_len", "val_set_size", "sample_packing", "num_epochs", "rl",
               "lora_model_dir", "dataset_prepared_path", "adapter", "lr_scheduler", "wandb_name"}),
    _method_of,
    {
        "micro_batch_size": batch_size("micro_batch_size", 1),
        "gradient_accumulation_steps": batch_size("micro_batch_size", 1, "gradient_accumulation_steps"),
        "datasets": lambda value, keys: dataset(value, "data"),
        "test_datasets": lambda value, keys: dataset(value, "eval_data"),
        "base_model": lambda value, keys: Take() if keys.get("lora_model_dir") else with_revision(value, keys),
        "lora_model_dir": as_ours("model", "the adapter's folder names its base"),
        "sequence_len": as_ours("max_length", "longer examples are truncated and counted"),
        "val_set_size": as_ours("eval_size", "held out by prompt"),
        "lora_target_modules": _modules,
        "peft_use_dora": as_ours("use_dora"),
        "peft_use_rslora": as_ours("use_rslora"),
        "rl_beta": as_ours("beta"),
        "orpo_alpha": as_ours("beta"),
        "dpo_loss_type": lambda value, keys: Take({"loss_type": value}),
        "kto_desirable_weight": as_ours("desirable_weight"),
        "kto_undesirable_weight": as_ours("undesirable_weight"),
        "cpo_alpha": left_out("simpo has no SFT term of its own here: rpo_alpha adds one, per token"),
        "trl": _of_trl,
        "train_on_inputs": lambda value, keys: Take({"completion_only_loss": not value}),
        "bfloat16": half_precision("bfloat16"),
        "float16": half_precision("float16"),
        "evals_per_epoch": left_out(f"eval_steps {_OFTEN}"),
        "saves_per_epoch": left_out(f"save_steps {_OFTEN}"),
        "wandb_project": _tracker("project", "wandb"),
        "wandb_name": _tracker("run_name", "wandb"),
        "mlflow_experiment_name": _tracker("project", "mlflow"),
        "use_tensorboard": lambda value, keys: Take({"report_to": ["tensorboard"]} if value else {}),
        "chat_template": lambda value, keys: (
            Take() if value == "tokenizer_default" else OF_ALL["chat_template"](value, keys)
        ),
        "model_type": left_out("nothing: the configuration of the model says it"),
        "tokenizer_type": left_out("nothing: the tokenizer's own files say it"),
        "special_tokens": left_out("nothing: the tokenizer's own special tokens are used"),
        "eot_tokens": left_out("nothing: the model's generation_config.json names the tokens that end an answer"),
        "loss_watchdog_threshold": left_out(_WATCHED),
        "loss_watchdog_patience": left_out(_WATCHED),
        "flash_attention": left_out("nothing: the kernel is chosen by the device"),
        "plugins": left_out("nothing: there are no plugins"),
    },
    _defaults,
)  # fmt: skip
