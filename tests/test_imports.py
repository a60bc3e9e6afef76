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
GROUND = {"run", "files", "cache", "stats", "world", "settings", "recipe", "methods", "metrics", "console"}
MAY: dict[str, set[str]] = {
    **dict.fromkeys(GROUND, GROUND),
    "objectives": set(),
    "data": {"files", "cache", "run"},
    "tokens": {"files", "cache", "data"},
    "kernels": {"objectives", "tokens"},
    "sample": {"kernels", "tokens"},
    "models": {"kernels", "sample", "tokens", "data", "objectives", "files", "cache"},
    "evaluate": {"models", "kernels", "sample", "tokens", "data", "objectives", *GROUND},
    "plan": {"evaluate", "models", "kernels", "sample", "tokens", "data", "objectives", *GROUND},
    "train": {"plan", "evaluate", "models", "kernels", "sample", "tokens", "data", "objectives", *GROUND},
    "algorithms": {"train", "plan", "evaluate", "models", "kernels", "sample", "tokens", "data", "objectives", *GROUND},
    "estimate": {"algorithms", "train", "plan", "models", "kernels", "sample", "tokens", "data", "objectives", *GROUND},
    "doctor": {"run", "stats", "metrics", "methods", "settings", "files"},
    "report": {"doctor", "run", "stats", "metrics", "methods", "settings", "files"},
    "feedback": {"data", "run", "stats", "files", "settings", "recipe"},
}
EVERYTHING = {"cli", "demo", "launch", "api", "__init__", "__main__"}

WITHOUT_TORCH = [
    "prefiere",
    "prefiere.api",
    "prefiere.cli.main",
    "prefiere.data.formats",
    "prefiere.data.schema",
    "prefiere.cli.feedback",
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
        assert not asks or module_of(path) == "world", f"{path} imports {asks}: prefiere.world is for that"


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
