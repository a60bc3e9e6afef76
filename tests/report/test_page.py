"""The report is one safe file whatever a run holds: hostile text, missing files, other methods."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure

from prefiere.asked.language import speaking
from prefiere.doctor.case import Case
from prefiere.doctor.series import Level, Series
from prefiere.doctor.words import duration, number, with_interval
from prefiere.metrics import column
from prefiere.report import curves, figures, panels
from prefiere.report.inline import inline_html
from prefiere.report.page import render, report_html
from prefiere.report.side_by_side import LONGEST, MOST_ANSWERS
from prefiere.run import Run, RunError
from synthetic_runs import ADAPTIVE_KL, make, make_policy, make_reward, to

VOID = {"meta", "br", "img", "input", "link"}


class Page(HTMLParser):
    """A page as its elements, attributes and text; fails on a tag that is closed out of order."""

    def __init__(self, path: Path):
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(self.source)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def ids(self) -> list[str]:
        return [value or "" for name, value in self.attributes if name == "id"]


def answer(step: int, completion: str, prompt: Any = "What is a dog?", sample: int = 0, **more: Any) -> dict[str, Any]:
    row = {"step": step, "prompt": prompt, "completion": completion, "sample": sample, "ended": True, "tokens": 5}
    return row | {"logp": -3.0, "ref_logp": -4.0, "repetition": 0.0, "score": None} | more


def asked(folder: Path, **recipe: Any) -> Run:
    """A run that has sampled answers and measured nothing."""
    run = Run.create(folder)
    run.recipe = {"method": "dpo"} | recipe
    return run


def page(tmp_path: Path, *runs: Run) -> Page:
    return Page(render(runs, tmp_path / "report.html"))


def assert_safe(p: Page) -> None:
    assert not {"script", "img", "iframe", "object", "embed", "link", "form", "base", "video", "a"} & set(p.tags)
    assert p.tags.count("style") == 1
    assert not [name for name, _ in p.attributes if name.startswith("on")]
    assert not [
        v for name, v in p.attributes if name in ("href", "src", "xlink:href") and not (v or "").startswith("#")
    ]
    policy = next(v for name, v in p.attributes if name == "content" and "default-src" in (v or ""))
    assert policy is not None
    assert "default-src 'none'" in policy
    assert "script" not in policy


def test_a_run_in_one_file(tmp_path: Path) -> None:
    run = make(tmp_path / "run", recipe={"learning_rate": "auto"})
    run.environment = {
        "python": "3.11",
        "choices": [
            {"name": "lora", "value": False, "why": "below 1B parameters"},
            {"name": "learning_rate", "value": 0.00018, "why": "suits full fine-tuning"},
        ],
    }
    run.data = {"counts": {"read": 12, "dropped": {"identical answers": 3}}}
    run.log_samples([answer(0, "A dog is your friend.", score=0.0), answer(100, "A dog is a mammal.", score=1.0)])
    p = page(tmp_path, run)
    assert_safe(p)
    for text in (
        "The model learnt the preferences",
        "below 1B parameters",
        "identical answers 3",
        "A dog is your friend.",
        "A dog is a mammal .".replace(" .", "."),
        "score 1",
        "Evidence",
        "Loss nats",
        "coin flip",
        "learning rate 0.00018 (auto)",
        "Answers that end",
    ):
        assert text in p.text, text
    assert "://" not in p.source
    assert p.tags.count("svg") == 12
    assert [f.name for f in tmp_path.glob(".*")] == []  # written by rename, nothing left behind


HOSTILE = [
    "<script>alert(1)</script>",
    "</style><script>alert(2)</script>",
    '"><img src=x onerror=alert(3)>',
    "</bdi></details></body><iframe src=javascript:alert(4)>",
    "{{ 7 * 7 }}{% for x in y %}",
    "<!--",
    "]]><svg onload=alert(5)>",
    "&lt;script&gt;",
]


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    folder = tmp_path / "<b onclick=alert(0)>run"
    run = asked(folder, **{"model": HOSTILE[0], "data": HOSTILE[1], '"><script>': HOSTILE[2]})
    run.status = {"state": "failed", "reason": HOSTILE[3]}
    run.log({"step": 1, "loss": 0.5})
    run.data = {HOSTILE[4]: {HOSTILE[5]: [HOSTILE[0]]}, "list": [{"a": HOSTILE[1]}], HOSTILE[2]: HOSTILE[3]}
    run.environment = {"v": HOSTILE[6], "choices": [{"name": HOSTILE[0], "value": HOSTILE[1], "why": HOSTILE[2]}]}
    for i, text in enumerate(HOSTILE):
        run.log_samples([answer(0, text, text, i), answer(9, text, text, i, score=HOSTILE[0], tokens=text)])
    for several in ([run], [run, asked(tmp_path / "other")]):
        p = page(tmp_path, *several)
        assert_safe(p)
        for text in HOSTILE:
            assert " ".join(text.split()) in p.text, text


def test_characters_that_hide_or_reorder_are_spelt_out(tmp_path: Path) -> None:
    run = asked(tmp_path / "run")
    run.log_samples([answer(0, "abc\u202edef\u0000\u0007\u2066ghi"), answer(4, "línea\r\nuna\tñ 狗 🐕 \u200d")])
    with open(run.folder / "samples.jsonl", "a") as f:
        f.write(json.dumps(answer(4, "half \ud83d of a pair", sample=1)) + "\n")
    source = page(tmp_path, run).source
    assert "abc⟨U+202E⟩def⟨U+0000⟩⟨U+0007⟩⟨U+2066⟩ghi" in source
    assert "línea\nuna\tñ 狗 🐕" in source
    assert "half ⟨U+D83D⟩ of a pair" in source
    assert not re.search("[\x00-\x08\x0b-\x1f\u202a-\u202e\u2066-\u2069]", source)


def test_long_text_is_cut_and_counted(tmp_path: Path) -> None:
    run = asked(tmp_path / "run", note="n" * 5000)
    run.log_samples([answer(0, "word " * 20_000), answer(4, "x" * 100_000)])
    p = page(tmp_path, run)
    assert f"… {100_000 - LONGEST:,} more characters" in p.text
    assert f"{5000 - LONGEST:,} more characters" in p.text
    assert len(p.source) < 400_000


def test_answers_are_paired_by_prompt_and_sample(tmp_path: Path) -> None:
    run = asked(tmp_path / "run")
    chat = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello?"}]
    run.log_samples([answer(0, "first before"), answer(0, "second before", sample=1), answer(0, "chat before", chat)])
    run.log_samples([answer(2, "in between")])
    run.log_samples([answer(4, "second after", sample=1), answer(4, "first after"), answer(4, "only after", "New?")])
    text = page(tmp_path, run).text
    order = ["first before", "first after", "chat before", "not sampled", "not sampled", "only after"]
    order += ["second before", "second after"]
    text = text[text.index("Answers before and after") :]
    assert re.findall("|".join(order), text) == order
    assert "system: Be kind. user: Hello?" in text
    assert "in between" not in text


def test_words_that_differ_are_marked(tmp_path: Path) -> None:
    run = asked(tmp_path / "run")
    run.log_samples([answer(0, "a dog is your friend here"), answer(4, "a dog is some animal here")])
    run.log_samples([answer(0, "one two three", sample=1), answer(4, "vier fünf sechs", sample=1)])
    source = page(tmp_path, run).source
    assert "a dog is <mark>your friend </mark>here" in source
    assert "a dog is <mark>some animal </mark>here" in source
    assert "<mark>one" not in source  # all differs: marks would say nothing


def test_more_answers_than_shown_are_counted(tmp_path: Path) -> None:
    run = asked(tmp_path / "run")
    run.log_samples([answer(0, "text", f"prompt {i}") for i in range(MOST_ANSWERS + 7)])
    assert "7 further ones are in the run's samples.jsonl" in page(tmp_path, run).text


def test_runs_of_other_methods_share_the_axes(tmp_path: Path) -> None:
    dpo = make(tmp_path / "a" / "run", steps=10)
    simpo = make(tmp_path / "b" / "run", recipe={"loss_type": "simpo"}, drop=("samples/",))
    sft = make(
        tmp_path / "sft",
        train={"loss": to(1.5, 2.4), "mean_token_accuracy": to(0.6, 0.4)},
        drop=("rewards", "eval_rewards", "logps", "eval_logps"),
        recipe={"method": "sft"},
    )
    p = page(tmp_path, dpo, simpo, sft)
    assert_safe(p)
    assert "3 runs side by side" in p.text
    assert "b/run, held out" in p.text  # two folders of one name are told apart
    assert "sft, held out" in p.text
    assert "Next tokens guessed right" in p.text


def test_a_policy_gradient_run_in_one_file(tmp_path: Path) -> None:
    run = make_policy(tmp_path / "run", **ADAPTIVE_KL)
    run.log_samples([answer(0, "A dog is your friend.", score=0.0, reward=-0.512345)])
    p = page(tmp_path, run)
    assert_safe(p)
    for text in (
        "method PPO",
        "Reward against KL",
        "Reward score",
        "KL to the start nats per answer",
        "Entropy nats per token",
        "Clipped tokens",
        "Size of an update",
        "Critic's loss",
        "Critic explains",
        "KL coefficient",
        "Time share of the run",
        "sampling 50%",
        "measuring 6%",
        "Judge's score",
        "rollouts, smoothed over the rows as logged",
        "score 0 reward −0.51 5 tokens",
    ):
        assert text in p.text, text
    assert "At equal KL" not in p.text  # with nothing to compare
    assert p.tags.count("svg") == 17  # reward against KL for a desk and for a phone


def test_what_a_method_does_not_have_is_not_shown(tmp_path: Path) -> None:
    text = page(tmp_path, make_policy(tmp_path / "run", method="rloo")).text
    assert "Critic" not in text
    assert "KL coefficient The price" not in text  # it never changed
    assert "method RLOO" in text


def test_a_reward_model_in_one_file(tmp_path: Path) -> None:
    p = page(tmp_path, make_reward(tmp_path / "run"))
    assert_safe(p)
    for text in (
        "method Reward model",
        "coin flip",
        "Score of chosen answers",
        "What its scores are worth",
        "calibration error",
        "always the longer 56%",
        "A reward model writes no answers",
    ):
        assert text in p.text, text
    assert p.tags.count("svg") == 7
    assert "β" not in p.text


def test_reward_models_have_figures_of_their_own(tmp_path: Path) -> None:
    """Their margins carry the name of DPO's and mean something else."""
    dpo, rm = make(tmp_path / "dpo", steps=20), make_reward(tmp_path / "rm", steps=20)
    text = page(tmp_path, dpo, rm).text
    first, _, second = text.partition("Reward models")
    assert "dpo, held out" in first
    assert "rm, held out" not in first
    assert "Margin score" in second
    assert "dpo, held out" not in second
    assert "rm 78%, length alone 56%" in second


def test_hostile_names_and_settings_beside_the_frontier(tmp_path: Path) -> None:
    bad = {"judge": HOSTILE[0], "reward": HOSTILE[1], "kl_coef": HOSTILE[2], "method": "ppo"}
    runs = [make_policy(tmp_path / f"<img src=x>{i}", i, recipe=bad, steps=20) for i in range(2)]
    runs.append(
        make_policy(tmp_path / "</svg><script>", recipe={"judge": "another"}, drop=("samples/reward",), steps=20)
    )
    runs.append(make_reward(tmp_path / "<b>rm"))
    p = page(tmp_path, *runs)
    assert_safe(p)
    assert "<script> is not shown: another judge scored it." in p.text
    assert "<img src=x>0 PPO" in p.text


@pytest.mark.long
def test_ids_are_unique_on_the_page(tmp_path: Path) -> None:
    runs = [make(tmp_path / "run", steps=10), make_policy(tmp_path / "ppo"), make_reward(tmp_path / "rm")]
    ids = page(tmp_path, *runs).ids()
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("state", ["running", "failed", "stopped", None])
def test_a_run_without_rows(tmp_path: Path, state: str | None) -> None:
    run = Run.create(tmp_path / "run")
    run.recipe = {"method": "dpo"}
    if state:
        run.status = {"state": state, "step": 0, "total_steps": None, "reason": None}
    p = page(tmp_path, run)
    assert_safe(p)
    assert "Nothing has been measured yet." in p.text
    assert "svg" not in p.tags


def test_only_step_0(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run")
    run.recipe = {"method": "dpo"}
    run.log({"step": 0, "eval_loss": 0.693, "eval_loss_low": 0.693, "eval_loss_high": 0.693, "loss": 0.693})
    run.log({"step": 0, "eval_rewards/margins": 0.0, "rewards/margins": None, "samples/kl": 0.0})
    run.log_samples([answer(0, "before training")])
    p = page(tmp_path, run)
    assert "before training" in p.text
    assert "not sampled" in p.text
    assert p.tags.count("svg") == 3


def test_errors_name_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="is not a run"):
        render([Run(tmp_path)], tmp_path / "report.html")
    with pytest.raises(RunError, match="at least one run"):
        render([], tmp_path / "report.html")
    run = make(tmp_path / "run", steps=4)
    lines = (run.folder / "metrics.jsonl").read_text().splitlines()
    (run.folder / "metrics.jsonl").write_text("\n".join([lines[0], "{broken", lines[1]]) + "\n")
    with pytest.raises(RunError, match=r"metrics\.jsonl:2 is damaged"):
        render([run], tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_figures_take_their_colours_from_the_page(tmp_path: Path) -> None:
    cases = [Case(make(tmp_path / str(i), i)) for i in range(10)]
    before = dict(matplotlib.rcParams)
    svg = curves.draw_panel(panels.PREFERENCE_PANELS[1], cases)
    assert dict(matplotlib.rcParams) == before
    assert svg is not None
    assert not re.search(r"#[0-9a-f]{6}\b", svg)
    assert set(re.findall(r"var\(--(run-\d)\)", svg)) == {f"run-{i}" for i in range(1, 9)}
    assert "<style" not in svg
    assert "font-family" not in svg
    assert svg == curves.draw_panel(panels.PREFERENCE_PANELS[1], cases)


def test_bands_only_where_intervals_are(tmp_path: Path) -> None:
    measured = make(tmp_path / "a", steps=20)
    bare = Run.create(tmp_path / "b")
    bare.recipe = measured.recipe
    for row in measured.metrics:
        bare.log({k: v for k, v in row.items() if not k.endswith(("_low", "_high"))})
    with_band, without = (curves.draw_panel(panels.PREFERENCE_PANELS[2], [Case(r)]) for r in (measured, bare))
    assert with_band is not None
    assert without is not None
    assert 'opacity="0.16"' in with_band
    assert 'opacity="0.16"' not in without


def test_long_runs_stay_small(tmp_path: Path) -> None:
    run = Run.create(tmp_path)
    run.recipe = {"method": "dpo"}
    run._append("metrics.jsonl", [{"step": i, "loss": 1.0 / (1 + i % 97)} for i in range(50_000)])
    svg = curves.draw_panel(panels.PREFERENCE_PANELS[0], [Case(run)])
    assert svg is not None
    assert len(svg) < 60_000


@pytest.mark.parametrize(
    ("value", "key", "text"),
    [
        (0.0, "", "0.00"),
        (0.034, "", "0.034"),
        (-0.456, "", "−0.46"),
        (12.34, "", "12.3"),
        (34567.8, "", "34,568"),
        (2e-6, "", "2.0e−06"),
        (-1.9e-9, "", "0.00"),
        (0.00043, "", "0.00043"),
        (float("nan"), "", "?"),
        (0.734, "eval_rewards/accuracies", "73%"),
        (-1.2e-6, "eval_rewards/margins", "0.00"),  # two log-probs that differ by rounding alone
        (8e-6, "samples/kl", "0.00"),
        (0.000012, "samples/kl", "1.2e−05"),
        (5e-7, "learning_rate", "5.0e−07"),
    ],
)
def test_numbers(value: float, key: str, text: str) -> None:
    assert number(value, key) == text


@pytest.mark.parametrize(
    ("level", "key", "text"),
    [
        (Level(0.41, 0.36, 0.46), "", "0.41 (0.36 to 0.46)"),
        (Level(0.0121, 0.0119, 0.0122), "", "0.0121 (0.0119 to 0.0122)"),
        (Level(0.0003, 0.0, 0.0006), "samples/repetition", "0.0% (0.0% to 0.1%)"),
        (Level(0.71, 0.66, 0.76), "samples/eos_rate", "71% (66% to 76%)"),
        (Level(0.6875, 0.504, 0.828), "eval_rewards/accuracies", "68.8% (50.4% to 82.8%)"),  # more than half
        (Level(0.3125, 0.172, 0.496), "eval_rewards/accuracies", "31.2% (17.2% to 49.6%)"),  # less than half
        (Level(0.68, 0.496, 0.83), "eval_rewards/accuracies", "68% (50% to 83%)"),  # perhaps half
        (Level(0.7, 0.5 + 1e-12, 0.8), "eval_rewards/accuracies", "70% (50% to 80%)"),
        (Level(0.7, 0.504, 0.8), "", "0.70 (0.50 to 0.80)"),  # no share
        (Level(1e-8, -1e-9, 2e-8), "", "0.00"),
    ],
)
def test_an_interval_has_so_many_digits_that_its_ends_differ_and_leave_out_what_it_leaves_out(
    level: Level, key: str, text: str
) -> None:
    assert with_interval(level, key) == text


def labels(svg: str | None) -> list[str]:
    """The ticks in per cent of a figure."""
    assert svg is not None
    return [text for text in re.findall(r">([^<>]+)</text>", svg) if text.endswith("%")]


@pytest.mark.parametrize(("low", "high"), [(0.0, 0.0025), (0.0, 0.02), (0.0, 1.0), (0.97, 1.0), (0.512, 0.548)])
def test_the_ticks_of_a_share_differ_and_lie_between_none_and_all(tmp_path: Path, low: float, high: float) -> None:
    run = asked(tmp_path)
    for i in range(9):
        run.log({"step": i, "samples/eos_rate": low + (high - low) * i / 8})
    ticks = labels(curves.draw_panel(panels.Panel(column("samples/eos_rate")), [Case(run)]))
    assert len(set(ticks)) == len(ticks) > 2
    assert all(0 <= float(t.removesuffix("%")) <= 100 for t in ticks)


def test_a_line_ends_at_the_number_that_is_told_of_it(tmp_path: Path) -> None:
    """Of 40 rows the end is the last 8: 0.3 but for a wild one, which a trimmed mean leaves out; the line ends there,
    and a plain mean of the 8 would end at -0.84."""
    run = asked(tmp_path, method="ppo")
    rows = [{"step": i, "val/explained_variance": -8.8 if i == 36 else 0.3} for i in range(40)]
    run._append("metrics.jsonl", rows)
    series = Case(run).series("val/explained_variance")
    axes = Figure().add_subplot()
    curves._training(axes, series, "black", raw=True)
    assert series.end.mean == pytest.approx(0.3)
    assert np.asarray(axes.lines[-1].get_ydata())[-1] == series.end.mean
    assert np.asarray(axes.lines[-1].get_ydata())[0] == series.start.mean


def test_a_course_is_made_of_what_its_ends_are_made_of() -> None:
    """Of 50 rows each window has 10, of which the least and the largest are left out."""
    values = np.random.default_rng(0).normal(size=50)
    rows = [{"step": i, "loss": v} for i, v in enumerate(values)]
    course = Series.of(rows, "loss").course()
    middle = sorted(values[15:25])[1:-1]
    assert course.values[20] == pytest.approx(sum(middle) / 8)
    assert (course.low < course.values).all()


def test_crosses_of_intervals_stand_where_there_is_room() -> None:
    """The last point has one; then each that lies a fifth of the axes away from all that have."""
    x = np.array([0.0, 0.5, 0.55, 0.9, 1.0])
    assert figures.roomy(x, np.zeros(5)).tolist() == [True, False, True, False, True]


def test_the_account_of_data_is_readable(tmp_path: Path) -> None:
    run = asked(tmp_path / "run")
    run.data = {
        "train": {
            "prompt_lengths": [3, 9, 12, 15, 40],
            "identical": {"count": 4711, "sources": ["a.jsonl:1", "a.jsonl:2", "a.jsonl:3", "a.jsonl:4"]},
            "refused": {"count": 0, "sources": []},
            "notes": [],
        },
        "eval_sources": [f"a.jsonl:{i}" for i in range(100, 612)],
    }
    text = page(tmp_path, run).text
    assert "identical 4,711 (first: a.jsonl:1, a.jsonl:2, a.jsonl:3)" in text
    assert "prompt lengths 3 to 40 tokens; half up to 9, 90% up to 12, 99% up to 15" in text
    assert "a.jsonl:109 … and 502 more" in text
    assert "refused" not in text


def test_durations() -> None:
    assert [duration(s) for s in (8, 200, 3900, None)] == ["8 s", "3 min 20 s", "1 h 5 min", ""]


def test_report_does_not_import_torch() -> None:
    code = (
        "import sys, prefiere.report.page; "
        "assert not {'torch', 'transformers', 'datasets', 'matplotlib.pyplot'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_cell_of_a_notebook_in_spanish(tmp_path: Path) -> None:
    run = make(tmp_path / "uno", steps=10)
    with speaking("es"):
        html = inline_html(run)
    for said in (
        "terminado, 10 actualizaciones de 10",
        "Funcionó: el modelo aprendió",
        "<th>antes</th><th>después</th>",
    ):
        assert said in html
    assert ">Pérdida</figcaption>" in html
    run.status = {}
    with speaking("es"):
        assert "sin empezar, 10 actualizaciones</p>" in inline_html(run)
    assert "not begun, 10 updates</p>" in inline_html(run)


@pytest.mark.long
def test_a_report_in_spanish_has_no_english_around_what_was_recorded(tmp_path: Path) -> None:
    """What is left in English is what the folder holds: names of settings, answers, the account of the data."""
    english = re.compile(
        r"\b(the|was|runs?|loss|margin|held out|before|after|update|answers?|Evidence|Curves|Settings)\b"
    )
    runs = [
        make(tmp_path / "uno", steps=10),
        make_policy(tmp_path / "dos", steps=10),
        make_reward(tmp_path / "tres", steps=10),
    ]
    with speaking("es"):
        pages = [report_html(runs), *(report_html([run]) for run in runs)]
    for html in pages:
        (tmp_path / "pagina.html").write_text(html, encoding="utf-8")
        said = Page(tmp_path / "pagina.html")
        until = said.text.index("En detalle")
        assert not set(english.findall(said.text[:until])) - {"loss"}  # of the setting loss_type
        assert ("lang", "es") in said.attributes
