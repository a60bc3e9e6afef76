"""A model card from what a run recorded: what it learnt from, how, what came of it. Nothing is read but the folder.

Texts of a run may be a stranger's: they stand as code, and a path of this machine by its last part.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from prefiere.asked.language import count_of
from prefiere.doctor.case import Case
from prefiere.doctor.diagnose import diagnose
from prefiere.doctor.words import evidence_line
from prefiere.files import visible
from prefiere.methods import FIGURES, METHODS
from prefiere.run import Run, RunError, given_as

NOT_SHOWN = ("method", "model", "data", "out", "eval_data", "report_to")
"""Settings that stand elsewhere on the card, or are nobody's business."""


def model_card(run: Run, *, adapter: bool, step: int | None = None) -> ModelCard:
    """The card of a run's model. adapter: it is a PEFT adapter, not a whole model. step: of an earlier model.

    Raises RunError for a folder that is no run.
    """
    recipe, method = run.recipe, METHODS.get(str(run.recipe.get("method")))
    if method is None:
        raise RunError(f"{run.folder / 'recipe.yaml'} names no method: this is no run to make a card of.")
    base, data = str(recipe.get("model", "")), str(recipe.get("data", ""))
    reward = method.family == "reward"
    told = ModelCardData(
        base_model=base if _on_hub(base) else None,
        datasets=[_bare(data)] if _on_hub(data) and ":" not in data.split("/")[0] else None,
        library_name="peft" if adapter else "transformers",
        pipeline_tag="text-classification" if reward else "text-generation",
        tags=["prefiere", method.name, *(["lora"] if adapter else []), *(["reward-model"] if reward else [])],
    )
    parts = [
        f"# {visible(Path(run.folder).resolve().name)}",
        f"{_code(_short(base))}, trained by {method.title} on {_code(_short(data))} with prefiere.",
        "## What came of it",
        *(
            [f"This is the model after {count_of(step, 'update')}; what follows was measured at the end of its run."]
            if step
            else []
        ),
        *_outcome(run, method.family),
        "## How to use it",
        _use(base, adapter, reward),
        "## What it learnt from",
        *_data(run.data),
        "## Settings",
        "What differs from the defaults; `recipe.yaml` of the run has all.",
        _settings(recipe),
        "## Versions",
        _versions(run.environment.get("versions")),
    ]
    return ModelCard(f"---\n{told.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n")


def _on_hub(name: str) -> bool:
    """Whether a name is a hub id, as far as a name tells."""
    parts = _bare(name).split("/")
    return len(parts) == 2 and all(parts) and parts[0][0] not in "./~" and not Path(name).exists()


def _bare(name: str) -> str:
    return name.split("@")[0].split("[")[0].split(":")[0]


def _short(name: str) -> str:
    """A name that tells nothing of this machine."""
    return name if _on_hub(name) else (given_as(name) or Path(name).name or name)


def _told(value: Any) -> str:
    """A setting as text that tells nothing of this machine, however deep a path lies in it."""
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_told, value)) + "]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k}: {_told(v)}" for k, v in value.items()) + "}"
    return _short(value) if isinstance(value, str) else str(value)


def _code(text: str) -> str:
    return f"`{visible(text).replace('`', chr(39))}`"


def _outcome(run: Run, family: Any) -> list[str]:
    case = Case(run)
    lines = [visible(diagnose(run).headline)]
    seen = [s for name in FIGURES[family] if (s := case.seen(name)) is not None]
    lines += ["\n".join(f"- {visible(str(evidence_line(s.key, s.change, *case.where)))}" for s in seen)] if seen else []
    return [line for line in lines if line]


def _use(base: str, adapter: bool, reward: bool) -> str:
    kind = "AutoModelForSequenceClassification" if reward else "AutoModelForCausalLM"
    labels = ", num_labels=1" if reward else ""
    lines = [f"from transformers import {kind}, AutoTokenizer", "", 'folder = "..."  # this repository or its folder']
    if adapter:
        lines[0:0] = ["from peft import PeftModel"]
        lines += [
            f"base = {kind}.from_pretrained({_short(base)!r}{labels})",
            "model = PeftModel.from_pretrained(base, folder)",
        ]
    else:
        lines += [f"model = {kind}.from_pretrained(folder)"]
    return "\n".join(["```python", *lines, "tokenizer = AutoTokenizer.from_pretrained(folder)", "```"])


def _data(account: Mapping[str, Any]) -> list[str]:
    """What was read, kept and left out, as far as it was recorded."""
    lines = []
    examples = account.get("examples")
    if isinstance(examples, Mapping):
        train, held = examples.get("train"), examples.get("eval")
        if isinstance(train, int) and isinstance(held, int):
            lines.append(f"- {count_of(train, 'example')} to train on, {held:,} held out")
    for name, part in (("data", account.get("train")), ("eval_data", account.get("eval"))):
        read = part.get("read") if isinstance(part, Mapping) else None
        if isinstance(read, Mapping):
            lost = ", ".join(f"{n} {why}" for why, n in dict(read.get("dropped") or {}).items())
            dropped = f"; left out: {visible(lost)}" if lost else ""
            lines.append(
                f"- {name}: {visible(str(read.get('layout')))}, {read.get('kept')} of {read.get('read')} kept{dropped}"
            )
    return ["\n".join(lines) or "See `data.json` of the run."]


def _versions(told: object) -> str:
    known = told.items() if isinstance(told, Mapping) else ()
    return ", ".join(sorted(visible(f"{name} {version}") for name, version in known if version)) or "Not recorded."


def _settings(recipe: Mapping[str, Any]) -> str:
    fields = METHODS[str(recipe["method"])].settings.model_fields
    moved = {k: v for k, v in recipe.items() if k in fields and k not in NOT_SHOWN and v != fields[k].default}
    rows = [f"| `{k}` | {_code(_told(v)).replace('|', chr(92) + '|')} |" for k, v in moved.items()]
    return "\n".join(["| setting | value |", "| --- | --- |", *rows]) if rows else "None."
