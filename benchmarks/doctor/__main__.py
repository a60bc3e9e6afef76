"""``python -m benchmarks.doctor``: plant causes, read the verdicts, print one table.

    python -m benchmarks.doctor --causes "rate,labels" --strengths 3 --seeds 0,1 --models demo --data demo --healthy 0-9

The whole grid (all causes, three strengths, five seeds, two models, two data sets, 100 healthy runs) takes many hours
on two cores. A row is written for each case as soon as it has one (``--out``); what is there already is not run again,
so that a part can be stopped and gone on with.

Thresholds of the rules were set on the demo's model and data at seed 0 of this grid, and are frozen for everything
else: no threshold was looked at again after a run of another model, data set or seed.

A run is healthy by its settings. One of the demo's data whose model then answers fewer questions rightly was ruined all
the same, and one of other data that ranks held-out pairs like a coin learnt nothing: both are counted apart.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path


def numbers(text: str) -> list[int]:
    """``0,2,5-7`` as numbers."""
    found: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found


def main() -> None:
    """Run a part of the grid, then print the table of everything that the file of results holds."""
    parser = argparse.ArgumentParser(prog="benchmarks.doctor", description=__doc__)
    parser.add_argument("--causes", default="", help="parts of their names, separated by commas, or none; default: all")
    parser.add_argument("--strengths", type=numbers, default=[1, 2, 3], help="1 is weak, 3 strong")
    parser.add_argument("--seeds", type=numbers, default=list(range(5)))
    parser.add_argument("--models", default="demo,narrow")
    parser.add_argument("--data", default="demo,hh")
    parser.add_argument(
        "--healthy", type=numbers, default=list(range(100)), help="seeds of the healthy runs of each model and data set"
    )
    parser.add_argument("--remedies", action="store_true", help="train again with what is prescribed")
    parser.add_argument("--out", type=Path, default=Path("doctor-benchmark.jsonl"))
    parser.add_argument("--work", type=Path, default=None, help="where runs and models go; default: a temporary folder")
    parser.add_argument("--keep", action="store_true", help="keep the runs in --work, without their weights")
    parser.add_argument(
        "--reread", action="store_true", help="only read the verdicts of kept runs again, by the rules of now"
    )
    parser.add_argument("--table", action="store_true", help="only print the table of what was run before")
    asked = parser.parse_args()
    if not asked.table and not asked.reread:
        run(asked)
    from benchmarks.doctor.table import table_of

    rows = [json.loads(line) for line in asked.out.read_text().splitlines()]
    if asked.reread:
        from benchmarks.doctor.plant import read_again

        rows = [read_again(row, asked.work) for row in rows]
        asked.out.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    print(table_of(rows))


def run(asked: argparse.Namespace) -> None:
    """Every case that has no row yet, one after the other in this process."""
    from benchmarks.doctor.plant import cases, outcome

    done = {json.loads(line)["case"] for line in asked.out.read_text().splitlines()} if asked.out.is_file() else set()
    chosen = cases(
        [c for c in asked.causes.split(",") if c],
        [s - 1 for s in asked.strengths],
        asked.seeds,
        asked.models.split(","),
        asked.data.split(","),
        asked.healthy,
    )
    with tempfile.TemporaryDirectory() as temporary:
        work = asked.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        os.environ.setdefault("PREFIERE_CACHE", str(work / "cache"))
        for case in chosen:
            if case.name in done:
                continue
            row = outcome(case, work, remedies=asked.remedies, keep=asked.keep)
            with asked.out.open("a") as f:
                f.write(json.dumps(row, ensure_ascii=False) + "\n")
            print(f"{row['verdict']:8} {row['seconds']:6.1f} s  {case.name}: {row['headline']}", flush=True)


if __name__ == "__main__":
    main()
