"""What two tasks that cannot fail say of the machinery."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from prefiere.api.probe import Probe, Probed, known_token, probe
from prefiere.asked.language import speaking
from prefiere.demo.main import base_model

LEARNT, NOT = Probed("t", True, 0.5, 1.0, 0.9), Probed("t", False, 0.5, 0.5, 0.4)


def test_the_token_that_is_paid_for_stands_in_some_answers() -> None:
    """In 3 of 10 answers stands "sun", in 9 "the", in 1 "moon"."""
    answers = ["the sun"] * 3 + ["the"] * 5 + ["the moon", ""]
    assert known_token(answers) == "sun"
    with pytest.raises(ValueError, match="answers nothing"):
        known_token(["", ""])


@pytest.mark.parametrize(
    ("preference", "reward", "says"),
    [
        (LEARNT, LEARNT, "fault in the data or in the reward"),
        (LEARNT, NOT, "how answers are sampled"),
        (NOT, LEARNT, "chat template"),
        (NOT, NOT, "model, its template, or the settings"),
    ],
)
def test_where_to_look(preference: Probed, reward: Probed, says: str) -> None:
    found = Probe(preference, reward)
    assert says in found.verdict
    assert found.sound == (preference.learnt and reward.learnt)


def test_it_speaks_spanish() -> None:
    with speaking("es"):
        assert "en los datos o en la recompensa" in Probe(LEARNT, LEARNT).verdict
        assert str(NOT) == "t: NO aprendido (0.50 -> 0.50, al menos 0.40 al 95%)"
    assert str(NOT) == "t: NOT learnt (0.50 -> 0.50, at least 0.40 with 95%)"


@pytest.mark.slow
@pytest.mark.parametrize(("rate", "sound"), [("auto", True), (1e-12, False)])
def test_a_sound_model_learns_both_and_a_rate_of_nothing_neither(tmp_path: Path, rate: object, sound: bool) -> None:
    base = base_model(tmp_path, Console(quiet=True), rebuild=False)
    found = probe(str(base), tmp_path / "probe", learning_rate=rate)
    assert (found.preference.learnt, found.reward.learnt) == (sound, sound)
