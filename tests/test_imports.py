"""Who may import whom, what works without torch, and the house rules that a machine can check."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SRC = Path(__file__).parents[1] / "src"
FILES = sorted((SRC / "prefiere").rglob("*.py"))

# room -> the rooms (or single modules) it may import from besides itself; downwards only
GROUND = {
    "run",
    "files",
    "untrusted",
    "cache",
    "stats",
    "world",
    "processes",
    "settings",
    "recipe",
    "methods",
    "metrics",
    "console",
    "asked",
    "in_memory",
}
MAY: dict[str, set[str]] = {
    **dict.fromkeys(GROUND, GROUND),
    "objectives": set(),
    "data": {"asked", "files", "cache", "run", "stats"},
    "tokens": {"files", "cache", "data"},
    "kernels": {"objectives", "tokens"},
    "sample": {"kernels", "tokens", "asked", "files", "world"},
    "models": {"asked", "kernels", "sample", "tokens", "data", "objectives", "files", "cache", "run", "untrusted"},
    "evaluate": {"models", "kernels", "sample", "tokens", "data", "objectives", *GROUND},
    "plan": {"evaluate", "models", "kernels", "sample", "tokens", "data", "objectives", *GROUND},
    "train": {"plan", "evaluate", "models", "kernels", "sample", "tokens", "data", "objectives", *GROUND},
    "algorithms": {"train", "plan", "evaluate", "models", "kernels", "sample", "tokens", "data", "objectives", *GROUND},
    "estimate": {"algorithms", "train", "plan", "models", "kernels", "sample", "tokens", "data", "objectives", *GROUND},
    "doctor": {"run", "stats", "metrics", "methods", "settings", "files", "asked"},
    "report": {"doctor", "run", "stats", "metrics", "methods", "settings", "files", "asked"},
    "publish": {"train", "plan", "evaluate", "models", "tokens", "data", "doctor", *GROUND},
    "feedback": {
        "asked",
        "data",
        "run",
        "stats",
        "files",
        "untrusted",
        "settings",
        "recipe",
        "doctor",
        "report",
        "methods",
    },
}
EVERYTHING = {"cli", "demo", "launch", "api", "__init__", "__main__"}

WITHOUT_TORCH = [
    "prefiere",
    "prefiere.api.held",
    "prefiere.api.methods",
    "prefiere.api.run",
    "prefiere.api.training",
    "prefiere.api.use",
    "prefiere.cli.main",
    "prefiere.data.formats",
    "prefiere.data.schema",
    "prefiere.cli.feedback",
    "prefiere.cli.votes",
    "prefiere.cli.doctor",
    "prefiere.feedback.collect",
    "prefiere.feedback.page.runs",
    "prefiere.feedback.page.serve",
    "prefiere.feedback.rounds.loop",
    "prefiere.feedback.exchange",
    "prefiere.feedback.figures",
    "prefiere.metrics",
    "prefiere.recipe",
    "prefiere.report.page",
    "prefiere.run",
    "prefiere.stats",
]


def module_of(path: Path) -> str:
    """``src/prefiere/tokens/encoder.py`` -> ``tokens.encoder``."""
    return ".".join(path.relative_to(SRC / "prefiere").with_suffix("").parts)


def room_of(module: str) -> str:
    return module.split(".")[0]


def imports_of(path: Path) -> set[str]:
    """Every module that a file imports, anywhere in it, by its full name."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute"
            base = str(node.module)
            folder = SRC / base.replace(".", "/")
            found |= {f"{base}.{a.name}" if (folder / f"{a.name}.py").is_file() else base for a in node.names}
            if folder.is_dir():
                found |= {f"{base}.{a.name}" for a in node.names if (folder / a.name).is_dir()}
    return found


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_a_room_imports_only_what_it_may(path: Path) -> None:
    room = room_of(module_of(path))
    if room in EVERYTHING:
        return
    ours = {name.removeprefix("prefiere.") for name in imports_of(path) if name.split(".")[0] == "prefiere"}
    allowed = MAY[room]
    bad = {n for n in ours if room_of(n) != room and room_of(n) not in allowed and n not in allowed}
    assert not bad, f"{room} may import {sorted(allowed) or 'nothing of ours'}"


def test_objectives_import_torch_alone() -> None:
    for path in FILES:
        if room_of(module_of(path)) == "objectives":
            others = {name.split(".")[0] for name in imports_of(path)} - set(sys.stdlib_module_names)
            assert others <= {"torch", "prefiere"}, path


def test_world_alone_asks_about_processes() -> None:
    for path in FILES:
        asks = {n for n in imports_of(path) if n.split(".")[0] == "accelerate" or n.startswith("torch.distributed")}
        if not module_of(path).startswith("models.shard."):  # whose every tensor is spread over processes
            theirs = room_of(module_of(path)) in ("world", "processes")
            assert not asks or theirs, f"{path}: prefiere.world is for {asks}"


@pytest.mark.parametrize("module", WITHOUT_TORCH)
def test_imports_without_torch(module: str) -> None:
    heavy = ("torch", "transformers", "peft", "accelerate", "datasets")
    block = "".join(f"sys.modules['{name}'] = None; " for name in heavy)  # None makes an import of it fail
    done = subprocess.run([sys.executable, "-c", f"import sys; {block}import {module}"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_house_rules(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) < 350, "split it: one role per file"
    if path.name == "__init__.py" and path.parent.name != "prefiere":
        assert not text, "the rooms' own __init__ files are empty"
        return
    tree = ast.parse(text)
    assert ast.get_docstring(tree), "a file's docstring says why it exists"
    public = [
        node
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not node.name.startswith("_")
    ]
    bare = [node.name for node in public if not ast.get_docstring(node) and not is_overload(node)]
    assert not bare, "public functions and classes have docstrings"


def is_overload(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> bool:
    return any(isinstance(d, ast.Name) and d.id == "overload" for d in node.decorator_list)


# -- the house ------------------------------------------------------------------------------------------------------

INTERFACE = {"build", "advantages"}
"""What the file of every algorithm has, under the same name."""


def modules() -> dict[str, Path]:
    """Each module by its full name."""
    return {f"prefiere.{module_of(path)}": path for path in FILES}


def test_no_two_modules_import_each_other() -> None:
    """Not in a circle of any length, wherever in a file the import stands, for type checking too."""
    files = modules()
    targets = {m: {n for n in imports_of(p) if n in files and not n.endswith("__init__")} for m, p in files.items()}
    done: set[str] = set()

    def visit(module: str, above: tuple[str, ...]) -> None:
        assert module not in above, " -> ".join((*above[above.index(module) :], module))
        if module not in done:
            for target in targets[module]:
                visit(target, (*above, module))
            done.add(module)

    for module in targets:
        visit(module, ())


def test_a_function_is_read_at_a_glance() -> None:
    functions = [
        (node.end_lineno - node.lineno + 1, f"{path.name}:{node.name}")
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None
    ]
    assert not [f for f in functions if f[0] > 60], "a function has at most 60 lines"


def test_a_room_has_at_most_14_files() -> None:
    rooms: dict[Path, int] = {}
    for path in FILES:
        if path.name != "__init__.py":
            rooms[path.parent] = rooms.get(path.parent, 0) + 1
    assert not {str(room): n for room, n in rooms.items() if n > 14}


def public_names(path: Path) -> set[str]:
    """What a file defines at its top, but for type variables and overloads."""
    found: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign) and "TypeVar" not in ast.dump(node.value):
            found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found.add(node.target.id)
    return {name for name in found if not name.startswith("_")}


def test_a_public_name_has_one_home() -> None:
    """A command (cli, demo) is named after what it does; all else is defined once."""
    homes: dict[str, list[str]] = {}
    for path in FILES:
        if room_of(module_of(path)) not in ("cli", "api") and "migrations" not in path.parts:
            for name in public_names(path):
                homes.setdefault(name, []).append(module_of(path))
    assert not {name: found for name, found in homes.items() if len(found) > 1 and name not in INTERFACE}
