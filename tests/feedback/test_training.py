"""What a store teaches is learnt: each method trains on one, a resumed run keeps its snapshot, and a run without
somebody is the run of a store that never had them, weight for weight."""

from __future__ import annotations

import hashlib
import json

import pytest

import runs
from feedback.conftest import fill
from feedback.test_exchange import vote
from prefiere.console import Display
from prefiere.data import formats
from prefiere.feedback import people
from prefiere.feedback.store import Store
from prefiere.feedback.votes import Said
from prefiere.launch import launch
from prefiere.run import Run, RunError
from prefiere.settings import DPO, SFT, Reward

SAID = {
    "ana": [-2, 1, 3, Said(score=1, ideal="un perro")] * 2,
    "beto": [2, 2, -1, -1] * 2,
    "caro": [-3, -3, Said(both_bad=True), 0] * 2,
}


def voted(path, names):
    """A store of eight pairs on which some of three people voted."""
    store = Store.open(path, create=True)
    fill(store, 8, overlap=3)
    for name in names:
        vote(store, name, SAID[name])
    return store


def learn(tmp, store, out="run", method=DPO, **options):
    given = {"data": str(store), "out": str(tmp / out), "batch_size": 4, "max_steps": 2, "eval_size": 0}
    given |= {"sample_steps": 0} if method is not Reward else {}
    return runs.settings(tmp, method, **given | options)


def trained(settings):
    return launch(settings, display=Display(quiet=True)).run


def weights(run):
    return hashlib.sha256((run.model / "model.safetensors").read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("method", "options", "examples"),
    [
        (DPO, {}, 12),
        (DPO, {"loss_type": "kto"}, 18),
        (Reward, {}, 12),
        (SFT, {}, 2),
    ],
    ids=["dpo", "kto", "reward", "sft"],
)
def test_each_method_learns_from_a_store(tmp_path, method, options, examples):
    voted(tmp_path / "votes.db", SAID).close()
    settings = learn(tmp_path, tmp_path / "votes.db", method=method, **options)
    run = trained(settings)
    assert run.status["state"] == "finished"
    assert run.data["examples"]["train"] == examples
    assert run.recipe["data"] == f"{tmp_path / 'votes.db'}#1"
    assert f"{tmp_path / 'votes.db'}#1@" in json.dumps(run.data)
    assert run.metrics[-1]["loss"] > 0


@pytest.mark.parametrize("how", ["leave_out", "forget"])
@pytest.mark.long
def test_a_run_without_somebody_has_the_weights_of_one_that_never_had_them(tmp_path, how):
    never = voted(tmp_path / "never.db", ["beto", "caro"])
    had = voted(tmp_path / "had.db", ["beto", "ana", "caro"])
    with_her = weights(trained(learn(tmp_path, had.name, "with")))
    if how == "forget":
        people.forget(had, "ana")
    else:
        with had.write() as c:
            people.leave_out(c, people.person_named(c, "ana"))
    redone, alone = (trained(learn(tmp_path, s.name, out)) for s, out in ((had, "redone"), (never, "alone")))
    digests = [str(run.data["train"]["read"]["files"]).partition("@")[2][:12] for run in (redone, alone)]
    assert digests[0] == digests[1] != ""
    assert weights(redone) == weights(alone) != with_her


@pytest.mark.long
def test_a_resumed_run_keeps_its_snapshot_whatever_is_voted_meanwhile(tmp_path):
    store = voted(tmp_path / "votes.db", ["beto"])
    options = {"max_steps": 4, "save_steps": 1, "eval_size": 2, "sample_steps": 2}
    whole = trained(learn(tmp_path, store.name, "whole", **options))
    settings = learn(tmp_path, store.name, "killed", **options)
    runs.kill(settings, after=2)
    vote(store, "ana", SAID["ana"])
    resumed = trained(settings)
    assert resumed.recipe["data"] == f"{store.name}#1"
    assert weights(resumed) == weights(whole)
    assert resumed.samples == whole.samples
    again = launch(learn(tmp_path, f"{store.name}#1", "killed", **options), display=Display(quiet=True))
    assert again.already
    later = trained(learn(tmp_path, store.name, "later", **options))
    assert later.recipe["data"] == f"{store.name}#2"
    assert weights(later) != weights(whole)
    with pytest.raises(ValueError, match="snapshot 2 of this store is not @000000000000"):
        formats.read(f"{store.name}#2@000000000000", kind="pairs")
    with pytest.raises(RunError, match="started with other settings"):
        trained(learn(tmp_path, f"{store.name}#2", "whole", **options))


def test_a_run_compares_itself_on_the_prompts_that_it_held_out(tmp_path):
    from prefiere.evaluate.compare import validation_prompts

    store = voted(tmp_path / "votes.db", ["beto"])
    run = trained(learn(tmp_path, store.name, eval_size=2))
    before = validation_prompts(Run.open(run.folder), 8)
    vote(store, "ana", SAID["ana"])
    assert before == validation_prompts(Run.open(run.folder), 8)
    assert len(before) == 2
    assert all(str(p).startswith("¿Qué es") for p in before)
