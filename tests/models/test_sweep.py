"""Every architecture of the zoo does in a run what plain transformers does, and docs/models.md says how."""

from __future__ import annotations

import pytest

import zoo
from sweep import documented, examine

QUICK = (
    "qwen3", "gemma3_text", "gpt2:dropout", "olmo:clip_qkv", "mixtral:auxiliary", "deepseek_v3", "falcon_h1", "bert",
    "gemma3n_text", "bloom:dropout", "llama4_text", "qwen3_next",
)  # fmt: skip


def test_the_table_has_every_model_once() -> None:
    assert list(documented()) == sorted(zoo.CASES)
    assert len(zoo.CASES) >= 90


@pytest.mark.parametrize("name", QUICK)
def test_a_run_of_a_model(tmp_path, name) -> None:
    row = examine(tmp_path, name, quick=True)
    assert documented()[name].split(" | ")[1:3] == row.line(name).split(" | ")[1:3]


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(zoo.CASES))
def test_runs_of_a_model_whole_and_adapted(tmp_path, name) -> None:
    assert examine(tmp_path, name).line(name) == documented()[name]
