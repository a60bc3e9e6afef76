"""Tiny random models of the architectures that transformers has a causal language model for.

zoo.build("mamba")           a model whose logits are far from uniform; the caller's random state is left alone
zoo.folder(path, "mamba")    the same as a folder with a tokenizer
zoo.CASES                    every name: a model type, and after a colon a setting that has gone wrong before
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel

import tiny

SMALL: dict[str, Any] = {
    "vocab_size": 400, "hidden_size": 32, "d_model": 32, "n_embd": 32, "dim": 32, "word_embed_proj_dim": 32,
    "embedding_size": 32, "intermediate_size": 48, "ffn_dim": 48, "ffn_hidden_size": 48, "n_inner": 48,
    "moe_intermediate_size": 24, "shared_expert_intermediate_size": 24, "shared_intermediate_size": 24,
    "mlp_hidden_size": 48, "decoder_ffn_dim": 48, "d_inner": 48, "num_hidden_layers": 2, "n_layer": 2, "n_layers": 2,
    "num_layers": 2, "decoder_layers": 2, "num_attention_heads": 4, "n_head": 4, "n_heads": 4,
    "decoder_attention_heads": 4, "attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "rotary_dim": 4,
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1,
    "topk_group": 1, "n_shared_experts": 1, "first_k_dense_replace": 1, "max_position_embeddings": 512,
    "n_positions": 512, "n_ctx": 512, "max_seq_len": 512, "context_length": 512, "q_lora_rank": 16,
    "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8, "initializer_range": 0.2,
    "init_std": 0.2, "d_kv": 8, "state_size": 8, "time_step_rank": 4, "mamba_d_state": 8, "mamba_dt_rank": 4,
    "ssm_state_size": 8, "attention_hidden_size": 32, "linear_num_key_heads": 2, "linear_num_value_heads": 2,
    "linear_key_head_dim": 8, "linear_value_head_dim": 8, "lru_width": 32, "query_pre_attn_scalar": 8,
    "attention_window_size": 16, "num_attention_groups": 1,
}  # fmt: skip
"""Fields that make a configuration small, wherever it has them."""
ENDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
NAMES = """
afmoe apertus arcee aria_text bart bert-generation biogpt bitnet blenderbot blenderbot-small bloom codegen cohere
cohere2 cohere2_moe cpmant ctrl cwm diffllama doge ernie4_5 ernie4_5_moe exaone4 exaone_moe falcon_mamba flex_olmo
gemma gemma2 gemma3_text glm glm4 glm4_moe gpt-sw3 gpt2 gpt_bigcode gpt_neox gpt_neox_japanese gpt_oss gptj granite
granitemoe granitemoeshared helium hy_v3 hyperclovax internlm3 jais2 jetmoe llama llama4_text mamba marian mbart
minimax minimax_m2 ministral3 mistral mixtral modernbert-decoder moshi mpt mvp nanochat olmo olmo2 olmo3 olmo_hybrid
olmoe openai-gpt opt pegasus persimmon phi phi3 phimoe plbart qwen2 qwen2_moe qwen3 qwen3_moe rwkv seed_oss smollm3
solar_open stablelm starcoder2 trocr vaultgemma whisper xglm bert roberta
"""
PLAIN = NAMES.split()
"""Those that the fields above suffice for."""
ALTERNATING = {"num_hidden_layers": 4, "layer_types": ["linear_attention", "full_attention"] * 2}
MLA = {"num_attention_heads": 4, "num_key_value_heads": 4}
MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_expand": 2, "mamba_chunk_size": 8}
SPECIAL: dict[str, dict[str, Any]] = {
    "qwen3_5_text": ALTERNATING,
    "qwen3_5_moe_text": ALTERNATING,
    "qwen3_next": ALTERNATING,
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "granitemoehybrid": MAMBA | {"layer_types": ["mamba", "attention"]},
    "bamba": MAMBA | {"attn_layer_indices": [1]},
    "jamba": {"num_hidden_layers": 4, "attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False},
    "zamba2": {
        "num_hidden_layers": 3, "layers_block_type": ["mamba", "hybrid", "mamba"], "n_mamba_heads": 4,
        "mamba_headdim": 16, "mamba_ngroups": 1, "num_mem_blocks": 1, "use_shared_attention_adapter": False,
        "attention_hidden_size": 64, "chunk_size": 8,
    },
    "nemotron_h": {"mamba_num_heads": 4, "mamba_head_dim": 16, "n_groups": 1, "chunk_size": 8},
    "falcon_h1": MAMBA | {"mamba_d_ssm": 64},
    "recurrent_gemma": {"num_hidden_layers": 3, "block_types": ["recurrent", "recurrent", "attention"]},
    "mamba2": {"num_heads": 4, "head_dim": 16, "expand": 2, "n_groups": 1, "chunk_size": 8},
    "deepseek_v2": MLA | {"num_experts_per_tok": 2},
    "deepseek_v3": MLA,
    "minicpm3": MLA,
    "glm4_moe_lite": MLA,
    "youtu": MLA,
    "falcon": {"head_dim": None},
    "gpt_neo": {"num_layers": 2, "attention_types": [[["global", "local"], 1]]},
    "nemotron": {"head_dim": 8, "num_key_value_heads": 2},
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8},
    "ministral": {"head_dim": 8},
    "gemma3n_text": {
        "num_hidden_layers": 4, "layer_types": ["sliding_attention", "full_attention"] * 2, "num_kv_shared_layers": 2,
        "vocab_size_per_layer_input": 400, "hidden_size_per_layer_input": 8, "laurel_rank": 4,
        "activation_sparsity_pattern": [0.0] * 4, "intermediate_size": [48] * 4, "altup_num_inputs": 2,
    },
    "olmo:clip_qkv": {"clip_qkv": 0.5},
    "mixtral:auxiliary": {"output_router_logits": True, "router_jitter_noise": 0.1},
    "phimoe:jitter": {"router_jitter_noise": 0.1, "input_jitter_noise": 0.1},
    "opt:dropout": {"dropout": 0.2},
    "gpt2:dropout": {"resid_pdrop": 0.1, "attn_pdrop": 0.1},
    "seed_oss:dropout": {"attention_dropout": 0.2, "residual_dropout": 0.2},
    "mistral:window": {"sliding_window": 8},
    "llama:tied": {"tie_word_embeddings": True},
    "bloom:dropout": {"hidden_dropout": 0.2, "attention_dropout": 0.2},
}  # fmt: skip
CASES = [*PLAIN, *SPECIAL]
TARGETS = {
    "mamba": ["in_proj", "x_proj"], "falcon_mamba": ["in_proj", "x_proj"], "mamba2": ["in_proj"],
}  # fmt: skip
"""Layers that take an adapter where not all linear ones do."""


def build(name: str, seed: int = 0, **options: Any) -> PreTrainedModel:
    """A random model in eval mode; norm weights and biases are random too, so that forgetting one shows."""
    kind = name.partition(":")[0]
    usual = AutoConfig.for_model(kind)
    fields = {k: v for k, v in SMALL.items() if _is_a_number(usual, k)}
    asked = {**fields, **SPECIAL.get(name, {}), **ENDS, **options}
    config = AutoConfig.for_model(kind, **{k: v for k, v in asked.items() if v is not None})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for p in model.parameters():
                if p.dim() == 1:
                    p.add_(0.05 * torch.randn_like(p))
    return model.float().eval()


def _is_a_number(config: Any, name: str) -> bool:
    value = getattr(config, name, None)
    return value is not None and not isinstance(value, list | dict)


def folder(path: Path, name: str, *, chat: bool = False, **options: Any) -> Path:
    """Such a model with its tokenizer, as a transformers folder; every fifth token ends an answer."""
    tokenizer = tiny.tokenizer("bpe", chat)
    build(name, **options).save_pretrained(path)
    tokenizer.save_pretrained(path)
    ends = [tokenizer.eos_token_id, *range(10, len(tokenizer), 5)]
    GenerationConfig(eos_token_id=ends, pad_token_id=tokenizer.pad_token_id).save_pretrained(path)
    return path
