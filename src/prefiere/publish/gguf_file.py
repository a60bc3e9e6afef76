"""A model folder as one GGUF file, for llama.cpp, Ollama and LM Studio.

What is written is what those programs compute: names and layout of weights by architecture, the tokenizer with the name
of its way to split text, the chat template. What they would compute otherwise is refused, not approximated. The file is
read back by transformers and held against its folder (`verify`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from prefiere.files import atomic
from prefiere.models.load import without_bars
from prefiere.models.source import ModelError, Source, config_of

Bits = Literal["f32", "f16", "bf16", "q8_0"]
"""How weights are held: 32 or 16 bits each, or blocks of 32 with 8 bits each and a common scale."""
EXPLAINED: dict[Bits, float] = {"f32": 1e-3, "f16": 0.02, "bf16": 0.1, "q8_0": 0.2}
"""Nats by which a token's log-prob may differ on average, by how weights are held."""
ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
"""transformers' model types, and what GGUF calls them."""
_QWEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SPLITS = {
    ("ByteLevel",): "gpt-2",
    ("Digits", "ByteLevel"): "smollm",
    (_QWEN, "ByteLevel"): "qwen2",
    (_QWEN.replace(r"|\p{N}|", r"|\p{N}{1,3}|"), "ByteLevel"): "llama-bpe",
}
"""What a tokenizer does with a text before its merges, and the name that llama.cpp has for it."""


@dataclass(frozen=True, slots=True)
class Verified:
    """How far a file that was read back is from the folder that it was made of.

    mean, most: the absolute difference of a token's log-prob in nats, over ``tokens`` tokens. same_ids: whether
    transformers' reader splits text as the folder's tokenizer does (it knows fewer ways than llama.cpp).
    """

    tokens: int
    mean: float
    most: float
    same_ids: bool

    def holds(self, bits: Bits) -> None:
        """Raise ModelError where the difference is more than weights held so explain."""
        if self.mean > EXPLAINED[bits]:
            raise ModelError(
                f"read back, the GGUF file computes something else: log-probs differ by {self.mean:.2g} nats on "
                f"average, and {bits} explains {EXPLAINED[bits]:g}. It is not kept."
            )


def possible(source: Source) -> None:
    """Raise ModelError, before anything is written, for what `write_gguf` would refuse as far as the base tells."""
    library()
    config = config_of(source)
    _architecture(source.base, config)
    if (Path(source.tokenizer) / "tokenizer.json").is_file():
        _Tokenizer.read(Path(source.tokenizer), config.vocab_size)


def write_gguf(folder: Path, out: Path, bits: Bits = "f16") -> None:
    """Write the model of a transformers folder as ``out``, whole or not at all.

    Raises ModelError for an architecture, a tokenizer or positions that GGUF's readers would compute otherwise, and
    where the extra ``gguf`` is not installed.
    """
    gguf = library()
    config = AutoConfig.from_pretrained(folder)
    if (folder / "adapter_config.json").is_file():
        raise ModelError(f"{folder} is an adapter: GGUF takes a whole model. Merge it first (--merge).")
    arch = _architecture(str(folder), config)
    tokenizer = _Tokenizer.read(folder, config.vocab_size)
    with atomic(out) as temporary:
        writer = gguf.GGUFWriter(temporary, arch)
        _describe(writer, gguf, config, folder.name, bits)
        tokenizer.write(writer, gguf)
        names = gguf.get_tensor_name_map(_enum(gguf, arch), config.num_hidden_layers)
        for name, weight in _weights(folder, config):
            told = names.get_name(name, try_suffixes=(".weight", ".bias"))
            if told is None:
                raise ModelError(f"{folder}: GGUF has no name for {name}: this is no plain {arch} model.")
            data, kind = _held(gguf, _as_laid_out(name, weight, config, arch), bits)
            writer.add_tensor(told, data, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


@torch.no_grad()
def verify(folder: Path, file: Path, prompts: Sequence[np.ndarray], texts: Sequence[str]) -> Verified:
    """Read a file back with transformers and hold it against the folder that it was made of.

    prompts: int32 ids, each of two tokens at least, to compare log-probs on. texts: to compare token ids on.
    """
    with without_bars():
        own, read = (
            AutoTokenizer.from_pretrained(folder),
            AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name),
        )
        one = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        two = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32).eval()
    split = [t(list(texts), add_special_tokens=False).input_ids if texts else [] for t in (own, read)]
    same_ids = split[0] == split[1]
    if not prompts:
        return Verified(0, 0.0, 0.0, same_ids)
    apart = torch.cat([(_logps(one, p) - _logps(two, p)).abs() for p in prompts])
    return Verified(len(apart), float(apart.mean()), float(apart.max()), same_ids)


def _logps(model: Any, prompt: np.ndarray) -> torch.Tensor:
    """[T - 1]: the log-prob of each token after the first."""
    ids = torch.from_numpy(prompt.astype(np.int64))[None]
    logp: torch.Tensor = model(ids).logits.float().log_softmax(-1)
    return logp[0, :-1].gather(-1, ids[0, 1:, None])[:, 0]


def library() -> Any:
    """The ``gguf`` package. Raises ModelError where it is not installed."""
    try:
        import gguf
    except ImportError as e:
        raise ModelError("writing GGUF needs the extra gguf: pip install '.[gguf]' from prefiere's folder.") from e
    return gguf


def _enum(gguf: Any, arch: str) -> Any:
    return next(a for a, name in gguf.MODEL_ARCH_NAMES.items() if name == arch)


def _architecture(folder: str, config: Any) -> str:
    """GGUF's name of an architecture. Raises ModelError where a reader would compute something else."""
    arch = ARCHITECTURES.get(config.model_type)
    if arch is None:
        raise ModelError(f"{config.model_type} models are not written as GGUF here: {', '.join(ARCHITECTURES)} are.")
    rope = getattr(config, "rope_parameters", None) or {}
    kind = rope.get("rope_type", "default")
    if kind not in ("default", "linear"):
        raise ModelError(f"positions of the kind {kind} are not written as GGUF: llama.cpp's own converter knows them.")
    if getattr(config, "mlp_bias", False) or config.hidden_act not in ("silu", "swish"):
        raise ModelError(f"{folder}: GGUF's {arch} has no such feed-forward layers (mlp_bias, {config.hidden_act}).")
    if arch == "qwen3" and _head(config) != 128:  # transformers' reader takes this for granted
        raise ModelError(f"{folder}: a qwen3 with heads of {_head(config)} could not be verified: 128 can be.")
    return arch


def _head(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _describe(writer: Any, gguf: Any, config: Any, name: str, bits: Bits) -> None:
    rope = getattr(config, "rope_parameters", None) or {}
    writer.add_name(name)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(_head(config))
    writer.add_key_length(_head(config))
    writer.add_value_length(_head(config))
    writer.add_rope_freq_base(float(rope.get("rope_theta", 1e4)))
    if rope.get("rope_type") == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(rope["factor"]))
    if (window := getattr(config, "sliding_window", None)) and getattr(config, "use_sliding_window", True):
        writer.add_sliding_window(window)
    writer.add_vocab_size(config.vocab_size)
    types = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "bf16": "MOSTLY_BF16", "q8_0": "MOSTLY_Q8_0"}
    writer.add_file_type(gguf.LlamaFileType[types[bits]])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


# -- weights ----------------------------------------------------------------------------------------------------------


def _weights(folder: Path, config: Any) -> Iterator[tuple[str, np.ndarray]]:
    """Each weight in fp32, one at a time; a tied head once."""
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as f:
            for name in f.keys():  # noqa: SIM118 (no dictionary)
                if name.endswith("rotary_emb.inv_freq") or (name == "lm_head.weight" and config.tie_word_embeddings):
                    continue
                yield name, f.get_tensor(name).float().numpy()


def _as_laid_out(name: str, weight: np.ndarray, config: Any, arch: str) -> np.ndarray:
    """Rows of query and key in GGUF's order: its llama rotates neighbours, transformers the two halves of a head."""
    if arch != "llama" or not any(f".{part}_proj." in name for part in "qk"):
        return weight
    heads = config.num_attention_heads if ".q_proj." in name else config.num_key_value_heads
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(weight.shape))


def _held(gguf: Any, weight: np.ndarray, bits: Bits) -> tuple[np.ndarray, Any]:
    """A weight as it lies in the file, and GGUF's name for that. Vectors stay fp32; rows that are no multiple of 32
    cannot be cut into blocks and stay fp16."""
    kinds = gguf.GGMLQuantizationType
    kind = {"f32": kinds.F32, "f16": kinds.F16, "bf16": kinds.BF16, "q8_0": kinds.Q8_0}[bits]
    if weight.ndim == 1:
        kind = kinds.F32
    elif kind == kinds.Q8_0 and weight.shape[-1] % 32:
        kind = kinds.F16
    return gguf.quants.quantize(weight.astype(np.float32), kind), kind


# -- the tokenizer ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Tokenizer:
    """A tokenizer as GGUF holds it. pre: llama.cpp's name for how text is split; none for SentencePiece."""

    model: Literal["gpt2", "llama"]
    pre: str | None
    tokens: list[str]
    kinds: list[int]
    merges: list[str]
    special: Mapping[str, int]
    adds_bos: bool
    template: str | None

    @classmethod
    def read(cls, folder: Path, size: int) -> _Tokenizer:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        if not (folder / "tokenizer.json").is_file():
            raise ModelError(f"{folder} has no tokenizer.json, which GGUF's tokenizer is written from.")
        told = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        model = told["model"]
        if model["type"] != "BPE":
            raise ModelError(f"{folder}: a tokenizer of the kind {model['type']} is not written as GGUF: BPE is.")
        pieces = bool(model.get("byte_fallback"))
        added = {t["id"]: t for t in told["added_tokens"]}
        tokens, kinds = [], []
        by_id = {i: t for t, i in model["vocab"].items()}
        for i in range(max(size, len(by_id), *added, 0)):
            tokens.append(added[i]["content"] if i in added else by_id.get(i, f"[PAD{i}]"))
            kinds.append(_kind(i, added, by_id, tokens[-1], pieces))
        merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
        ends = {name: getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad", "unk")}
        first = tokenizer("a").input_ids[:1] == [tokenizer.bos_token_id]
        special = {name: int(i) for name, i in ends.items() if i is not None and i < len(tokens)}
        template = tokenizer.chat_template if isinstance(tokenizer.chat_template, str) else None
        pre = None if pieces else _split(folder, told["pre_tokenizer"])
        return cls("llama" if pieces else "gpt2", pre, tokens, kinds, merges, special, first, template)

    def write(self, writer: Any, gguf: Any) -> None:
        writer.add_tokenizer_model(self.model)
        if self.pre is not None:
            writer.add_tokenizer_pre(self.pre)
            writer.add_token_merges(self.merges)
        else:  # pieces are learnt in the order of their ids, which is that of their scores
            writer.add_token_scores([float(-i) for i in range(len(self.tokens))])
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.kinds)
        for name, i in self.special.items():
            getattr(writer, f"add_{name}_token_id")(i)
        writer.add_add_bos_token(self.adds_bos)
        if self.template is not None:
            writer.add_chat_template(self.template)


def _kind(i: int, added: Mapping[int, Any], by_id: Mapping[int, str], token: str, pieces: bool) -> int:
    """GGUF's type of a token: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte."""
    if pieces and token == "<unk>":
        return 2
    if i in added:
        return 3 if added[i]["special"] else 4
    if i not in by_id:
        return 5
    return 6 if pieces and len(token) == 6 and token.startswith("<0x") else 1


def _split(folder: Path, pre: Any) -> str:
    """llama.cpp's name for how a tokenizer splits text. Raises ModelError where it has none."""
    parts = pre.get("pretokenizers", [pre]) if pre else []
    steps = tuple(_step(p) for p in parts)
    if steps not in _SPLITS:
        raise ModelError(f"{folder}: its tokenizer splits text in a way that has no name in GGUF ({steps}).")
    return _SPLITS[steps]


def _step(part: Mapping[str, Any]) -> str:
    if part["type"] == "Split" and "Regex" in part["pattern"]:
        return str(part["pattern"]["Regex"])
    return str(part["type"])
