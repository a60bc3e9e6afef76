"""Seeded runs and everything that they log, to be compared to the last bit with what the files beside this one hold.

    python tests/golden/record.py            compares; prints what moved and by how much
    python tests/golden/record.py --write    records anew, after a change that is meant to move a figure
    python tests/golden/record.py ppo grpo   these cases only

All in fp32, on one thread, through one library and its plainest instructions, so that most processors round alike. A
canary (products, exponentials, sums, draws) says whether this one does; where it does not, figures are compared
within 1e-3 instead.
"""

# ruff: noqa: E402 (the processor is pinned before torch is imported)
from __future__ import annotations

import os
import sys
from pathlib import Path

HERE = Path(__file__).parent
PINNED = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "MKL_CBWR": "COMPATIBLE",
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "DNNL_MAX_CPU_ISA": "AVX2",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "MPLBACKEND": "Agg",
}
if __name__ == "__main__":
    os.environ |= PINNED
    sys.path[:0] = [str(HERE.parent), str(HERE.parents[1] / "src")]

import contextlib
import hashlib
import io
import json
import logging
import math
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import torch
import transformers
from rich.console import Console
from safetensors.torch import load_file

import runs
from prefiere import recipe
from prefiere.api import training
from prefiere.api.run import Run

CANARY = "canary.json"
MEASURED = ("seconds", "tokens_per_second", "peak_memory_mb")
"""Columns that no two runs share."""


@contextlib.contextmanager
def one_library() -> Iterator[None]:
    """fp32 products go through PyTorch's default library, whichever is faster here."""
    from prefiere.train import host

    before = host.onednn_gain
    host.onednn_gain = lambda *_: 0.0  # type: ignore[assignment]
    try:
        yield
    finally:
        host.onednn_gain = before


def canary() -> str:
    """A hash of what this processor makes of the operations that the runs are made of."""
    draw = torch.Generator().manual_seed(0)
    x, w = torch.randn(96, 64, generator=draw), torch.randn(64, 64, generator=draw)
    y = (x @ w).view(2, 48, 4, 16).transpose(1, 2)
    attended = torch.nn.functional.scaled_dot_product_attention(y, y, y, is_causal=True)
    parts = [
        x,
        y,
        attended,
        torch.bmm(y.flatten(0, 1), y.flatten(0, 1).mT),
        torch.log_softmax(x, -1),
        x.double().sum(0),
    ]
    parts += [torch.nn.functional.silu(x), torch.rsqrt(x.square().mean(-1)), x.exp().log1p(), x.sin()]
    h = hashlib.blake2b(digest_size=16)
    for part in parts:
        h.update(part.contiguous().numpy().tobytes())
    return h.hexdigest()


# -- the cases --------------------------------------------------------------------------------------------------------


def base(tmp: Path) -> dict[str, Any]:
    """Tiny models, 24 pairs and 16 prompts; settings that every case shares."""
    model, pairs, prompts = tmp / "model", tmp / "pairs.jsonl", tmp / "prompts.txt"
    if not model.exists():
        runs.model_folder(model)
        runs.ragged_folder(tmp / "ragged", chat=False)
        runs.pairs_file(pairs)
        runs.prompts_file(prompts)
    return {
        "model": str(model), "data": str(pairs), "dtype": "float32", "learning_rate": 1e-3, "max_steps": 4,
        "eval_size": 6, "eval_steps": 2, "sample_steps": 2, "logging_steps": 1,
    }  # fmt: skip


def offline(tmp: Path, **options: Any) -> dict[str, Any]:
    return base(tmp) | {"batch_size": 8, "max_new_tokens": 6, "sample_prompts": 4} | options


def judged(tmp: Path, **options: Any) -> dict[str, Any]:
    """A reward model's settings: it answers nothing."""
    shared = {k: v for k, v in base(tmp).items() if k != "sample_steps"}
    return shared | {"batch_size": 8} | options


def rolled(tmp: Path, **options: Any) -> dict[str, Any]:
    """Rollouts of a model whose answers end early, at different lengths."""
    own = {"model": str(tmp / "ragged"), "data": str(tmp / "prompts.txt"), "reward": "rewarding:letters"}
    size = {"max_steps": 3, "eval_size": 4, "max_new_tokens": 8, "sample_prompts": 4}
    return base(tmp) | own | size | {"batch_size": 4, "num_generations": 4} | options


def encoder(tmp: Path) -> str:
    if not (tmp / "encoder").exists():
        runs.encoder_folder(tmp / "encoder")
    return str(tmp / "encoder")


def rewarded(tmp: Path) -> dict[str, Any]:
    """Four roles on one base: the policy starts from a trained adapter, its reward model is another."""
    own = {"model": str(tmp / "ragged"), "lora": True, "learning_rate": 1e-2}
    train("reward", judged(tmp, **own, max_length=64), tmp / "judge")
    train("dpo", offline(tmp, **own, sample_steps=0), tmp / "start")
    return {"model": str(tmp / "start" / "model"), "reward": str(tmp / "judge")}


ONE = {"batch_size": 16, "num_generations": 1}
CASES: dict[str, tuple[str, Callable[[Path], dict[str, Any]]]] = {
    "sft": ("sft", lambda t: offline(t)),
    "dpo": ("dpo", lambda t: offline(t, judge="rewarding:letters", rpo_alpha=0.5)),
    "dpo-lora": ("dpo", lambda t: offline(t, lora=True, lora_dropout=0.2, tokens_per_microbatch=96)),
    "dpo-nf4": ("dpo", lambda t: offline(t, lora=True, quantize="nf4")),
    "ipo-dora": ("dpo", lambda t: offline(t, lora=True, use_dora=True, loss_type="ipo", gradient_checkpointing=True)),
    "simpo-padded": ("dpo", lambda t: offline(t, loss_type="simpo", attn="padded", learning_rate=1e-4)),
    "kto": ("dpo", lambda t: offline(t, loss_type="kto", desirable_weight=1.2, tokens_per_microbatch=128)),
    "reward": ("reward", lambda t: judged(t, center_rewards_coefficient=0.01)),
    "reward-lora": ("reward", lambda t: judged(t, lora=True)),
    "reward-encoder": ("reward", lambda t: judged(t, model=encoder(t), label_smoothing=0.1)),
    "ppo": ("ppo", lambda t: rolled(t, **ONE, num_ppo_epochs=2, num_mini_batches=2, target_kl=2.0)),
    "ppo-shared": ("ppo", lambda t: rolled(t, **ONE, num_ppo_epochs=2, share_critic=True, critic_warmup_steps=1)),
    "ppo-roles": ("ppo", lambda t: rolled(t, **ONE, num_ppo_epochs=2, max_length=64, **rewarded(t))),
    "grpo": ("grpo", lambda t: rolled(t, kl_rollout_coef=0.01)),
    "rloo-lora": ("rloo", lambda t: rolled(t, lora=True, temperature=0.9)),
    "reinforce": ("reinforce", lambda t: rolled(t, reward=["rewarding:letters", "rewarding:graded"])),
}  # fmt: skip


def train(method: str, options: dict[str, Any], out: Path) -> Run:
    """A run, without a word."""
    settings = recipe.load(method, None, {**options, "out": str(out)})
    with contextlib.redirect_stderr(io.StringIO()):
        return training.train(settings, console=Console(quiet=True))


def recorded(name: str, tmp: Path) -> dict[str, Any]:
    """Everything that a case logs, and a hash of the weights that it ends with."""
    method, make = CASES[name]
    run = train(method, make(tmp), tmp / name)
    assert run.status["state"] == "finished", run.status
    weights = next(run.model.glob("*.safetensors"))
    h = hashlib.blake2b(digest_size=16)
    for key, tensor in sorted(load_file(weights).items()):
        h.update(key.encode())
        h.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    rows = [{k: v for k, v in r.items() if k not in MEASURED and not k.startswith("time/")} for r in run.metrics]
    samples = [[r["step"], r["completion"], r["tokens"], r["logp"]] for r in run.samples]
    return {"weights": h.hexdigest(), "rows": rows, "samples": samples, "calibration": run.calibration}


# -- comparing --------------------------------------------------------------------------------------------------------


def moved(old: Any, new: Any, where: str = "", tolerance: float = 0.0) -> Iterator[str]:
    """Each figure that differs: where it is, what it was and is."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old):  # columns that came later are not looked at
            if key not in new:
                yield f"{where}/{key}: gone"
            else:
                yield from moved(old[key], new[key], f"{where}/{key}", tolerance)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for i, (a, b) in enumerate(zip(old, new, strict=True)):
            yield from moved(a, b, f"{where}/{i}", tolerance)
    elif isinstance(old, float) and isinstance(new, float) and tolerance:
        if not math.isclose(old, new, rel_tol=tolerance, abs_tol=tolerance):
            yield f"{where}: {old!r} -> {new!r}"
    elif old != new:
        yield f"{where}: {str(old)[:80]} -> {str(new)[:80]}"


def main(arguments: list[str]) -> int:
    """Record or compare; returns how many cases moved."""
    logging.disable(logging.WARNING)
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    write, names = "--write" in arguments, [a for a in arguments if a != "--write"] or list(CASES)
    here, known = canary(), HERE / CANARY
    alike = known.is_file() and json.loads(known.read_text()) == here
    if write:
        known.write_text(json.dumps(here) + "\n")
    elif not alike:
        print("this processor rounds otherwise than the one that recorded: compared within 1e-3")
    failed = 0
    with tempfile.TemporaryDirectory() as tmp, one_library():
        for name in names:
            os.environ["PREFIERE_CACHE"] = f"{tmp}/cache-{name}"  # no case reads what another has computed
            # As read from the run folder: paths of this machine are in none of it.
            found = json.loads(json.dumps(recorded(name, Path(tmp))))
            path = HERE / f"{name}.json"
            if write:
                path.write_text(json.dumps(found, indent=1) + "\n")
                continue
            old = json.loads(path.read_text())
            if not alike:
                found["weights"] = old["weights"]
            said = list(moved(old, found, name, 0.0 if alike else 1e-3))
            failed += bool(said)
            for line in said[:12]:
                print(line)
            if len(said) > 12:
                print(f"{name}: and {len(said) - 12} more")
    print(f"{len(names) - failed} of {len(names)} cases as recorded")
    return failed


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
