"""Every language has the same words: the same keys, the same braces, in each table beside the code that says them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from prefiere.asked.columns import phrases, spoken_column
from prefiere.asked.language import TONGUES, Worded, count_of, in_words, saying, speaking, tongue, within, words
from prefiere.methods import METHODS
from prefiere.metrics import COLUMNS, column

SRC = Path(__file__).parents[2] / "src"
ROOMS = [".".join(path.parent.relative_to(SRC).parts) for path in sorted(SRC.rglob("en.yaml"))]
BRACES = re.compile(r"\{(\w*)")


@pytest.mark.parametrize("room", ROOMS)
def test_languages_have_the_same_keys_and_braces(room: str) -> None:
    first = words(room, "en")
    for spoken in TONGUES:
        other = words(room, spoken)
        assert other.keys() == first.keys()
        differ = [k for k in first if sorted(set(BRACES.findall(first[k]))) != sorted(set(BRACES.findall(other[k])))]
        assert not differ
        assert not [k for k, text in other.items() if not str(text).strip()]


@pytest.mark.parametrize("room", ROOMS)
def test_a_text_that_is_the_same_in_both_has_no_words(room: str) -> None:
    """Names, signs and braces may agree; three letters in a row outside of braces are a word that was not translated,
    unless it is one of these."""
    both = {
        "prefiere",
        "max",
        "min",
        "nats",
        "token",
        "tokens",
        "KL",
        "PPO",
        "RLOO",
        "GRPO",
        "REINFORCE",
        "rollouts",
        "problem",
        "error",
    }
    one, other = words(room, "en"), words(room, "es")
    same = [re.sub(r"\{\w*\}", "", text) for key, text in one.items() if other[key] == text]
    assert not [t for t in same if set(re.findall(r"[^\W\d_]{3,}", t)) - both]


def test_each_text_of_the_table_of_metrics_has_its_words() -> None:
    wanted = {t for c in COLUMNS for t in (c.words, c.unit, c.axis, c.title, c.meaning if c.title else "") if t}
    assert phrases("es").keys() == wanted


def test_a_column_in_another_language() -> None:
    told = spoken_column(column("eval_rewards/chosen", "simpo"), "es")
    assert (told.words, told.axis) == ("recompensa de las respuestas elegidas", "β × nats por token")
    assert spoken_column(column("rewards/mine:score/mean"), "es").words == "recompensa de mine:score"
    assert spoken_column(column("loss"), "en") == column("loss")
    assert spoken_column(column("of another version"), "es").words == "of another version"


def test_what_is_found_first_and_said_later() -> None:
    mean = saying("prefiere.doctor.plain", "evidence.interval", mean="0.41", low="0.36", high="0.46")
    assert mean == Worded(("0.41 (0.36 to 0.46)", "0.41 (0.36 a 0.46)"))
    line = saying("prefiere.doctor.plain", "evidence.lowest_loss", level=mean, step="7")
    assert line.within("es") == "menor pérdida en datos reservados: 0.41 (0.36 a 0.46), en el paso 7"
    assert str(line) == "lowest loss on held-out data: 0.41 (0.36 to 0.46) at step 7"
    assert within("as it is", "es") == "as it is"


@pytest.mark.parametrize("room", ROOMS)
def test_sentences_of_two_forms_have_both_and_say_how_many(room: str) -> None:
    for spoken in TONGUES:
        table = words(room, spoken)
        ones = {key.removesuffix(".one") for key in table if key.endswith(".one")}
        assert ones == {key.removesuffix(".many") for key in table if key.endswith(".many")}
        assert not [key for key in ones if "{n}" not in table[f"{key}.many"] or key in table]


def test_one_thing_and_several() -> None:
    said = {spoken: [] for spoken in TONGUES}  # type: dict[str, list[str]]
    for spoken in TONGUES:
        with speaking(spoken):
            said[spoken] = [in_words("account.ties", n=n) for n in ("0", "1", "21", "1,000")]
    assert said["en"] == ["0 are ties", "1 is a tie", "21 are ties", "1,000 are ties"]
    assert said["es"] == ["0 son empates", "1 es un empate", "21 son empates", "1,000 son empates"]
    assert saying("prefiere.doctor.plain", "evidence.differ_in_length", n="1") == Worded(
        ("of 1 pair whose answers differ in length", "de 1 par cuyas respuestas difieren en longitud")
    )
    assert [count_of(n, "vote") for n in (0, 1, 2000)] == ["0 votes", "1 vote", "2,000 votes"]
    assert [count_of(n, "reply", "replies") for n in (1, 2)] == ["1 reply", "2 replies"]


def test_a_language_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "C")
    with speaking("es"):
        assert tongue() == "es"
        with speaking(None):
            assert tongue() == "es"
        with speaking("en"):
            assert tongue() == "en"
    assert tongue() == "en"
    with pytest.raises(ValueError, match="--lang fr"), speaking("fr"):
        pass


def test_methods_are_called_as_in_their_table() -> None:
    titles = {
        key.removeprefix("method."): t for key, t in words("prefiere.report.words", "en").items() if "method." in key
    }
    assert titles == {name: row.title for name, row in METHODS.items()}


def test_each_word_of_the_report_is_said_somewhere() -> None:
    """A key that no code names is dead, unless code joins its section to what follows the dot."""
    room = SRC / "prefiere" / "report"
    code = "".join(p.read_text(encoding="utf-8") for p in [*room.glob("*.py"), room / "template.html"])
    known = {k.removesuffix(".one").removesuffix(".many") for k in words("prefiere.report.words", "en")}
    unnamed = [key for key in known if f'"{key}"' not in code]
    joins = ('f"{}.{{', '"{}." ~', 'outlined("{}")')
    assert not [k for k in unnamed if not any(join.format(k.split(".")[0]) in code for join in joins)]
