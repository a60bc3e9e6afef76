"""One run with a cause planted in it, or a healthy one: data and settings as they are trained on, and what was said."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import json
import random
import shutil
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from rich.console import Console

from benchmarks.doctor.causes import UNLEARNT, Cause, Row
from benchmarks.doctor.sheets import ALL
from benchmarks.doctor.witness import learnt, right_answers, witnessed
from prefiere import recipe
from prefiere.api.training import train
from prefiere.data.schema import Text
from prefiere.demo import corpus
from prefiere.demo.build import make_tokenizer
from prefiere.demo.main import base_model
from prefiere.doctor.diagnose import Diagnosis, diagnose
from prefiere.doctor.prescribe import next_recipe, prescribe
from prefiere.run import Run

HH = Path(__file__).parents[3] / "shared" / "data" / "hh-harmless-test.jsonl.gz"
PAIRS = 380
"""Half of the demo's pairs, drawn by seed; as many of the other data set."""
HEALTHY = ("dpo", "reward", "rloo", "kto", "sft", "dpo-ipo", "dpo-simpo", "ppo", "dpo-lora", "dpo-cpo")


@dataclass(frozen=True)
class Case:
    """What is run: a cause (None: healthy), its strength (0 to 2), a seed, a model and a data set."""

    cause: Cause | None
    strength: int
    seed: int
    model: str
    data: str

    @property
    def name(self) -> str:
        what = self.cause.name if self.cause else f"healthy: {HEALTHY[self.seed % len(HEALTHY)]}"
        return f"{what} | {self.strength + 1} | {self.seed} | {self.model} | {self.data}"

    def folder(self, work: Path) -> Path:
        """Where its run is kept."""
        return work / "runs" / _short(self.name)


def cases(
    causes: list[str], strengths: list[int], seeds: list[int], models: list[str], data: list[str], healthy: list[int]
) -> list[Case]:
    """All cases of a part of the grid: strong ones and the first seeds first, healthy runs in between."""
    chosen = [] if causes == ["none"] else [c for c in ALL if not causes or any(part in c.name for part in causes)]
    grid = [
        Case(c, s, seed, m, d)
        for m in models for d in data for seed in seeds for s in sorted(strengths, reverse=True) for c in chosen
        if d == "demo" or c.kind in ("dpo", "kto", "reward", "sft")
    ]  # fmt: skip
    well = [Case(None, 0, seed, m, d) for m in models for d in data for seed in healthy
            if d == "demo" or HEALTHY[seed % len(HEALTHY)] not in ("rloo", "ppo")]  # fmt: skip
    every = min(3, max(1, len(grid) // max(1, len(well))))
    mixed: list[Case] = []
    for i, case in enumerate(grid):
        mixed.append(case)
        if i % every == every - 1 and well:
            mixed.append(well.pop(0))
    return mixed + well


def pairs_of(data: str, seed: int) -> list[Row]:
    """The pairs of a data set, drawn by seed: rows with messages."""
    rng = random.Random(seed)
    if data == "demo":
        style = corpus.STYLES[seed % 2]
        made = [
            {k: _messages(getattr(p, k)) for k in ("prompt", "chosen", "rejected")} for p in corpus.preferences(style)
        ]
        return rng.sample(made, min(len(made), PAIRS))
    rows = []
    with gzip.open(HH, "rt") as f:
        for line in f:
            both = json.loads(line)
            turns = [both[k].rsplit("\n\nAssistant:", 1) for k in ("chosen", "rejected")]
            if turns[0][0] != turns[1][0] or max(len(t[1]) for t in turns) > 300 or len(turns[0][0]) > 300:
                continue
            rows.append(
                {
                    "prompt": [{"role": "user", "content": turns[0][0].removeprefix("\n\nHuman: ")}],
                    "chosen": [{"role": "assistant", "content": turns[0][1].strip() or "."}],
                    "rejected": [{"role": "assistant", "content": turns[1][1].strip() or ","}],
                }
            )
    return rng.sample(rows, min(len(rows), PAIRS))


def model_of(name: str, data: str, work: Path) -> Path:
    """The demo's model; a narrower one (``narrow``), trained here on the demo's demonstrations or on other data."""
    quiet = Console(quiet=True)
    if name == "demo" and data == "demo":
        return base_model(work, quiet, rebuild=False)
    folder = work / f"model-{name}-{data}"
    if not (folder / "model" / "config.json").is_file():
        raw = work / f"raw-{name}-{data}"
        _untrained(raw, 128 if name == "demo" else 80)
        shown = work / f"demonstrations-{data}.jsonl"
        if data == "demo":
            rows = [
                {"prompt": _messages(d.prompt), "completion": _messages(d.completion)} for d in corpus.demonstrations()
            ]
        else:
            rows = [
                {"prompt": r["prompt"], "completion": r[k]} for r in pairs_of(data, 999) for k in ("chosen", "rejected")
            ]
        shown.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows))
        flags = {"model": str(raw), "data": str(shown), "out": str(folder), "learning_rate": 4e-3, "eval_size": 0.02,
                 "max_steps": 600, "sample_steps": 0, "dtype": "float32", "max_length": 256}  # fmt: skip
        train(recipe.load("sft", None, flags), console=quiet)
    return folder / "model"


def _messages(text: Text) -> list[Row]:
    return [] if isinstance(text, str) else [m.as_dict() for m in text]


def _untrained(folder: Path, hidden: int) -> None:
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    tokenizer = make_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=hidden, intermediate_size=2 * hidden, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=1024, tie_word_embeddings=False,
        initializer_range=0.08, bos_token_id=None, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def settings_of(case: Case, work: Path, model: Path) -> tuple[str, Row]:
    """The method and the flags of a case, its data written."""
    rng = random.Random(1000 + case.seed)
    rows = pairs_of(case.data, case.seed)
    kind, given, held = _healthy(case, rng) if case.cause is None else (case.cause.kind, {}, None)
    if case.cause is not None:
        strength = case.cause.strengths[case.strength]
        share = 0.5 if case.cause.name == "reward: learnt by heart" else strength
        held = case.cause.held(rows, rng, share) if case.cause.held else None
        rows = case.cause.data(rows, rng, share) if case.cause.data else rows
        given = case.cause.settings(strength)
    method = "dpo" if kind == "kto" else kind
    data = work / "data.jsonl"
    _write(data, _shaped(rows, kind))
    flags: Row = {"model": str(model), "data": str(data), "seed": case.seed, "batch_size": 16, "dtype": "float32",
                  "eval_size": 60, "max_length": 256} | _usual(kind, case, rng)  # fmt: skip
    if held is not None:
        _write(work / "held.jsonl", held)
        flags |= {"eval_data": str(work / "held.jsonl")}
    for key, value in given.items():
        size = given.get("batch_size", flags["batch_size"])
        flags[key] = _rate(method, str(model), size, value[1]) if isinstance(value, tuple) else value
    return method, flags


def _usual(kind: str, case: Case, rng: random.Random) -> Row:
    sampled: Row = {"sample_steps": 8, "eval_steps": 8, "sample_prompts": 24, "max_new_tokens": 40}
    if case.data == "demo":
        sampled["judge"] = f"prefiere.demo.judge:{corpus.STYLES[case.seed % 2]}"
    if kind == "reward":
        return {"eval_steps": 8}
    if kind == "kto":
        return sampled | {"loss_type": "kto"}
    if kind in ("rloo", "ppo"):
        own = {
            "reward": "benchmarks.doctor.rewards:graded",
            "judge": "prefiere.demo.judge:encyclopedic",
            "max_steps": 16,
        }
        size = {"batch_size": 8, "num_generations": 4} if kind == "rloo" else {"batch_size": 32}
        return sampled | own | size | {"eval_size": 40}
    return sampled


def _shaped(rows: list[Row], kind: str) -> list[Row]:
    if kind in ("rloo", "ppo"):
        return [{"prompt": r["prompt"]} for r in rows]
    if kind == "sft" and "completion" not in rows[0]:
        return [{"prompt": r["prompt"], "completion": r["chosen"]} for r in rows]
    if kind == "kto" and "completion" not in rows[0]:
        return [{"prompt": r["prompt"], "completion": r["chosen" if i % 2 else "rejected"], "label": bool(i % 2)}
                for i, r in enumerate(rows)]  # fmt: skip
    return rows


def _healthy(case: Case, rng: random.Random) -> tuple[str, Row, None]:
    """A method and settings as people choose them, none of them odd."""
    name = HEALTHY[case.seed % len(HEALTHY)]
    kind, _, variant = name.partition("-")
    given: Row = {"learning_rate": ("auto", rng.choice((0.5, 1.0, 1.0, 2.0)))}
    if variant == "lora":
        given = {"lora": True}
    elif variant:
        given |= {"loss_type": variant}
    elif kind in ("dpo", "kto"):
        given |= {"beta": rng.choice((0.05, 0.1, 0.3)), "num_train_epochs": rng.choice((1.0, 2.0))}
    if kind in ("dpo", "kto", "reward", "sft"):
        given |= {"batch_size": rng.choice((8, 16))}
    return kind, given, None


@cache
def _rate(method: str, model: str, size: int, factor: float) -> float:
    flags = {"model": model, "data": "x", "out": "x", "batch_size": size} | (
        {"reward": "m:f"} if method in ("rloo", "ppo") else {}
    )
    from prefiere.models.load import count_parameters
    from prefiere.models.source import find_model
    from prefiere.plan.choices import automatic_rate

    settings = recipe.load(method, None, flags)
    return float(f"{automatic_rate(settings, False, count_parameters(find_model(model))) * factor:.2g}")


def _write(path: Path, rows: list[Row]) -> None:
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), encoding="utf-8")


def outcome(case: Case, work: Path, *, remedies: bool, keep: bool) -> Row:
    """Train a case and read the verdict; with ``remedies`` train again with what is prescribed."""
    folder = case.folder(work)
    shutil.rmtree(folder, ignore_errors=True)
    model = model_of(case.model, case.data, work)
    method, flags = settings_of(case, work, model)
    began = time.perf_counter()
    run, error = _trained(method, flags | {"out": str(folder)})
    row: Row = {"case": case.name, "cause": case.cause.name if case.cause else None, "strength": case.strength + 1,
                "seed": case.seed, "model": case.model, "data": case.data, "method": method,
                "seconds": round(time.perf_counter() - began, 1), "error": error}  # fmt: skip
    if run is None:
        return row | {"verdict": "refused", "headline": error}
    found = diagnose(run)
    cause = UNLEARNT if case.cause is None and case.data != "demo" and learnt(run) is False else case.cause
    row |= {"cause": cause.name if cause else None} | read(cause, found)
    changes = prescribe(found)
    row["prescribed"] = {p.remedy.setting: p.remedy.value for p in changes}
    if remedies and changes and case.cause is not None:
        again = work / "again"
        shutil.rmtree(again, ignore_errors=True)
        second, error = _trained(method, next_recipe(run.recipe, changes, str(again)))
        row["after"] = {"error": error} if second is None else _after(diagnose(second))
    if case.cause is None and case.data == "demo":
        row |= witnessed(run, _before(str(model)))
    for part in ("checkpoints", "model") if keep else (".",):
        shutil.rmtree(folder / part, ignore_errors=True)
    return row


@cache
def _before(model: str) -> float:
    return right_answers(model)


def read_again(row: Row, work: Path) -> Row:
    """A row with the verdict of the rules as they are now, from the run folder that was kept; as it is without one."""
    cause = next((c for c in (*ALL, UNLEARNT) if c.name == row["cause"]), None)
    folder = work / "runs" / _short(row["case"])
    if not (folder / "recipe.yaml").is_file() or (row["cause"] is not None and cause is None):
        return row
    found = diagnose(Run(folder))
    prescribed = {p.remedy.setting: p.remedy.value for p in prescribe(found)}
    return row | read(cause, found) | {"prescribed": prescribed}


def _short(name: str) -> str:
    return hashlib.blake2b(name.encode(), digest_size=8).hexdigest()


def _after(found: Diagnosis) -> Row:
    destroyed = any(f.key in ("degenerate", "guard", "kl_runaway") for f in found.findings)
    return {"severity": found.severity, "headline": found.headline, "destroyed": destroyed,
            "healthy": found.severity in ("good", "info")}  # fmt: skip


def _trained(method: str, flags: Row) -> tuple[Run | None, str | None]:
    with contextlib.redirect_stderr(io.StringIO()):
        try:
            settings = recipe.load(method, None, {k: v for k, v in flags.items() if k != "method"})
            return train(settings, fresh=True, console=Console(quiet=True)), None
        except ValueError as e:
            folder = Path(str(flags["out"]))
            return (Run(folder) if (folder / "recipe.yaml").is_file() else None), str(e)


def read(cause: Cause | None, found: Diagnosis) -> Row:
    """What the page said: exact, symptom, wrong or nothing; of a healthy run, alarm or quiet."""
    said = {f.key: f.severity for f in found.findings}
    about = {f"{f.key}:{f.about}": f.severity for f in found.findings if f.about}
    told: Row = {"headline": found.headline, "severity": found.severity, "keys": said, "about": about}
    if cause is None:
        return told | {"verdict": "alarm" if found.severity in ("warning", "bad") else "quiet"}
    grave = {k for k, s in (said | about).items() if s in ("warning", "bad") or cause.informs}
    if grave & cause.exact:
        return told | {"verdict": "exact"}
    others = [f for f in found.findings if f.cause and f.severity in ("warning", "bad")]
    if others:
        return told | {"verdict": "wrong"}
    return told | {"verdict": "symptom" if found.severity in ("warning", "bad") else "nothing"}
