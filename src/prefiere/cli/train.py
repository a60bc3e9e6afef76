"""What the training commands share: read the settings, train, say where everything is."""

from __future__ import annotations

import shlex
from typing import Any

from prefiere.console import hush, progress, say


def run_method(method: str, rest: list[str] | None, fresh: bool, **flags: Any) -> dict[str, Any]:
    """Read the settings and hand them to the method's training loop."""
    import prefiere.train.setup  # noqa: F401 (with it, all that training imports)
    from prefiere import api, recipe
    from prefiere.train.host import leave_imports_alone
    from prefiere.world import leave_group

    paths = [text for text in rest or [] if "=" not in text]
    if len(paths) > 1:
        raise recipe.RecipeError(f"one recipe at most, not {', '.join(paths)}. Settings are written key=value.")
    overrides = [text for text in rest or [] if "=" in text]
    given = {key: value for key, value in flags.items() if value is not None}
    settings = recipe.load(method, paths[0] if paths else None, given, overrides)
    hush()
    leave_imports_alone()
    run = api.train(settings, fresh=fresh, console=progress())
    leave_group()
    rows, page = run.metrics, run.folder / "report.html"
    finished = run.status["state"] == "finished"
    if finished:
        say(f"Model: {run.model}")
        use = "score {} --data ..." if method == "reward" else "chat {}"
        say(f"Try it: prefiere {use.format(shlex.quote(str(run.folder)))}")
    say(f"Report: {page}")
    made: dict[str, Any] = {"run": run.folder, "model": run.model if finished else None, "report": page}
    return {
        **made,
        **run.status,
        "stopped": run.stopped.text if run.stopped else None,
        "metrics": rows[-1] if rows else {},
    }
