"""What comes from elsewhere can be read on a terminal and do nothing else, wherever it is shown."""

from __future__ import annotations

import io
import re
import sys
import types
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from prefiere.asked.language import speaking
from prefiere.console import Display, Terminal, command, table

HOSTILE = {
    "title": "a\x1b]0;owned\x07b",
    "cursor": "a\x1b[2J\x1b[1;1Hb",
    "carriage return": "all is well\rerror",
    "C1": "a\x9b31mb",
    "bidi": "a\u202eb",
    "markup": "[red]a[/red] [link=http://x]b[/link]",
}
STYLES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")  # what rich itself sends: colours, and where a bar is drawn


def shown(terminal: bool) -> Terminal:
    return Terminal(file=io.StringIO(), force_terminal=terminal, width=200, highlight=False)


def ways(console: Terminal, text: str) -> None:
    """Every way in which commands show text."""
    Display(console).say(text)
    console.print(text, markup=False)
    console.print(table(text, (text, "b"), [(text, 1)]))
    console.print(table("", ("a",), [(text,)], lines=True))
    with Display(console).stage("training", 2) as advance:
        advance(1, note=text)


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("kind", HOSTILE)
def test_text_from_elsewhere_is_only_read(kind: str, terminal: bool) -> None:
    console = shown(terminal)
    ways(console, HOSTILE[kind])
    out = STYLES.sub("", console.file.getvalue())  # type: ignore[attr-defined]
    harmful = {c for c in HOSTILE[kind] if c not in "\n\t" and not c.isprintable()}
    assert not harmful - {"\r"} & set(out)
    if kind == "carriage return":
        assert "all is well⟨U+000D⟩error" in out
    if kind == "markup":
        assert out.count(HOSTILE["markup"]) >= 5


def test_a_clean_text_is_as_it_was() -> None:
    console = shown(False)
    Display(console).say("¿Qué es un perro? 犬 🐕\nb")
    assert console.file.getvalue() == "¿Qué es un perro? 犬 🐕\nb\n"  # type: ignore[attr-defined]


def test_errors_are_shown_in_one_harmless_line() -> None:
    app = typer.Typer(pretty_exceptions_enable=False)

    @app.command()
    @command
    def failing(system: bool = False) -> dict[str, Any]:
        raise FileNotFoundError(2, "No such file", HOSTILE["title"]) if system else ValueError(HOSTILE["title"])

    found = CliRunner().invoke(app, ["--system"])
    assert (found.exit_code, found.stderr) == (2, "error: a⟨U+001B⟩]0;owned⟨U+0007⟩b: No such file\n")
    bug = CliRunner().invoke(app, [])  # raised here, in a test, it is nobody's who says what to do
    assert bug.exit_code == 1
    assert "ValueError: a⟨U+001B⟩]0;owned⟨U+0007⟩b" in bug.stderr
    assert "\x1b" not in bug.stderr


class Gone(io.StringIO):
    """A terminal that was closed, or a pipe that nobody reads."""

    def __init__(self, error: OSError) -> None:
        super().__init__()
        self.error = error

    def write(self, text: str) -> int:
        raise self.error


@pytest.mark.parametrize("error", [BrokenPipeError(32, "Broken pipe"), OSError(5, "Input/output error")])
def test_a_command_goes_on_when_nobody_reads_what_it_says(error: OSError, monkeypatch: pytest.MonkeyPatch) -> None:
    """``prefiere dpo 2>&1 | tee log`` and Ctrl-C end tee as well; ssh may drop. Training is not over for that."""
    monkeypatch.setattr("sys.stderr", Gone(error))
    display = Display()
    display.say("stopping after this update")
    with display.stage("training", 2) as advance:
        advance(1, note="loss 0.5")
    display.say("saved")


def test_a_log_hears_of_a_long_stage_now_and_then_and_how_much_is_left() -> None:
    seconds = [0.0]
    console = shown(False)
    display = Display(console, clock=lambda: seconds[0])
    with display.stage("reference log-probs", 1000) as advance:
        for _ in range(10):
            seconds[0] += 15
            advance(100)
    with display.stage("before training", 1) as advance:
        advance(1)
    with display.stage("training", 3, opening=False) as advance:
        advance(3)
    assert console.file.getvalue().splitlines() == [  # type: ignore[attr-defined]
        "reference log-probs (1,000 to do)",
        "reference log-probs: 200 of 1,000, about 2 min left",
        "reference log-probs: 400 of 1,000, about 90 s left",
        "reference log-probs: 600 of 1,000, about 60 s left",
        "reference log-probs: 800 of 1,000, about 30 s left",
        "before training ...",
    ]


def test_a_log_hears_of_long_parts_of_a_stage_and_of_no_short_one() -> None:
    """A validation of 5 s says nothing, one of 60 s does; training speaks where rows have not for 20 s."""
    seconds = [0.0]
    console = shown(False)
    display = Display(console, clock=lambda: seconds[0])
    with display.stage("training", 4, opening=False) as advance:
        for update, long in ((1, 1), (2, 12), (3, 1)):
            display.say(f"step {update}")
            with display.stage("validating", 5) as held:
                for _ in range(5):
                    seconds[0] += long
                    held(1)
            advance(1)
        seconds[0] += 25
        advance(0, note="loss 0.5")
    assert console.file.getvalue().splitlines() == [  # type: ignore[attr-defined]
        "step 1",
        "step 2",
        "validating: 2 of 5, about 36 s left",
        "validating: 4 of 5, about 12 s left",
        "step 3",
        "training: 3 of 4, about 32 s left, loss 0.5",
    ]


def test_on_eighty_columns_counts_and_times_of_a_part_are_whole() -> None:
    console = Terminal(file=io.StringIO(), force_terminal=True, width=80, highlight=False)
    display = Display(console)
    with speaking("es"), display.stage("entrenando", 1000) as advance:
        advance(12, note="loss 0.003293  rewards/accuracies 100.0%")
        with display.stage("muestreando respuestas", 128) as answered:
            answered(64)
            display._bars.refresh()  # type: ignore[union-attr]
    shown = STYLES.sub("", console.file.getvalue())
    assert re.search(r"entrenando .* 12/1000 0:00:0\d quedan [-\d:]{7} loss 0\.0", shown)
    assert re.search(r"muestreando respuestas .* 64/128 +0:00:0\d quedan [-\d:]{7}", shown)


def test_a_part_of_a_stage_has_a_bar_that_goes_with_it() -> None:
    console = shown(True)
    display = Display(console)
    with display.stage("training", 2) as advance:
        assert display._bars is not None
        with display.stage("validating", 5) as held:
            held(3)
            assert [t.description for t in display._bars.tasks] == ["training", "validating"]
        advance(1)
        assert [(t.description, t.completed) for t in display._bars.tasks] == [("training", 1)]
    with display.stage("reference", 1):
        pass


def test_a_log_hears_of_a_phase_of_unknown_length() -> None:
    seconds = [0.0]
    console = shown(False)
    with Display(console, clock=lambda: seconds[0]).phase("reading a\x1b[2Jb") as at:
        for n in range(1, 5):
            seconds[0] += 12
            at(f"reading: {n},000 examples")
    said = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert said == ["reading a⟨U+001B⟩[2Jb ...", "reading: 2,000 examples", "reading: 4,000 examples"]


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_phase_on_a_terminal_is_only_read(kind: str) -> None:
    console = shown(True)
    with Display(console).phase(HOSTILE[kind]) as at:
        at(HOSTILE[kind])
    out = STYLES.sub("", console.file.getvalue())  # type: ignore[attr-defined]
    assert not {c for c in HOSTILE[kind] if c not in "\n\t" and not c.isprintable()} - {"\r"} & set(out)


class Cell:
    """What a notebook shows of `IPython.display.display`: objects, and lines that change in their place."""

    def __init__(self) -> None:
        self.shown: list[Any] = []

    def display(self, shown: Any, *, raw: bool = False, display_id: bool = False) -> Any:
        self.shown.append(shown)
        at = len(self.shown) - 1

        class Handle:
            def update(_, new: Any, *, raw: bool) -> None:
                self.shown[at] = new

        return Handle()


def test_a_notebook_shows_progress_without_widgets(
    monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    cell, module = Cell(), types.ModuleType("IPython.display")
    module.display = cell.display  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", types.ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    now = iter(range(100))
    display = Display(Terminal(force_jupyter=True), clock=lambda: float(next(now)))
    display.say("reading <b>")
    with display.stage("training", 4) as advance:
        assert cell.shown[-1]["text/plain"].startswith("training  ░")
        advance(1, note="loss 0.69\x1b[2J")
        assert "██████░░░░░░░░░░░░░░░░░░ 1/4  about" in cell.shown[-1]["text/plain"]
        assert cell.shown[-1]["text/plain"].endswith("loss 0.69⟨U+001B⟩[2J")
        advance(3, note="loss 0.1")
    assert cell.shown[-1] == {"text/plain": f"training  {'█' * 24} 4/4  loss 0.1"}
    assert "reading &lt;b&gt;" in cell.shown[0].html
    assert len(cell.shown) == 2
    assert not [w for w in recwarn if "ipywidgets" in str(w.message)]
    quiet = Display(Terminal(force_jupyter=True, quiet=True))
    with quiet.stage("training", 4) as advance:
        advance(4)
    assert len(cell.shown) == 2
