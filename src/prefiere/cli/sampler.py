"""A process that answers for the page: one JSON request a line on stdin, one JSON answer a line on stdout.

The server itself never imports torch, and a model that runs out of memory takes this process down and not the votes.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from prefiere.cli.collect import Answering
from prefiere.console import hush
from prefiere.feedback.collect import How
from prefiere.feedback.schema import text_of


def main(names: list[str]) -> None:
    """Load the models, say which they are, and answer until stdin ends."""
    out = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    sys.stdout = sys.stderr  # whatever a library prints is no answer

    def say(value: dict[str, Any]) -> None:
        out.write(json.dumps(value) + "\n")
        out.flush()

    hush()
    try:
        models = [Answering(name) for name in names]
    except (ValueError, OSError, RuntimeError) as e:
        say({"error": str(e)})
        return
    keys = ("label", "path", "fingerprint", "run", "step")
    say({"models": [{k: getattr(m, k) for k in keys} for m in models]})
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            how = How(**asked["how"])
            made = models[asked["model"]]([text_of(asked["prompt"])], asked["samples"], how, [0])
            say({"answers": made[0]})
        except (ValueError, RuntimeError, MemoryError) as e:
            say({"error": str(e).splitlines()[0] if str(e) else type(e).__name__})


if __name__ == "__main__":
    main(sys.argv[1:])
