"""Where a run's settings come from: defaults < recipe < flags < key=value.

A recipe is flat YAML. A key that does not exist is an error naming the nearest one; a key that TRL, transformers,
LLaMA-Factory or Axolotl call otherwise is an error naming ours. No torch here.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml
from pydantic import TypeAdapter, ValidationError

from prefiere.methods import METHODS
from prefiere.settings import PolicyGradient, Settings
from prefiere.untrusted import yaml_document


class RecipeError(ValueError):
    """A setting that does not exist or cannot have this value."""


# What others call it, and what to write here.
_FOREIGN = {
    "per_device_train_batch_size gradient_accumulation_steps micro_batch_size": "batch_size: the examples"
    " of one update, which is per_device_train_batch_size x gradient_accumulation_steps x processes; memory has its own"
    " knob, tokens_per_microbatch",
    "global_batch_size train_batch_size": "batch_size",
    "per_device_eval_batch_size eval_batch_size": "tokens_per_microbatch sets the memory of training and validation",
    "auto_find_batch_size": "tokens_per_microbatch: auto does that",
    "model_name_or_path model_name base_model": "model",
    "adapter_name_or_path": "model; give the adapter's folder",
    "dataset dataset_name dataset_path datasets train_file dataset_dir": "data",
    "eval_dataset test_dataset": "eval_data",
    "dataset_train_split split": "data_split",
    "val_size test_size val_set_size": "eval_size",
    "output_dir": "out",
    "run_name logging_dir": "out; the folder's name is the run's",
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
    "warmup_steps": "warmup_ratio, a share of all steps",
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
    "data_seed": "seed",
    "reward_model_path reward_model reward_funcs reward_adapters": "reward",
    "reward_weights": "reward_ensemble",
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
    "use_vllm vllm_mode": "nothing: answers are sampled by the model that is trained",
    "remove_unused_columns preprocessing_num_workers dataloader_num_workers dataset_num_proc": "nothing: leave it out",
}
FOREIGN = {name: ours for names, ours in _FOREIGN.items() for name in names.split()}
# Where answers are sampled, what is a setting of another method here, too.
ON_POLICY_FOREIGN = {
    "beta": "kl_coef (the KL in the reward) or kl_loss_coef (the KL in the loss)",
    "loss_type": "nothing: the loss is a mean over the update's tokens; the method is the command",
}


def accepts(model: type[Settings], key: str) -> str:
    """What a setting may be, in words: ``a number above 0 or auto``."""

    def words(kind: Any) -> list[str]:
        if get_origin(kind) is Annotated:
            return [m for m in get_args(kind) if isinstance(m, str)]
        if get_origin(kind) is Literal:
            return list(get_args(kind))
        if get_origin(kind) is list:
            return ["a list of " + " | ".join(words(get_args(kind)[0]))]
        if get_origin(kind) is dict:
            return ["a map"]
        if args := get_args(kind):
            return [w for a in args for w in words(a)]
        return {bool: ["true", "false"], str: ["text"], NoneType: ["none"]}[kind]

    found = words(get_type_hints(model, include_extras=True)[key])
    return " or ".join([", ".join(found[:-1]), found[-1]] if len(found) > 1 else found)


def _unknown(method: str, key: str) -> str:
    """Why a key does not exist, and which one was meant."""
    model = METHODS[method].settings
    theirs = FOREIGN | (ON_POLICY_FOREIGN if issubclass(model, PolicyGradient) else {})
    if key in theirs:
        return f"{key} is not a setting here; write {theirs[key]}."
    others = [name for name, other in METHODS.items() if key in other.settings.model_fields]
    if others:
        return f"{key} is a setting of method {', '.join(others)}, not of {method}."
    near = difflib.get_close_matches(key, model.model_fields, n=1)
    return f"{key} is not a setting. " + (
        f"Did you mean {near[0]}?" if near else "`prefiere recipe show` lists them all."
    )


def read_keys(path: str | Path) -> dict[str, tuple[Any, str]]:
    """Key -> (value, ``file:line: ``) of a flat YAML file.

    Raises FileNotFoundError where there is none, RecipeError for what is no map of keys.
    """
    try:
        loader, node = yaml_document(Path(path).read_text(encoding="utf-8"))
        if node is None:
            return {}
        if not isinstance(node, yaml.MappingNode):
            raise RecipeError(f"{path}: a recipe is lines of `key: value`, and this file is not.")
        found: dict[str, tuple[Any, str]] = {}
        for key_node, value_node in node.value:
            key, where = str(key_node.value), f"{path}:{key_node.start_mark.line + 1}: "
            if key in found:
                raise RecipeError(f"{where}{key} stands here a second time. Keep one.")
            found[key] = loader.construct_object(value_node, deep=True), where
        return found
    except (FileNotFoundError, IsADirectoryError) as e:
        raise FileNotFoundError(f"{path}: there is no such recipe file. Settings are written key=value.") from e
    except UnicodeDecodeError as e:
        raise RecipeError(f"{path}: not UTF-8 text at byte {e.start}.") from e
    except PermissionError as e:
        raise RecipeError(f"{path}: cannot be read: {e.strerror}.") from e
    except RecipeError:
        raise
    except (ValueError, RecursionError) as e:
        raise RecipeError(f"{path}: not a recipe: {e}.") from e
    except yaml.YAMLError as e:
        line = f":{e.problem_mark.line + 1}" if isinstance(e, yaml.MarkedYAMLError) and e.problem_mark else ""
        problem = e.problem if isinstance(e, yaml.MarkedYAMLError) else " ".join(str(e).split())
        raise RecipeError(f"{path}{line}: not valid YAML: {problem}.") from e


def method_in(path: str | Path) -> str | None:
    """The method that a recipe states, if it does. Raises as `load` does."""
    given = read_keys(path)
    return str(given["method"][0]) if "method" in given else None


def _override(text: str) -> tuple[str, Any]:
    """``key=value`` as key and YAML value; an empty value is none."""
    key, _, value = text.partition("=")
    try:
        return key.strip(), yaml.safe_load(value)
    except yaml.YAMLError as e:
        raise RecipeError(f"{text}: the value is not valid YAML. Quote it: {key}='\"...\"'.") from e


def _check(model: type[Settings], key: str, value: Any) -> Any:
    """What pydantic would take silently or explain badly."""
    kinds = accepts(model, key)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping) and "a map" not in kinds:
        raise RecipeError(
            f"{key} holds nested keys ({', '.join(map(str, value))}). Keys are flat: write each at the margin."
        )
    if isinstance(value, bool) and "true" not in kinds:
        raise RecipeError(f"{key} must be {kinds}, not {str(value).lower()}.")
    return None if isinstance(value, str) and value.lower() == "none" and kinds.endswith("none") else value


def load(
    method: str | None,
    recipe: str | Path | None = None,
    flags: Mapping[str, Any] | None = None,
    overrides: Iterable[str] = (),
) -> Settings:
    """The settings of one run: defaults < recipe < flags < key=value.

    ``method`` is the command (``None``: whatever the recipe says). Raises RecipeError, with file, line and key, or
    FileNotFoundError.
    """
    given = read_keys(recipe) if recipe is not None else {}
    given |= {key: (value, "") for key, value in (flags or {}).items()}
    given |= {key: (value, f"{text}: ") for text in overrides for key, value in [_override(text)]}
    stated, where = given.pop("method", (method, "" if recipe is None else f"{recipe}: "))
    if stated not in METHODS:
        raise RecipeError(f"{where}method must be one of {', '.join(METHODS)}, not {stated!r}.")
    if method is not None and stated != method:
        raise RecipeError(f"{where}this is a recipe for `prefiere {stated}`, not for `prefiere {method}`.")
    model = METHODS[stated].settings
    values: dict[str, Any] = {"method": stated}
    for key, (value, where) in given.items():
        if key not in model.model_fields:
            raise RecipeError(where + _unknown(stated, key))
        try:
            values[key] = _check(model, key, value)
        except RecipeError as e:
            raise RecipeError(f"{where}{e}") from e
    try:
        return model(**values)
    except ValidationError as e:
        raise RecipeError(_explain(model, given, e)) from e


def _left_to_flags(given: Mapping[str, Any]) -> list[str]:
    """What a recipe must have and leaves to the command line."""
    model = _settings_of(str(given["method"][0]) if "method" in given else "")
    return [key for key, field in model.model_fields.items() if field.is_required() and key not in given]


def validate(path: str | Path) -> Settings:
    """Check a recipe that may leave what it must have (``model``, ...) to flags. Raises as `load` does."""
    given = read_keys(path)
    return load(None, path, dict.fromkeys(_left_to_flags(given), "?"))


def _explain(model: type[Settings], given: Mapping[str, tuple[Any, str]], error: ValidationError) -> str:
    """The first thing that is wrong, in one line."""
    first = error.errors(include_url=False)[0]
    if not first["loc"]:  # settings that do not agree: the sentence begins with the key
        message = first["msg"].removeprefix("Value error, ")
        return f"{given.get(message.split()[0], (None, ''))[1]}{message}."
    key = str(first["loc"][0])
    if first["type"] == "missing":
        return (
            f"{key} is missing: give --{key} or write `{key}:` in the recipe ({model.model_fields[key].description})."
        )
    value, where = given[key]
    return f"{where}{key} must be {accepts(model, key)}, not {value!r}."


def _settings_of(method: str) -> type[Settings]:
    """What a method takes; what all take, for a method that there is not."""
    return METHODS[method].settings if method in METHODS else Settings


def changed(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Names of the settings that differ and must not within one run (see ``Settings.free``).

    Both are flat maps as ``model_dump`` gives them; a key that one side lacks has its default there. Keys that are no
    settings (any more) do not count.
    """
    model = _settings_of(str(new.get("method")))
    defaults = {name: field.default for name, field in model.model_fields.items()}
    keys = [k for k in defaults if k not in model.free]
    return [k for k in keys if old.get(k, defaults.get(k)) != new.get(k, defaults.get(k))]


def schema() -> dict[str, Any]:
    """JSON Schema of a recipe, for editors."""
    every = [row.settings for row in METHODS.values()]
    either: Any = Union[tuple(every)]  # noqa: UP007
    inner = TypeAdapter(either).json_schema()
    for model in every:  # flags may supply what a recipe leaves out
        inner["$defs"][model.__name__]["required"] = ["method"]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "prefiere recipe", **inner}


def settings_table(method: str) -> list[tuple[str, str, str, str]]:
    """(key, what it may be, default, meaning) of every setting of a method, in the order of the file."""
    return _rows(METHODS[method].settings, METHODS[method].settings.model_fields)


def _rows(model: type[Settings], keys: Iterable[str]) -> list[tuple[str, str, str, str]]:
    def default(key: str) -> str:
        field = model.model_fields[key]
        if field.is_required():
            return "required"
        return (
            "none" if field.default is None else yaml.safe_dump(field.default, default_flow_style=True).split("\n")[0]
        )

    return [(k, accepts(model, k), default(k), model.model_fields[k].description or "") for k in keys]


def settings_page() -> str:
    """The text of docs/settings.md: the settings of every method, shared ones first."""
    sampling = [name for name, row in METHODS.items() if issubclass(row.settings, PolicyGradient)]
    shared = f"Commands that sample answers ({', '.join(sampling)})"
    tables: list[tuple[str, type[Settings], list[str]]] = [
        ("Every command", Settings, [k for k in Settings.model_fields if k != "method"]),
        (shared, PolicyGradient, _own(PolicyGradient, Settings)),
    ]
    for name, method in METHODS.items():
        above = PolicyGradient if name in sampling else Settings
        tables.append((f"`prefiere {name}`", method.settings, _own(method.settings, above)))
    lines = [
        "# Settings",
        "",
        "Every key of a recipe, and of `key=value` on the command line; what a command has or sets otherwise stands in",
        "its own table. Written by `prefiere recipe show --markdown` from the code.",
    ]
    for title, model, keys in tables:
        lines += ["", f"## {title}", "", "| key | may be | default | meaning |", "| --- | --- | --- | --- |"]
        lines += [
            "| `{}` | {} | {} | {} |".format(*(cell.replace("|", r"\|") for cell in row)) for row in _rows(model, keys)
        ]
    return "\n".join(lines) + "\n"


def _own(model: type[Settings], above: type[Settings]) -> list[str]:
    """The settings, or the defaults, that a class has and the one above it has not."""
    fields = above.model_fields
    return [k for k, f in model.model_fields.items() if k not in fields or fields[k].default != f.default]
