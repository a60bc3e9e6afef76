"""No model is trusted untested: what its trial finds, what it refuses in one line, and that it leaves no trace."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, BertConfig, BertForMaskedLM

import runs
import tiny
from prefiere.console import Display
from prefiere.kernels.linear import products_of
from prefiere.launch import launch
from prefiere.models.adapter import Adapter
from prefiere.models.check import trial
from prefiere.models.check.trial import try_policy
from prefiere.models.load import fingerprint, load_model, load_policy
from prefiere.models.source import ModelError, find_model
from prefiere.plan.choices import Choice
from prefiere.plan.device import Device
from prefiere.plan.plan import resolve
from prefiere.sample.plain import way_of
from prefiere.settings import SFT
from prefiere.world import World


def lora(dropout: float = 0.0) -> Adapter:
    return Adapter.lora(r=2, alpha=4, dropout=dropout, targets="all-linear", dora=False, rslora=False)


def refused(match: str, folder: Path, adapter: Adapter | None = None) -> None:
    """Loading a policy and trying it out ends in one line."""
    with pytest.raises(ModelError, match=match) as e:
        try_policy(load_policy(find_model(folder), compute=torch.float32, adapter=adapter)[0], str(folder))
    assert len(str(e.value).splitlines()) == 1


def rewritten(folder: Path, change) -> Path:
    """The folder with other weights."""
    path = folder / "model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path, metadata={"format": "pt"})
    return folder


# -- weights ----------------------------------------------------------------------------------------------------------


def test_a_missing_weight_is_named(tmp_path) -> None:
    rewritten(runs.model_folder(tmp_path / "m"), lambda w: w.pop("lm_head.weight"))
    refused(r"m lacks weights of LlamaForCausalLM \(lm_head.weight\). Download it again.", tmp_path / "m")


def test_a_tied_head_is_not_missing(tmp_path) -> None:
    runs.model_folder(tmp_path / "m", tie_word_embeddings=True)
    assert "lm_head.weight" not in load_file(tmp_path / "m" / "model.safetensors")
    load_policy(find_model(tmp_path / "m"), compute=torch.float32, adapter=None)


def test_a_prefix_that_compiling_left_is_said(tmp_path) -> None:
    def prefixed(weights) -> None:
        for name in list(weights):
            weights[f"_orig_mod.{name}"] = weights.pop(name)

    rewritten(runs.model_folder(tmp_path / "m"), prefixed)
    refused(r"lacks weights of .* and 19 more\). Its files hold _orig_mod\.lm_head\.weight, ", tmp_path / "m")


@pytest.mark.parametrize("adapted", [False, True])
def test_a_reward_model_is_no_policy(tmp_path, adapted) -> None:
    runs.model_folder(tmp_path / "model", tie_word_embeddings=True)  # its head is not missing
    judged = runs.settings(tmp_path, runs.Reward, max_steps=1, eval_size=0, out=str(tmp_path / "judge"), lora=adapted)
    launch(judged, display=Display(quiet=True))
    with pytest.raises(ModelError, match="judge/model is a reward model: it scores answers and writes none"):
        resolve(runs.settings(tmp_path, model=str(tmp_path / "judge")), Device.of(World.open().device))


@pytest.mark.parametrize("name", ["model.layers.1.mlp.up_proj.weight", "model.norm.weight"])
def test_weights_that_are_no_numbers(tmp_path, name) -> None:
    rewritten(runs.model_folder(tmp_path / "m"), lambda w: w[name].view(-1)[3].fill_(float("nan")))
    refused(f"m: its logits are not finite; its weight {name} is not: download it again", tmp_path / "m")


def test_a_tokenizer_with_more_ids_than_the_embeddings_have_rows(tmp_path) -> None:
    tiny.model(vocab_size=300).save_pretrained(runs.model_folder(tmp_path / "model"))
    last = len(AutoTokenizer.from_pretrained(tmp_path / "model")) - 1
    with pytest.raises(ModelError, match=f"its tokenizer has ids up to {last}, and its embeddings 300 rows"):
        runs.session(tmp_path, SFT)


# -- forwards ---------------------------------------------------------------------------------------------------------


def test_a_model_that_reads_both_ways_is_no_policy(tmp_path) -> None:
    folder = runs.encoder_folder(tmp_path / "m")
    config = BertConfig.from_pretrained(folder)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        BertForMaskedLM(config).save_pretrained(folder)
    refused("sees the answer that it would score: another last token changes what BertLMHeadModel says", folder)


def test_what_is_random_in_training_is_refused(tmp_path, monkeypatch) -> None:
    """Dropout that is no nn.Dropout and no setting."""
    trunk, _ = load_policy(find_model(runs.model_folder(tmp_path / "m")), compute=torch.float32, adapter=None)
    layer = trunk.lm.model.layers[0].mlp.act_fn
    real = layer.forward
    monkeypatch.setattr(layer, "forward", lambda x: nn.functional.dropout(real(x), 0.1, layer.training))
    with pytest.raises(ModelError, match="x says something else in training than in evaluation"):
        try_policy(trunk, "x")


def test_a_layer_without_a_gradient_is_refused(tmp_path, monkeypatch) -> None:
    trunk, _ = load_policy(find_model(runs.model_folder(tmp_path / "m")), compute=torch.float32, adapter=lora())

    def broken(x: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled():
            raise RuntimeError("no gradient here\nand a trace")
        return x

    monkeypatch.setattr(trunk.lm.model.layers[0].mlp, "forward", broken)
    with pytest.raises(ModelError, match=r"^x cannot run as it would be trained \(no gradient here\). Try q_proj$"):
        try_policy(trunk, "x", hint=" Try q_proj")


# -- decoding ---------------------------------------------------------------------------------------------------------


def test_decoding_that_is_wrong_goes_the_plain_way(tmp_path, monkeypatch) -> None:
    """Keys that are cached wrongly: the prepared cache fails, transformers' own is right."""
    from prefiere.sample.shared_prefix import SharedLayer

    real = SharedLayer.update
    monkeypatch.setattr(SharedLayer, "update", lambda self, k, v, *a, **o: real(self, 2 * k, v, *a, **o))
    trunk, _ = load_policy(find_model(runs.model_folder(tmp_path / "m")), compute=torch.float32, adapter=None)
    found = try_policy(trunk, "m")
    assert found.way == way_of(trunk.lm) == "cache"
    assert "decoding with a cache and plain forwards of LlamaForCausalLM differ by" in found.why


# -- a run ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_a_trial_leaves_no_trace(tmp_path, dropout) -> None:
    trunk, _ = load_policy(
        find_model(runs.model_folder(tmp_path / "m")),
        compute=torch.float32,
        adapter=lora(dropout),
        gradient_checkpointing=True,
    )
    weights, state = fingerprint(trunk), torch.get_rng_state()
    trunk.train()
    try_policy(trunk, "m")
    assert fingerprint(trunk) == weights
    assert torch.equal(torch.get_rng_state(), state)
    assert all(m.training for m in trunk.modules())
    assert all(p.grad is None for p in trunk.parameters())
    rates = {m.p for n, m in trunk.named_modules() if isinstance(m, nn.Dropout) and "lora_dropout" in n}
    assert rates == ({dropout} if dropout else set())


def test_a_resumed_run_gets_the_outcome_back(tmp_path, monkeypatch) -> None:
    settings = runs.settings(tmp_path, SFT, save_steps=2, sample_steps=0)
    runs.kill(settings, 2)
    folder = tmp_path / "run"
    recorded = json.loads((folder / "environment.json").read_text())
    outcome = {c["name"]: c["value"] for c in recorded["choices"]}
    assert (outcome["check"], outcome["decoding"], outcome["rows"]) == ("passed", "prepared", "packed")
    for c in recorded["choices"]:
        if c["name"] == "decoding":
            c["value"] = "anew"
    (folder / "environment.json").write_text(json.dumps(recorded))
    monkeypatch.setattr(trial, "try_policy", None)
    monkeypatch.setattr("prefiere.train.setup.try_policy", None)
    session = runs.resumed(settings)
    assert way_of(session.trunk.lm) == "anew"
    assert launch(settings, display=Display(quiet=True)).run.status["state"] == "finished"


def test_a_model_to_sample_from_is_tried_out_too(tmp_path) -> None:
    rewritten(runs.model_folder(tmp_path / "m"), lambda w: w["model.norm.weight"].fill_(float("inf")))
    with pytest.raises(ModelError, match=r"m: its logits are not finite; its weight model\.norm\.weight is not"):
        load_model(find_model(tmp_path / "m"))
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "m") is not None


@pytest.mark.parametrize("library", ["onednn", "default"])
def test_a_reward_model_beside_the_trunk_runs_through_the_run_s_library(tmp_path, monkeypatch, library) -> None:
    runs.ragged_folder(tmp_path / "model", chat=False)
    runs.prompts_file(tmp_path / "prompts.txt")
    judged = runs.settings(
        tmp_path, runs.Reward, data=str(runs.pairs_file(tmp_path / "pairs.jsonl")), max_steps=1, eval_size=0,
        out=str(tmp_path / "judge"),
    )  # fmt: skip
    launch(judged, display=Display(quiet=True))
    monkeypatch.setattr("prefiere.train.setup.choose_products", lambda *_: Choice("fp32_products", library, "as asked"))
    made = runs.policy_session(tmp_path, data=str(tmp_path / "prompts.txt"), reward=str(tmp_path / "judge"))
    (model,) = made.reward.scorers.values()
    assert products_of(model.trunk.lm).onednn == products_of(made.trunk.lm).onednn == (library == "onednn")
