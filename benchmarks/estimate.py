"""How far `prefiere estimate` is from what runs really take: each case in a fresh process, resident set on a CPU.

    python benchmarks/estimate.py [--calibrate] [NAME...]

Prints a table: predicted and measured peak above the process's size after its imports, once with malloc told to give
back what is freed and once as a run on a CPU is (it keeps it); and predicted and measured seconds of the latter. The
cases of ``CALIBRATION`` set the two constants of `train/estimate.py` that are no shapes (CPU_FIXED and CPU_SLACK);
those of ``CASES`` did not.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

MODELS: dict[str, dict[str, Any]] = {
    "8M": {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 6, "heads": 8, "kv": 4, "vocab": 4000},
    "35M": {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 8, "heads": 8, "kv": 4, "vocab": 16000},
    "110M": {"hidden_size": 768, "intermediate_size": 2304, "num_hidden_layers": 10, "heads": 12, "kv": 4,
             "vocab": 32000},
    "250M": {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 14, "heads": 16, "kv": 4,
             "vocab": 32000},
}  # fmt: skip
# name -> model, mean words of prompt and answers, method, settings
CALIBRATION: dict[str, tuple[str, tuple[int, int], str, dict[str, Any]]] = {
    "full fp32 8M": ("8M", (40, 40), "dpo", {"lora": False, "dtype": "float32", "sample_steps": 0}),
    "LoRA bf16 35M": ("35M", (60, 80), "dpo", {"lora": True, "dtype": "bfloat16", "sample_steps": 0}),
}
CASES: dict[str, tuple[str, tuple[int, int], str, dict[str, Any]]] = {
    "DPO, full, fp32": ("35M", (30, 60), "dpo", {"lora": False, "dtype": "float32"}),
    "DPO, full, bf16": ("110M", (30, 60), "dpo", {"lora": False, "dtype": "bfloat16", "sample_steps": 0}),
    "DPO, LoRA, fp32": ("35M", (100, 150), "dpo", {"lora": True, "dtype": "float32"}),
    "DPO, LoRA, bf16, checkpointing": (
        "110M", (100, 150), "dpo", {"lora": True, "dtype": "bfloat16", "gradient_checkpointing": True},
    ),
    "DPO, NF4, bf16": ("110M", (60, 100), "dpo", {"quantize": "nf4", "dtype": "bfloat16", "lora_r": 8}),
    "SFT, full, fp32, small batch": (
        "8M", (20, 30), "sft", {"lora": False, "dtype": "float32", "tokens_per_microbatch": 512},
    ),
    "reward model, LoRA, bf16": ("35M", (60, 100), "reward", {"lora": True, "dtype": "bfloat16"}),
    "DPO, full, fp32, 1,024 tokens": (
        "110M", (60, 100), "dpo", {"lora": False, "dtype": "float32", "tokens_per_microbatch": 1024},
    ),
    "PPO, LoRA, bf16, reward model on the same base": (
        "35M", (40, 80), "ppo", {"lora": True, "dtype": "bfloat16", "max_new_tokens": 128, "reward": "lora"},
    ),
    "PPO, full, fp32, reward model beside": (
        "35M", (40, 80), "ppo", {"lora": False, "dtype": "float32", "max_new_tokens": 64, "reward": "full"},
    ),
    "DPO, NF4, bf16, checkpointing, sampling": (
        "250M", (60, 100), "dpo",
        {"quantize": "nf4", "dtype": "bfloat16", "gradient_checkpointing": True, "sample_prompts": 8},
    ),
}  # fmt: skip


def build(folder: Path, model: str, words: tuple[int, int]) -> None:
    """A random model of a Llama's shape, a word-level tokenizer, and pairs of random words."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    shape = dict(MODELS[model])
    vocab, heads, kv = (shape.pop(k) for k in ("vocab", "heads", "kv"))
    ids = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3} | {f"w{i}": i + 4 for i in range(vocab - 4)}
    inner = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=inner, **names).save_pretrained(folder / "model")
    config = AutoConfig.for_model(
        "llama", vocab_size=vocab, num_attention_heads=heads, num_key_value_heads=kv, max_position_embeddings=2048,
        eos_token_id=2, bos_token_id=1, pad_token_id=0, **shape,
    )  # fmt: skip
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder / "model")
    rng = np.random.default_rng(0)

    def text(mean: int) -> str:
        n = max(4, int(rng.gamma(4, mean / 4)))
        return " ".join(f"w{i}" for i in rng.integers(0, vocab - 4, n))

    rows = [{"prompt": text(words[0]), "chosen": text(words[1]), "rejected": text(words[1])} for _ in range(96)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))


def settings_of(folder: Path, method: str, options: dict[str, Any]) -> Any:
    """The settings of a case: two updates of 32 pairs."""
    from prefiere import recipe

    given = {"model": str(folder / "model"), "data": str(folder / "pairs.jsonl"), "out": str(folder / "run"),
             "max_steps": 2, "batch_size": 32, "eval_size": 8, "max_new_tokens": 32, "guard": False}  # fmt: skip
    if method == "reward":
        del given["max_new_tokens"], given["guard"]
    if "reward" in options:
        options = {**options, "reward": str(folder / "reward"), "num_ppo_epochs": 2, "eval_size": 4}
    return recipe.load(method, None, {**given, **options}, [])


def reward_model(folder: Path, kind: str) -> None:
    """A reward model of random weights on the case's base: an adapter ("lora"), or a model of its own."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.manual_seed(0)
    base = folder / "model"
    model: Any = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    if kind == "lora":
        config = LoraConfig(r=16, target_modules="all-linear", task_type="SEQ_CLS", init_lora_weights=False)
        model = get_peft_model(model, config)
    model.save_pretrained(folder / "reward")
    AutoTokenizer.from_pretrained(base).save_pretrained(folder / "reward")
    if kind == "lora":
        (folder / "reward" / "reward.json").write_text(json.dumps({"mean": 0.0, "std": 1.0, "template": "auto"}))


def _measure(folder: str, method: str, options: str, keep: str) -> None:
    """In a fresh process: train, and print the peak above the size after the imports, in bytes, and the seconds."""
    import psutil

    import prefiere.launch as start
    import prefiere.train.setup as session
    from prefiere.console import Display

    before = psutil.Process().memory_info().rss
    settings = settings_of(Path(folder), method, json.loads(options))
    if keep == "no":
        session.keep_freed_memory = lambda device: False  # type: ignore[assignment]
    seconds: list[float] = []
    real = start.Loop.run

    def run(loop: Any) -> Any:
        began = time.perf_counter()
        found = real(loop)
        seconds.append(time.perf_counter() - began)
        return found

    start.Loop.run = run  # type: ignore[method-assign]
    start.launch(settings, display=Display(quiet=True))
    # Not ru_maxrss, which begins with the size of the process that started this one.
    peak = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024
    print(json.dumps({"peak": peak - before, "seconds": seconds[0]}))


def case(name: str, given: tuple[str, tuple[int, int], str, dict[str, Any]]) -> dict[str, Any]:
    """Predict a case, run it both ways, and compare."""
    import torch

    from prefiere.console import Display
    from prefiere.estimate.estimate import estimate
    from prefiere.estimate.workload import workload
    from prefiere.plan.device import Device

    model, words, method, options = given
    measured: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        build(folder, model, words)
        if "reward" in options:
            reward_model(folder, options["reward"])
        work = workload(settings_of(folder, method, options), Device.of(torch.device("cpu")), Display(quiet=True))
        found = estimate(work, None)
        for keep in ("no", "yes"):
            # Told so, malloc gives back what is freed: the resident set is then what is in use.
            told = {"MALLOC_MMAP_THRESHOLD_": str(2**16)} if keep == "no" else {}
            there = {**os.environ, **told, "PREFIERE_CACHE": str(folder / f"cache-{keep}")}
            command = [sys.executable, __file__, "--measure", str(folder), method, json.dumps(options), keep]
            done = subprocess.run(command, capture_output=True, text=True, check=False, env=there)
            if done.returncode:
                raise SystemExit(f"{name}: {done.stderr[-2000:]}")
            measured[keep] = json.loads(done.stdout.splitlines()[-1])
            shutil.rmtree(folder / "run")
    return {"case": name, "model": model, "found": found, **measured}


def main() -> None:
    """Run the cases and print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--calibrate", action="store_true")
    parser.add_argument("--measure", nargs=4)
    parser.add_argument("names", nargs="*")
    arguments = parser.parse_args()
    if arguments.measure:
        _measure(*arguments.measure)
        return
    print("| case | model | predicted MiB | measured MiB | off | as it runs | predicted s | measured s |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |", flush=True)
    for name, given in (CALIBRATION if arguments.calibrate else CASES).items():
        if arguments.names and name not in arguments.names:
            continue
        r = case(name, given)
        found, there, kept = r["found"], r["no"]["peak"], r["yes"]["peak"]
        off = found.memory.peak / there - 1
        sizes = [f"{x / 2**20:,.0f}" for x in (found.memory.peak, there)]
        times = [f"{x:.1f}" for x in (found.seconds, r["yes"]["seconds"])]
        cells = [name, r["model"], *sizes, f"{off:+.1%}", f"{kept / 2**20:,.0f}", *times]
        print(f"| {' | '.join(cells)} |", flush=True)
        print(found.memory, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
