"""The types of settings are those that the code has, and a type checker finds what is wrong with a call."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import prefiere
from prefiere.api import typed
from prefiere.methods import METHODS

ROOT = Path(__file__).parents[2]
STUB = Path(typed.__file__).with_name("methods.pyi")


def test_the_stub_is_what_the_settings_say() -> None:
    assert STUB.read_text(encoding="utf-8") == typed.stub(), (
        "run `python -m prefiere.api.typed > src/prefiere/api/methods.pyi`"
    )


def test_every_method_and_every_setting_is_in_it() -> None:
    found = {n.name: n for n in ast.parse(STUB.read_text()).body if isinstance(n, ast.FunctionDef)}
    assert found.keys() == METHODS.keys()
    for name, function in found.items():
        arguments = {a.arg for a in function.args.kwonlyargs}
        assert METHODS[name].settings.model_fields.keys() - {"method"} <= arguments
        assert [a.arg for a in function.args.args] == ["recipe"]
        assert list(inspect.signature(getattr(prefiere, name)).parameters) == ["recipe", "fresh", "settings"]


CALLS = """
from pathlib import Path
from methods import dpo, ppo

dpo(model="m", data=[{"prompt": "a"}], out=Path("o"), beta=0.2, loss_type="ipo", learning_rate="auto")
dpo("recipe.yaml", fresh=True, columns={"prompt": "question", "weight": None}, on_log=lambda step, row: print(row))
ppo(model="m", prompts=["a", "b"], out="o", reward=lambda completions, **kwargs: [0.0], reward_weights=[1, 0.5])
dpo(betta=0.2)  # wrong
dpo(beta="much")  # wrong
dpo(loss_type="sigmoidal")  # wrong
dpo(data=7)  # wrong
dpo(model=print)  # wrong
dpo(num_generations=4)  # wrong
ppo(reward=3.0)  # wrong
dpo(on_log=3)  # wrong
dpo(lora="yes")  # wrong
"""


def test_a_type_checker_tells_right_calls_from_wrong_ones(tmp_path: Path) -> None:
    (tmp_path / "methods.pyi").write_text(STUB.read_text())
    (tmp_path / "calls.py").write_text(CALLS)
    options = ["--ignore-missing-imports", "--no-site-packages", "--follow-imports=silent", "--cache-dir=cache"]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *options, "calls.py"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    said = {int(m[1]) for m in re.finditer(r"^calls\.py:(\d+): error", done.stdout, re.MULTILINE)}
    assert said == {i for i, line in enumerate(CALLS.splitlines(), 1) if line.endswith("# wrong")}, done.stdout


@pytest.mark.parametrize("page", ["README.md", "docs/python.md"])
def test_calls_in_the_documentation_exist(page: str) -> None:
    """Imported names, and the settings of every call of one of them that trains."""
    stub = {n.name: n for n in ast.parse(STUB.read_text()).body if isinstance(n, ast.FunctionDef)}
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    called = 0
    for node in (n for block in blocks for n in ast.walk(ast.parse(block))):
        if isinstance(node, ast.ImportFrom):
            assert {a.name for a in node.names} <= set(prefiere.__all__)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in stub:
            known = {a.arg for a in stub[node.func.id].args.kwonlyargs}
            assert {k.arg for k in node.keywords} <= known
            called += 1
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and isinstance(node.func.value, ast.Name)
        ):
            assert node.func.value.id != "run" or hasattr(prefiere.Run, node.func.attr)
    assert called
