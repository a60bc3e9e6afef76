"""A real small model at work on real pairs (``--model FOLDER``, such as SmolLM2-135M-Instruct; ``--data FILE``).

What a person waits for: the updates themselves, against TRL at its best; the first one, from the command's start; all
that is neither reference nor updates in a whole default run; and what a full reward-model run holds.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import Bench, Row, clock, quiet, write_groups
from benchmarks.contenders import installed
from benchmarks.dpo import whole_model
from benchmarks.memory import peak_mb
from benchmarks.workload import MAX_LENGTH, write_pairs
from prefiere.models.load import load_tokenizer
from prefiere.models.source import find_model
from prefiere.tokens.encoder import Encoder
from prefiere.tokens.groups import GroupStore
from prefiere.tokens.truncation import EncodeReport, Truncation

GOALS = {"updates": 5.0, "first": 3.0, "share": 0.25, "peak": 5.0}
UPDATES = 100


def rows(bench: Bench) -> Iterable[Row]:
    """Nothing without a model; with ``--quick`` a tiny one of random weights stands in."""
    model = bench.folder("tiny") if bench.quick else bench.model
    if model is None:
        yield Row.missing("a real small model", None, "--model names none")
        return
    data = write_pairs(bench.out / "pairs.jsonl", bench.pairs)
    parts: dict[str, Callable[[], Iterable[Row]]] = {
        "updates": lambda: _updates(bench, model),
        "first": lambda: [_first(bench, model, data)],
        "share": lambda: [_share(bench, model, data)],
        "peak": lambda: [_peak(bench, model, data)],
    }
    for part in bench.parts:
        yield from parts[part]()


def _updates(bench: Bench, model: Path) -> Iterable[Row]:
    title = f"DPO, reference and updates, {model.name}"
    for lora in (False, True):
        yield from whole_model(bench, title, model, _store(bench, model), lora=lora, goal=GOALS["updates"])


def _store(bench: Bench, model: Path) -> GroupStore:
    folder = bench.out / "stores" / model.name
    if not folder.is_dir():
        tokenizer = load_tokenizer(find_model(model))
        encoder = Encoder(tokenizer, Truncation(MAX_LENGTH), eos_ids=[tokenizer.eos_token_id])
        folder.mkdir(parents=True)
        write_groups(encoder.encode(bench.pairs, EncodeReport()), 2, folder)
    return GroupStore.open(folder, 2)


# -- the first update -------------------------------------------------------------------------------------------------


def _first(bench: Bench, model: Path, data: Path) -> Row:
    """Both twice: the first time fills what each keeps, and is not counted."""
    work = f"from the command to its first update, DPO with LoRA, {model.name}, caches warm; `trl dpo`"
    if not installed():
        return Row.missing(work, GOALS["first"], "TRL is not installed")
    places = itertools.count()
    ours = ["-m", "prefiere", "dpo", f"model={model}", f"data={data}", "lora=true", "logging_steps=1", "batch_size=16"]
    alone = data.parent / "only-pairs"  # TRL reads a folder
    alone.mkdir(exist_ok=True)
    (alone / "train.jsonl").write_bytes(data.read_bytes())
    theirs = [
        "-c", "from trl.cli import main; main()", "dpo", "--model_name_or_path", model, "--dataset_name", alone,
        "--use_peft", "--logging_steps", "1", "--per_device_train_batch_size", "4",
        "--gradient_accumulation_steps", "4", "--report_to", "none",
        "--gradient_checkpointing", "false", "--max_length", "1024", "--use_cpu", "--bf16", "false",
    ]  # fmt: skip
    mine: Callable[[int], float] = lambda _: _until(r"step 1/", [*ours, f"out={bench.out}/first-{next(places)}"])  # noqa: E731
    peer: Callable[[int], float] = lambda _: _until(  # noqa: E731
        r"'loss'", [*theirs, "--output_dir", bench.out / f"trl-{next(places)}"]
    )
    t = bench.alternate({"ours": mine, "trl": peer}, 1)
    note = "ours samples and validates before it, and has its reference from before"
    return Row.faster(work, t["ours"], t["trl"], goal=GOALS["first"], note=note)


def _until(said: str, arguments: list[Any]) -> float:
    """Seconds until a Python command prints this; it is ended then. Raises RuntimeError where it ends without."""
    command, began = [sys.executable, *map(str, arguments)], clock()
    both: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command, start_new_session=True, **both) as process:
        assert process.stdout is not None
        last = ""
        for last in process.stdout:
            if re.search(said, last):
                seconds = clock() - began
                os.killpg(process.pid, signal.SIGKILL)  # `trl dpo` trains in a process of its own
                return seconds
    raise RuntimeError(f"{' '.join(command)} ended before it printed {said}: {last.strip()}")


# -- a whole run ------------------------------------------------------------------------------------------------------


def _share(bench: Bench, model: Path, data: Path) -> Row:
    """Peer: the whole run."""
    steps = 3 if bench.quick else UPDATES
    found = bench.child("real", "share", str(model), str(data), str(bench.out / "whole"), str(steps))
    run = f"a whole default run, {steps} updates of 16, LoRA, {model.name}"
    work = f"{run}: share that is neither reference nor updates"
    return Row.smaller(work, [found["rest"]], [found["whole"]], goal=GOALS["share"], unit="s", note="one run")


def _peak(bench: Bench, model: Path, data: Path) -> Row:
    """In GB; the peer is the goal."""
    found = bench.child("real", "peak", str(model), str(data), str(bench.out / "reward"), "3")
    work = f"peak memory of a full reward-model run, {model.name}, 512 tokens, default budget: of {GOALS['peak']:g} GiB"
    gib = found["peak"] * 1e6 / 2**30
    return Row.smaller(work, [gib], [GOALS["peak"]], goal=1.0, unit="GiB", note="3 updates")


@contextmanager
def _timed(home: Any, name: str, seconds: list[float]) -> Any:
    real = getattr(home, name)

    def timed(*arguments: Any, **options: Any) -> Any:
        began = clock()
        try:
            return real(*arguments, **options)
        finally:
            seconds.append(clock() - began)

    setattr(home, name, timed)
    yield
    setattr(home, name, real)


def _child(what: str, model: str, data: str, out: str, steps: str) -> dict[str, float]:
    quiet()
    os.environ["PREFIERE_CACHE"] = f"{out}-cache"
    from prefiere.algorithms import offline
    from prefiere.console import Display
    from prefiere.launch import launch
    from prefiere.settings import DPO, Reward
    from prefiere.train.engine import Engine

    began, work = time.perf_counter(), list[float]()
    common: dict[str, Any] = {"model": model, "data": data, "out": out, "max_steps": int(steps)}
    settings: Any = DPO(lora=True, batch_size=16, **common)
    if what == "peak":
        settings = Reward(lora=False, max_length=512, sample_steps=0, **common)
    with _timed(Engine, "update", work), _timed(offline, "cached_logps", work):
        launch(settings, display=Display(quiet=True))
    whole = time.perf_counter() - began
    return {"whole": whole, "rest": whole - float(np.sum(work)), "peak": peak_mb()}


if __name__ == "__main__":
    print(json.dumps(_child(*sys.argv[1:])))
