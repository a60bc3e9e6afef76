"""What one does with a finished model, a run or a data set: the commands besides training, as Python functions.

The command line calls these and shows what they return.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from prefiere.api.held import settle
from prefiere.api.loaded import is_model
from prefiere.api.rows import TAKEN, rows_of
from prefiere.data.schema import Kind, Message, Text
from prefiere.files import short
from prefiere.run import INPUTS, Run

if TYPE_CHECKING:
    from prefiere.api.scoring import Scores
    from prefiere.doctor.diagnose import Diagnosis
    from prefiere.estimate.estimate import Forecast
    from prefiere.evaluate.compare import Compared
    from prefiere.evaluate.functions import ScoreFunction
    from prefiere.evaluate.talk import Talker

Name: TypeAlias = str | os.PathLike[str]
"""A model, a run, or data, by hub id or path; a run may be given itself."""
Asked: TypeAlias = Name | Iterable[str | Sequence[Message] | Sequence[Mapping[str, Any]] | Mapping[str, Any]]
"""Prompts: the name of a file, texts and conversations, or rows with a column of them, as ``data`` takes them."""
Dtype: TypeAlias = Literal["float32", "bfloat16", "float16"]
ANSWER = ("prompt", "completion", "sample", "ended", "tokens", "logp")


def _name(model: Any) -> str:
    """The name of a model or a run. Raises ValueError for what is none, such as a loaded model."""
    if isinstance(model, str | os.PathLike):
        return os.fspath(model)
    what = f"a hub id, a folder or a run is wanted, not {type(model).__name__} {short(model)}"
    raise ValueError(f"{what}. Save a loaded model and its tokenizer (save_pretrained), and name their folder.")


def texts_of(prompts: Asked, limit: int | None = None) -> list[Text]:
    """Prompts as texts and messages. Raises ValueError for what is neither."""
    if _has_columns(prompts):
        with _on_disk(prompts, "prompts", "prompts") as (name, _):
            return texts_of(name, limit)
    if isinstance(prompts, str | os.PathLike):
        from prefiere.data import formats

        return [record.prompt for record in formats.read(Path(prompts), kind="prompts", limit=limit)]
    found: list[Text] = []
    for i, prompt in enumerate(prompts):
        if isinstance(prompt, str):
            found.append(prompt)
        elif isinstance(prompt, list | tuple) and prompt and all(isinstance(m, Message | Mapping) for m in prompt):
            found.append(tuple(m if isinstance(m, Message) else _message(m, i) for m in prompt))
        else:
            raise ValueError(f"prompts[{i}] must be a text or a list of messages, not {type(prompt).__name__}.")
    return found[:limit]


def _has_columns(prompts: Any) -> bool:
    """Whether prompts are one column of several: of a table, a data set, or dicts. What is no list is none of ours."""
    listed = prompts[0] if isinstance(prompts, list | tuple) and prompts else None
    table = isinstance(prompts, Mapping) or hasattr(prompts, "columns") or hasattr(prompts, "column_names")
    named = isinstance(prompts, str | os.PathLike)
    return not named and (table or isinstance(listed, Mapping) or not isinstance(prompts, Iterable))


def _message(said: Mapping[str, Any], place: int) -> Message:
    if not isinstance(said.get("role"), str) or not isinstance(said.get("content"), str):
        raise ValueError(f"prompts[{place}]: a message has a role and a content, both texts.")
    return Message(said["role"], said["content"], {k: v for k, v in said.items() if k not in ("role", "content")})


def sample(
    model: Name,
    prompts: Asked,
    *,
    samples: int = 1,
    temperature: float = 1.0,
    top_p: float = 1.0,
    max_new_tokens: int = 128,
    seed: int = 0,
    limit: int | None = None,
    template_kwargs: Mapping[str, Any] | None = None,
    trust: bool = False,
    progress: Callable[[int], None] | None = None,
) -> list[dict[str, Any]]:
    """The answers of a model (hub id, folder, run, or a server's: ``http://host:8000/v1#NAME``) to prompts: a row each,
    with ``prompt``, ``completion``, ``sample``, ``ended``, ``tokens`` and ``logp`` (nats).

    prompts: a file, a list of texts and conversations, or rows (dicts, a DataFrame, a Dataset). The same seed draws the
    same answers. Raises ValueError for a value out of its range, and for a model that cannot be loaded.
    """
    from prefiere.evaluate.compare import ask
    from prefiere.evaluate.manner import manner_of
    from prefiere.sample.sampling import Sampling

    sampling = Sampling(samples, temperature, top_p, max_new_tokens, seed)
    name = _name(model)
    asked, manner = texts_of(prompts, limit), manner_of(name, template_kwargs)
    answers = ask(name, asked, sampling, trust=trust, manner=manner, progress=progress)
    return [{k: row[k] for k in ANSWER} for row in answers.rows]


def compare(
    before: Name,
    after: Name | None = None,
    *,
    prompts: Asked | None = None,
    judge: str | ScoreFunction | None = None,
    samples: int = 1,
    temperature: float = 1.0,
    top_p: float = 1.0,
    max_new_tokens: int = 128,
    seed: int = 0,
    limit: int = 64,
    template_kwargs: Mapping[str, Any] | None = None,
    trust: bool = False,
    progress: Callable[[int], None] | None = None,
) -> Compared:
    """Ask two models the same prompts with the same seed, or the model of a run before and after it.

    prompts: a file of prompts, a list or rows, of which the first ``limit`` are asked; a run alone brings its
    validation prompts, and its judge. judge: a function, ``module:function``, a reward model, or "none". Raises
    ValueError where there are no prompts, and for a value out of its range.
    """
    from prefiere.evaluate.compare import ask_both
    from prefiere.sample.sampling import Sampling

    with ExitStack() as kept:
        asked: Any = prompts
        if prompts is not None and _has_columns(prompts):
            asked, _ = kept.enter_context(_on_disk(prompts, "prompts", "prompts"))
        elif isinstance(prompts, os.PathLike):
            asked = Path(prompts)
        elif prompts is not None and not isinstance(prompts, str):
            asked = texts_of(prompts, limit)
        return ask_both(
            _name(before),
            None if after is None else _name(after),
            sampling=Sampling(samples, temperature, top_p, max_new_tokens, seed),
            prompts=asked,
            judge=_judge(judge),
            limit=limit,
            trust=trust,
            template_kwargs=template_kwargs,
            progress=progress,
        )


def _judge(judge: Any) -> Any:
    """A judge by name, or a function. Raises ValueError for anything else."""
    if judge is None or isinstance(judge, str | os.PathLike):
        return None if judge is None else os.fspath(judge)
    if is_model(judge) or not callable(judge):
        raise ValueError(
            f"judge: {type(judge).__name__} is neither a name nor a function. Save a loaded model with its tokenizer "
            "(save_pretrained), and give the folder."
        )
    return judge


def chat(
    model: Name,
    *,
    temperature: float = 0.7,
    top_p: float = 1.0,
    max_new_tokens: int = 256,
    seed: int = 0,
    template_kwargs: Mapping[str, Any] | None = None,
    trust: bool = False,
) -> Talker:
    """A model to talk with: call what is returned with what you say, and it answers, in the light of what was said
    before where it has a chat template."""
    from prefiere.evaluate.talk import Talker
    from prefiere.sample.sampling import Sampling

    sampling = Sampling(1, temperature, top_p, max_new_tokens, seed)
    return Talker(_name(model), sampling, trust=trust, template_kwargs=template_kwargs)


def score(
    models: Name | Sequence[Name], data: Any, *, trust: bool = False, quiet: bool = False, **reading: Any
) -> Scores:
    """What one or several reward models (runs, folders, hub ids) say of a data set, and how right they are on pairs.

    data: pairs or single answers: a name, a list of dicts, a DataFrame or a Dataset. reading: ``data_split``,
    ``columns``, ``on_bad``, ``max_length``, ``pairs_per_prompt``, ``template_kwargs``. Raises ValueError where there is
    nothing to score.
    """
    from prefiere.api.scoring import scores_of_data
    from prefiere.console import Display

    names = [_name(m) for m in (models if isinstance(models, list | tuple) else [models])]
    with _on_disk(data, "data", "pairs", reading.get("data_split")) as (name, options):
        return scores_of_data(names, name, trust=trust, display=Display(quiet=quiet), **{**reading, **options})


@contextmanager
def _on_disk(data: Any, key: str, kind: Kind, split: str | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
    """The name of data, which is in a file meanwhile where it was in memory, and what replaces options of reading."""
    rows, split_read = rows_of(data, key, kind, split=split)
    if data is None:
        raise ValueError(f"{key} must be {TAKEN}, not None.")
    if rows is None:
        yield os.fspath(data), {}
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, INPUTS, f"{key}-{rows.digest()}.jsonl")
        path.parent.mkdir()
        rows.write(path)
        yield str(path), {"data_split": None} if split_read else {}


def export(
    run: Name,
    out: Name,
    *,
    merge: bool = False,
    dtype: Dtype | None = None,
    gguf: Literal["f32", "f16", "bf16", "q8_0"] | None = None,
    step: int | None = None,
    push: str | None = None,
    public: bool = False,
    prompts: Name | None = None,
    trust: bool = False,
    quiet: bool = False,
) -> dict[str, Any]:
    """Write a run's model as a plain folder with a card, and say how far its answers moved from the run's.

    merge: an adapter into its base. dtype: of the weights (None: as the checkpoint has them). gguf: one file besides,
    for llama.cpp and Ollama. step: the model of a checkpoint. push: ORG/NAME on the hub, ``public`` or not. prompts: a
    file of prompts to verify on; a run brings its own. Returns what was written and ``moved``, how far answers moved.
    Raises ModelError where they moved and should not have.
    """
    from prefiere.console import Terminal
    from prefiere.publish.export import Wanted, publish

    asked = None if prompts is None else os.fspath(prompts)
    wanted = Wanted(merge, dtype, gguf, step, push, public, asked, trust)
    return publish(_name(run), Path(out), wanted, Terminal(stderr=True, quiet=quiet, highlight=False))


def estimate(
    method: str = "dpo", recipe: Name | None = None, *, gpu: str | None = None, quiet: bool = False, **settings: Any
) -> Forecast:
    """Whether a run fits, how long it takes, and what to change until it fits; loads no weights.

    method: dpo, ppo, ... ; settings: as its own function takes them, ``out`` left out. Rows and the configuration of a
    loaded model are written to a temporary folder meanwhile. gpu: t4, l4, a100, h100, ..., or cpu; None: this machine.
    Raises ValueError as the run would.
    """
    from prefiere.console import Display
    from prefiere.estimate.estimate import forecast

    with tempfile.TemporaryDirectory() as folder, ExitStack() as kept:
        path = None if recipe is None else Path(recipe)
        made, given = settle(method, path, {**settings, "out": folder})
        given.outlines().keep(kept)
        return forecast(made, gpu, Display(quiet=quiet))


def diagnose(run: Name) -> Diagnosis:
    """What a run's curves and answers mean: a verdict in one sentence, and the findings that it rests on.

    Raises RunError where there is no run, or a file of it is damaged. Needs no torch.
    """
    from prefiere.doctor.diagnose import diagnose as found

    return found(run if isinstance(run, Run) else Run.open(_name(run)))
