"""The table of methods is where methods are: commands, functions and pages follow it, and a row and a file add one."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from typer.testing import CliRunner

import prefiere
import runs
from prefiere import recipe
from prefiere.api import methods
from prefiere.asked.kinds import NEEDS_REFERENCE
from prefiere.cli.main import app
from prefiere.methods import METHODS
from prefiere.objectives.preference import LOSSES
from prefiere.settings import PolicyGradient


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_a_function_and_has_a_home(name: str) -> None:
    assert name in prefiere.__all__
    function = getattr(prefiere, name)
    assert function is getattr(methods, name)
    assert inspect.signature(function) == inspect.signature(methods.dpo)
    home = find_spec(METHODS[name].home)
    assert home is not None
    assert "\ndef build(session: Session) ->" in Path(str(home.origin)).read_text()


def test_the_table_and_the_losses_agree_about_the_reference() -> None:
    assert {name for name, loss in LOSSES.items() if loss.needs_reference} == NEEDS_REFERENCE
    for name, loss in LOSSES.items():
        settings = recipe.load("dpo", None, {"model": "m", "data": "d", "out": "o", "loss_type": name})
        assert METHODS["dpo"].reference(settings) == loss.needs_reference
        assert METHODS["dpo"].reads(settings) == ("judgements" if loss.per == "completion" else "pairs")


def test_a_policy_gradient_method_has_no_setting_that_only_its_neighbour_reads() -> None:
    shared = PolicyGradient.model_fields.keys()
    for name, method in METHODS.items():
        if method.family == "policy":
            source = Path(str(find_spec(method.home).origin)).read_text()  # type: ignore[union-attr]
            own = method.settings.model_fields.keys() - shared - {"critic_learning_rate", "share_critic"}
            assert all(f"settings.{key}" in source for key in own), name


ALGORITHM = '''
"""A toy: every answer's tokens are credited with its reward alone."""

from functools import partial

from prefiere.algorithms.on_policy import OnPolicy


def build(session):
    return OnPolicy.of(session, advantages)


def advantages(reward_CL, rollout):
    whole_C = reward_CL.sum(1, keepdim=True).expand_as(reward_CL)
    return whole_C, whole_C
'''
ROW = """
from prefiere.methods import METHODS, Method
from prefiere.settings import PolicyGradient

METHODS["toy"] = Method("toy", PolicyGradient, "policy", "toy_algorithm", "Toy", "Credit each token with all.",
                        lambda s: "prompts", lambda s: True)

from prefiere.cli.main import main

main()
"""


@pytest.mark.long
def test_a_row_and_a_file_add_an_algorithm(tmp_path: Path) -> None:
    """Trained from the command line, listed by it, and named on its report's page."""
    (tmp_path / "toy_algorithm.py").write_text(ALGORITHM)
    (tmp_path / "row.py").write_text(ROW)
    runs.ragged_folder(tmp_path / "model")
    runs.prompts_file(tmp_path / "prompts.txt")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}

    def prefiere_(*arguments: str) -> str:
        command = [sys.executable, str(tmp_path / "row.py"), *arguments]
        done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    assert "Credit each token with all" in prefiere_("--help")
    assert "reward_ensemble" in prefiere_("recipe", "show", "toy")
    small = ["batch_size=8", "max_steps=2", "max_new_tokens=6", "eval_size=4", "sample_prompts=4"]
    data = ["--model", "model", "--prompts", "prompts.txt", "--reward", "rewarding:letters", "--out", "run"]
    result = json.loads(prefiere_("toy", *data, *small, "--json"))
    assert (result["state"], result["step"]) == ("finished", 2)
    assert "<dt>method</dt><dd><bdi>Toy</bdi></dd>" in (tmp_path / "run" / "report.html").read_text()


@pytest.mark.parametrize("name", METHODS)
def test_recipe_show_and_validate_know_every_method(name: str, tmp_path: Path) -> None:
    found = CliRunner().invoke(app, ["recipe", "show", name])
    assert found.exit_code == 0, found.output
    assert f"prefiere {name}" in found.output
    path = tmp_path / "recipe.yaml"
    path.write_text(f"method: {name}\nbatch_size: 4\n")
    found = CliRunner().invoke(app, ["recipe", "validate", str(path)])
    assert found.exit_code == 0, found.output
    assert f"a valid recipe for prefiere {name}" in found.output.replace("\n", " ")


def test_recipe_show_names_the_methods_where_there_is_no_such() -> None:
    found = CliRunner().invoke(app, ["recipe", "show", "trpo"])
    assert found.exit_code == 2
    assert "trpo is not a method: there are sft, dpo, reward, ppo, rloo, grpo, reinforce." in found.stderr
