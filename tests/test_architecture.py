"""docs/architecture.md names every file of the package once, and nothing that is not there."""

from __future__ import annotations

import ast
import re
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SRC = ROOT / "src" / "prefiere"
TEXT = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
TREE = TEXT.split("```")[1]
PROSE = re.sub(r"```.*?```", "", TEXT, flags=re.DOTALL)
QUOTED = sorted(set(re.findall(r"`([^`\n]+)`", PROSE)))
HOMES = re.findall(r"^\| `(\w+)` \|.*\| `([\w/]+\.py)` \|$", PROSE, flags=re.MULTILINE)
LINKED = sorted({link for link in re.findall(r"\]\(([^)]+)\)", PROSE) if "://" not in link})


def listed() -> list[str]:
    """The paths of the tree, folders with a slash at their end, in its order."""
    found: list[str] = []
    above: list[str] = []
    for line in TREE.strip("\n").splitlines():
        match = re.fullmatch(r"((?:  )*)(\S+) {2,}(\S.*)", line)
        assert match, f"not 'name  what it is': {line!r}"
        depth, name = len(match[1]) // 2, match[2]
        assert depth <= len(above), line
        above[depth:] = [name] if name.endswith("/") else []
        found.append("".join(above[:depth]) + name)
    return found


def on_disk() -> set[str]:
    """Every file of the package but the empty ``__init__.py`` of rooms."""
    files = (p for p in SRC.rglob("*") if p.is_file() and p.suffix != ".pyc")
    return {p.relative_to(SRC).as_posix() for p in files if p.name != "__init__.py" or p.stat().st_size}


def without_a_line(files: set[str], lines: list[str]) -> set[str]:
    """Files that no line names. A folder of which no content is listed stands for its data, but for no code."""
    closed = [d for d in lines if d.endswith("/") and not any(x != d and x.startswith(d) for x in lines)]
    return {f for f in files - set(lines) if f.endswith(".py") or not any(f.startswith(d) for d in closed)}


def test_the_tree_names_every_file_once() -> None:
    lines = listed()
    assert not [name for name, n in Counter(lines).items() if n > 1], "named twice"
    missing = sorted(without_a_line(on_disk(), lines))
    assert not missing, "give each a line in docs/architecture.md, and say there what it is for"
    gone = [name for name in lines if not (SRC / name).exists() or (SRC / name).is_dir() != name.endswith("/")]
    assert not gone, "these are not there"


def test_what_the_tree_leaves_out_is_noticed() -> None:
    lines = ["run.py", "demo/", "demo/assets/"]
    assert without_a_line({"run.py", "demo/assets/a.csv"}, lines) == set()
    assert without_a_line({"files.py", "demo/a.csv", "demo/assets/a.py"}, lines) == {
        "files.py",
        "demo/a.csv",
        "demo/assets/a.py",
    }


def names_of(path: Path) -> tuple[set[str], set[str]]:
    """What a module defines at its top, and every function, method and annotated field in it, those of a class as
    ``Class.name`` as well."""
    tree, inside = ast.parse(path.read_text(encoding="utf-8")), set[str]()
    for node in ast.walk(tree):
        inside |= defined(node)
        if isinstance(node, ast.ClassDef):
            inside |= {f"{node.name}.{name}" for child in node.body for name in defined(child)}
    return {name for node in tree.body for name in defined(node)}, inside


def defined(node: ast.AST) -> set[str]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {node.name}
    if isinstance(node, ast.Assign | ast.AnnAssign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        return {t.id for t in targets if isinstance(t, ast.Name)}
    return set()


FOUND = {path: names_of(path) for path in SRC.rglob("*.py")}
AT_TOP = {name for top, _ in FOUND.values() for name in top}
ANYWHERE = {name for _, inside in FOUND.values() for name in inside}
IN_MODULES = {f"{path.stem}.{name}" for path, (top, _) in FOUND.items() for name in top}
COLUMNS = set(re.findall(r"`([^`]+)`", (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")))


def exists(quoted: str) -> bool:
    """Whether a file, folder, class, function, setting or column of this name is there; commands are not looked at."""
    name = quoted.split("(")[0]
    if re.search(r"[ =:]|^_", name):
        return True
    if "/" in name:
        return any((base / name).exists() for base in (ROOT, SRC))
    if name.endswith((".py", ".html")):
        return any(path.name == name for path in SRC.rglob("*.*"))
    if "." in name:
        return name in IN_MODULES | ANYWHERE
    if name[0].isupper():
        return name in AT_TOP
    return name in ANYWHERE | COLUMNS or (SRC / name).is_dir()


@pytest.mark.parametrize("name", QUOTED)
def test_what_is_named_is_there(name: str) -> None:
    assert exists(name)


@pytest.mark.parametrize(("word", "home"), HOMES)
def test_a_word_is_at_home_where_it_says(word: str, home: str) -> None:
    assert word in FOUND[SRC / home][0]


@pytest.mark.parametrize("link", LINKED)
def test_what_is_linked_is_there(link: str) -> None:
    assert (ROOT / "docs" / link).exists()


@pytest.mark.parametrize(
    "name",
    ["plan.nowhere", "Plan.nowhere", "Nobody", "nowhere", "plan/nowhere.py", "nowhere.py", "nowhere/", "gae.ppo"],
)
def test_what_is_not_there_is_noticed(name: str) -> None:
    assert not exists(name)
