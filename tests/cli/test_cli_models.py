"""The commands about data and models, end to end on a tiny model, in this process."""

from __future__ import annotations

import doctest
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner, Result

import prefiere
import quantized
import runs
import tiny
from prefiere.api import methods
from prefiere.api import run as api_run
from prefiere.cli.main import app
from prefiere.data.schema import Message
from prefiere.models.load import load_model
from prefiere.models.source import find_model


def run(*arguments: str | Path, stdin: str | None = None) -> Result:
    done = CliRunner().invoke(app, [str(a) for a in arguments], input=stdin)
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


def result(*arguments: str | Path, code: int = 0) -> dict[str, Any]:
    done = run(*arguments, "--json")
    assert done.exit_code == code, done.stderr
    return json.loads(done.stdout)


RUINED = 4
"""What `data` ends with where a run would be ruined: all preferred answers of this data are one text."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, pairs, demonstrations and prompts."""
    folder = tmp_path_factory.mktemp("place")
    tiny.model("llama").save_pretrained(folder / "model")
    tiny.tokenizer("bpe", "chatml").save_pretrained(folder / "model")
    pairs = [
        {"prompt": f"What is a dog {i}?", "chosen": "A dog is a domestic animal.", "rejected": "The best friend."}
        for i in range(24)
    ]
    pairs[3]["rejected"] = pairs[3]["chosen"]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(p) + "\n" for p in pairs), encoding="utf-8")
    (folder / "shown.jsonl").write_text(
        "".join(
            json.dumps({"prompt": p["prompt"], "completion": f"{p['chosen']} Number {i}."}) + "\n"
            for i, p in enumerate(pairs)
        ),
        encoding="utf-8",
    )
    (folder / "prompts.txt").write_text("What is a dog?\n¿Qué es una casa?\n", encoding="utf-8")
    (folder / "rule.py").write_text("def short(prompts, answers):\n    return [-len(a) for a in answers]\n")
    return folder


@pytest.fixture(scope="module")
def trained(place: Path) -> dict[str, Any]:
    """A LoRA run by ``prefiere dpo``."""
    return result(
        "dpo", "-m", place / "model", "-d", place / "pairs.jsonl", "-o", place / "run",
        "max_steps=2", "batch_size=4", "lora=true", "max_new_tokens=6", "guard=false",
    )  # fmt: skip


def test_data_counts_everything_and_shows_three(place: Path) -> None:
    shown = result("data", place / "pairs.jsonl", code=RUINED)
    assert shown["ruined"]
    assert shown["read"]["kind"] == "pairs"
    assert "prompt, chosen, rejected" in shown["read"]["layout"]
    assert (shown["read"]["read"], shown["read"]["kept"]) == (24, 23)
    assert len(shown["examples"]) == 3
    assert "A dog is a domestic animal." in shown["examples"][0]
    text = run("data", place / "pairs.jsonl").stdout
    assert "pairs.jsonl:4" in text  # the line that was dropped, and why
    assert "24 read, 23 kept, 1 dropped" in text


def test_data_with_a_model_colours_what_is_scored(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = result("data", place / "pairs.jsonl", "--model", place / "model", code=RUINED)
    assert shown["tokens"]["groups"] == 23
    assert "<|im_start|>user" in shown["examples"][0]
    cut = result("data", place / "pairs.jsonl", "--model", place / "model", "max_length=12", code=RUINED)
    assert cut["tokens"]["truncated_prompts"]["count"] == 23
    none = run("data", place / "pairs.jsonl", "--model", place / "model", "max_length=8")
    assert (none.exit_code, "max_length has no room for an answer" in none.output) == (2, True)
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    coloured = run("data", place / "pairs.jsonl", "--model", place / "model").stdout
    assert "\x1b[32mA dog is a domestic animal." in coloured


def test_data_takes_any_kind(place: Path) -> None:
    assert result("data", place / "shown.jsonl")["read"]["kind"] == "demonstrations"
    assert result("data", place / "prompts.txt")["read"]["kept"] == 2


def test_dpo_ends_with_a_model_and_a_report(trained: dict[str, Any]) -> None:
    assert trained["state"] == "finished"
    assert Path(trained["report"]).read_text(encoding="utf-8").lstrip().lower().startswith("<!doctype html>")
    assert AutoPeftModelForCausalLM.from_pretrained(trained["model"]) is not None
    assert {"loss", "eval_loss", "rewards/margins"} <= set(trained["metrics"])


def test_a_finished_run_says_so_and_exits_0(place: Path, trained: dict[str, Any]) -> None:
    again = run(
        "dpo", "-m", place / "model", "-d", place / "pairs.jsonl", "-o", place / "run",
        "max_steps=2", "batch_size=4", "lora=true", "max_new_tokens=6", "guard=false",
    )  # fmt: skip
    assert again.exit_code == 0
    assert "has finished already" in again.stderr


def test_other_settings_for_the_same_folder_are_an_error_that_names_them(place: Path, trained: dict[str, Any]) -> None:
    again = run("dpo", "-m", place / "model", "-d", place / "pairs.jsonl", "-o", place / "run", "max_steps=3")
    assert again.exit_code == 2
    for key in ("max_steps", "batch_size", "lora", "max_new_tokens"):
        assert key in again.stderr


def test_sample_answers_every_prompt_reproducibly(place: Path, trained: dict[str, Any]) -> None:
    arguments = ("sample", place / "run", "--prompts", place / "prompts.txt", "-n", "2", "--max-new-tokens", "5")
    first = result(*arguments)
    assert [(a["prompt"], a["sample"]) for a in first["answers"]] == [
        ("What is a dog?", 0), ("What is a dog?", 1), ("¿Qué es una casa?", 0), ("¿Qué es una casa?", 1),
    ]  # fmt: skip
    assert result(*arguments) == first
    assert result(*arguments, "--seed", "1") != first
    assert "¿Qué es una casa?" in run(*arguments).stdout
    refused = run(*arguments, "--top-p", "0")
    assert (refused.exit_code, "top_p=0: a probability above 0" in refused.stderr) == (2, True)


def test_compare_takes_a_run_or_two_models_and_a_judge(
    place: Path, trained: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    found = result("compare", "run", "--judge", "rule:short", "--max-new-tokens", "5")
    assert found["wins"] + found["losses"] + found["ties"] == len(found["pairings"]) >= 1
    same = result("compare", "model", "model", "-p", "prompts.txt", "--max-new-tokens", "5")
    assert [p["before"] for p in same["pairings"]] == [p["after"] for p in same["pairings"]]
    done = run("compare", "model", "model")
    assert done.exit_code == 2
    assert "--prompts" in done.stderr


def test_export_is_verified_and_anybody_can_load_it(place: Path, trained: dict[str, Any]) -> None:
    kept = result("export", place / "run", "--out", place / "adapter")
    (moved,) = kept["moved"]
    assert (kept["merged"], kept["held"], moved["changed"], moved["most"]) == (False, None, 0.0, 0.0)
    assert (place / "adapter" / "adapter_config.json").is_file()
    merged = result("export", place / "run", "--out", place / "merged", "--merge")
    assert merged["merged"] is True
    assert merged["moved"][0]["most"] < 1e-5
    assert AutoModelForCausalLM.from_pretrained(place / "merged") is not None
    again = run("export", place / "run", "--out", place / "merged")
    assert again.exit_code == 2
    assert "not empty" in again.stderr


@pytest.mark.long
@pytest.mark.parametrize("held", ["nf4", "gptq"])
def test_an_export_from_few_bits_says_how_far_answers_moved(tmp_path: Path, held: str) -> None:
    base = quantized.mistral(tmp_path / "base")
    pairs = runs.pairs_file(tmp_path / "pairs.jsonl")
    model = base if held == "nf4" else quantized.folder(base, tmp_path / "gptq")[0]
    result(
        "dpo", "-m", model, "-d", pairs, "-o", tmp_path / "run", "max_steps=3", "batch_size=8", "max_new_tokens=6",
        "guard=false", "learning_rate=1e-3", *(["quantize=nf4"] if held == "nf4" else []),
    )  # fmt: skip
    kept = result("export", tmp_path / "run", "--out", tmp_path / "adapter")
    as_trained, *as_published = kept["moved"]
    assert (kept["held"], kept["merged"]) == (held, False)
    assert (as_trained["changed"], as_trained["most"], as_trained["exact"]) == (0.0, 0.0, True)
    assert len(as_published) == (held == "nf4")
    for moved in as_published:
        assert moved["most"] > 0.01
        assert not moved["exact"]
    said = run("export", tmp_path / "run", "--out", tmp_path / "merged", "--merge").stdout
    assert f"of a base that was {held} in training" in said
    assert "the price of other weights" in said
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype="auto")
    assert merged.dtype == torch.bfloat16
    assert not hasattr(merged.config, "quantization_config")
    ours = load_model(find_model(tmp_path / "run"))
    tokens = torch.randint(0, 300, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        off = (merged.float()(tokens).logits.log_softmax(-1) - ours(tokens).logits.log_softmax(-1)).abs()
    assert 0 < off.mean() < 0.05


def test_an_export_that_answers_otherwise_is_an_error(
    place: Path, trained: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefiere.models import export as exporting

    loaded = tiny.model("llama")
    for parameter in loaded.parameters():
        parameter.data.mul_(1.5)
    monkeypatch.setattr(exporting, "load_plain", lambda folder: loaded.eval())
    done = run("export", place / "run", "--out", place / "wrong")
    assert done.exit_code == 2
    assert "answers otherwise" in done.stderr


@pytest.mark.long
def test_estimate_says_whether_it_fits_and_what_to_change(place: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        f"method: dpo\nmodel: {place / 'model'}\ndata: {place / 'pairs.jsonl'}\nout: {tmp_path / 'run'}\n"
    )
    found = result("estimate", recipe, "--gpu", "t4", "lora=true", "batch_size=4")
    assert (found["device"], found["fits"], found["changes"]) == ("T4", True, [])
    assert 0 < found["peak"] < found["available"] < 16e9
    text = run("estimate", "--model", place / "model", "--data", place / "pairs.jsonl", "--gpu", "cpu").stdout
    assert "on this processor: it fits" in text
    wrong = run("estimate", recipe, "--gpu", "potato")
    assert wrong.exit_code == 2
    assert "there are t4" in wrong.stderr


def interrupted(*args: object, **kwargs: object) -> None:
    raise KeyboardInterrupt


def test_an_answer_is_heard_while_it_is_drawn() -> None:
    """Bytes as tokens: é and the dog are of two and four; space at the end, and what follows the end, are not said."""
    from prefiere.evaluate.talk import Aloud

    heard: list[str] = []
    aloud = Aloud(lambda ids: bytes(ids).decode(errors="replace"), (0,), heard.append)
    for token in "\n él 🐕 ".encode() + b"\0x":
        aloud(torch.tensor([token]))
    assert heard == ["é", "l", " 🐕"]
    aloud.say("él 🐕")
    assert "".join(heard) == "él 🐕"


def test_what_chat_hears_does_nothing_on_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """Also where an escape sequence comes in pieces."""
    from prefiere.cli.models import chat
    from prefiere.console import console

    class Talks:
        turns: ClassVar[list[Message]] = []

        def __call__(self, _: str, hear: Any) -> None:
            for piece in ("a", "\x1b", "[31m", "b\r", "\x9b2J", "[bold]"):
                hear(piece)

    chat(Talks(), ["hello"], console())  # type: ignore[arg-type]
    said = capsys.readouterr().out
    assert not set("\x1b\r\x9b") & set(said)
    assert said.startswith("a⟨U+001B⟩[31mb⟨U+000D⟩⟨U+009B⟩2J[bold]")


def test_chat_remembers_until_an_empty_line(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from prefiere.cli import models
    from prefiere.sample.sampling import Sampling

    talker = models.Talker(str(place / "model"), Sampling(max_new_tokens=4))
    asked: list[Any] = []
    encode = talker.encoder.encode_prompts
    monkeypatch.setattr(talker.encoder, "encode_prompts", lambda prompts: asked.append(prompts[0]) or encode(prompts))
    first = talker("What is a dog?")
    talker("What is a house?")
    assert asked[1][:2] == (Message("user", "What is a dog?"), Message("assistant", first))
    assert [m.role for m in asked[1]] == ["user", "assistant", "user"]

    with monkeypatch.context() as broken:
        broken.setattr("prefiere.evaluate.talk.generate", interrupted)
        with pytest.raises(KeyboardInterrupt):
            talker("What is a tree?")
    talker("What is a river?")
    assert [m.content for m in asked[-1] if m.role == "user"] == [
        "What is a dog?", "What is a house?", "What is a river?",
    ]  # fmt: skip

    heard: list[str] = []
    talker.sampling = Sampling(temperature=0.0, max_new_tokens=12)
    assert talker("What is a cat?", heard.append) == "".join(heard)
    assert len(heard) > 3

    done = run("chat", place / "model", "--max-new-tokens", "4", "--json", stdin="What is a dog?\n\nHello\n")
    assert done.exit_code == 0
    turns = json.loads(done.stdout)["turns"]
    assert [turn["role"] for turn in turns] == ["user", "assistant"]
    assert turns[0]["content"] == "Hello"


@pytest.mark.long
def test_the_same_in_python(place: Path) -> None:
    """The examples in the docstrings run as they stand, on this model and these pairs."""
    names = {"model": place / "model", "pairs": place / "pairs.jsonl", "shown": place / "shown.jsonl"}
    here = os.getcwd()
    os.chdir(place)
    try:
        failed, tried = doctest.testmod(methods, extraglobs=names, optionflags=doctest.ELLIPSIS)
        assert (failed, tried > 3) == (0, True)
        assert doctest.testmod(api_run)[0] == 0  # of the run that the examples before have made
        assert doctest.testmod(prefiere)[0] == 0
    finally:
        os.chdir(here)


def test_reward_and_score(place: Path, tmp_path: Path) -> None:
    settings = ["max_steps=2", "batch_size=8", "learning_rate=1e-3", "dtype=float32"]
    given = ["--model", place / "model", "--data", place / "pairs.jsonl"]
    made = result("reward", *given, "--out", tmp_path / "rm", *settings)
    assert made["state"] == "finished"
    assert (tmp_path / "rm" / "report.html").is_file()
    out = tmp_path / "scores.jsonl"
    found = result("score", tmp_path / "rm", "max_length=64", "--data", place / "pairs.jsonl", "--out", out)
    (described,) = found["models"].values()
    assert described["n"] == len(out.read_text().splitlines()) == 23
    assert described["length"]["rule"] == "longer"
    shown = run("score", tmp_path / "rm", "--data", place / "pairs.jsonl")
    assert "always choosing the longer answer: 100.0%" in shown.stdout
    alone = result("score", tmp_path / "rm", "--data", place / "shown.jsonl")
    assert next(iter(alone["models"].values()))["n"] == 24


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["learning_rate=1"], "learning_rate is a setting of training"),
        (["max_lenght=5"], "Did you mean max_length?"),
        (["other"], "there is no folder other here"),
    ],
)
def test_mistakes_in_scoring_are_one_line(place: Path, given: list[str], message: str) -> None:
    done = run("score", *([] if given == ["other"] else [place / "model"]), *given, "--data", place / "pairs.jsonl")
    assert done.exit_code == 2
    assert re.search(message, done.stderr)
    assert len(done.stderr.strip().splitlines()) == 1


def test_memory_that_runs_out_in_a_command_is_one_line(
    place: Path, trained: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)

    def none_left(*args: object, **kwargs: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")

    monkeypatch.setattr("prefiere.sample.local.LocalRollouts.sample", none_left)
    monkeypatch.setattr("prefiere.models.export.generate", none_left)
    monkeypatch.setattr("prefiere.evaluate.talk.generate", none_left)
    for command in (
        ("sample", "model", "-p", "prompts.txt"),
        ("compare", "run", "--judge", "none"),
        ("chat", "model"),
        ("export", "run", "--out", "nowhere"),
    ):
        done = run(*command, stdin="hola\n" if command[0] == "chat" else None)
        assert done.exit_code == 2, done.output
        assert done.stderr.splitlines()[-1].startswith("error: out of memory while ")
    assert not (place / "nowhere").exists()


def test_a_run_that_held_nothing_out_is_exported_and_not_called_verified(place: Path) -> None:
    result(
        "dpo", "-m", place / "model", "-d", place / "pairs.jsonl", "-o", place / "unheld", "max_steps=1", "eval_size=0",
        "sample_steps=0",
    )  # fmt: skip
    done = run("export", place / "unheld", "--out", place / "unasked")
    assert done.exit_code == 0
    assert "NOT verified" in done.stdout
    assert "0%" not in done.stdout
    assert AutoModelForCausalLM.from_pretrained(place / "unasked") is not None


@pytest.mark.long
def test_the_judge_of_a_run_from_elsewhere_is_named_and_not_executed(
    place: Path, trained: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The module lies in the folder that was sent, which is where the person looks at it."""
    shutil.copytree(place / "run", tmp_path / "run")
    (tmp_path / "theirs.py").write_text(
        "open('it_ran', 'w')\ndef score(prompts, answers): return [0.0] * len(answers)\n"
    )
    recipe = tmp_path / "run" / "recipe.yaml"
    recipe.write_text(re.sub(r"(?m)^judge: .*$", "judge: theirs:score", recipe.read_text()))
    monkeypatch.chdir(tmp_path)
    done = run("compare", "run", "--max-new-tokens", "3")
    assert done.exit_code == 2
    assert "theirs:score, which reading a run does not execute" in done.stderr
    assert "--judge theirs:score" in done.stderr
    for command in (
        ("report", "run"),
        ("export", "run", "--out", "out"),
        ("sample", "run", "-p", place / "prompts.txt"),
    ):
        run(*command)
    assert not (tmp_path / "it_ran").exists()
    assert run("compare", "run", "--max-new-tokens", "3", "--judge", "none").exit_code == 0
    assert run("compare", "run", "--max-new-tokens", "3", "--judge", "theirs:score").exit_code == 0
    assert (tmp_path / "it_ran").exists(), "named by the user, it runs"


def test_ids_without_a_row_are_said_wherever_a_model_meets_its_tokenizer(place: Path, tmp_path: Path) -> None:
    """The model has fewer rows than its tokenizer has ids: no command looks one up."""
    tokens = tiny.tokenizer("bpe", "chatml")
    tiny.model("llama", vocab_size=len(tokens) - 20).save_pretrained(tmp_path / "model")
    tokens.save_pretrained(tmp_path / "model")
    for command in (("sample", "-p", place / "prompts.txt"), ("chat",)):
        done = run(command[0], tmp_path / "model", *command[1:], stdin="hola\n")
        assert done.exit_code == 2, done.output
        assert "its tokenizer has ids up to" in done.stderr


def test_layers_that_the_configuration_does_not_count_are_named(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "model", tmp_path / "model")
    config = tmp_path / "model" / "config.json"
    told = json.loads(config.read_text())
    config.write_text(json.dumps(told | {"num_hidden_layers": told["num_hidden_layers"] - 1, "layer_types": None}))
    done = run("sample", tmp_path / "model", "-p", place / "prompts.txt")
    assert done.exit_code == 2
    assert "holds weights that its config.json has no layer or expert for (model.layers." in done.stderr
