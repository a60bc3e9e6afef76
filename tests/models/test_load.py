"""Names become models, or one clear line."""

import json

import pytest
import torch

import runs
from prefiere.models.adapter import Adapter
from prefiere.models.load import count_parameters, load_policy, load_tokenizer
from prefiere.models.source import ModelError, Source, find_model


def test_a_folder_an_adapter_and_a_run(tmp_path) -> None:
    base = runs.model_folder(tmp_path / "base")
    assert find_model(base) == Source(str(base), None)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "owner/base"}))
    assert find_model(adapter) == Source("owner/base", str(adapter))
    run = tmp_path / "run"
    run.mkdir()
    (run / "recipe.yaml").write_text("method: dpo\n")
    with pytest.raises(ModelError, match="no model yet"):
        find_model(run)
    base.rename(run / "model")
    assert find_model(run) == Source(str(run / "model"), None)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda p: p / "nothing", "there is no model folder"),
        (lambda p: p, "neither config.json nor adapter_config.json"),
    ],
)
def test_what_is_no_model(tmp_path, make, says) -> None:
    with pytest.raises(ModelError, match=says):
        find_model(make(tmp_path))


def test_an_adapter_without_a_base(tmp_path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="names no base model"):
        find_model(tmp_path)


def test_pickles_are_refused(tmp_path) -> None:
    base = runs.model_folder(tmp_path / "base")
    model = runs.tiny.model("llama")
    (base / "model.safetensors").unlink()
    torch.save(model.state_dict(), base / "pytorch_model.bin")
    with pytest.raises(ModelError, match="Pickled checkpoints can run code"):
        load_policy(find_model(base), compute=torch.float32, adapter=None)


@pytest.mark.parametrize("tied", [False, True])
def test_parameters_are_counted_without_weights(tmp_path, tied) -> None:
    base = runs.model_folder(tmp_path / "base", tie_word_embeddings=tied)
    (base / "model.safetensors").unlink()
    same = runs.tiny.model("llama", vocab_size=len(load_tokenizer(find_model(base))), tie_word_embeddings=tied)
    assert count_parameters(find_model(base)) == sum(p.numel() for p in same.parameters())


@pytest.mark.parametrize("text", ['{"weight_', "{}", "[]", '{"weight_map": []}'])
def test_a_damaged_index_is_one_line_that_names_it(tmp_path, text) -> None:
    base = runs.model_folder(tmp_path / "base")
    (base / "model.safetensors").unlink()
    runs.tiny.model("llama").save_pretrained(base, max_shard_size="30KB")
    (base / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ModelError, match=r"cannot load .*base: model.safetensors.index.json is damaged: download") as e:
        load_policy(find_model(base), compute=torch.float32, adapter=None)
    assert len(str(e.value).splitlines()) == 1


@pytest.mark.parametrize("how", ["damaged", "missing"])
def test_a_corrupted_shard_is_one_line_that_names_it(tmp_path, how) -> None:
    base = runs.model_folder(tmp_path / "base")
    (base / "model.safetensors").unlink()
    runs.tiny.model("llama").save_pretrained(base, max_shard_size="30KB")
    shard = sorted(base.glob("*.safetensors"))[1]
    weights = shard.read_bytes()
    shard.unlink()
    if how == "damaged":
        shard.write_bytes(weights[: len(weights) // 2])
    with pytest.raises(ModelError, match=rf"cannot load .*base: {shard.name} is {how}.*: download it again") as e:
        load_policy(find_model(base), compute=torch.float32, adapter=None)
    assert len(str(e.value).splitlines()) == 1


def test_an_adapter_that_fits_nothing(tmp_path) -> None:
    base = runs.model_folder(tmp_path / "base")
    lora = Adapter.lora(r=4, alpha=8, dropout=0.0, targets=["no_such_layer"], dora=False, rslora=False)
    with pytest.raises(ModelError, match="does not fit"):
        load_policy(find_model(base), compute=torch.float32, adapter=lora)


def test_any_peft_configuration(tmp_path) -> None:
    base = runs.model_folder(tmp_path / "base")
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps({"peft_type": "LORA", "r": 3, "target_modules": ["q_proj"], "use_dora": True}))
    trunk, _ = load_policy(find_model(base), compute=torch.float32, adapter=Adapter.of(str(path)))
    trained = [n for n, p in trunk.named_parameters() if p.requires_grad]
    assert trained
    assert all("q_proj" in n for n in trained)
    assert any("magnitude" in n for n in trained)
    with pytest.raises(ModelError, match="peft_config"):
        Adapter.of({"peft_type": "LORA", "rank": 3})
    with pytest.raises(ModelError, match="there is no file"):
        Adapter.of("nowhere.json")
