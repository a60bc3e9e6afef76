"""What one architecture does in a run, held against plain transformers in float64, each sequence alone.

python tests/sweep.py --write           examines every model of the zoo and writes the table of docs/models.md
python tests/sweep.py --write mamba     this one alone; the other rows stay
"""

from __future__ import annotations

import math
import re
import sys
import tempfile
import traceback
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    import conftest  # noqa: F401 (sets what every test runs under)

import numpy as np
import pytest
import torch
import transformers
from peft import AutoPeftModelForCausalLM
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

import runs
import zoo
from prefiere.models.source import ModelError
from prefiere.sample.local import generate
from prefiere.sample.sampling import Sampling, Vocabulary
from prefiere.settings import DPO
from prefiere.tokens.groups import PromptGroup
from prefiere.tokens.pack import pack
from prefiere.train.checkpoint import save_model
from prefiere.train.loop import Loop
from prefiere.train.setup import Session
from random_groups import store

WRONG = 1e-4
"""Nats, and shares of a gradient's norm, that fp32 may be off by."""
DOCS = Path(__file__).parents[1] / "docs" / "models.md"
HEAD = "| model | rows | decoding | adapter | why |\n| --- | --- | --- | --- | --- |\n"


@dataclass(frozen=True)
class Row:
    """What docs/models.md says of an architecture: how rows run, how it decodes, which layers take an adapter ("all":
    all linear ones), and why it is not all in the fastest way; only the last where it is refused."""

    rows: str = "refused"
    decoding: str = ""
    adapter: str = ""
    why: str = ""

    def line(self, name: str) -> str:
        """As a row of the table."""
        return f"| {name} | {self.rows} | {self.decoding} | {self.adapter} | {self.why} |\n"


def documented() -> dict[str, str]:
    """The rows of the table in docs/models.md, by name."""
    lines = DOCS.read_text(encoding="utf-8").partition(HEAD)[2].splitlines(keepends=True) if DOCS.is_file() else []
    return {line.split(" | ")[0].removeprefix("| "): line for line in lines if line.startswith("| ")}


def alone(model: PreTrainedModel, group: PromptGroup) -> torch.Tensor:
    """[N]: log-probs of a group's targets, each completion in a plain forward of its own."""
    found = []
    for completion in group.completions:
        ids = torch.from_numpy(np.concatenate([group.prompt, completion]).astype(np.int64))[None]
        out = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
        logp = torch.log_softmax(out.logits[0, :-1], -1)
        found.append(logp.gather(-1, ids[0, 1:, None])[len(group.prompt) - 1 :, 0])
    return torch.cat(found)


def exact(folder: Path) -> PreTrainedModel:
    """A model in float64, its experts one after the other; in fp32 where its own code takes nothing else."""
    dtype = torch.float32 if AutoConfig.from_pretrained(folder).model_type == "xglm" else torch.float64
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    if getattr(model.config, "_experts_implementation", None) is not None:
        model.set_experts_implementation("eager")
    return model.eval()


def off(found: torch.Tensor, right: torch.Tensor) -> float:
    """The largest distance, in units of the right values' size where that is above 1."""
    return float((found.double() - right.double()).abs().max() / max(1.0, float(right.abs().max())))


def examine(tmp: Path, name: str, *, quick: bool = False) -> Row:
    """Train it, sample from it, save it; raises AssertionError where anything is not as in plain transformers.

    quick: every weight alone, no adapter and no PPO, and ``adapter`` is not found out.
    """
    zoo.folder(tmp / "model", name)
    try:
        whole = session(tmp, "full", lora=False)
    except (ModelError, ValueError) as e:
        return Row(why=_plain(e, tmp))
    said = {c.name: c for c in whole.choices}
    gradients(whole, tmp / "model")
    samples(whole, tmp / "model")
    first_step(whole)
    reloaded(whole, AutoModelForCausalLM)
    why = [said["rows"].why.partition("padded rows: ")[2]]
    if said["decoding"].value != "prepared":
        why.append(said["decoding"].why)
    targets = "all"
    if not quick:
        try:
            adapted = session(tmp, "adapter", lora=True)
        except ModelError as e:
            targets = "named"
            why.append(_plain(e, tmp))
            named = zoo.TARGETS.get(name, ["q_proj", "v_proj"])
            adapted = session(tmp, "named", lora=True, lora_target_modules=named)
        first_step(adapted)
        reloaded(adapted, AutoPeftModelForCausalLM)
        first_ratio(tmp, name, adapted.settings.lora_target_modules)
    reasons = "; ".join(dict.fromkeys(re.sub(r" by [\d.e+-]+( nats)?", "", w) for w in why if w))
    return Row(str(said["rows"].value), str(said["decoding"].value), targets, reasons)


def _plain(error: Exception, tmp: Path) -> str:
    """An error without what differs from one machine, or from one process, to another."""
    text = re.sub(r" \(by [^)]*\)", "", str(error).replace(str(tmp / "model"), "it"))
    text = re.sub(r"\{('[^{}]*')\}", lambda m: f"{{{', '.join(sorted(m[1].split(', ')))}}}", text)  # a set's order
    return text.replace("|", "/").replace("\n", " ")


def session(tmp: Path, out: str, **options: Any) -> Session:
    """A run of DPO of two steps."""
    made = runs.session(tmp, DPO, out=str(tmp / out), max_steps=2, learning_rate=1e-2, eval_size=4, **options)
    made.run.checkpoints.mkdir(exist_ok=True)
    return made


def first_step(made: Session) -> None:
    """The run trains, and its first loss is ln 2: policy and reference are the same."""
    Loop(made, import_module(made.plan.method.home).build(made), None).run()
    first = next(r for r in made.run.metrics if "loss" in r)
    assert first["loss"] == pytest.approx(math.log(2), abs=2e-5), "the first loss is not ln 2"


def first_ratio(tmp: Path, name: str, targets: str | list[str]) -> None:
    """A step of PPO starts from the policy that has sampled: the ratio is 1, to the last bit."""
    made = runs.policy_session(
        tmp, model=str(tmp / "model"), out=str(tmp / "ppo"), max_steps=1, num_ppo_epochs=1, lora=True, sample_steps=0,
        eval_size=0, lora_target_modules=targets,
    )  # fmt: skip
    made.run.checkpoints.mkdir(exist_ok=True)
    Loop(made, import_module(made.plan.method.home).build(made), None).run()
    ratio = next(r["val/ratio"] for r in made.run.metrics if "val/ratio" in r)
    # With a mask that is learnt, PyTorch attends by another kernel where a gradient is asked for.
    close = ratio == pytest.approx(1.0, abs=1e-6) if name == "doge" else ratio == 1.0
    assert close, f"the first ratio is {ratio}"


def gradients(made: Session, folder: Path) -> None:
    """Log-probs and every gradient of the trunk against float64."""
    groups = store(3, 2, prompt=12, completion=8)
    right = exact(folder)
    logps = torch.cat([alone(right, g) for g in groups])
    logps.sum().backward()
    made.trunk.train()
    found = made.trunk(pack(list(groups))).logp_N
    assert off(found, logps) < WRONG, "log-probs are not those of a plain forward"
    found.sum().backward()
    expected = {n: p.grad for n, p in right.named_parameters() if p.grad is not None}
    for n, p in made.trunk.model.named_parameters():
        if n in expected:
            size = float(expected[n].norm())
            assert p.grad is not None or size < WRONG, f"no gradient of {n}"
            error = 0.0 if p.grad is None else float((p.grad.double() - expected[n]).norm())
            assert error <= 10 * WRONG * max(size, 1e-2), f"the gradient of {n} is off by {error:.2g} of {size:.2g}"
    made.trunk.zero_grad(set_to_none=True)


@torch.no_grad()
def samples(made: Session, folder: Path) -> None:
    """Log-probs of sampled answers, some of which end early, against float64."""
    right = exact(folder)
    prompts = [np.arange(20, 20 + n, dtype=np.int32) for n in (3, 11, 6)]
    drawn = generate(made.trunk.lm, prompts, Sampling(samples=3, max_new_tokens=7), Vocabulary((*range(10, 400, 5),)))
    for s in drawn:
        expected = alone(right, PromptGroup(prompts[s.prompt], (s.tokens,), (np.ones(len(s.tokens), bool),)))
        assert off(torch.from_numpy(s.logp), expected) < WRONG, "sampled log-probs are not those of a plain forward"


@torch.no_grad()
def reloaded(made: Session, kind: Any) -> None:
    """What is saved says in plain transformers what the trunk says."""
    made.trunk.eval()
    groups = list(store(2, 2, prompt=9, completion=6, seed=1))
    save_model(made.trunk, made.tokenizer, made.run.model)
    again = kind.from_pretrained(str(made.run.model), dtype=torch.float32).eval()
    saved = torch.cat([alone(again, g) for g in groups])
    assert off(made.trunk(pack(groups)).logp_N, saved) < WRONG, "what was saved says something else"


def main(names: list[str]) -> int:
    """Examine these models; returns how many are not as in plain transformers."""
    transformers.logging.set_verbosity_error()
    wrong, kept = 0, documented()
    for name in names:
        with tempfile.TemporaryDirectory() as tmp:
            try:
                kept[name] = examine(Path(tmp), name).line(name)
            except Exception as e:  # the others are to be seen too
                wrong += 1
                at = [
                    f
                    for f in traceback.extract_tb(e.__traceback__)
                    if "prefiere" in f.filename or "sweep" in f.filename
                ]
                print(f"{name}: {type(e).__name__}: {e} ({Path(at[-1].filename).name}:{at[-1].lineno})", flush=True)
                continue
        print(kept[name], end="", flush=True)
        rows = "".join(kept[n] for n in sorted(zoo.CASES) if n in kept)
        DOCS.write_text(DOCS.read_text(encoding="utf-8").partition(HEAD)[0] + HEAD + rows, encoding="utf-8")
    return wrong


if __name__ == "__main__":
    raise SystemExit(main([a for a in sys.argv[1:] if a != "--write"] or sorted(zoo.CASES)))
