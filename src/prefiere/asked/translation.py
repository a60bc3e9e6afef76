"""From one key of another tool to ours: what is taken over, what differs, what has no counterpart. No torch here."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Keys = Mapping[str, Any]
"""All keys of a file and their values."""


@dataclass(frozen=True, slots=True)
class Take:
    """What a key says in our settings, and how that differs from what it said; no settings: it is done in any case."""

    settings: Mapping[str, Any] = field(default_factory=dict)
    differs: str = ""


@dataclass(frozen=True, slots=True)
class Leave:
    """Why a key has no counterpart."""

    why: str


Rule = Callable[[Any, Keys], Take | Leave]


@dataclass(frozen=True, slots=True)
class Tool:
    """Another tool.

    marks: keys that tell its files. method: our method, the settings that say it, and the keys that this uses up; None
    where the keys do not say. rules: keys that mean something of their own there. defaults: what its files leave
    to the tool, for a method and the file's keys.
    """

    name: str
    marks: frozenset[str]
    method: Callable[[Keys], tuple[str, dict[str, Any], set[str]] | None]
    rules: Mapping[str, Rule]
    defaults: Callable[[str, Keys], dict[str, Any]]


def left_out(why: str) -> Rule:
    """A rule for what has no counterpart."""
    return lambda value, keys: Leave(why)


def as_ours(key: str, differs: str = "") -> Rule:
    """A rule for the same value under our name."""
    return lambda value, keys: Take({key: value}, differs)


def batch_size(examples: str, default: int, key: str = "") -> Rule:
    """The examples of an update from those of a device, whose key is ``examples``, and accumulated steps."""

    def rule(value: Any, keys: Keys) -> Take | Leave:
        each, steps = keys.get(examples) or default, keys.get("gradient_accumulation_steps") or 1
        if not isinstance(each, int) or not isinstance(steps, int):
            return Leave(f"batch_size is {examples} x gradient_accumulation_steps x processes: write the product")
        said = f"{examples} {each} x gradient_accumulation_steps {steps}, of one process: times their number"
        several = keys.get("num_generations")
        if key and keys.get(examples):  # it is said where that key is
            said = ""
        if isinstance(several, int) and several > 1 and (each * steps) % several == 0:
            said += f", by {several} answers to a prompt" if said else ""
            return Take({"batch_size": each * steps // several}, said)
        return Take({"batch_size": each * steps}, said)

    return rule


def with_revision(value: Any, keys: Keys) -> Take:
    """A model, at the revision that the file names where it is one of the hub."""
    revision = keys.get("model_revision") or keys.get("revision_of_model") or "main"
    on_hub = re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", str(value)) and not Path(str(value)).exists()
    return Take({"model": f"{value}@{revision}" if on_hub and revision != "main" else value})


def _revision(value: Any, keys: Keys) -> Take | Leave:
    """The revision of a model of the hub, which `with_revision` writes after its name."""
    adapter = keys.get("adapter_name_or_path") or keys.get("lora_model_dir")
    name = None if adapter else keys.get("model_name_or_path") or keys.get("base_model")
    with_it = value == "main" or (name is not None and with_revision(name, keys).settings["model"] == f"{name}@{value}")
    return Take() if with_it else Leave("model takes a revision after its name on the hub: model: owner/name@revision")


def trackers(value: Any, keys: Keys) -> Take | Leave:
    """``report_to``: a tracker, several, or none of them."""
    named = [value] if isinstance(value, str) else list(value or [])
    known = [name for name in named if name in ("tensorboard", "wandb", "trackio", "mlflow")]
    odd = [name for name in named if name not in (*known, "none")]
    if odd:
        return Leave(f"{', '.join(map(str, odd))}: there are tensorboard, wandb, trackio and mlflow")
    return Take({"report_to": known} if known else {})


def half_precision(dtype: str) -> Rule:
    """``bf16`` or ``fp16``."""

    def rule(value: Any, keys: Keys) -> Take | Leave:
        if value == "auto":
            return Take({"dtype": "auto"})
        return Take({"dtype": dtype}, "of products; what is trained is held in fp32") if value else Take()

    return rule


def dataset(spec: Any, where: str) -> Take | Leave:
    """One data set of a list of maps (path, name, split, fields), for ``data`` or ``eval_data``."""
    several = isinstance(spec, list) and len(spec) > 1
    one = spec[0] if isinstance(spec, list) and spec else spec
    if several or not isinstance(one, Mapping) or not one.get("path"):
        return Leave("one source is read: put the files into one folder, or name one of them as data")
    name, split = str(one["path"]), one.get("split")
    if one.get("name"):
        name += f":{one['name']}"
    if split and (where == "eval_data" or split != "train"):
        name += f"[{split}]"
    found: dict[str, Any] = {where: name}
    ours = {"prompt": "field_prompt field_instruction", "chosen": "field_chosen", "rejected": "field_rejected",
            "completion": "field_completion field_output", "messages": "field_messages"}  # fmt: skip
    columns = {us: one[key] for us, names in ours.items() for key in names.split() if one.get(key) and one[key] != us}
    if "chosen" in one or "field_chosen" in one:
        columns = {("prompt" if us == "messages" else us): theirs for us, theirs in columns.items()}
    if columns and where == "data":
        found["columns"] = columns
    others = sorted(one.keys() - {"path", "name", "split"} - {k for names in ours.values() for k in names.split()})
    return Take(found, f"the layout is detected: {', '.join(others)} not taken over" if others else "")


_MACHINE = "nothing: it changes speed or memory of their trainer, and no result here"
OF_ALL: dict[str, Rule] = {
    "bf16": half_precision("bfloat16"),
    "fp16": half_precision("float16"),
    "tf32": left_out("nothing: the products' precision follows dtype"),
    "report_to": trackers,
    "max_steps": lambda value, keys: Take({"max_steps": value} if isinstance(value, int) and value > 0 else {}),
    "eval_strategy": lambda value, keys: (
        Take() if value == "steps" else Leave("eval_steps counts updates between validations; auto makes up to ten")
    ),
    "save_strategy": lambda value, keys: (
        Take() if value == "steps" else Leave("save_steps counts updates between checkpoints; auto makes up to ten")
    ),
    "overwrite_output_dir": left_out("nothing: a command continues its run; --fresh starts over"),
    "attn_implementation": left_out("nothing: the kernel is chosen by the device; attn says packed or padded rows"),
    "gradient_checkpointing_kwargs": left_out(_MACHINE),
    "chat_template": left_out("the model's own chat template is used: give its tokenizer another to have another"),
    "logging_first_step": left_out("nothing: step 0, the model before any update, is always logged"),
    "further commands": left_out("the first command is read alone"),
    "model_name_or_path": with_revision,
    "base_model": with_revision,
    "model_revision": _revision,
    "revision_of_model": _revision,
    **dict.fromkeys(
        ("ddp_timeout", "ddp_find_unused_parameters", "preprocessing_num_workers", "dataloader_num_workers",
         "dataset_num_proc", "dataset_processes", "dataloader_pin_memory", "remove_unused_columns", "low_cpu_mem_usage",
         "use_liger_kernel", "enable_liger_kernel", "packing", "neat_packing", "sample_packing", "eval_sample_packing",
         "pad_to_sequence_len", "group_by_length", "padding_free", "cache_dir", "dataset_prepared_path"),
        left_out(_MACHINE),
    ),
}  # fmt: skip
"""Keys of transformers' trainer and of what is built on it."""


_OPTIONS = re.compile(r"""
    (?:[ \t]+ (?!\d*[<>])                  # a word; no redirection
      (?: " (?:\\.|[^"\\])* " | ' [^']* ' | \\. | \$\([^()]*\)
        | (?<=\S) \# | [^\s"'\\;&|<>()`#] )+
    )*""", re.VERBOSE | re.DOTALL)  # fmt: skip
"""Words of a shell up to an operator, a comment or the end of the line."""


def command_words(text: str) -> tuple[str, dict[str, Any], int] | None:
    """The trainer and the options of the first command of TRL in a text (a shell script, a notebook's cells, a
    docstring), and how many follow it; None where there is none. Raises ValueError for a quote that is not closed."""
    whole = re.sub(r"\\[ \t]*\n\s*", " ", text)
    commands = list(re.finditer(r"(?:\btrl\s+(\w+)|(\w+)\.py)(?=[ \t]+--?[\w-])", whole))
    if not commands:
        return None
    found = commands[0]
    typed = _OPTIONS.match(whole, found.end())
    assert typed is not None  # no words are words, too
    if whole[typed.end() :].lstrip(" \t").startswith(('"', "'")):
        raise ValueError(f"a quote of the command {found[0]} is not closed")
    options: dict[str, Any] = {}
    words = shlex.split(typed[0])
    while words:
        name, equals, value = words.pop(0).lstrip("-").partition("=")
        values = [value] if equals else []
        while not equals and words and not words[0].startswith("--"):
            values.append(words.pop(0))
        key = name.replace("-", "_")
        if not values and key.startswith("no_"):
            options[key.removeprefix("no_")] = False
        else:
            options[key] = values if len(values) > 1 else values[0] if values else True
    return found[1] or found[2], options, len(commands) - 1
