"""``prefiere export``: a run's model as others use it, verified: a folder, its card, GGUF, a place on the hub."""

from __future__ import annotations

import re
import shlex
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from rich.console import Console

from prefiere.asked.language import in_words
from prefiere.console import say
from prefiere.data import formats
from prefiere.data.schema import Text
from prefiere.evaluate.compare import validation_prompts
from prefiere.evaluate.manner import manner_of
from prefiere.files import atomic
from prefiere.models import export as exporting
from prefiere.models.load import load_tokenizer
from prefiere.models.source import ModelError, Source, find_model, generation_config, quantization_of_run
from prefiere.plan.plan import TORCH_DTYPES
from prefiere.publish import gguf_file
from prefiere.publish.card import model_card
from prefiere.publish.gguf_file import Bits
from prefiere.publish.hub import push
from prefiere.publish.serving import modelfile, vllm_command
from prefiere.publish.step import write_step
from prefiere.run import Run, given_as
from prefiere.tokens.encoder import Encoder
from prefiere.tokens.tokenizer import eos_ids_of

VERIFIED_ON = 16
"""Prompts that an export is verified on."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to make of a run's model.

    merge: an adapter into its base. dtype: of the weights (None: as the checkpoint has them). gguf: a file besides, and
    how it holds weights. step: the model of a checkpoint instead of the last one. push: a repository on the hub, which
    is ``public`` or not. prompts: a file to verify on (None: the run's held-out prompts).
    """

    merge: bool = False
    dtype: str | None = None
    gguf: Bits | None = None
    step: int | None = None
    push: str | None = None
    public: bool = False
    prompts: str | None = None
    trust: bool = False


def publish(folder: str, out: Path, wanted: Wanted, console: Console) -> dict[str, Any]:
    """Write a run's model as a plain folder, hold its answers against the run's, and say how far they moved; then what
    else is ``wanted`` of it.

    Raises ModelError where answers differ and should not, and before anything is written for what cannot be. A base
    that was quantized in training differs from any other.
    """
    with ExitStack() as held:
        source = _source(folder, wanted, held)
        _possible(source, wanted)
        card = _card(folder, source, wanted)
        tokenizer = load_tokenizer(source)
        eos_ids = eos_ids_of(generation_config(source), tokenizer)
        asked = _prompts(folder, wanted)
        encoder = Encoder(tokenizer, eos_ids=eos_ids, **manner_of(folder))
        ids: Sequence[np.ndarray] = encoder.encode_prompts(asked)
        with console.status(in_words("use.verifying")):
            kept = TORCH_DTYPES[wanted.dtype] if wanted.dtype else None
            made = exporting.export_model(source, out, merge=wanted.merge, prompts=ids, eos_ids=eos_ids, dtype=kept)
        _said(made, source, console)
    told: dict[str, Any] = {
        "out": made.folder, "merged": made.what == "merged model", "held": made.held, "answers": made.answers,
        "moved": [asdict(m) for m in made.moved],
    }  # fmt: skip
    if card is not None:
        with atomic(out / "README.md") as temporary:
            temporary.write_text(card, encoding="utf-8")
    if wanted.gguf is not None:
        told |= _gguf(out, wanted.gguf, ids, [encoder.decode(p) for p in ids], console)
    say(in_words("use.serve_it", command=vllm_command(out)), console)
    if wanted.push is not None:
        with console.status(in_words("use.uploading")):
            told["pushed"] = push(out, wanted.push, public=wanted.public)
        say(in_words("use.on_the_hub", place=told["pushed"]), console)
    return told


def _source(folder: str, wanted: Wanted, held: ExitStack) -> Source:
    """The model that is exported: the run's last one, or that of a step in a folder that goes away afterwards."""
    if wanted.step is None:
        return find_model(folder, trust=wanted.trust)
    place = Path(held.enter_context(tempfile.TemporaryDirectory(prefix="prefiere-step-"))) / "model"
    write_step(Run.open(folder), wanted.step, place, trust=wanted.trust)
    return replace(find_model(place, trust=wanted.trust), quantize=quantization_of_run(Path(folder)))


def _card(folder: str, source: Source, wanted: Wanted) -> str | None:
    """The model card of a run; None of any other model."""
    if not (Path(folder) / "recipe.yaml").is_file():
        return None
    adapter = source.adapter is not None and not wanted.merge
    return str(model_card(Run(folder), adapter=adapter, step=wanted.step).content)


def _possible(source: Source, wanted: Wanted) -> None:
    """Raise ModelError for what is known to fail before anything is written."""
    if wanted.gguf is not None and source.adapter is not None and not wanted.merge:
        raise ModelError(in_words("use.gguf_of_adapter"))
    if wanted.gguf is not None:
        gguf_file.possible(source)
    if wanted.push is not None:
        try:
            validate_repo_id(wanted.push)
        except HFValidationError as e:
            raise ModelError(in_words("use.odd_place", place=wanted.push)) from e


def _prompts(folder: str, wanted: Wanted) -> list[Text]:
    if wanted.prompts:
        return [r.prompt for r in formats.read(wanted.prompts, kind="prompts", limit=VERIFIED_ON)]
    return validation_prompts(Run.open(folder), VERIFIED_ON)


def _gguf(out: Path, bits: Bits, ids: Sequence[np.ndarray], texts: Sequence[str], console: Console) -> dict[str, Any]:
    """Write and verify a GGUF file in a folder, with a Modelfile beside it."""
    file = out / f"model-{bits}.gguf"
    name = re.sub(r"[^a-z0-9._-]+", "-", out.resolve().name.lower()).strip("-") or "mine"  # as Ollama takes names
    with console.status(in_words("use.writing", file=file.name)):
        gguf_file.write_gguf(out, file, bits)
        found = gguf_file.verify(out, file, [p for p in ids if len(p) > 1], texts)
        try:
            found.holds(bits)
        except ModelError:
            file.unlink()
            raise
    (out / "Modelfile").write_text(modelfile(out, file.name, name), encoding="utf-8")
    apart = {"tokens": found.tokens, "mean": f"{found.mean:.1g}", "most": f"{found.most:.1g}"}
    say(in_words("use.read_back", file=file, size=f"{file.stat().st_size / 2**20:,.0f}", **apart), console)
    if not found.same_ids:
        say(f"  {in_words('use.other_tokenizer')}", console)
    say(in_words("use.ollama", command=f"cd {shlex.quote(str(out))} && ollama create {name} -f Modelfile"), console)
    return {"gguf": file, "gguf_apart": asdict(found)}


def _said(made: exporting.Export, source: Source, console: Console) -> None:
    """Say what was written and how far its answers are from the run's. Raises ModelError where they should not be."""
    out = made.folder
    for m in made.moved:
        if m.exact and m.most > exporting.EXACT:
            raise ModelError(in_words("use.answers_otherwise", out=out, how=m.how, most=f"{m.most:.3g}"))
    base = in_words("use.of_base", held=made.held) if made.held else ""
    checked = in_words("use.checked", n=made.answers) if made.answers else in_words("use.not_checked")
    say(f"{out}: {in_words(f'use.made.{made.what}')}{base}. {checked}", console)
    for m in made.moved:
        shown = {"changed": f"{m.changed:.0%}", "mean": f"{m.mean:.1g}", "most": f"{m.most:.1g}"}
        say(f"  {m.how}: {in_words('use.moved', **shown)}", console)
    if made.what == "adapter" and given_as(source.base):
        say(in_words("use.needs_given", base=source.base), console)
    if any(not m.exact for m in made.moved):
        say(in_words("use.price"), console)
