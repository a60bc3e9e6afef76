"""The findings in plain words: every key in every language, with the same braces, and no word that stops a stranger."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from prefiere.asked.language import TONGUES, Tongue, other_words, tongue
from prefiere.doctor.case import Case, Finding
from prefiere.doctor.diagnose import diagnose
from prefiere.doctor.plain.tell import plain_verdict, plain_words, told
from prefiere.doctor.remedies import Remedy, advised, set_to
from prefiere.report.page import report_html
from synthetic_runs import PERFECT, RUINED, make

DOCTOR = Path(__file__).parents[2] / "src" / "prefiere" / "doctor"


def keys_of_findings() -> set[str]:
    """The first argument of every `Finding(...)` and `_found(...)` of the doctor, and the two sides of f-strings."""
    found: set[str] = set()
    for path in DOCTOR.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            named = isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
            if named and node.func.id in ("Finding", "_found") and node.args:
                found |= {n.value for n in ast.walk(node.args[0]) if isinstance(n, ast.Constant)}
    return {k for k in found if isinstance(k, str)} | {
        f"{a}_too_{b}" for a in ("rate", "setting") for b in ("high", "low")
    }


@pytest.mark.parametrize("spoken", TONGUES)
def test_every_finding_has_plain_words(spoken: str) -> None:
    missing = keys_of_findings() - plain_words(spoken).findings.keys()
    assert missing <= {"high", "low", "rate_too_", "key", "chance_of"}, missing


@pytest.mark.parametrize("spoken", TONGUES)
def test_no_headline_has_the_fields_own_words(spoken: str) -> None:
    for key, (headline, _) in plain_words(spoken).findings.items():
        plain = headline.replace("kl_coef = {value}", "")
        assert not re.search(r"\b(nats?|margin|margen|KL|DPO|PPO|logits?|log-prob\w*)\b", plain), key


def test_a_verdict_in_two_languages(tmp_path: Path) -> None:
    good, bad = diagnose(make(tmp_path / "a")), diagnose(make(tmp_path / "b", train=PERFECT, answers=RUINED))
    assert plain_verdict(good, "en").startswith("It worked")
    assert plain_verdict(good, "es").startswith("Funcionó")
    assert plain_verdict(bad, "es").startswith("El modelo quedó arruinado")
    tried = told(bad.findings[0], "es").tries
    assert tried[0] == "pon rpo_alpha en 1"


@pytest.mark.parametrize("spoken", TONGUES)
def test_a_finding_that_no_table_has_is_said_in_its_own_words(spoken: str) -> None:
    """Braces in them are text: of a name, of a file."""
    for own in ("{0.__class__} is short.", "It stops at {.", "Field {n.__class__}: {n} of {m}."):
        said = told(Finding("of another version", own, "info", own, values={"n": "3"}), spoken)
        assert (said.headline, said.meaning) == (own, own)


@pytest.mark.long
def test_a_report_speaks_the_language_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make(tmp_path / "run", train=PERFECT, answers=RUINED)
    monkeypatch.setenv("LC_ALL", "es_ES.UTF-8")
    page = report_html([run])
    assert "El modelo quedó arruinado: sus respuestas se deshicieron." in page
    assert "pon rpo_alpha en 1" in page
    monkeypatch.setenv("LC_ALL", "C")
    assert "do not use this model" in report_html([run])


@pytest.mark.parametrize(
    ("asked", "environment", "spoken"),
    [
        (None, {"LANG": "es_AR.UTF-8"}, "es"),
        (None, {"LC_ALL": "C", "LANG": "es_AR.UTF-8"}, "en"),
        (None, {"LC_ALL": "", "LC_MESSAGES": "es"}, "es"),
        (None, {"LANG": "fr_FR.UTF-8"}, "en"),
        (None, {}, "en"),
        ("es", {"LANG": "en_GB"}, "es"),
    ],
)
def test_the_language_that_is_asked_for_or_set(asked: str | None, environment: dict[str, str], spoken: str) -> None:
    assert tongue(asked, environment) == spoken


def test_a_language_that_there_is_not() -> None:
    with pytest.raises(ValueError, match="there are en and es"):
        tongue("fr")


def remedies_in_the_code() -> set[str]:
    """The texts of every `Remedy(...)` that sets nothing: what it sets is said in the same words always."""
    found: set[str] = set()
    for path in DOCTOR.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Remedy":
                alone = len(node.args) == 1 and not {k.arg for k in node.keywords} & {"setting", "value"}
                if alone and isinstance(node.args[0], ast.Constant):
                    found.add(str(node.args[0].value))
    return found


@pytest.mark.parametrize("spoken", [t for t in TONGUES if t != "en"])
def test_every_remedy_is_said_in_every_language(spoken: Tongue) -> None:
    known = other_words("prefiere.doctor.plain", "remedies", spoken)
    said = "".join(ast.unparse(ast.parse(p.read_text(encoding="utf-8"))) for p in DOCTOR.rglob("*.py"))
    assert len(remedies_in_the_code()) > 60
    assert not remedies_in_the_code() - known.keys()
    assert not [text for text in known if text not in said]  # nor is one there that nobody gives
    assert not [text for text in known.values() if not text.strip()]


def test_a_remedy_that_sets_nothing_is_said(tmp_path: Path) -> None:
    remedies = (Remedy("more data"), set_to("beta", 0.3, "why"), advised("larger_one", name="x"))
    finding = Finding("k", "t", "bad", "m", (), remedies)
    assert told(finding, "es").tries == ("más datos", "pon beta en 0.3", "x mayor")
    assert finding.remedy == ("more data", "beta=0.3, why", "a larger x")
    case = Case(make(tmp_path))
    assert (
        case.larger("lr_scale", 3, "which makes moving away cost more").within("es")
        == "lr_scale mayor, que encarece alejarse"
    )
