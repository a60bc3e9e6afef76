"""prefiere data: findings before a run, a blind check of the labels, and data without what would be learnt wrongly."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

import runs
from prefiere.cli.data import say_findings
from prefiere.cli.main import app
from prefiere.data.quality import faults
from prefiere.data.quality.blind import blind_verdict, drawn
from prefiere.data.quality.cleaned import RecordsLeftOut, cleaned
from prefiere.data.schema import PreferencePair
from prefiere.demo import corpus
from prefiere.demo.main import base_model
from prefiere.doctor.diagnose import diagnose
from prefiere.run import Run
from synthetic_runs import make

ASK = CliRunner()


def written(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return str(path)


def rows(n: int = 40, **changed: Any) -> list[dict[str, Any]]:
    made = [{"prompt": f"question {i}?", "chosen": f"yes {i} fine", "rejected": f"no {i} bad"} for i in range(n)]
    return [r | changed for r in made]


def test_sound_data_is_fine(tmp_path: Path) -> None:
    mixed = [r if i % 2 else r | {"chosen": r["rejected"], "rejected": r["chosen"]} for i, r in enumerate(rows())]
    done = ASK.invoke(app, ["data", written(tmp_path / "d.jsonl", mixed), "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["findings"] == []


def test_data_that_would_ruin_a_run_is_no_success(tmp_path: Path) -> None:
    name = written(tmp_path / "d.jsonl", rows(chosen="<|im_start|>assistant\nyes<|im_end|>"))
    done = ASK.invoke(app, ["data", name, "--json"])
    assert done.exit_code == 4
    found = json.loads(done.stdout)
    assert found["ruined"]
    assert {"template_in_text", "one_text"} <= {f["key"] for f in found["findings"]}
    marks = next(f for f in found["findings"] if f["key"] == "template_in_text")
    assert (marks["lines"][0], len(marks["lines"]), marks["lines_of"]) == (f"{name}:1", 20, 40)
    assert (marks["severity"], marks["sure"]) == ("warning", "possible")  # no model is there whose marks these may be


def test_clean_data_says_what_it_left_out(tmp_path: Path) -> None:
    data = rows(12)
    data[1]["chosen"] = "cafÃ©"
    data[2] = data[3] | {"chosen": data[3]["rejected"], "rejected": data[3]["chosen"]}
    data[5] = data[4]
    out = tmp_path / "clean.jsonl"
    done = ASK.invoke(app, ["data", written(tmp_path / "d.jsonl", data), "--clean", str(out), "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["left_out"] == {"damaged": 1, "contradictions": 2, "duplicates": 1}
    kept = [json.loads(line)["prompt"] for line in out.read_text().splitlines()]
    assert kept == [data[i]["prompt"] for i in (0, 4, 6, 7, 8, 9, 10, 11)]
    again = ASK.invoke(app, ["data", str(tmp_path / "d.jsonl"), "--clean", str(out)])
    assert again.exit_code == 2
    assert "is there already" in again.output


def test_what_cannot_be_taken_out_is_said(tmp_path: Path) -> None:
    """One preferred text everywhere is nobody's line: it stays, and so does what `prefiere data` says of it."""
    name, out = written(tmp_path / "d.jsonl", rows(chosen="It is what it is.")), tmp_path / "clean.jsonl"
    done = ASK.invoke(app, ["data", name, "--clean", str(out)])
    assert done.exit_code == 0, done.output
    assert "still there, to be mended by hand: " in done.output
    again = ASK.invoke(app, ["data", name, "--clean", str(tmp_path / "b.jsonl"), "--json"])
    assert "one_text" in json.loads(again.stdout)["stays"]
    sound = [r if i % 2 else r | {"chosen": r["rejected"], "rejected": r["chosen"]} for i, r in enumerate(rows())]
    fine = ASK.invoke(app, ["data", written(tmp_path / "s.jsonl", sound), "--clean", str(tmp_path / "c.jsonl")])
    assert "still there" not in fine.output


def test_clean_data_says_what_the_reader_lost(tmp_path: Path) -> None:
    """Of six rows one has no answer and one is no JSON; a column that no layout reads is not written."""
    data = [r | {"note": f"seen by {i}"} for i, r in enumerate(rows(5))]
    data[1]["chosen"] = ""
    name = written(tmp_path / "d.jsonl", data)
    with open(name, "a") as f:
        f.write('{"prompt": \n')
    done = ASK.invoke(app, ["data", name, "--clean", str(tmp_path / "a.jsonl")])
    assert done.exit_code == 0, done.output
    assert "nothing was left out" not in done.output
    assert "the reader left out 2 rows: 6 read, 4 kept" in done.output
    assert f"{name}:2 (chosen)" in done.output
    assert f"{name}:6 (" in done.output
    assert "columns not read: note" in done.output
    found = json.loads(ASK.invoke(app, ["data", name, "--clean", str(tmp_path / "b.jsonl"), "--json"]).stdout)
    assert (found["kept"], found["left_out"]) == (4, {"dropped": 2})
    assert found["read"]["unread_columns"] == ["note"]
    whole = ASK.invoke(app, ["data", written(tmp_path / "e.jsonl", rows(5)), "--clean", str(tmp_path / "c.jsonl")])
    assert "nothing was left out" in whole.output


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (
            {"prompt": "p", "completions": ["a", "b", "c"], "scores": [3, 2, 1]},
            "changed: 1 (answers between the best and the worst left out)",
        ),
        ({"prompt": "p", "completions": ["a", "c"], "scores": [3, 1]}, None),
        (
            {"prompt": "p", "answer_a": "a", "answer_b": "c", "preference": "a", "annotator": "ana"},
            "written as pairs: when people voted, and in which order the answers stood, is not",
        ),
    ],
)
def test_clean_data_says_what_a_pair_does_not_hold(tmp_path: Path, row: dict[str, Any], said: str | None) -> None:
    done = ASK.invoke(app, ["data", written(tmp_path / "d.jsonl", [row]), "--clean", str(tmp_path / "c.jsonl")])
    said_by = {k: v for k, v in row.items() if k == "annotator"}
    assert json.loads((tmp_path / "c.jsonl").read_text()) == {"prompt": "p", "chosen": "a", "rejected": "c"} | said_by
    remark = ["  of scores the higher is taken for the better answer"] if "scores" in row else []
    assert done.output.splitlines()[1:] == [f"  {said or 'nothing was left out'}", *remark]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "p", "chosen": "", "rejected": "no"}, "no record stays (1 read, 0 kept"),
        ({"prompt": "p", "chosen": "Yes.", "rejected": "yes"}, "no record stays"),
        ({"prompt": "p", "completions": ["a", "b"], "marks": [1, 2]}, "completions, marks would be lost"),
    ],
)
def test_clean_data_of_nothing_is_not_written(tmp_path: Path, row: dict[str, Any], said: str) -> None:
    out = tmp_path / "new" / "folder" / "clean.jsonl"
    done = ASK.invoke(app, ["data", written(tmp_path / "d.jsonl", [row]), "--clean", str(out)])
    assert done.exit_code == 2, done.output
    assert said in " ".join(done.output.split())
    assert [p.name for p in tmp_path.iterdir()] == ["d.jsonl"]


def test_clean_prompts_may_lose_columns_that_are_hidden(tmp_path: Path) -> None:
    name = written(tmp_path / "d.jsonl", [{"prompt": "p", "completions": ["a", "b"], "marks": [1, 2]}])
    out = tmp_path / "clean.jsonl"
    hidden = "columns={completions: null, marks: null}"
    done = ASK.invoke(app, ["data", name, hidden, "--clean", str(out)])
    assert done.exit_code == 0, done.output
    assert out.read_text() == '{"prompt": "p"}\n'


def half_swapped(n: int = 120) -> list[dict[str, Any]]:
    """Every fifth pair has its words, and so its label, the other way round."""
    rng = np.random.default_rng(0)
    made = []
    for i in range(n):
        good, bad = (" ".join([*rng.choice(own, 4), str(i)]) for own in (LIKED, OTHER))
        chosen, rejected = (bad, good) if i % 5 == 0 else (good, bad)
        made.append({"prompt": f"question {i}?", "chosen": chosen, "rejected": rejected})
    return made


LIKED = [f"fine{i}" for i in range(12)]
OTHER = [f"poor{i}" for i in range(12)]


@pytest.mark.parametrize("single", [False, True])
def test_labels_that_words_contradict_are_named_and_left_out(tmp_path: Path, single: bool) -> None:
    """Before any model is looked at, in pairs and in single answers; what is left has none."""
    data = half_swapped()
    if single:
        data = [
            {"prompt": r["prompt"], "completion": r["chosen" if i % 2 else "rejected"], "label": bool(i % 2)}
            for i, r in enumerate(data)
        ]
    name, out = written(tmp_path / "d.jsonl", data), tmp_path / "clean.jsonl"
    done = ASK.invoke(app, ["data", name, "--json"])
    assert done.exit_code == 0, done.output
    found = {f["key"]: f for f in json.loads(done.stdout)["findings"]}
    wrong = [f"{name}:{i + 1}" for i in range(0, 120, 5)]
    assert found["words_reversed"]["lines"] == wrong
    assert found["words_reversed"]["severity"] == "warning"
    left = json.loads(ASK.invoke(app, ["data", name, "--clean", str(out), "--json"]).stdout)
    assert left["sources"]["reversed"] == wrong
    again = json.loads(ASK.invoke(app, ["data", str(out), "--json"]).stdout)
    assert "words_reversed" not in {f["key"] for f in again["findings"]}


def test_what_a_model_must_agree_to_is_said_once_it_was_asked() -> None:
    """Words point elsewhere, and may mean data of several kinds; to the model 30% of the answers fit any prompt."""
    part = {"strays": 90, "n": 300, "share": 0.8, "by_chance": 0.3, "sure": False, "count": 72, "sources": ["d:1"]}
    account = {"audit": {"faults": {"elsewhere": part}}}
    row = {
        f"start/{name}{end}": value + by
        for name, value in (("prompt_ignored", 0.3), ("prompt_ignored_own", 0.0))
        for end, by in (("", 0.0), ("_low", -0.1), ("_high", 0.1))
    } | {"start/prompt_ignored_n": 24, "start/prompt_ignored_own_n": 24}
    said = [
        {f["key"] for f in say_findings(account, seen, False, Console(quiet=True))["findings"]} for seen in ({}, row)
    ]
    assert ["answers_astray" in keys for keys in said] == [False, True]


@pytest.mark.parametrize("side", ["chosen", "rejected"])
def test_a_column_that_slipped_alone_is_named(tmp_path: Path, side: str) -> None:
    rng = np.random.default_rng(0)
    data = [
        {k: f"topic{i} is {' '.join(rng.choice(LIKED, 3))}" for k in ("chosen", "rejected")}
        | {"prompt": f"What is topic{i}, after all?"}
        for i in range(120)
    ]
    moved = [row | {side: data[(i + 1) % 120][side]} for i, row in enumerate(data)]
    name = written(tmp_path / "d.jsonl", moved)
    found = {f["key"]: f for f in json.loads(ASK.invoke(app, ["data", name, "--json"]).stdout)["findings"]}
    word = "Preferred" if side == "chosen" else "Rejected"
    assert found["answers_astray"]["title"].startswith(f"{word} answers stand at the wrong prompts")
    assert f"The {word.lower()} answers stand" in ASK.invoke(app, ["data", name]).output


@pytest.mark.parametrize("kind", ["pairs", "singles", "demonstrations"])
def test_answers_that_slipped_by_a_row_are_named_and_left_out(tmp_path: Path, kind: str) -> None:
    """As where a cell was inserted in one column of a spreadsheet: from line 61 on, each answer is the next one's."""
    rng, shapes = np.random.default_rng(0), {"pairs": ("chosen", "rejected"), "singles": ("completion",)}
    data = []
    for i in range(120):
        row: dict[str, Any] = {
            k: f"topic{i} is {' '.join(rng.choice(LIKED, 3))}" for k in shapes.get(kind, ("completion",))
        }
        row |= {"label": bool(rng.integers(2))} if kind == "singles" else {}
        data.append({"prompt": f"What is topic{i}, after all?"} | row)
    for i in range(60, 119):
        data[i] = data[i + 1] | {"prompt": data[i]["prompt"]}
    name, out = written(tmp_path / "d.jsonl", data[:119]), tmp_path / "clean.jsonl"
    found = {f["key"]: f for f in json.loads(ASK.invoke(app, ["data", name, "--json"]).stdout)["findings"]}
    wrong = [f"{name}:{i}" for i in range(61, 119)]  # the last one speaks of a prompt that is not there
    assert found["answers_astray"]["lines"] == wrong
    assert found["answers_astray"]["severity"] == "warning"
    assert "(+1): 58" in ASK.invoke(app, ["data", name]).output
    left = json.loads(ASK.invoke(app, ["data", name, "--clean", str(out), "--json"]).stdout)
    assert left["sources"]["elsewhere"] == wrong
    again = json.loads(ASK.invoke(app, ["data", str(out), "--json"]).stdout)
    assert "answers_astray" not in {f["key"] for f in again["findings"]}


def test_clean_knows_records_of_the_same_place_apart(tmp_path: Path) -> None:
    """Three pairs of a row, and records of a program that have no place at all: only those that slipped go."""

    def made(i: int) -> PreferencePair:
        asked, said = f"What is topic{i}?", f"topic{i if i < 60 or i == 119 else i + 1} is {LIKED[i % 12]} indeed."
        return PreferencePair(prompt=asked, chosen=said, rejected=f"{said} Not so.", source="" if i % 2 else "d:1")

    records, left = [made(i) for i in range(120)], RecordsLeftOut()
    assert [r.prompt for r in cleaned(lambda: records, left)] == [r.prompt for r in (*records[:60], *records[118:])]
    assert left.counts == {"elsewhere": 58}  # the last one speaks of a prompt that has its own answer


def test_clean_says_how_many_labels_it_did_not_hold_against_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 120 pairs the first 80 are looked at, of which 16 are swapped; the other 8 stay, and that is said."""
    monkeypatch.setattr(faults, "LOOKED_AT", 80)
    name = written(tmp_path / "d.jsonl", half_swapped())
    done = ASK.invoke(app, ["data", name, "--clean", str(tmp_path / "a.jsonl")])
    assert "the words of the last 40 records were not looked at" in done.output
    found = json.loads(ASK.invoke(app, ["data", name, "--clean", str(tmp_path / "b.jsonl"), "--json"]).stdout)
    assert (found["left_out"], found["kept"], found["beyond"]) == ({"reversed": 16}, 104, 40)
    monkeypatch.setattr(faults, "LOOKED_AT", 120)
    whole = ASK.invoke(app, ["data", name, "--clean", str(tmp_path / "c.jsonl")])
    assert "were not looked at" not in whole.output


def test_clean_says_it_of_demonstrations_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their words are held against their prompts; prompts alone have none to hold against anything."""
    monkeypatch.setattr(faults, "LOOKED_AT", 3)
    shown = [{"prompt": f"What is topic{i}?", "completion": f"It is number {i}."} for i in range(5)]
    for rows, said in ((shown, True), ([{"prompt": r["prompt"]} for r in shown], False)):
        name = written(tmp_path / f"{said}.jsonl", rows)
        done = ASK.invoke(app, ["data", name, "--clean", str(tmp_path / f"{said}-clean.jsonl")])
        assert done.exit_code == 0, done.output
        assert ("the words of the last 2 records were not looked at" in done.output) is said


def swapped_run(folder: Path, name: str) -> Run:
    """A run on 200 lines of a file, every fifth of which it is as sure of as of the rest, the other way round."""
    run = make(folder)
    margins = np.where(np.arange(200) % 5 == 0, -1, 1) * np.random.default_rng(0).normal(2.0, 0.3, 200)
    for split in ("eval", "train"):
        run.log_pairs(
            [
                {"step": 100, "split": split, "source": f"{name}:{i + 1}", "margin": m}
                for i, m in enumerate(margins.tolist())
            ]
        )
    run.data = {"train": {"read": {"files": [name], "read": 200}}}
    return run


@pytest.mark.parametrize(("spelled", "asked"), [("d.jsonl", "{}/d.jsonl"), ("{}/d.jsonl", "d.jsonl")])
def test_clean_data_leaves_out_what_a_run_found_swapped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spelled: str, asked: str
) -> None:
    """However the file is spelled, there and here."""
    monkeypatch.chdir(tmp_path)
    written(tmp_path / "d.jsonl", rows(200))
    run = swapped_run(tmp_path / "run", spelled.format(tmp_path))
    given = ["data", asked.format(tmp_path), "--clean", "clean.jsonl", "--run", str(run.folder), "--json"]
    assert json.loads(ASK.invoke(app, given).stdout)["left_out"] == {"swapped": 40}
    told = next(f for f in diagnose(run).findings if f.key == "labels_swapped")
    assert any("--clean out.jsonl --run RUN" in line for line in told.remedy)


def test_clean_data_of_another_file_than_the_runs_is_not_written(tmp_path: Path) -> None:
    """A copy is not what was read; and a file that has lost a line since has others from there on."""
    name = written(tmp_path / "d.jsonl", rows(200))
    run = str(swapped_run(tmp_path / "run", name).folder)
    copy = written(tmp_path / "copy.jsonl", rows(200))
    written(tmp_path / "d.jsonl", rows(200)[1:])
    for data, said in (
        (copy, f"40 of the 40 lines that {run} found swapped are not in it"),
        (name, "199 rows, and had 200"),
    ):
        done = ASK.invoke(app, ["data", data, "--clean", str(tmp_path / "clean.jsonl"), "--run", run])
        assert done.exit_code == 2
        assert said in " ".join(done.output.split())
        assert not (tmp_path / "clean.jsonl").exists()


def test_a_run_that_found_nothing_swapped_says_so(tmp_path: Path) -> None:
    name = written(tmp_path / "d.jsonl", rows(20))
    run = str(make(tmp_path / "run").folder)
    done = ASK.invoke(app, ["data", name, "--clean", str(tmp_path / "clean.jsonl"), "--run", run])
    assert done.exit_code == 0, done.output
    assert f"{run} names no line whose label looks swapped" in " ".join(done.output.split())


def test_flags_that_would_do_nothing_are_refused(tmp_path: Path) -> None:
    name, out = written(tmp_path / "d.jsonl", rows(20)), str(tmp_path / "clean.jsonl")
    for given, said in (
        (["--run", "runs/x"], "give --clean OUT, too"),
        (["--run", "runs/x", "--check"], "give --clean OUT, too"),
        (["--check", "--clean", out], "give one of them"),
    ):
        done = ASK.invoke(app, ["data", name, *given])
        assert done.exit_code == 2
        assert said in " ".join(done.output.split())
    assert [p.name for p in tmp_path.iterdir()] == ["d.jsonl"]


def test_what_clean_does_not_do_is_no_advice(tmp_path: Path) -> None:
    """Who advises --clean for a fault has it leave something out."""
    data = [r | {"chosen": "always this"} for r in rows(40)]
    done = ASK.invoke(app, ["data", written(tmp_path / "d.jsonl", data)])
    assert "equal to “always this”" in done.output
    assert "--clean" not in done.output


def demo_pairs(path: Path, shift: int) -> str:
    """72 pairs of the demo, each with the answers of the pair so many further on."""
    known = corpus.preferences()[:72]
    texts = [[str(t[0].content) for t in (p.prompt, p.chosen, p.rejected)] for p in known]  # type: ignore[union-attr]
    turned = zip(texts, texts[shift:] + texts[:shift], strict=True)
    made = [{"prompt": own[0], "chosen": other[1], "rejected": other[2]} for own, other in turned]
    return written(path, [{k: [message(k, v)] for k, v in r.items()} for r in made])


def message(key: str, text: str) -> dict[str, str]:
    return {"role": "user" if key == "prompt" else "assistant", "content": text}


def test_a_model_tells_answers_of_other_prompts_before_a_run(tmp_path: Path) -> None:
    model = str(base_model(tmp_path, Console(quiet=True), rebuild=False))
    own, other = (demo_pairs(tmp_path / f"{n}.jsonl", n) for n in (0, 36))
    done = ASK.invoke(app, ["data", own, "--model", model, "--json"])
    assert "answers_elsewhere" not in {f["key"] for f in json.loads(done.stdout)["findings"]}
    done = ASK.invoke(app, ["data", other, "--model", model, "--json"])
    found = json.loads(done.stdout)
    assert done.exit_code == 4
    assert "answers_elsewhere" in {f["key"] for f in found["findings"]}
    assert found["start"]["start/prompt_matters"] < 0.25 * found["start"]["start/prompt_in_own"]
    assert "what the prompt adds to its answer: " in done.stderr


def test_a_model_that_is_not_measured_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, model = written(tmp_path / "d.jsonl", rows(20)), runs.model_folder(tmp_path / "model")
    monkeypatch.setattr("prefiere.cli.data.ON_A_PROCESSOR", 1)
    done = ASK.invoke(app, ["data", name, "--model", str(model), "--json"])
    assert done.exit_code == 0, done.output
    assert "not measured on the data: a processor takes long" in done.stderr
    assert json.loads(done.stdout)["start"] == {}
    (model / "model.safetensors").unlink()
    monkeypatch.undo()
    done = ASK.invoke(app, ["data", name, "--model", str(model)])
    assert done.exit_code == 0, done.output
    assert "not measured on the data:" in done.output


def pairs(n: int) -> list[PreferencePair]:
    return [PreferencePair(prompt=f"p{i}", chosen=f"a{i}", rejected=f"b{i}", source=str(i)) for i in range(n)]


@pytest.mark.parametrize(("agreed", "says"), [(15, "fine"), (12, "fine"), (11, "noise"), (4, "noise"), (3, "swapped")])
def test_what_fifteen_choices_say(agreed: int, says: str) -> None:
    """By chance 12 or more of 15 agree in 576 of 32768 cases, 3 or fewer in as many."""
    shown = drawn(pairs(100), seed=0)
    found = blind_verdict(shown, [s.first == (i < agreed) for i, s in enumerate(shown)])
    assert (found.says, found.agreed, found.of) == (says, agreed, 15)
    if agreed in (3, 12):
        assert found.chance == pytest.approx(576 / 32768)


def test_a_pair_that_nobody_can_tell_does_not_count() -> None:
    shown = drawn(pairs(100), seed=0)
    found = blind_verdict(shown, [None] * 5 + [s.first for s in shown[5:]])
    assert (found.agreed, found.of) == (10, 10)


@pytest.mark.parametrize("n", [0, 1, 5])
def test_few_choices_say_nothing(n: int) -> None:
    """Five of five that agree are a coin's once in 32: no verdict could be told from chance."""
    shown = drawn(pairs(100), seed=0)
    found = blind_verdict(shown, [s.first for s in shown[:n]] + [None] * (15 - n))
    assert (found.says, found.agreed, found.of, found.chance) == ("too_few", n, n, 1.0)
    assert blind_verdict(shown, [s.first for s in shown[:6]] + [None] * 9).says == "fine"
    seven = [s.first if i else not s.first for i, s in enumerate(shown[:8])] + [None] * 7
    assert blind_verdict(shown, seven).says == "too_few"  # sound labels agree on 7 of 8 or fewer in 57% of cases


@pytest.mark.parametrize("agreed", range(16))
def test_the_chance_that_noise_is_wrong(agreed: int) -> None:
    """By a loop: that sound labels, right nine times in ten, agree so seldom, or swapped ones so often."""
    shown = drawn(pairs(100), seed=0)
    found = blind_verdict(shown, [s.first if i < agreed else not s.first for i, s in enumerate(shown)])
    if found.says == "noise":
        sound = sum(math.comb(15, k) * 0.9**k * 0.1 ** (15 - k) for k in range(agreed + 1))
        swapped = sum(math.comb(15, k) * 0.1**k * 0.9 ** (15 - k) for k in range(agreed, 16))
        assert found.chance == pytest.approx(max(sound, swapped))
    assert (found.says == "noise") is (3 < agreed < 12)


def test_both_orders_are_shown() -> None:
    shown = drawn(pairs(100), seed=1)
    assert {s.first for s in shown} == {True, False}
    assert all(s.answers[0 if s.first else 1] == s.pair.chosen for s in shown)


def test_a_person_is_asked(tmp_path: Path) -> None:
    """Who always finds the answer with "yes" better agrees with labels that prefer it."""
    name = written(tmp_path / "d.jsonl", rows())
    first = ASK.invoke(app, ["data", name, "--check"], input="x\n" * 15).output
    answers = ["1" if part.split("1: ")[1].startswith("yes") else "2" for part in first.split("asked: ")[1:]]
    done = ASK.invoke(app, ["data", name, "--check"], input="".join(f"{a}\n" for a in answers))
    assert "You agreed on 15 of 15" in done.output
    assert "The labels say what you say." in done.output


def test_which_way_scores_are_read_is_a_note_and_nothing_unread(tmp_path: Path) -> None:
    said = {"question": "Why?", "answer_a": "x", "answer_b": "y", "rating_a": 4, "rating_b": 2}
    name = written(tmp_path / "d.jsonl", [said | {"question": f"Why {i}?"} for i in range(3)])
    lines = ASK.invoke(app, ["data", name]).output.splitlines()
    assert "Note    of rating_a, rating_b the higher is taken for the better answer" in lines
    assert not any(line.startswith("Unread") for line in lines)
