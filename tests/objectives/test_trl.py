"""Loss, gradients and rewards against TRL's own trainers, on a tiny random model, where TRL has it right.

Left out is where TRL differs: label smoothing of its sigmoid loss (ignored there), accuracy at equal rewards (0 there,
0.5 here), the SFT term of ORPO (there over the prompt too) and of CPO and RPO (there one mean over all tokens of a
batch, here one per pair: the same for a single pair), SimPO with label smoothing (a flipped label there asks the
other answer to win by -gamma).
"""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel

from prefiere.objectives import bradley_terry, preference
from prefiere.objectives.preference import LOSSES, PairBatch
from tiny import model, tokenizer

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

ROWS = [
    {"prompt": "What is a dog?", "chosen": " A dog is an animal.", "rejected": " Best friend."},
    {"prompt": "¿Qué es una casa?", "chosen": " Donde está el corazón.", "rejected": " Una casa es un edificio."},
    {"prompt": "Hello", "chosen": " Hi", "rejected": " user assistant system tool"},
]


def sums(lm: PreTrainedModel, ids: Tensor, attention: Tensor, completion: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probs of completions, summed, and their token counts: a plain forward, apart from both implementations."""
    logits = lm(input_ids=ids, attention_mask=attention).logits[:, :-1]
    logp = torch.log_softmax(logits.double(), -1).gather(-1, ids[:, 1:, None])[..., 0]
    mask = completion[:, 1:].bool()
    return torch.where(mask, logp, 0.0).sum(1), mask.sum(1)


def gradients(lm: torch.nn.Module, loss: Tensor) -> dict[str, Tensor]:
    lm.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in lm.named_parameters() if p.grad is not None}


def assert_same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    assert len(ours) > 10
    scale = max(g.abs().max().item() for g in theirs.values())
    assert scale > 1e-4
    for name, g in theirs.items():
        torch.testing.assert_close(ours[name], g, rtol=1e-3, atol=1e-5 * scale, msg=lambda m, n=name: f"{n}: {m}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("trl"))


@pytest.fixture(scope="module")
def dpo_trainer(folder: str) -> Any:
    from trl import DPOConfig, DPOTrainer

    args = DPOConfig(output_dir=folder, report_to=[], per_device_train_batch_size=3, use_cpu=True, bf16=False, beta=0.3)
    args.gradient_checkpointing = False
    policy, reference = model("llama"), model("llama", seed=1)
    data = Dataset.from_list(ROWS)
    return DPOTrainer(
        model=policy, ref_model=reference, args=args, processing_class=tokenizer("bpe"), train_dataset=data
    )


@pytest.mark.parametrize(
    ("name", "smoothing"), [("sigmoid", 0.0), ("hinge", 0.0), ("ipo", 0.0), ("robust", 0.0), ("robust", 0.2)]
)
def test_losses_with_a_reference(dpo_trainer: Any, name: str, smoothing: float) -> None:
    dpo_trainer.loss_types, dpo_trainer.label_smoothing = [name], smoothing
    dpo_trainer._metrics["eval"].clear()
    batch = next(iter(dpo_trainer.get_train_dataloader()))
    theirs = dpo_trainer._compute_loss(dpo_trainer.model, batch, False)
    their_gradients = gradients(dpo_trainer.model, theirs)

    policy, reference = model("llama"), model("llama", seed=1)
    inputs = (batch["input_ids"], batch["attention_mask"], batch["completion_mask"])
    logp, tokens = sums(policy, *inputs)
    with torch.no_grad():
        reference_logp, _ = sums(reference, *inputs)
    halves = [half for x in (logp, reference_logp, tokens) for half in x.chunk(2)]
    pairs = PairBatch(*halves, torch.ones(3))
    ours = LOSSES[name].function(pairs, beta=0.3, **({"label_smoothing": smoothing} if smoothing else {})).mean()
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    assert_same(gradients(policy, ours), their_gradients)

    chosen, rejected = preference.rewards(pairs, LOSSES[name], beta=0.3)
    metrics = dpo_trainer._metrics["eval"]
    assert metrics["rewards/chosen"][-1] == pytest.approx(chosen.mean().item(), rel=1e-4)
    assert metrics["rewards/rejected"][-1] == pytest.approx(rejected.mean().item(), rel=1e-4)
    assert metrics["rewards/margins"][-1] == pytest.approx((chosen - rejected).mean().item(), rel=1e-4)
    accuracy = preference.accuracies(chosen - rejected).mean().item()
    assert metrics["rewards/accuracies"][-1] == pytest.approx(accuracy)


def test_the_sft_term_of_a_single_pair(dpo_trainer: Any) -> None:
    dpo_trainer.loss_types = ["sft"]
    batch = next(iter(dpo_trainer.get_train_dataloader()))
    one = {k: v[[0, 3]] for k, v in batch.items()}
    theirs = dpo_trainer._compute_loss(dpo_trainer.model, one, False)
    logp, tokens = sums(model("llama"), one["input_ids"], one["attention_mask"], one["completion_mask"])
    ours = preference.sft_loss(PairBatch.from_completions(logp, torch.zeros(2), tokens))
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)


def test_kto(folder: str) -> None:
    from trl import KTOConfig, KTOTrainer

    rows = [
        {"prompt": r["prompt"], "completion": r["chosen" if good else "rejected"], "label": good}
        for r, good in zip(ROWS, (True, False, True), strict=True)
    ]
    args = KTOConfig(output_dir=folder, report_to=[], per_device_train_batch_size=3, use_cpu=True, bf16=False, beta=0.3)
    args.gradient_checkpointing = False
    args.desirable_weight, args.undesirable_weight = 1.5, 0.75
    policy, reference, t = model("llama"), model("llama", seed=1), tokenizer("bpe")
    data = Dataset.from_list(rows)
    trainer = KTOTrainer(model=policy, ref_model=reference, args=args, processing_class=t, train_dataset=data)
    batch = next(iter(trainer.get_train_dataloader()))
    theirs = trainer._compute_loss(trainer.model, batch, False)
    their_gradients = gradients(trainer.model, theirs)

    policy, reference = model("llama"), model("llama", seed=1)
    own = tuple(batch[k] for k in ("input_ids", "attention_mask", "completion_mask"))
    other = tuple(batch[f"KL_{k}"] for k in ("input_ids", "attention_mask", "completion_mask"))
    with torch.no_grad():
        mismatched = sums(policy, *other)[0] - sums(reference, *other)[0]
        reference_logp = sums(reference, *own)[0]
    z = preference.kto_baseline(mismatched.sum(), 3)
    h = sums(policy, *own)[0] - reference_logp
    label = torch.as_tensor(batch["label"])
    ours = preference.kto_loss(h, label, z, beta=0.3, desirable_weight=1.5, undesirable_weight=0.75).mean()
    assert z > 0
    assert trainer._metrics["eval"]["kl"][-1] == pytest.approx(z.item(), rel=1e-4)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    assert_same(gradients(policy, ours), their_gradients)


# TRL's loss functions without their trainers: on log-probs that are leaves.

CHOSEN, REJECTED, TOKENS = [-12.0, -30.0, -0.4], [-9.0, -55.0, -14.0], [[6, 11, 2], [3, 20, 8]]


def leaves() -> tuple[Tensor, Tensor, PairBatch]:
    chosen = torch.tensor(CHOSEN, requires_grad=True)
    rejected = torch.tensor(REJECTED, requires_grad=True)
    zeros = torch.zeros(3)
    tokens = torch.tensor(TOKENS)
    return chosen, rejected, PairBatch(chosen, rejected, zeros, zeros, tokens[0], tokens[1], torch.ones(3))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("cpo", {"beta": 0.2}),
        ("cpo", {"beta": 0.2, "label_smoothing": 0.1}),
        ("simpo", {"beta": 2.0, "simpo_gamma": 0.7}),
        ("orpo", {"beta": 0.3}),
    ],
)
def test_losses_without_a_reference(name: str, options: dict[str, float]) -> None:
    from trl.experimental.cpo import CPOTrainer
    from trl.experimental.orpo import ORPOTrainer

    cpu = SimpleNamespace(device=torch.device("cpu"))
    trainer = SimpleNamespace(accelerator=cpu, alpha=0.0, label_smoothing=0.0, simpo_gamma=0.0)
    trainer.loss_type = "simpo" if name == "simpo" else "sigmoid"
    vars(trainer).update(options)
    chosen, rejected, pairs = leaves()
    per_token = LOSSES[name].per_token
    logps = [x / n if per_token else x for x, n in zip((chosen, rejected), torch.tensor(TOKENS), strict=True)]
    if name == "orpo":
        negative, their_chosen, their_rejected, *_ = ORPOTrainer.odds_ratio_loss(trainer, *logps)
        theirs = -negative
    else:
        theirs, their_chosen, their_rejected = CPOTrainer.cpo_loss(trainer, *logps)
    theirs.sum().backward()
    their_gradients = chosen.grad, rejected.grad

    chosen, rejected, pairs = leaves()
    ours = LOSSES[name].function(pairs, **options)
    if name != "simpo":
        ours = ours - preference.sft_loss(pairs)
    ours.sum().backward()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close((chosen.grad, rejected.grad), their_gradients, rtol=1e-4, atol=1e-6)
    rewards = preference.rewards(pairs, LOSSES[name], beta=options["beta"])
    torch.testing.assert_close(rewards, (their_chosen, their_rejected))


def test_reward_model() -> None:
    from trl import RewardTrainer

    scores = torch.tensor([1.5, -2.0, 0.3, 0.7, -3.0, 4.0], requires_grad=True)
    margin = torch.tensor([0.5, 0.0, 1.0])
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=True),
        accelerator=Accelerator(cpu=True),
        args=SimpleNamespace(center_rewards_coefficient=0.01),
        _metrics=defaultdict(lambda: defaultdict(list)),
        _total_train_tokens=0,
        _tp_size=1,
    )
    inputs = {"margin": margin, "attention_mask": torch.ones(6, 2)}
    theirs = RewardTrainer.compute_loss(trainer, lambda **_: SimpleNamespace(logits=scores[:, None]), inputs)
    theirs.backward()
    their_gradient, scores.grad = scores.grad, None
    losses = bradley_terry.bradley_terry(scores[:3], scores[3:], margin_G=margin)
    ours = (losses + 0.01 * bradley_terry.centring(scores[:3], scores[3:])).mean()
    ours.backward()
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(scores.grad, their_gradient)
