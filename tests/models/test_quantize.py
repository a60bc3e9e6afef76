"""A base in few bits: it is what it says, it trains as the weights that it stands for, and the rest is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import quantized
import runs
from prefiere.kernels import packed
from prefiere.models import quantize
from prefiere.models.adapter import Adapter
from prefiere.models.load import fingerprint, load_model, load_policy
from prefiere.models.source import ModelError, Source, find_model
from prefiere.models.trunk import Trunk
from prefiere.sample.local import generate
from prefiere.sample.sampling import Sampling, Vocabulary
from prefiere.tokens.pack import pack
from random_groups import store

BATCH = pack(store(6, 2, vocab=300))
FORMATS = ["nf4", "int8", "gptq", "gptq act-order", "awq", "compressed-tensors"]


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> dict[str, Source]:
    """A tiny Mistral, dense and in each format."""
    folder = tmp_path_factory.mktemp("models")
    base = find_model(quantized.mistral(folder / "base"))
    made = {"dense": base, "nf4": replace(base, quantize="nf4"), "int8": replace(base, quantize="int8")}
    variants = {"gptq": {}, "gptq act-order": {"act_order": True}, "awq": {"method": "awq", "symmetric": False}}
    variants["compressed-tensors"] = {"method": "compressed-tensors"}
    for name, options in variants.items():
        made[name] = find_model(quantized.folder(Path(base.base), folder / name, **options)[0])
    return made


def adapter() -> Adapter:
    """LoRA that is not the identity, so that every one of its gradients is there."""
    return Adapter.of({"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "init_lora_weights": False})


def loss_and_gradients(trunk: Trunk, dtype: torch.dtype) -> tuple[float, dict[str, torch.Tensor]]:
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        loss = -trunk(BATCH).logp_N.mean()
    loss.backward()
    found = {n.replace(".base_layer", ""): p.grad for n, p in trunk.named_parameters() if p.grad is not None}
    return float(loss.detach()), found


def used(source: Source, dtype: torch.dtype) -> Trunk:
    """A trunk that was evaluated and has generated, which is when some back-ends stop giving gradients."""
    torch.manual_seed(0)
    trunk, _ = load_policy(source, compute=dtype, adapter=adapter())
    with torch.no_grad(), torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        trunk.eval()(BATCH)
        generate(trunk.lm, [np.asarray([5, 6, 7], np.int32)], Sampling(max_new_tokens=4), Vocabulary((2,)))
    return trunk.train()


def dense_twin(trunk: Trunk, source: Source) -> Trunk:
    """The same model with dense fp32 weights in place of the quantized ones."""
    twin, _ = load_policy(Source(source.base, None), compute=torch.float32, adapter=adapter())
    quantized_layers = dict(trunk.lm.named_modules())
    theirs = dict(trunk.named_parameters())
    for name, module in twin.lm.named_modules():
        if name.endswith("base_layer"):
            module.weight.data = quantize.weight_of(quantized_layers[name]).clone()
    for name, p in twin.named_parameters():
        if not name.endswith("base_layer.weight"):
            p.data = theirs[name].detach().float().clone()
    return twin


# The tiny model's logits are far from uniform, which makes 16-bit rounding as large as it gets.
@pytest.mark.parametrize(
    ("dtype", "of_loss", "of_gradient"),
    [(torch.float32, 1e-6, 1e-5), (torch.bfloat16, 2e-3, 0.12), (torch.float16, 5e-4, 0.02)],
    ids=["fp32", "bf16", "fp16"],
)
@pytest.mark.parametrize("name", FORMATS)
def test_it_trains_as_the_dense_weights_it_stands_for(places, name, dtype, of_loss, of_gradient) -> None:
    trunk = used(places[name], dtype)
    loss, gradients = loss_and_gradients(trunk, dtype)
    expected, exact = loss_and_gradients(dense_twin(trunk, places["dense"]), torch.float32)
    assert loss == pytest.approx(expected, rel=of_loss)
    assert len(exact) == 28
    assert exact.keys() == gradients.keys()
    for key, g in exact.items():
        assert g.norm() > 0, key
        assert (gradients[key] - g).norm() <= of_gradient * g.norm(), key


@pytest.mark.parametrize("name", FORMATS)
def test_training_and_evaluation_take_one_path(places, name) -> None:
    trunk = used(places[name], torch.float32)
    with torch.no_grad():
        assert torch.equal(trunk.train()(BATCH).logp_N, trunk.eval()(BATCH).logp_N)


@pytest.mark.parametrize("name", FORMATS)
def test_precisions(places, name) -> None:
    trunk, _ = load_policy(places[name], compute=torch.bfloat16, adapter=adapter())
    for key, p in trunk.named_parameters():
        if "lora" in key or "norm" in key:
            assert p.dtype == torch.float32, key
            assert p.requires_grad == (".default." in key), key
        elif "embed_tokens" in key or "lm_head" in key:
            assert p.dtype == torch.bfloat16, key
        else:
            assert p.dtype in (torch.uint8, torch.int8), key


@pytest.mark.parametrize(
    "options",
    [
        {}, {"act_order": True}, {"group_size": -1}, {"group_size": 32, "symmetric": False}, {"v2": True},
        {"bits": 8}, {"bits": 8, "symmetric": False, "act_order": True}, {"method": "awq", "symmetric": False},
    ],
    ids=str,
)  # fmt: skip
def test_packed_weights_mean_what_was_rounded(tmp_path, options) -> None:
    base = quantized.mistral(tmp_path / "base")
    folder, meant = quantized.folder(base, tmp_path / "packed", **options)
    layers = dict(load_model(find_model(folder)).named_modules())
    assert len(meant) == 14
    for name, weight in meant.items():
        assert torch.equal(quantize.weight_of(layers[name.removesuffix(".weight")]), weight), name


@pytest.mark.parametrize("group", [-1, 4])
def test_an_input_in_a_group_that_there_is_not_is_named(tmp_path, group) -> None:
    base = quantized.mistral(tmp_path / "base")
    folder, _ = quantized.folder(base, tmp_path / "packed", act_order=True, group_size=16)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.g_idx"][3] = group
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        ValueError, match=r"packed is damaged: model.layers.1.mlp.up_proj has inputs in groups that there"
    ):
        load_model(find_model(folder))


def test_a_packed_layer_with_a_bias_and_a_short_last_group() -> None:
    layer = packed.PackedLinear(24, 8, True, packed.PackedLayout("gptq", 4, 16, 1))
    g = torch.Generator().manual_seed(0)
    codes, zeros = torch.randint(0, 16, (24, 8), generator=g), torch.randint(1, 16, (2, 8), generator=g)
    layer.qweight = quantized._pack(codes.T.contiguous(), 4).T.contiguous()
    layer.qzeros = quantized._pack(zeros - 1, 4)
    layer.scales = torch.rand(2, 8, generator=g).half()
    layer.g_idx = (torch.arange(24) // 16).int()
    layer.bias = torch.rand(8, generator=g).half()
    layer.repack()
    x = torch.randn(3, 24, generator=g, dtype=torch.float64, requires_grad=True)
    weight = [[(int(codes[i, o]) - int(zeros[i // 16, o])) * float(layer.scales[i // 16, o]) for o in range(8)]
              for i in range(24)]  # fmt: skip
    expected = x @ torch.tensor(weight, dtype=torch.float64) + layer.bias.double()
    y = x.detach().float().requires_grad_()
    torch.testing.assert_close(layer(y), expected.float())
    layer(y).square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(y.grad, x.grad.float())


@pytest.mark.parametrize("name", FORMATS)
def test_counts_and_fingerprint(places, name) -> None:
    model = load_model(places[name])
    found = quantize.held(model)
    assert (found.layers, found.linear) == (14, 14)
    assert 0.99 < found.share < 1
    dense = load_model(places["dense"])
    assert quantize.parameters(model) == sum(p.numel() for p in dense.parameters())
    assert quantize.held(dense) == quantize.Held(0, 14, 0.0)
    assert fingerprint(model) == fingerprint(load_model(places[name])) != fingerprint(dense)
    layer = next(m for m in model.modules() if quantize._kind(m))
    codes = layer.qweight if isinstance(layer, packed.PackedLinear) else layer.weight.data
    before = fingerprint(model)
    codes.view(-1)[0] ^= 1
    assert fingerprint(model) != before


@pytest.mark.parametrize("name", FORMATS)
def test_a_dense_copy_answers_the_same(places, name) -> None:
    model = load_model(places[name])
    tokens = torch.randint(0, 300, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = model(tokens).logits
        dense = quantize.dequantize(model, torch.float32)
        assert quantize.held(dense).layers == 0
        assert getattr(dense.config, "quantization_config", None) is None
        torch.testing.assert_close(dense(tokens).logits, before, rtol=1e-4, atol=1e-4)


def test_a_saved_nf4_checkpoint_is_found_and_the_same(places, tmp_path) -> None:
    model = load_model(places["nf4"])
    model.save_pretrained(tmp_path / "nf4")
    assert json.loads((tmp_path / "nf4" / "config.json").read_text())["quantization_config"]["load_in_4bit"]
    again = load_model(find_model(tmp_path / "nf4"), dtype=torch.float32)
    for name, module in again.named_modules():
        if quantize._kind(module) == "nf4":
            assert torch.equal(quantize.weight_of(module), quantize.weight_of(model.get_submodule(name)))
            assert module.compute_dtype == torch.float32
    load_policy(replace(find_model(tmp_path / "nf4"), quantize="nf4"), compute=torch.float32, adapter=adapter())
    with pytest.raises(ValueError, match=r"quantized already, as nf4\. Leave quantize out"):
        load_model(replace(find_model(tmp_path / "nf4"), quantize="int8"))


# -- what is refused ----------------------------------------------------------------------------------------------


def pretending(folder: Path, **config) -> Source:
    """A model folder whose configuration claims a quantization."""
    path = quantized.mistral(folder) / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": config}))
    return find_model(folder)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"quant_method": "hqq"}, "quantized as hqq, on which LoRA cannot be trained. What can: quantize=nf4"),
        ({"quant_method": "exl2"}, "quantized as exl2"),
        ({"quant_method": "gptq", "bits": 3, "group_size": 128}, "GPTQ weights of 3 bits: 4 or 8 are read"),
        ({"quant_method": "gptq", "bits": 4, "group_size": 0}, "group_size 0"),
        ({"quant_method": "gptq", "bits": 4, "group_size": 128, "checkpoint_format": "marlin"}, "layout 'marlin'"),
        ({"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemv"}, "layout 'gemv'"),
        (
            {"quant_method": "compressed-tensors", "format": "float-quantized", "config_groups": {}},
            "compressed-tensors with 0 groups",
        ),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_what_cannot_be_trained_is_one_line(tmp_path, config, says) -> None:
    with pytest.raises(ValueError, match=says) as error:
        load_model(pretending(tmp_path / "m", **config))
    assert len(str(error.value).splitlines()) == 1
    assert "What can" in str(error.value)


def test_gguf_is_refused(tmp_path) -> None:
    with pytest.raises(ValueError, match="GGUF, which cannot be trained"):
        load_model(Source("model-Q4_K_M.gguf", None))


def test_a_missing_extra_says_its_line(places, monkeypatch) -> None:
    monkeypatch.setattr(quantize, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"nf4 needs bitsandbytes, which is not installed: pip install bitsandbytes$"):
        load_model(places["nf4"])


def test_what_is_not_4_bit_is_not_called_so(tmp_path) -> None:
    """Mixtral's experts are no linear layers: bitsandbytes would leave them dense without a word."""
    runs.model_folder(tmp_path / "mixtral", family="mixtral")
    with pytest.raises(
        ValueError, match=r"would not be 4-bit: nf4 holds 8 of its \d+ linear layers, \d+% of its weights"
    ):
        load_model(replace(find_model(tmp_path / "mixtral"), quantize="nf4"))


def test_a_checkpoint_that_is_not_what_it_says(tmp_path) -> None:
    base = quantized.mistral(tmp_path / "base")
    lying, _ = quantized.folder(base, tmp_path / "lying", group_size=16)
    config = json.loads((lying / "config.json").read_text())
    config["quantization_config"]["group_size"] = 32
    (lying / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"cannot load .*lying: its weights do not have the shapes") as error:
        load_model(find_model(lying))
    assert len(str(error.value).splitlines()) == 1
    dense = pretending(tmp_path / "dense", quant_method="gptq", bits=4, group_size=16)
    with pytest.raises(ModelError, match="lacks weights of MistralForCausalLM"):
        load_model(dense)


def test_a_corrupted_shard_of_a_packed_checkpoint(tmp_path) -> None:
    folder, _ = quantized.folder(quantized.mistral(tmp_path / "base"), tmp_path / "packed")
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(ModelError, match=r"cannot load .*packed: model.safetensors is damaged .*: download it again"):
        load_model(find_model(folder))


# -- against the packages that others read these formats with -------------------------------------------------------


@pytest.mark.skipif(find_spec("gptqmodel") is None, reason="needs the extra gptq")
@pytest.mark.parametrize("name", ["gptq", "gptq act-order", "awq"])
def test_transformers_itself_reads_the_same_weights(places, name) -> None:
    from transformers import AwqConfig, GPTQConfig

    config = AwqConfig(backend="torch_awq") if name == "awq" else GPTQConfig(bits=4, backend="gptq_torch")
    theirs = AutoModelForCausalLM.from_pretrained(places[name].base, dtype=torch.float16, quantization_config=config)
    ours = load_model(places[name], dtype=torch.float16)
    tokens = torch.randint(0, 300, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        a, b = theirs.eval()(tokens).logits.float(), ours(tokens).logits.float()
    assert sum("Linear" in type(m).__name__ and type(m) is not torch.nn.Linear for m in theirs.modules()) == 14
    torch.testing.assert_close(a, b, rtol=0.02, atol=0.02)


@pytest.mark.skipif(find_spec("compressed_tensors") is None, reason="needs compressed-tensors")
@pytest.mark.parametrize("options", [{}, {"symmetric": False}, {"bits": 8}, {"group_size": -1}], ids=str)
def test_compressed_tensors_itself_reads_the_same_weights(tmp_path, options) -> None:
    from compressed_tensors.compressors import PackedQuantizationCompressor
    from compressed_tensors.quantization import QuantizationScheme

    base = quantized.mistral(tmp_path / "base")
    folder, meant = quantized.folder(base, tmp_path / "packed", "compressed-tensors", **options)
    (group,) = json.loads((folder / "config.json").read_text())["quantization_config"]["config_groups"].values()
    tensors = load_file(folder / "model.safetensors")
    layers = dict(load_model(find_model(folder)).named_modules())
    for name in meant:
        stem = name.removesuffix("weight")
        own = {n.removeprefix(stem): t for n, t in tensors.items() if n.startswith(stem)}
        own["weight_scale"] = own["weight_scale"].float()
        theirs = PackedQuantizationCompressor.decompress(own, QuantizationScheme.model_validate(group))["weight"]
        torch.testing.assert_close(quantize.weight_of(layers[stem[:-1]]), theirs, rtol=0, atol=0)
