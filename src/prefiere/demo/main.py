"""The story of prefiere in a minute: one model, two voices, and the preference that decides between them.

A small bilingual model answers about half the time like an encyclopedia and half the time casually. Preferences over
other nouns and other phrasings than those it is asked about say which voice is wanted. Two roads lead there from the
same pairs: plain ``dpo``, and a reward model with ``ppo``. Everything here is the project's own commands in a row, on
data that ships with it. The judge is a rule.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from prefiere import recipe as recipes
from prefiere.api.run import Run
from prefiere.api.training import train
from prefiere.console import Display, table
from prefiere.demo import corpus, judge
from prefiere.demo.build import build_base
from prefiere.evaluate.functions import Function, ScoreFunction
from prefiere.evaluate.judges import Judge
from prefiere.evaluate.sampled import AnswerEvaluator
from prefiere.files import write_text
from prefiere.models.load import load_model, load_tokenizer
from prefiere.models.reference import sequence_logps
from prefiere.models.source import find_model
from prefiere.models.trunk import Trunk
from prefiere.report.page import render
from prefiere.sample.local import LocalRollouts
from prefiere.sample.sampling import Sampling, Vocabulary
from prefiere.settings import Settings
from prefiere.stats import Estimate, clustered_mean
from prefiere.tokens.encoder import Encoder
from prefiere.tokens.tokenizer import eos_ids_of

ANSWERS_PER_PROMPT = 8
TEMPERATURES = (0.7, 1.0)


@dataclass(frozen=True, slots=True)
class DemoFigures:
    """Answers of one model to the held-out prompts at one temperature: shares with 95% intervals, and, at temperature 1
    after training, the KL to the model before (nats per sequence, sampled)."""

    style: Estimate
    on_topic: Estimate
    answers: int
    kl: Estimate | None = None


def base_model(out: Path, console: Console, *, rebuild: bool) -> Path:
    """The shipped base model, or one trained anew from its own corpus by ``sft``."""
    if not rebuild:
        shipped = files("prefiere.demo").joinpath("assets/base")
        with as_file(shipped) as path:
            return Path(path)
    console.print("Training the base model from its own corpus.")
    untrained = out / "untrained"
    if not untrained.is_dir():
        build_base(untrained)
    flags = {"model": str(untrained), "data": str(out / "data" / "demonstrations.jsonl"), "out": str(out / "base")}
    with as_file(files("prefiere.demo").joinpath("assets/base.yaml")) as recipe:
        return train(recipes.load("sft", recipe, flags), console=console).model


def measure_answers(
    model: Path,
    style: ScoreFunction,
    temperature: float,
    *,
    reference: Path | None = None,
    progress: Callable[[int], None] | None = None,
) -> DemoFigures:
    """Sample every held-out prompt and judge the answers."""
    source = find_model(model)
    tokenizer, policy = load_tokenizer(source), load_model(source)
    eos_ids = eos_ids_of(policy, tokenizer)
    prompts = corpus.held_out_prompts()
    encoder = Encoder(tokenizer, eos_ids=eos_ids)
    trunk = Trunk(policy, packed=False)
    evaluator = AnswerEvaluator(
        prompts=encoder.encode_prompts(prompts),
        asked=prompts,
        decode=encoder.decode,
        rollouts=LocalRollouts(trunk.lm, Vocabulary.of(tokenizer, eos_ids)),
        sampling=Sampling(ANSWERS_PER_PROMPT, temperature, max_new_tokens=64, seed=1),
        judge=Judge({"style": Function("style", style)}),
    )
    answers = evaluator(trunk, None, progress=progress)
    asked = [r["prompt"] for r in answers.rows]
    said = [r["completion"] for r in answers.rows]
    topic = np.asarray(judge.on_topic(asked, said))
    kl = None
    if reference is not None and temperature == 1.0:
        frozen = Trunk(load_model(find_model(reference)), packed=False)
        groups = [evaluator.group(s) for s in answers.samples]
        before, after = (sequence_logps(t, groups, budget=8192)[:, 0] for t in (frozen, trunk))
        kl = clustered_mean(after - before, answers.prompts)
    return DemoFigures(
        clustered_mean(answers.signals["score"], answers.prompts, share=True),
        clustered_mean(topic, answers.prompts, share=True),
        len(asked),
        kl,
    )


ROADS = {"dpo": "DPO", "ppo": "PPO"}
PPO_OPTIONS = {"batch_size": 64, "num_ppo_epochs": 2, "max_steps": 30}
"""For a model and a set of prompts this small: 64 answers a rollout instead of 128, and half as many passes."""


def demo(
    prefer: corpus.Style = "encyclopedic",
    *,
    rebuild: bool = False,
    out: Path = Path("runs/demo"),
    console: Console | None = None,
) -> dict[str, Any]:
    """Run the demo into ``out``; what has not changed since the last time is reused. Returns figures and paths.

    Raises ValueError where a run stopped early, with its reason.
    """
    console = console or Console()
    data = corpus.write_corpus(out / "data", prefer)["preferences"]
    base = base_model(out, console, rebuild=rebuild)
    own = {"judge": f"prefiere.demo.judge:{prefer}", "max_new_tokens": 64}

    def trained(method: str, inputs: list[Path], **flags: Any) -> Run:
        folder = out / f"{method}-{prefer}"
        settings = recipes.load(method, None, {"model": str(base), "data": str(data), "out": str(folder), **flags})
        run = train(settings, fresh=_changed(out / f".{folder.name}", settings, inputs), console=console)
        if run.stopped:
            raise ValueError(f"the demo's run {folder.name} did not finish: {run.stopped.text}")
        return run

    inputs = [base / "model.safetensors", data]
    roads = {"dpo": trained("dpo", inputs, **own)}
    scorer = trained("reward", inputs)
    inputs.append(scorer.model / "model.safetensors")
    roads["ppo"] = trained("ppo", inputs, reward=str(scorer.folder), **own, **PPO_OPTIONS)
    figures = _measured(roads, base, getattr(judge, prefer), out / "cache", Display(console))
    report = render(list(roads.values()), out / "report.html")
    show_roads(prefer, figures, roads, data, base, report, console)
    return {
        "prefer": prefer,
        "figures": figures,
        "runs": {name: str(run.folder) for name, run in roads.items()},
        "reward_model": str(scorer.folder),
        "report": str(report),
    }


def _changed(mark: Path, settings: Settings, inputs: Sequence[Path]) -> bool:
    """Whether the settings or these files differ from those that ``mark`` remembers; it then remembers these."""
    key = hashlib.blake2b(settings.model_dump_json().encode(), digest_size=16)
    for path in inputs:
        key.update(path.read_bytes())
    before = mark.read_text() if mark.is_file() else None
    write_text(mark, key.hexdigest())
    return before != key.hexdigest()


def show_roads(
    prefer: str,
    figures: dict[str, Any],
    roads: dict[str, Run],
    data: Path,
    base: Path,
    report: Path,
    console: Console,
) -> None:
    """The table, the report's path, and what to type next."""

    def share(bounds: list[float]) -> str:
        mean, low, high = (100 * b for b in bounds)
        return f"{mean:.1f} [{low:.1f}, {high:.1f}]"

    answers = figures["before T=1.0"]["answers"]
    rows = []
    for name, f in figures.items():
        who, temperature = name.split(" T=")
        after = f"after {ROADS[who]}" if who in ROADS else who
        kl = "{:.2f} [{:.2f}, {:.2f}]".format(*f["kl"]) if f["kl"] else ""
        rows.append((f"{after}, T {temperature}", share(f["style"]), share(f["on_topic"]), kl))
    title = f"{answers:,} answers each, to questions about nouns and in phrasings that no preference contained"
    console.print()
    console.print(table(title, ("answers", prefer, "right about it", "KL to before"), rows))
    console.print(
        "\nIn per cent, with 95% intervals clustered by prompt. PPO maximised a reward model of the same preferences. "
        "KL in nats per answer, sampled at temperature 1. T is the temperature.\n"
        "The judge is a rule (regular expressions and a table of facts), not a person and not a model.\n",
        markup=False,
    )
    console.print(f"Report: {report}", markup=False, soft_wrap=True)
    console.print("\nTry it:", markup=False)
    for line in (
        f"prefiere chat {roads['ppo'].folder}",
        f"prefiere compare {roads['dpo'].folder} {roads['ppo'].folder} --prompts {data.with_name('prompts.jsonl')}",
        f"prefiere dpo --model {base} --data {data} --out my-run",
        "prefiere dpo --model YOUR_MODEL --data YOUR_PAIRS.jsonl --out my-run",
    ):
        console.print(f"  {line}", markup=False, soft_wrap=True)


def _measured(roads: dict[str, Run], base: Path, style: ScoreFunction, cache: Path, display: Display) -> dict[str, Any]:
    """Every model at each temperature, measured once for the same weights."""
    models = {"before": base, **{name: run.model for name, run in roads.items()}}
    count = len(corpus.held_out_prompts()) * ANSWERS_PER_PROMPT
    figures: dict[str, Any] = {}
    cache.mkdir(exist_ok=True)
    with display.stage("asking held-out questions", len(models) * len(TEMPERATURES) * count) as advance:
        for name, model in models.items():
            key = hashlib.blake2b(digest_size=16)
            for path in (base, model):
                key.update((path / "model.safetensors").read_bytes())
            for temperature in TEMPERATURES:
                known = cache / f"{key.hexdigest()}-{style.__name__}-{ANSWERS_PER_PROMPT}-{temperature}.json"
                if not known.is_file():
                    reference = base if name != "before" else None
                    m = measure_answers(model, style, temperature, reference=reference, progress=advance)
                    bounds = {"style": _bounds(m.style), "on_topic": _bounds(m.on_topic)}
                    kl = _bounds(m.kl) if m.kl else None
                    write_text(known, json.dumps({**bounds, "answers": m.answers, "kl": kl}))
                figures[f"{name} T={temperature}"] = json.loads(known.read_text())
    return figures


def _bounds(e: Estimate) -> list[float]:
    return [e.mean, e.low, e.high]
