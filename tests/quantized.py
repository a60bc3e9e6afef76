"""Tiny quantized checkpoints in the layouts that people publish, written by hand: no quantization package is needed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

import runs

AWQ_WORD = [0, 2, 4, 6, 1, 3, 5, 7]  # an AWQ word holds its eight outputs in this order, lowest bits first


def _pack(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """int32 words along the last axis, lowest bits first."""
    per = 32 // bits
    codes = codes.reshape(*codes.shape[:-1], -1, per).to(torch.int64)
    words = sum(codes[..., i] << (bits * i) for i in range(per))
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)  # type: ignore[arg-type]


def _round(
    weight_OI: torch.Tensor, bits: int, g_idx: torch.Tensor, symmetric: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Round to nearest: codes [I, O], zeros [G, O], fp16 scales [G, O]."""
    weight, top = weight_OI.float().T, 2**bits - 1
    groups = int(g_idx.max()) + 1
    scales, zeros = [], []
    for g in range(groups):
        part = weight[g_idx == g]
        if symmetric:
            scale = 2 * part.abs().amax(0) / top
            zeros.append(torch.full_like(scale, 2 ** (bits - 1)))
        else:
            low, high = part.amin(0).clamp(max=0), part.amax(0).clamp(min=0)
            scale = (high - low) / top
            zeros.append((-low / scale).round().clamp(1, top))
        scales.append(scale)
    s, z = torch.stack(scales).half(), torch.stack(zeros)
    codes = (weight / s.float()[g_idx] + z[g_idx]).round().clamp(0, top)
    return codes.long(), z.long(), s


def folder(
    base: Path, out: Path, method: str = "gptq", *, bits: int = 4, group_size: int = 16, act_order: bool = False,
    symmetric: bool = True, v2: bool = False, **config: Any,
) -> tuple[Path, dict[str, torch.Tensor]]:  # fmt: skip
    """Write a quantized copy of a dense model folder; return it, and what its weights stand for [O, I], in fp32."""
    out.mkdir(parents=True)
    for path in base.iterdir():
        if path.suffix != ".safetensors" and path.name != "config.json":
            (out / path.name).write_bytes(path.read_bytes())
    tensors, meant = {}, {}
    g = torch.Generator().manual_seed(0)
    for name, w in load_file(base / "model.safetensors").items():
        if not (name.endswith("proj.weight") and w.ndim == 2):
            tensors[name] = w.half()
            continue
        stem = name.removesuffix("weight")
        size = w.shape[1] if group_size == -1 else group_size
        g_idx = torch.arange(w.shape[1]) // size
        if act_order:
            g_idx = g_idx[torch.randperm(w.shape[1], generator=g)]
        codes, zeros, scales = _round(w, bits, g_idx, symmetric)
        meant[name] = (scales.float()[g_idx] * (codes - zeros[g_idx])).T.contiguous()
        if method != "compressed-tensors":
            tensors[stem + "scales"] = scales
        if method == "compressed-tensors":
            tensors[stem + "weight_packed"] = _pack(codes.T.contiguous(), bits)
            tensors[stem + "weight_scale"] = scales.T.contiguous()
            tensors[stem + "weight_shape"] = torch.tensor(w.shape)
            if not symmetric:
                tensors[stem + "weight_zero_point"] = _pack(zeros.contiguous(), bits).T.contiguous()
        elif method == "gptq":
            tensors[stem + "qweight"] = _pack(codes.T.contiguous(), bits).T.contiguous()
            tensors[stem + "qzeros"] = _pack(zeros - (0 if v2 else 1), bits)
            tensors[stem + "g_idx"] = g_idx.int()
        else:
            order = [8 * i + j for i in range(w.shape[0] // 8) for j in AWQ_WORD]
            tensors[stem + "qweight"] = _pack(codes[:, order], bits)
            tensors[stem + "qzeros"] = _pack(zeros[:, order], bits)
    save_file(tensors, out / "model.safetensors", {"format": "pt"})
    said: dict[str, Any] = {"quant_method": method, "bits": bits, "group_size": group_size}
    if method == "compressed-tensors":
        by = {"strategy": "channel"} if group_size == -1 else {"strategy": "group", "group_size": group_size}
        weights = {"num_bits": bits, "type": "int", "symmetric": symmetric, **by}
        group = {"targets": ["Linear"], "weights": weights, "input_activations": None, "output_activations": None}
        said = {"quant_method": method, "format": "pack-quantized", "quantization_status": "compressed",
                "ignore": ["lm_head"], "config_groups": {"group_0": group}}  # fmt: skip
    elif method == "gptq":
        said |= {"desc_act": act_order, "sym": symmetric, "checkpoint_format": "gptq_v2" if v2 else "gptq"}
    else:
        said |= {"zero_point": not symmetric, "version": "gemm"}
    whole = json.loads((base / "config.json").read_text()) | {"quantization_config": said | config}
    (out / "config.json").write_text(json.dumps(whole))
    return out, meant


def dense(base: Path, out: Path, meant: dict[str, torch.Tensor]) -> Path:
    """A dense fp32 model folder with these weights in place of the base's own, its other weights rounded to fp16."""
    out.mkdir(parents=True)
    for path in base.iterdir():
        if path.suffix != ".safetensors":
            (out / path.name).write_bytes(path.read_bytes())
    tensors = {n: w.half().float() for n, w in load_file(base / "model.safetensors").items()} | meant
    save_file(tensors, out / "model.safetensors", {"format": "pt"})
    return out


def mistral(out: Path, **options: Any) -> Path:
    """A tiny dense Mistral; its rows are as long as a block of NF4."""
    return runs.model_folder(out, family="mistral", **{"hidden": 64, **options})
