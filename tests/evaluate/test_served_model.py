"""A finished model behind a server answers wherever a model is named: as it answers in this process, seed by seed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import runs
from prefiere.api.use import compare, sample
from prefiere.asked.endpoint import EndpointError
from prefiere.cli.collect import Answering
from prefiere.feedback.collect import How
from prefiere.models.source import ModelError
from prefiere.sample.local import LocalRollouts
from prefiere.sample.served import prompt_seed
from serving import RolloutServer

PROMPTS = ["el perro?", "the dog is", "pan"]
HOW = How(temperature=0.9, top_p=1.0, max_new_tokens=6, seed=3)


@pytest.fixture
def model(tmp_path) -> Path:
    return runs.ragged_folder(tmp_path / "model", chat=False)


@pytest.fixture
def server(model) -> Iterator[RolloutServer]:
    with RolloutServer(model) as made:
        yield made


@pytest.fixture
def seeded(monkeypatch) -> None:
    """Each prompt's answers are drawn in this process from the seed that a server gets."""
    real = LocalRollouts.sample

    def one_by_one(self, prompts, sampling, *, version, numbers=None, progress=None):  # type: ignore[no-untyped-def]
        found = []
        for i, prompt in enumerate(prompts):
            seed = prompt_seed(sampling.seed, i if numbers is None else numbers[i])
            found += [replace(s, prompt=i) for s in real(self, [prompt], replace(sampling, seed=seed), version=version)]
        return found

    monkeypatch.setattr(LocalRollouts, "sample", one_by_one)


def test_sample_compare_and_collect_take_a_server(model, server, seeded) -> None:
    name = f"{server.url}#base"
    here = sample(model, PROMPTS, samples=2, max_new_tokens=6, seed=3)
    there = sample(name, PROMPTS, samples=2, max_new_tokens=6, seed=3)
    assert [r["completion"] for r in there] == [r["completion"] for r in here]
    assert [r["logp"] for r in there] == pytest.approx([r["logp"] for r in here], abs=1e-4)
    assert len({r["completion"] for r in here}) > 3

    found = compare(model, server.url, prompts=PROMPTS, max_new_tokens=6)  # of several models the first is the base
    assert all(p.before == p.after for p in found.pairings)

    numbers = [5, 1, 9]
    answering = Answering(name)
    assert answering(PROMPTS, 2, HOW, numbers) == Answering(str(model))(PROMPTS, 2, HOW, numbers)
    assert answering.fingerprint != Answering(server.url).fingerprint


def test_what_is_no_model_of_the_server_is_one_line(server, tmp_path) -> None:
    with pytest.raises(EndpointError, match=r"serves no model other\. There are: base"):
        sample(f"{server.url}#other", PROMPTS)
    server.model = tmp_path / "elsewhere"
    with pytest.raises(ModelError, match=r"the tokenizer is read from where it has the model, and .*elsewhere"):
        sample(server.url, PROMPTS)
