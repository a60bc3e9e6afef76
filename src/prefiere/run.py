"""A run is a folder: opened, logged to and read here, and nowhere else.

    recipe.yaml        every setting as used
    environment.json   versions, hardware, and each automatic choice with its reason
    data.json          what was read, dropped, truncated
    metrics.jsonl      flat rows: step, loss, loss_low, loss_high, loss_n, eval_loss, ...
    samples.jsonl      sampled answers along the run
    pairs.jsonl        what single examples showed: margin, change of log-probs, lengths, by source line
    blind.json         what people said of its answers beside those before, without knowing which is which
    calibration.json   of a reward model: how right it is, how sure, and how much of it is length
    trackers.json      which runs of trackers are this run
    status.json        running, finished, stopped or failed; step; why, as a sentence and as a kind (`Stop`)
    checkpoints/       what a resume needs
    adapters/          what rollout servers are given while the run lasts
    inputs/            rows and models that were given in Python, each under a hash of what it holds
    model/             the result: a plain transformers or PEFT folder
    report.html        written at every end, good or bad

A folder is data, and may be a stranger's: see `untrusted`. No torch here: reports read runs on machines without it.
"""

from __future__ import annotations

import json
import math
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any, Literal, Self, get_args

import yaml

from prefiere import untrusted
from prefiere.asked.language import in_words
from prefiere.files import leads_out, without_passwords, write_text
from prefiere.untrusted import UnreadableFile


class RunError(ValueError):
    """A run folder that cannot be opened, continued or read."""


StopKind = Literal["interrupted", "early", "degenerate", "exploited", "kl_budget", "rollouts", "worse"]


@dataclass(frozen=True, slots=True)
class Stop:
    """Why a run ended before its last step: a kind, by which programs decide, and a sentence, which people read.

    kind: interrupted (by a person), early (early stopping), or a guard's: degenerate (the answers fell apart),
    exploited (the reward rose and the judge's score fell), kl_budget (the policy is as far from the reference as max_kl
    allows); or rollouts (a server that samples answers failed, or answers from other weights: the run can go on once it
    is mended). A loop of rounds has one of its own: worse (the model after a round lost the blind comparison).
    """

    kind: StopKind
    text: str

    @property
    def finished(self) -> bool:
        """Whether the run counts as finished: its settings asked for this end."""
        return self.kind == "early"

    @property
    def usable(self) -> bool:
        """Whether the weights at the stop are a result, so that model/ is written."""
        return self.kind in ("early", "kl_budget")

    @property
    def guarded(self) -> bool:
        """Whether a guard stopped the run."""
        return self.kind in ("degenerate", "exploited", "kl_budget")

    @classmethod
    def read(cls, recorded: object) -> Self | None:
        """What a status or a checkpoint records; None where that is no stop.

        Folders from before the kind was recorded hold the sentence alone: its first words tell the kind.
        """
        if isinstance(recorded, Mapping) and recorded.get("kind") in get_args(StopKind):
            return cls(recorded["kind"], str(recorded.get("text", "")))
        if isinstance(recorded, str):
            kind = next((kind for start, kind in _SENTENCES if recorded.startswith(start)), None)
            return cls(kind, recorded) if kind is not None else None
        return None


_SENTENCES: tuple[tuple[str, StopKind], ...] = (
    ("interrupted", "interrupted"),
    ("early stopping", "early"),
    ("guard: KL", "kl_budget"),
    ("guard: the reward rises", "exploited"),
    ("guard", "degenerate"),
)
"""How a stop's sentence begins in a folder that records no kind: the first that fits."""


INPUTS = "inputs"
"""The folder of a run that holds what was given in Python."""
_INPUT = re.compile(r"(\w+)-[0-9a-f]{32}(?:\.jsonl)?")


def given_as(name: str | Path) -> str | None:
    """The setting for which a file or folder was written into a run: ``data`` for ``.../inputs/data-0123abc.jsonl``."""
    path = Path(name)
    match = _INPUT.fullmatch(path.name) if path.parent.name == INPUTS else None
    return match[1] if match else None


def called(name: str | Path) -> str:
    """What people call a source of data or a model: the setting that it was given as in Python, else its name."""
    return given_as(name) or str(name)


def _clean(value: Any) -> Any:
    """JSON has no nan or infinity: they become null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {k: _clean(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(v) for v in value]
    return value


class Run:
    """A run folder. Reading needs nothing but the folder; writing is for the process that trains."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)

    def __fspath__(self) -> str:
        return str(self.folder)

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r})"

    @classmethod
    def open(cls, folder: str | Path) -> Self:
        """A run that exists. Raises RunError where there is none."""
        run = cls(folder)
        if not (run.folder / "recipe.yaml").is_file():
            raise RunError(in_words("error.no_run", folder=folder))
        return run

    @classmethod
    def create(cls, folder: str | Path) -> Self:
        """Make the folder. Raises RunError where it cannot be written to."""
        run = cls(folder)
        with run.writing():
            run.folder.mkdir(parents=True, exist_ok=True)
            probe = run.folder / f".writable.{secrets.token_hex(8)}.tmp"
            with probe.open("x"):
                pass
            probe.unlink()
        return run

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Say which folder could not be written to."""
        try:
            yield
        except OSError as e:
            why = f"cannot write to the run folder {self.folder}: {e.strerror or e}"
            raise RunError(f"{why}. What was saved before is whole; free some space or choose another --out.") from e

    def inside(self, name: str) -> Path:
        """A file or folder of the run. Raises RunError where a link leads out of the run folder."""
        path = self.folder / name
        if leads_out(self.folder, path):
            raise RunError(f"{path} is a link that leads out of the run folder. Put what it points to in its place.")
        return path

    @property
    def checkpoints(self) -> Path:
        return self.inside("checkpoints")

    @property
    def model(self) -> Path:
        """The trained model (or adapter), once the run has finished."""
        return self.inside("model")

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    # -- whole files ----------------------------------------------------------------------------------------------

    def _read_json(self, name: str) -> dict[str, Any]:
        try:
            return untrusted.read_json(self.folder / name)
        except FileNotFoundError:
            return {}
        except UnreadableFile as e:
            raise RunError(f"{e} Restore it, or start over with --fresh.") from e

    def _shaped(self, name: str, kinds: Mapping[str, type]) -> dict[str, Any]:
        """A record whose parts have these kinds, where they are there. Raises RunError for one of another."""
        found = self._read_json(name)
        for key, kind in kinds.items():
            if not isinstance(found.get(key, kind()), kind | NoneType):
                raise RunError(f"{self.folder / name} is damaged: {key} is not as a run writes it. Restore it.")
        return found

    def _write_json(self, name: str, data: Mapping[str, Any]) -> None:
        text = json.dumps(without_passwords(_clean(data)), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        with self.writing():
            write_text(self.folder / name, text)

    @property
    def recipe(self) -> dict[str, Any]:
        """Every setting of the run, flat. What was given in Python is where the folder is now."""
        try:
            return {k: self._here(v) for k, v in untrusted.read_yaml(self.folder / "recipe.yaml").items()}
        except FileNotFoundError:
            raise RunError(in_words("error.no_run", folder=self.folder)) from None
        except UnreadableFile as e:
            raise RunError(f"{e} Restore it, or start over with --fresh.") from e

    @recipe.setter
    def recipe(self, settings: Mapping[str, Any]) -> None:
        text = yaml.safe_dump(without_passwords(settings), sort_keys=False, allow_unicode=True)
        with self.writing():
            write_text(self.folder / "recipe.yaml", text)

    def _here(self, value: Any) -> Any:
        if isinstance(value, str) and given_as(value) and (here := self.inside(INPUTS) / Path(value).name).exists():
            return str(here)
        return value

    @property
    def environment(self) -> dict[str, Any]:
        """Versions, hardware, the plan, and each choice that was made for the user, with its reason."""
        kinds = {"choices": list, "versions": dict, "plan": dict, "rewards": dict, "functions": dict}
        return self._shaped("environment.json", kinds)

    @environment.setter
    def environment(self, data: Mapping[str, Any]) -> None:
        self._write_json("environment.json", data)

    @property
    def choices(self) -> dict[str, Any]:
        """What was chosen for the user, by name."""
        made = self.environment.get("choices", [])
        return {str(c["name"]): c.get("value") for c in made if isinstance(c, dict) and "name" in c}

    @property
    def data(self) -> dict[str, Any]:
        """What was read, dropped, truncated."""
        return self._shaped("data.json", {"eval_sources": list})

    @data.setter
    def data(self, data: Mapping[str, Any]) -> None:
        self._write_json("data.json", data)

    @property
    def status(self) -> dict[str, Any]:
        """What the run is at.

        ``state`` (running, finished, stopped, failed), ``step``, ``total_steps``, ``seconds``; ``reason``, a sentence
        on why it ended; ``stop``, why it ended before its last step: ``kind`` and ``text`` of a `Stop`, or None.
        """
        found = self._read_json("status.json")
        for name in ("step", "total_steps", "seconds"):
            if not isinstance(found.get(name), int | float | None):
                raise RunError(f"{self.folder / 'status.json'} is damaged: {name} is no number. Restore it.")
        return found

    @status.setter
    def status(self, data: Mapping[str, Any]) -> None:
        self._write_json("status.json", data)

    @property
    def stop(self) -> Stop | None:
        """Why the run ended before its last step; None where it did not."""
        status = self.status
        ended = status.get("state") in ("stopped", "finished")
        return Stop.read(status["stop"] if "stop" in status else status.get("reason")) if ended else None

    @property
    def calibration(self) -> dict[str, Any]:
        """Of a reward model: accuracy, log loss, reliability and length on the held-out pairs; normalisation."""
        return self._read_json("calibration.json")

    @calibration.setter
    def calibration(self, data: Mapping[str, Any]) -> None:
        self._write_json("calibration.json", data)

    @property
    def blind(self) -> dict[str, Any]:
        """What people said, blind, of the model before and after: won, lost, tied, share, low, high, p, people."""
        return self._read_json("blind.json")

    @blind.setter
    def blind(self, data: Mapping[str, Any]) -> None:
        self._write_json("blind.json", data)

    # -- logs -----------------------------------------------------------------------------------------------------

    def _append(self, name: str, rows: list[Mapping[str, Any]]) -> None:
        text = "".join(json.dumps(_clean(row), ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
        path = self.folder / name
        with self.writing(), open(path, "a", encoding="utf-8", errors="replace", opener=untrusted.no_link) as f:
            f.write(text)

    def _rows(self, name: str) -> Iterator[tuple[dict[str, Any], int]]:
        try:
            yield from untrusted.read_log(self.folder / name)
        except UnreadableFile as e:
            raise RunError(str(e)) from e

    def log(self, row: Mapping[str, Any]) -> None:
        """Append one flat row to metrics.jsonl."""
        self._append("metrics.jsonl", [row])

    def log_samples(self, rows: list[Mapping[str, Any]]) -> None:
        """Append sampled answers to samples.jsonl."""
        self._append("samples.jsonl", rows)

    def log_pairs(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Append what single examples showed to pairs.jsonl."""
        self._append("pairs.jsonl", list(rows))

    @property
    def metrics(self) -> list[dict[str, Any]]:
        return [row for row, _ in self._rows("metrics.jsonl")]

    @property
    def samples(self) -> list[dict[str, Any]]:
        return [row for row, _ in self._rows("samples.jsonl")]

    @property
    def pairs(self) -> list[dict[str, Any]]:
        """What single examples showed (`evaluate.singles`): ``step``, ``split`` (train, eval), ``source``, ``margin``,
        ``chosen`` and ``rejected`` (change of log-prob in nats, or score), ``label`` where it is not 1, ``tokens``."""
        return untrusted.thinned(self._rows("pairs.jsonl"))

    def thinned_metrics(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl that make curves: all, or of a very long log every second, fourth, eighth, ..."""
        return untrusted.thinned(self._rows("metrics.jsonl"))

    def samples_at_ends(self) -> list[dict[str, Any]]:
        """The answers of the first step at which some were sampled, and of the last."""
        return untrusted.at_ends(self._rows("samples.jsonl"))
