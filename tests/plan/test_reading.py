"""What a run reads and says of it: overlap, plain text held out, variables and dates of templates, unread columns."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from prefiere import recipe
from prefiere.cli.data import inspect
from prefiere.console import Display
from prefiere.data.values import DataError
from prefiere.evaluate.manner import manner_of
from prefiere.plan import reading
from prefiere.plan.device import Device
from prefiere.plan.plan import resolve
from prefiere.plan.reading import Reader
from prefiere.run import Run
from prefiere.settings import DPO
from runs import model_folder
from tiny import TEMPLATES


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFIERE_CACHE", str(tmp_path / "cache"))


def pairs(path: Path, numbers: range, **more: Any) -> Path:
    rows = [{"prompt": f"Number {i}?", "chosen": f"It is {i}.", "rejected": f"No idea {i}.", **more} for i in numbers]
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def planned(method: str, model: Path, data: Path, recorded: Any = None, **settings: Any) -> Any:
    given = {"model": str(model), "data": str(data), "out": "o", "dtype": "float32", **settings}
    return resolve(recipe.load(method, None, given), Device.of(torch.device("cpu")), recorded)


def read(method: str, model: Path, data: Path, **settings: Any) -> tuple[Any, str]:
    plan = planned(method, model, data, **settings)
    console = Console(record=True, width=300, quiet=False, file=open("/dev/null", "w"))  # noqa: SIM115
    found = Reader.of(plan).read(plan, Display(console))
    return found, console.export_text()


def test_prompts_of_eval_data_that_are_also_in_data_are_said_and_recorded(model: Path, tmp_path: Path) -> None:
    train, other = pairs(tmp_path / "a.jsonl", range(20)), pairs(tmp_path / "b.jsonl", range(15, 25))
    found, said = read("dpo", model, train, eval_data=str(other))
    assert found.account["overlap"] == {"prompts": 5, "of": 10}
    lines = [f"{other}:{n}" for n in range(1, 6)]
    assert found.account["known_answers"] == {"examples": 5, "of": 10, "sources": lines}
    assert "5 of 10 prompts of eval_data are also in data" in said
    found, said = read("dpo", model, train, eval_data=str(pairs(tmp_path / "c.jsonl", range(20, 24))))
    assert found.account["overlap"] == {"prompts": 0, "of": 4}
    assert "also in data" not in said


def test_columns_that_are_not_read_are_in_the_first_lines_and_in_the_account(model: Path, tmp_path: Path) -> None:
    data = pairs(tmp_path / "a.jsonl", range(20), context="A long passage.", id=7)
    for _ in range(2):  # the second time from the cache
        found, said = read("dpo", model, data)
        assert "columns not read: context, id" in said
        assert found.account["train"]["read"]["unread_columns"] == ["context", "id"]


def test_plain_text_is_held_out_by_text(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("".join(f"The dog number {i} is a friend.\n" for i in (*range(20), 3)))
    found, _ = read("sft", model, path, eval_size=0.25)
    train, held = ({bytes(g.completions[0]) for g in side} for side in (found.train, found.eval))
    assert len(train) + len(held) == 20
    assert not train & held


def test_variables_of_the_template_are_a_setting(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "m")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    shouts = TEMPLATES["chatml"].replace("'assistant\\n'", "'assistant\\n' + (mood or '')")
    for name in ("chat_template.jinja",):
        (folder / name).write_text("{% if mood %}{{ mood }}{% endif %}" + shouts)
    config.pop("chat_template", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    data = pairs(tmp_path / "a.jsonl", range(4))
    plan = planned("dpo", folder, data, template_kwargs={"mood": "dog"})
    reader = Reader.of(plan)
    ids = reader.encoder.encode_prompts(["Who?"])[0]  # type: ignore[union-attr]
    assert reader.tokenizer.decode(ids).startswith("dog<|im_start|>user")
    run = Run.create(tmp_path / "run")
    run.recipe = plan.settings.model_dump()
    assert manner_of(run.folder)["template_kwargs"] == {"mood": "dog"}
    assert manner_of(run.folder, {"mood": "cat"})["template_kwargs"] == {"mood": "cat"}
    assert manner_of(folder) == {}


def test_the_day_of_a_template_is_the_first_day_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = model_folder(tmp_path / "m")
    (folder / "chat_template.jinja").write_text("{{ strftime_now('%d.%m.%Y') }} " + TEMPLATES["chatml"])
    data = pairs(tmp_path / "a.jsonl", range(4))

    class Day(date):
        @classmethod
        def today(cls) -> Any:
            return cls(2031, 5, 17)

    monkeypatch.setattr(reading, "date", Day)
    first = Reader.of(planned("dpo", folder, data))
    (choice,) = first.choices
    assert (choice.name, choice.value) == ("template_date", "2031-05-17")
    monkeypatch.setattr(reading, "date", date)
    again = Reader.of(planned("dpo", folder, data, recorded={choice.name: choice.value}))
    prompts = [r.encoder.encode_prompts(["Who?"])[0] for r in (first, again)]  # type: ignore[union-attr]
    assert np.array_equal(*prompts)
    assert again.tokenizer.decode(prompts[0]).startswith("17.05.2031 ")
    assert again.encoder.key() == first.encoder.key()


def test_a_template_without_a_date_makes_no_choice(model: Path, tmp_path: Path) -> None:
    assert not Reader.of(planned("dpo", model, pairs(tmp_path / "a.jsonl", range(4)))).choices


def settings_of(data: Path) -> DPO:
    found = recipe.load("dpo", None, {"model": "", "data": str(data), "out": ""})
    assert isinstance(found, DPO)
    return found


def test_the_command_names_what_is_not_read_and_fails_where_nothing_is_kept(tmp_path: Path) -> None:
    console = Console(record=True, width=300, file=open("/dev/null", "w"))  # noqa: SIM115
    found = inspect(
        settings_of(pairs(tmp_path / "a.jsonl", range(3), context="A passage.")), model=None, console=console
    )
    assert "columns not read: context" in console.export_text()
    assert found["read"]["unread_columns"] == ["context"]
    path = tmp_path / "b.jsonl"
    path.write_text(json.dumps({"prompt": "q", "chosen": "x", "rejected": "x"}) + "\n")
    with pytest.raises(
        DataError, match=r"no record can be used \(1 read, 0 kept, 1 dropped \(chosen equals rejected\)\)"
    ):
        inspect(settings_of(path), model=None, console=console)
