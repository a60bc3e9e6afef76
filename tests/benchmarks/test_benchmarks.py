"""The benchmarks run from end to end on nothing but what is installed, and say what they did not measure."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]


def module(name: str) -> ModuleType:
    """A module of the benchmarks, which are no part of the package."""
    sys.path.insert(0, str(ROOT))
    try:
        return importlib.import_module(f"benchmarks.{name}")
    finally:
        sys.path.remove(str(ROOT))


@pytest.fixture(scope="module")
def common() -> ModuleType:
    return module("common")


@pytest.fixture(scope="module")
def workload() -> ModuleType:
    return module("workload")


@pytest.mark.long
def test_a_quick_run_measures_a_row_and_writes_it(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks", "--quick", "--only", "peak", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads((tmp_path / "results.json").read_text())
    assert "generated" in found["about"], "what stands in for real pairs is said"
    row = found["rows"][0]
    assert row["ours"] > 0
    assert row["peer"] > 0
    assert row["ratio"] == pytest.approx(row["ours"] / row["peer"])
    assert row["met"] is (row["ratio"] >= row["goal"])
    assert row["work"] in (tmp_path / "results.md").read_text()
    assert row["work"] in done.stdout


@pytest.mark.long
def test_the_figures_of_a_4_bit_7b_are_all_there_at_a_tiny_size() -> None:
    """Every contender runs, the four roles on one trunk, and each row has a number. On a CPU no goal is judged."""
    command = [sys.executable, "-m", "benchmarks.fourbit", "--tiny"]
    there = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=ROOT, env=there, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    table = [[c.strip() for c in x.strip("|").split("|")] for x in done.stdout.splitlines() if x.startswith("| ")][2:]
    units = [row[1].split() for row in table if row[1]]
    assert all(np.isfinite(float(n.replace(",", ""))) and float(n.replace(",", "")) > 0 for n, _ in units)
    found = [(row[0].split(",")[0], unit) for row, (_, unit) in zip([r for r in table if r[1]], units, strict=True)]
    expected = [
        ("peak memory", "GiB"), ("DPO", "pairs/s"), ("DPO", "tokens/s"), ("share of the 16-bit matmul peak", "GF/s"),
        ("peak memory", "GiB"), ("PPO with four roles", "tokens/s"),
    ]  # fmt: skip
    expected += [("a pair", "s"), ("peak memory", "GiB")] if importlib.util.find_spec("trl") else []
    assert found == expected
    assert not any(row[5] in ("yes", "no") for row in table)
    assert all("a CPU, so no goal" in row[6] for row in (table[0], table[4]))


def test_a_contender_that_fails_ends_no_other() -> None:
    """What a child said before it failed counts, and why it failed is told."""
    found = module("children").run("children_that_fail", seconds=60)
    assert found.lines == []
    assert "No module named benchmarks.children_that_fail" in found.failed
    gpu, lines = module("gpu"), [{"kind": k, "pairs": 2.0, "memory": 5.0, "reached": 3.0, "peak": 6.0}
                                 for k in module("gpu").LENGTHS]  # fmt: skip
    rows = list(gpu.rows_of_dpo("tiny", gpu.Found(lines[:1], "it stopped"), gpu.Found([], "no memory")))
    assert [row.ours for row in rows] == [0.5, 5.0, 3.0, None]
    assert [row.met for row in rows] == [None, None, True, None]
    assert "TRL failed: no memory" in rows[0].note
    assert rows[3].note == "prefiere failed: it stopped"


@pytest.mark.slow
def test_the_table_of_a_gpu_is_all_there_at_a_tiny_size() -> None:
    command = [sys.executable, "-m", "benchmarks.gpu", "--shape", "tiny", "--steps", "1", "--repeats", "1"]
    there = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=ROOT, env=there, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    table = [[c.strip() for c in x.strip("|").split("|")] for x in done.stdout.splitlines() if x.startswith("| ")][2:]
    assert [row[0].split(",")[0] for row in table] == ["DPO"] * 6 + ["sampling 32 prompts x 64 tokens"] * 2 + [
        "PPO with four roles"
    ]
    assert not any("failed" in row[6] for row in table), table


def test_ratios_are_of_rounds_and_goals_have_a_side(common: ModuleType) -> None:
    row = common.Row.faster("x", [1.0, 2.0, 4.0], [8.0, 8.0, 8.0], goal=4.0)
    assert (row.ratio, row.low, row.high, row.met) == (4.0, 2.0, 8.0, True)
    assert (row.ours, row.peer) == (2.0, 8.0)
    assert common.Row.smaller("x", [300.0], [1000.0], goal=0.4, unit="MB").met is True
    assert common.Row.smaller("x", [500.0], [1000.0], goal=0.4, unit="MB").met is False
    missing = common.Row.missing("x", 3.0, "not built yet")
    assert missing.met is None
    assert "not measured" in common.line(missing)


@pytest.mark.parametrize("grouped", [False, True])
def test_a_window_stands_for_its_epoch(common: ModuleType, workload: ModuleType, grouped: bool, tmp_path: Path) -> None:
    bench = common.Bench(tmp_path, quick=True)
    store = bench.store(1024)
    lengths = workload.lengths_of(store)
    batches = workload.window(store, 2, grouped=grouped)
    chosen = np.concatenate(batches)
    assert len(set(chosen.tolist())) == 16
    distinct = lengths[:, 1:].sum(1)
    assert distinct[chosen].mean() == pytest.approx(distinct.mean(), rel=0.1)
    padded = np.mean([lengths[b, 0].max() for b in batches])
    if grouped:
        by_length = np.sort(lengths[:, 0])
        blocks = by_length[: len(by_length) // 8 * 8].reshape(-1, 8)
        assert padded == pytest.approx(blocks.max(1).mean(), rel=0.1)
    else:
        assert padded > 1.2 * lengths[:, 0].mean()


@pytest.mark.parametrize("frozen", [False, True])
def test_counted_work_is_what_pytorch_counts_less_what_could_be_spared(frozen: bool) -> None:
    """PyTorch's own counter over a step. It also sees queries and attention outputs of the last layer for rows that
    nobody reads; the batched products of attention, which are of padded tiles, are left out."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    import tiny
    from prefiere.kernels import attention
    from prefiere.models.trunk import Trunk
    from prefiere.tokens.pack import pack
    from random_groups import store

    attention.register()
    model = tiny.model("llama", tie_word_embeddings=False)
    model.set_attn_implementation(attention.NAME)
    batch = pack(store(6, 2, prompt=40))
    embedded = model.get_input_embeddings().weight
    if frozen:
        model.requires_grad_(False)
        embedded.requires_grad_(True)
    with FlopCounterMode(display=False) as counter:
        Trunk(model)(batch).logp_N.sum().backward()
    seen = counter.get_flop_counts()["Global"]
    executed = sum(n for op, n in seen.items() if str(op) in ("aten.mm", "aten.addmm"))
    counted = module("peak").step_flops(model.config, batch, weights=not frozen)
    looks = sum(
        (s.stop - s.start) * (s.prefix_stop - s.prefix_start + (s.stop - s.start + 1) / 2) for s in batch.segments
    )
    attended = 2.0 * 3 * 2 * model.config.hidden_size * looks  # at most, of each layer
    layers = model.config.num_hidden_layers
    spared = len(batch.tokens_T) - len(batch.predictor_N.unique())
    extra = 2.0 * (2 if frozen else 3) * 2 * spared * model.config.hidden_size**2
    assert counted - layers * attended <= executed - extra <= 1.1 * counted - (layers - 1) * attended
    assert torch.is_tensor(embedded.grad)


def test_ratios_of_more_processes_are_of_work_done_beside_a_perfect_one() -> None:
    """Worked out by hand. Twice as many tokens in the same time is as good as the same in half of it."""
    out = module("scale_out")
    first = {"run": "weak", "rank": 0, "steps": [[2.0, 1.5, 400], [2.0, 2.0, 400]], "sampling": 0.0}
    other = {"run": "weak", "rank": 1, "steps": [[2.1, 1.0, 400], [1.9, 1.5, 400]], "sampling": 0.0}
    weak = out.added([other, first])
    assert weak == out.Steps(2, 4.0, 6.0, 800)
    measured = {
        "one": out.Steps(2, 4.0, 4.0, 400), "strong": out.Steps(2, 2.5, 5.0, 400), "weak": weak,
        "sharded": out.Steps(2, 5.0, 8.0, 400), "own": out.Steps(2, 3.0, 3.0, 50),
        "served": out.Steps(2, 6.0, 3.0, 50, 4.0), "ahead": out.Steps(2, 5.0, 3.0, 50, 3.0),
    }  # fmt: skip
    rows = list(out.rows_of([measured], "some model"))
    assert [row.ratio for row in rows] == pytest.approx([1.6, 2.0, 0.5, 0.5, 1.2])
    assert (rows[3].ours, rows[3].peer) == (3.0, 1.5), "seconds of one step"
    perfect = ["one: 2;", "one: 2;", "one: 1;", "one: 1;", "one: 1.50,"]  # 6 s, of which 4 s are the longer part
    assert all(word in row.note for word, row in zip(perfect, rows, strict=True))
    work = [row.note.partition("processes ")[2] for row in rows[:3]]
    assert work == ["1.25 times", "0.75 times", "1.60 times"]


@pytest.mark.slow
def test_more_processes_are_measured_against_one_on_a_tiny_model() -> None:
    command = [sys.executable, "-m", "benchmarks.scale_out", "--repeats", "1", "--steps", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    table = [x for x in done.stdout.splitlines() if x.startswith("| ")][2:]
    assert len(table) == 5
    assert "Something else used" in done.stdout
