"""What a finished model answers, and what two of them answer to the same prompts and seed, side by side and judged."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prefiere.asked.endpoint import EndpointError, names_endpoint
from prefiere.asked.kinds import prompts_file
from prefiere.asked.language import in_words
from prefiere.data import formats
from prefiere.data.prompts import columns_at, prompts_at
from prefiere.data.schema import Kind, Text
from prefiere.evaluate.functions import Answered, Function, ScoreFunction
from prefiere.evaluate.judges import Judge, functions_of, names_function
from prefiere.evaluate.manner import manner_of
from prefiere.evaluate.sampled import AnswerEvaluator, Answers
from prefiere.files import visible
from prefiere.in_memory import is_given
from prefiere.kernels.memory import within_memory
from prefiere.models.check.weights import ids_fit
from prefiere.models.load import load_model, load_tokenizer
from prefiere.models.source import ModelError, config_of, find_model, generation_config
from prefiere.models.trunk import Trunk
from prefiere.run import Run, RunError
from prefiere.sample.local import LocalRollouts
from prefiere.sample.sampling import Rollouts, Sampling, Vocabulary
from prefiere.sample.served import ServedModel
from prefiere.sample.server import Server
from prefiere.stats import Estimate, clustered_mean, clusters_won, sign_test
from prefiere.tokens.dialect import Manner
from prefiere.tokens.encoder import Encoder
from prefiere.tokens.tokenizer import eos_ids_of
from prefiere.tokens.truncation import Truncation


@dataclass(frozen=True, slots=True)
class Pairing:
    """One prompt with the answer of each model; scores where there is a judge."""

    prompt: str
    before: str
    after: str
    score_before: float | None = None
    score_after: float | None = None


@dataclass(frozen=True, slots=True)
class Compared:
    """Two models' answers to the same prompts under the same seeds.

    ``score_before``, ``score_after`` and ``gain`` are means with 95% intervals clustered by prompt; ``p_value`` is the
    sign test's over prompts, each by which model won more of its answers. All None without a judge.
    """

    before: str
    after: str
    pairings: list[Pairing] = field(default_factory=list)
    judge: str | None = None
    wins: int = 0
    losses: int = 0
    ties: int = 0
    score_before: Estimate | None = None
    score_after: Estimate | None = None
    gain: Estimate | None = None
    p_value: float | None = None
    signals: dict[str, tuple[float, float]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        lines = [f"{self.before}  ->  {self.after}"]
        for p in self.pairings[:3]:
            lines += [f"  {p.prompt}", f"    before: {p.before}", f"    after:  {p.after}"]
        if self.gain is not None and self.score_before is not None and self.score_after is not None:
            lines.append(
                f"score {self.score_before.mean:.3f} -> {self.score_after.mean:.3f}, gain {self.gain.mean:+.3f} "
                f"[{self.gain.low:+.3f}, {self.gain.high:+.3f}]; {self.wins} won, {self.losses} lost, {self.ties} tied"
            )
        return "\n".join(lines)

    __repr__ = __str__  # what a notebook shows of a cell


def sides(before: str | os.PathLike[str], after: str | os.PathLike[str] | None) -> tuple[str, str, Run | None]:
    """The two models to compare: both named, or those before and after a run. Raises ValueError otherwise."""
    if after is not None:
        return os.fspath(before), os.fspath(after), None
    run = Run.open(os.fspath(before))
    model = run.recipe.get("model")
    if model is None:
        raise RunError(f"{run.folder / 'recipe.yaml'} names no model: name both models.")
    return str(model), str(run.folder), run


def ask_both(
    before: str | os.PathLike[str],
    after: str | os.PathLike[str] | None = None,
    *,
    sampling: Sampling,
    prompts: str | Path | Sequence[Text] | None = None,
    judge: str | ScoreFunction | None = None,
    limit: int = 64,
    trust: bool = False,
    template_kwargs: Mapping[str, Any] | None = None,
    progress: Callable[[int], None] | None = None,
) -> Compared:
    """Ask both models the same prompts with the same seed.

    ``before`` alone is a run: its model before and after, by its validation prompts and its judge. ``prompts`` is a
    file of prompts or a list, of which the first ``limit`` are asked. ``judge``: a name, or a function; "none" is no
    judge. template_kwargs: variables of the chat template (default: those of the run). Raises ValueError where there
    are no prompts, and where a run's judge is code that was not named here.
    """
    first, second, run = sides(before, after)
    if judge is None and run is not None:
        judge = _judge_of(run)
    name, functions = _named(judge)
    asked, columns = _asked(run, prompts, limit, any(f.call.reads_columns for f in functions.values()))
    if not asked:
        raise ValueError("prompts: there are none to ask. Give at least one.")
    example = Answered(asked[:1], ["a"], [np.zeros(1, np.int32)], columns[:1])
    scorer = None if name is None else Judge.load(name, functions=functions, example=example)
    recipe = run.recipe if run is not None else {}
    answers = [
        ask(
            model,
            asked,
            sampling,
            trust=trust,
            manner=manner_of(run.folder if run is not None else model, template_kwargs),
            max_length=recipe.get("max_length"),
            judge=scorer,
            columns=columns,
            progress=progress,
        )
        for model in (first, second)
    ]
    return compared(first, second, answers[0], answers[1], name)


def _named(judge: str | ScoreFunction | None) -> tuple[str | None, dict[str, Function]]:
    """The name of a judge, None for none, and the function that it is, where it is one."""
    if judge is None or judge == "none":
        return None, {}
    if callable(judge):
        name = f"<{getattr(judge, '__name__', type(judge).__name__).strip('<>')}>"
        return name, functions_of([name], {name: judge})
    return judge, functions_of([judge])


def _asked(
    run: Run | None, prompts: str | Path | Sequence[Text] | None, limit: int, with_columns: bool
) -> tuple[Sequence[Text], Sequence[Mapping[str, Any]]]:
    """The prompts to ask, and the data's columns of each, where they are asked for."""
    if prompts is not None and not isinstance(prompts, str | Path):
        return list(prompts)[:limit], []
    if prompts is not None:
        records = list(formats.read(prompts, kind="prompts", limit=limit))
        places = [r.source for r in records]
        rows = columns_at(places, str(prompts)) if with_columns else {}
        return [r.prompt for r in records], [rows.get(p, {}) for p in places] if with_columns else []
    if run is None:
        raise ValueError(in_words("met.which_prompts"))
    found = validation_places(run, limit)
    if not found:
        raise ValueError(in_words("met.no_prompts", run=run.folder))
    name, split = _read_from(run)
    rows = columns_at(list(found), name, **split) if with_columns else {}
    return list(found.values()), [rows.get(p, {}) for p in found] if with_columns else []


def _judge_of(run: Run) -> str | None:
    """The judge that a run's recipe names. Raises ValueError where it is code: a folder may come from anybody."""
    judge = run.recipe.get("judge")
    if judge is not None and is_given(str(judge)):
        raise ValueError(
            f"{run.folder} was judged by a function that was given in Python, {judge}: give it again there "
            f"(compare(judge={str(judge)[1:-1]})). Without a judge: --judge none."
        )
    if judge is not None and names_function(str(judge)):
        quoted = shlex.quote(str(judge))
        raise ValueError(in_words("met.judged_by_code", run=run.folder, judge=judge, quoted=quoted))
    return None if judge is None else str(judge)


def validation_prompts(run: Run, limit: int) -> list[Text]:
    """The prompts that a run answered along the way, in full; raises ValueError where their data is gone."""
    return list(validation_places(run, limit).values())


def validation_places(run: Run, limit: int) -> dict[str, Text]:
    """The same by where each was read."""
    recipe = run.recipe
    if "data" not in recipe:
        raise RunError(f"{run.folder / 'recipe.yaml'} names no data: name prompts with --prompts.")
    if ":***@" in str(recipe["data"]):
        raise RunError(f"{run.folder} does not hold the password of its store: name prompts with --prompts.")
    if (named := prompts_file(recipe.get("sample_prompts"))) is not None:
        return {r.source: r.prompt for r in formats.read(named, kind="prompts", limit=limit)}
    name, split = _read_from(run)
    found = prompts_at(run.data.get("eval_sources", [])[: 8 * limit], name, columns=recipe.get("columns"), **split)
    distinct = {repr(p): (place, p) for place, p in found.items()}
    return dict(list(distinct.values())[:limit])


def _read_from(run: Run) -> tuple[str, dict[str, Any]]:
    """The source that a run's watched prompts were read from, and the split of it."""
    recipe = run.recipe
    if (named := prompts_file(recipe.get("sample_prompts"))) is not None:
        return named, {}
    part = "eval" if recipe.get("eval_data") else "train"
    account = run.data.get(part)
    read = account.get("read") if isinstance(account, Mapping) else None
    told = read.get("kind") if isinstance(read, Mapping) else None
    kind = {"kind": told} if told in get_args(Kind) else {}
    if recipe.get("eval_data"):
        return recipe["eval_data"], {"purpose": "eval"} | kind
    return recipe["data"], {"split": recipe.get("data_split")} | kind


class Respondent(NamedTuple):
    """A finished model that answers: in this process (``model``), or behind a server. ``eos_ids`` end its answers."""

    tokenizer: PreTrainedTokenizerBase
    eos_ids: list[int]
    rollouts: Rollouts
    model: PreTrainedModel | None


def respondent(name: str | Path, *, trust: bool = False) -> Respondent:
    """A model by name: a hub id, a folder, a run; or ``http://host:8000/v1#NAME``, a server's.

    Of a server's model the tokenizer alone is read, from where the server has the model. Raises ModelError or
    EndpointError.
    """
    if names_endpoint(str(name)):
        return _behind_server(str(name), trust)
    source = find_model(name, trust=trust)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = load_tokenizer(source)
    model = load_model(source, dtype=torch.bfloat16 if device == "cuda" else torch.float32, device=device)
    ids_fit(model, tokenizer, source.base)
    eos_ids = eos_ids_of(model, tokenizer)
    return Respondent(
        tokenizer, eos_ids, LocalRollouts(Trunk(model, packed=False).lm, Vocabulary.of(tokenizer, eos_ids)), model
    )


def _behind_server(name: str, trust: bool) -> Respondent:
    url, _, stated = name.partition("#")
    server = Server.named(url)
    served = server.models()
    called = stated or next(iter(served))
    if called not in served:
        known = ", ".join(visible(n) for n in list(served)[:8])
        raise EndpointError(f"{server.name} serves no model {visible(called)}. There are: {known}")
    try:
        source = find_model(served[called], trust=trust)
    except ModelError as e:
        raise ModelError(
            f"{server.name}: the tokenizer is read from where it has the model, and {visible(str(e))}"
        ) from e
    tokenizer = load_tokenizer(source)
    eos_ids = eos_ids_of(generation_config(source), tokenizer)
    size = int(config_of(source).get_text_config().vocab_size)
    return Respondent(tokenizer, eos_ids, ServedModel(server, called, Vocabulary.of(tokenizer, eos_ids), size), None)


@within_memory("answering", "ask for fewer samples or max_new_tokens, or take a smaller model")
def ask(
    name: str | Path,
    prompts: Sequence[Text],
    sampling: Sampling,
    *,
    trust: bool = False,
    manner: Manner | None = None,
    max_length: int | None = None,
    judge: Judge | None = None,
    columns: Sequence[Mapping[str, Any]] = (),
    progress: Callable[[int], None] | None = None,
) -> Answers:
    """Let a model answer (see `respondent`). manner, max_length: how prompts are written, and cut, as in a run.
    columns: of each prompt, for a judge that reads them."""
    tokenizer, eos_ids, rollouts, model = respondent(name, trust=trust)
    encoder = Encoder(tokenizer, Truncation(max_length), eos_ids=eos_ids, **(manner or {}))
    evaluator = AnswerEvaluator(
        prompts=encoder.encode_prompts(prompts),
        asked=prompts,
        decode=encoder.decode,
        rollouts=rollouts,
        sampling=sampling,
        judge=judge,
        columns=columns,
    )
    return evaluator(None if model is None else Trunk(model, packed=False), None, progress=progress)


def compared(first: str, second: str, before: Answers, after: Answers, judge: str | None) -> Compared:
    """Put two sets of answers side by side and count who wins."""
    pairings = [
        Pairing(b["prompt"], b["completion"], a["completion"], b["score"], a["score"])
        for b, a in zip(before.rows, after.rows, strict=True)
    ]
    names = before.signals.keys() & after.signals.keys()
    signals = {n: (float(before.signals[n].mean()), float(after.signals[n].mean())) for n in sorted(names)}
    if judge is None:
        return Compared(first, second, pairings, signals=signals)
    b, a = before.signals["score"], after.signals["score"]
    wins, losses = int(np.sum(a > b)), int(np.sum(a < b))
    return Compared(
        first, second, pairings, judge, wins, losses, len(a) - wins - losses,
        clustered_mean(b, before.prompts), clustered_mean(a, after.prompts), clustered_mean(a - b, after.prompts),
        sign_test(*clusters_won(a - b, after.prompts)), signals,
    )  # fmt: skip
