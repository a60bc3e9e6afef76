"""Two models' answers side by side: who wins, and whether that is more than chance."""

from __future__ import annotations

import numpy as np
import pytest

from prefiere.evaluate.compare import compared
from prefiere.evaluate.sampled import Answers


def test_answers_to_one_prompt_are_one_coin() -> None:
    """Three answers to each of four prompts, all better: four coins, twice 1/16, and no twelve."""
    rows = [{"prompt": f"p{i // 3}", "completion": "a", "score": 0.0} for i in range(12)]
    prompts = np.repeat(np.arange(4), 3)
    before = Answers(rows, {"score": np.zeros(12)}, prompts)
    after = Answers(rows, {"score": np.arange(1.0, 13.0)}, prompts)
    found = compared("one", "other", before, after, "a rule")
    assert (found.wins, found.losses, found.ties) == (12, 0, 0)
    assert found.p_value == pytest.approx(2 / 2**4)
