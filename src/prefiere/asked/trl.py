"""Files and commands of TRL (1.16): ``trl dpo --config``, and its example scripts. Sources: trl/trainer/*_config.py."""

from __future__ import annotations

from typing import Any

from prefiere.asked.translation import Keys, Leave, Take, Tool, as_ours, batch_size, dataset, left_out

SCRIPTS = {
    "dpo": ("dpo", None), "sft": ("sft", None), "reward": ("reward", None), "reward_modeling": ("reward", None),
    "kto": ("dpo", "kto"), "orpo": ("dpo", "orpo"), "cpo": ("dpo", "cpo"), "ppo": ("ppo", None),
    "ppo_tldr": ("ppo", None), "rloo": ("rloo", None), "grpo": ("grpo", None),
}  # fmt: skip
"""Trainers and scripts: our method and loss."""

_TELLS = (
    ("kto", {"desirable_weight", "undesirable_weight"}),
    ("reward", {"center_rewards_coefficient"}),
    ("ppo", {"sft_model_path", "reward_model_path", "num_ppo_epochs", "vf_coef"}),
    ("rloo", {"normalize_advantages", "rloo_k", "reward_clip_range"}),
    ("grpo", {"num_generations", "reward_funcs", "max_completion_length", "importance_sampling_level"}),
    ("dpo", {"beta", "loss_type", "precompute_ref_log_probs", "ld_alpha", "sync_ref_model", "label_smoothing"}),
    ("sft", {"completion_only_loss", "assistant_only_loss", "packing", "dataset_text_field", "eval_packing"}),
)
"""Keys that only one trainer has, the surest first."""


def trainer_of(keys: Keys) -> str | None:
    """The trainer that a file's keys are for; None where they fit several."""
    return next((trainer for trainer, marks in _TELLS if marks & keys.keys()), None)


def _method_of(keys: Keys) -> tuple[str, dict[str, Any], set[str]] | None:
    """Our method, the settings that say it, and the keys used up; None where the keys do not say."""
    trainer = keys.get("trainer") or trainer_of(keys)
    if trainer not in SCRIPTS:
        return None
    method, loss = SCRIPTS[trainer]
    return method, {"loss_type": loss} if loss else {}, {"trainer"} | ({"loss_type"} if loss == "kto" else set())


def _data(value: Any, keys: Keys) -> Take | Leave:
    name = str(value)
    if keys.get("dataset_config"):
        name += f":{keys['dataset_config']}"
    found = {"data": name}
    if keys.get("eval_strategy", "no") != "no" and keys.get("dataset_test_split"):
        found["eval_data"] = f"{name}[{keys['dataset_test_split']}]"
    return Take(found, _of_conversations(keys))


def _of_conversations(keys: Keys) -> str:
    """What imitation learns of a conversation where a file of TRL leaves that to it."""
    said = keys.get("completion_only_loss") is not None or keys.get("assistant_only_loss")
    if said or (_method_of(keys) or ("dpo",))[0] != "sft":
        return ""
    return "of conversations the answers are learnt, theirs learns every turn (completion_only_loss: false does)"


def _datasets(value: Any, keys: Keys) -> Take | Leave:
    found = dataset(value, "data")
    if isinstance(found, Leave):
        return found
    return Take(found.settings, "; ".join(filter(None, [found.differs, _of_conversations(keys)])))


def _tie(value: Any, keys: Keys) -> Take | Leave:
    """``beta`` is the loss's own for pairs, and the price of the KL for sampled answers."""
    method = (_method_of(keys) or ("dpo",))[0]
    if method == "grpo":
        return Take(
            {"kl_loss_coef": value}, "their estimator of the KL in the loss is k3, ours k2: the same to first order"
        )
    return Take({"kl_coef" if method in ("ppo", "rloo") else "beta": value})


def _losses(value: Any, keys: Keys) -> Take | Leave:
    method = (_method_of(keys) or ("dpo",))[0]
    if method == "sft":
        return Take() if value == "nll" else Leave("imitation has the negative log-likelihood alone")
    if method != "dpo":
        return Leave("the loss is a mean over the update's tokens")
    if isinstance(value, list) and len(value) > 1:
        return Leave("one loss at a time; an added SFT term is rpo_alpha")
    return Take({"loss_type": value[0] if isinstance(value, list) and value else value})


def _answer(value: Any, keys: Keys) -> Take | Leave:
    samples = (_method_of(keys) or ("dpo",))[0] not in ("dpo", "sft")
    return Take({"max_new_tokens" if samples else "max_completion_length": value})


def _rewards(value: Any, keys: Keys) -> Take | Leave:
    named = [value] if isinstance(value, str) else list(value)
    if not all("." in n or "/" in n for n in named):
        return Leave("its own reward functions are not here: write module:function, or name a reward model")
    ours = [n if "/" in n else ":".join(n.rsplit(".", 1)) for n in named]
    return Take({"reward": ours[0] if len(ours) == 1 else ours})


def _defaults(method: str, keys: Keys) -> dict[str, Any]:
    """What TRL's trainers do where a file says nothing, and prefiere otherwise."""
    rate = {"sft": 2e-5, "reward": 1e-4, "dpo": 1e-6, "ppo": 3e-6}.get(method, 1e-6)
    found: dict[str, Any] = {"learning_rate": rate, "num_train_epochs": 3.0, "warmup_steps": 0.0}
    found["lr_scheduler_type"] = "linear"
    several = {"grpo": 8, "rloo": 2}.get(method, 1)
    given = keys.get("num_generations")
    several = given if isinstance(given, int) else several
    steps = keys.get("gradient_accumulation_steps") or 1
    each = keys.get("per_device_train_batch_size") or 8
    if isinstance(each, int) and isinstance(steps, int):
        found["batch_size"] = max(1, each * steps // several)
    if method in ("grpo", "rloo"):
        found |= {"num_generations": several, "max_new_tokens": 512}
        found |= {"kl_loss_coef": 0.0} if method == "grpo" else {"kl_coef": 0.05}
    if keys.get("use_peft"):
        found |= {"lora_r": 16, "lora_alpha": 32.0, "lora_dropout": 0.05}
    else:
        found |= {"lora": False}
    return found


_OTHERS = {
    "num_sample_generations": "sample_steps",
    "dataset_test_split": "nothing: without eval_strategy no split is validated on; prefiere holds out prompts of data",
}
TRL = Tool(
    "TRL",
    frozenset({"dataset_name", "model_name_or_path", "use_peft", "dataset_train_split", "dataset_test_split",
               "dataset_config", "attn_implementation", "trainer"}),
    _method_of,
    {
        "per_device_train_batch_size": batch_size("per_device_train_batch_size", 8),
        "gradient_accumulation_steps": batch_size("per_device_train_batch_size", 8, "gradient_accumulation_steps"),
        "dataset_name": _data,
        "dataset_config": lambda value, keys: Take(),
        "dataset_test_split": lambda value, keys: (
            Take() if keys.get("eval_strategy", "no") != "no" else Leave(_OTHERS["dataset_test_split"])
        ),
        "datasets": _datasets,
        "beta": _tie,
        "loss_type": _losses,
        "reward_funcs": _rewards,
        "reward_model_name_or_path": as_ours("reward"),
        "max_completion_length": _answer,
        "scale_rewards": left_out("nothing: grpo divides by the deviation of a prompt's answers, rloo does not"),
        "assistant_only_loss": lambda value, keys: Take({"completion_only_loss": True} if value else {}),
        "sft_model_path": as_ours("model"),
        "bnb_4bit_quant_type": lambda value, keys: Take() if value == "nf4" else Leave("quantize has nf4"),
        "use_bnb_nested_quant": left_out("nothing: scales are kept as they are"),
        "use_peft": lambda value, keys: Take(
            {"lora": bool(value)},
            "lora_target_modules: all-linear; theirs, without a word, are those that PEFT has for the model"
            if value and not keys.get("lora_target_modules")
            else "",
        ),
        "env": left_out("set variables of the environment before the command"),
    },
    _defaults,
)  # fmt: skip
