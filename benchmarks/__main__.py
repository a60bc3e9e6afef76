"""``python -m benchmarks``: every row in one go, one table, and the same as JSON and Markdown under ``--out``."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import platform
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from benchmarks.common import HEADER, PARTS, PLANNED, WORK, Bench, Row, line, quiet
from benchmarks.workload import SHAPES


def main() -> None:
    """Run the benchmarks that were asked for."""
    p = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    p.add_argument(
        "--data", type=Path, default=os.environ.get("PREFIERE_BENCH_DATA"),
        help="preference pairs such as hh-harmless-test.jsonl.gz ($PREFIERE_BENCH_DATA); without: generated ones",
    )  # fmt: skip
    p.add_argument(
        "--model", type=Path, default=os.environ.get("PREFIERE_BENCH_MODEL"),
        help="a small real model's folder, for the kind real ($PREFIERE_BENCH_MODEL)",
    )  # fmt: skip
    p.add_argument("--out", type=Path, default=Path("runs/bench"), help="where results.json and results.md go")
    p.add_argument("--only", default=",".join(WORK), help="kinds of work, separated by commas")
    p.add_argument("--repeats", type=int, default=5)
    p.add_argument("--shapes", default=",".join(SHAPES), help="models of the kinds dpo and memory")
    p.add_argument("--parts", default=",".join(PARTS), help="what the kind real measures")
    p.add_argument("--quick", action="store_true", help="one round at the smallest size: shows that everything runs")
    a = p.parse_args()
    quiet()
    a.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="prefiere-bench-") as scratch:
        shapes, parts = (tuple(named.split(",")) for named in (a.shapes, a.parts))
        bench = Bench(Path(scratch), a.data, a.quick, a.repeats, shapes, a.model, parts)
        head = f"{about()}; {bench.data_name}" + ("; quick: sizes too small to mean anything" if a.quick else "")
        print(f"{head}\n\n{HEADER}", flush=True)
        found = []
        for work in a.only.split(","):
            for row in rows_of(work, bench):
                print(line(row), flush=True)
                found.append((work, row))
    table = "\n".join([head, "", HEADER, *(line(row) for _, row in found), ""])
    (a.out / "results.md").write_text(table, encoding="utf-8")
    rows = [{"kind": work, **asdict(row), "met": row.met} for work, row in found]
    (a.out / "results.json").write_text(json.dumps({"about": head, "rows": rows}, indent=1), encoding="utf-8")


def rows_of(work: str, bench: Bench) -> Iterator[Row]:
    """The rows of one kind of work; those that are planned where nobody has written it yet."""
    if importlib.util.find_spec(f"benchmarks.{work}") is None:
        yield from (Row.missing(title, goal, "not built yet") for title, goal in PLANNED[work])
        return
    began = time.perf_counter()
    yield from importlib.import_module(f"benchmarks.{work}").rows(bench)
    print(f"<!-- {work}: {time.perf_counter() - began:.0f} s -->", flush=True)


def about() -> str:
    """The machine and the versions that a table was made with."""
    import torch

    names = []
    for name in ("prefiere", "torch", "transformers", "trl"):
        try:
            names.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            names.append(f"no {name}")
    return f"{platform.machine()}, {torch.get_num_threads()} threads, {', '.join(names)}"


if __name__ == "__main__":
    main()
