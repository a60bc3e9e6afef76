"""Settings: precedence, every kind of mistake with its place and remedy, and the round trip through a run folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import pytest
import yaml

from prefiere import recipe
from prefiere.asked import foreign, pages
from prefiere.methods import METHODS
from prefiere.recipe import RecipeError
from prefiere.run import Run
from prefiere.settings import DPO, SFT

BASE = {"model": "m", "data": "d", "out": "o"}


def dpo(*overrides: str, path: Path | None = None, **flags: object) -> DPO:
    settings = recipe.load("dpo", path, {**BASE, **flags}, overrides)
    assert isinstance(settings, DPO)
    return settings


def write(folder: Path, text: str) -> Path:
    path = folder / "r.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_defaults_then_recipe_then_flags_then_overrides(tmp_path: Path) -> None:
    path = write(tmp_path, "method: dpo\nmodel: from-recipe\nbeta: 0.2\nseed: 1\nmax_length: 64\n")
    s = recipe.load("dpo", path, {"data": "d", "out": "o", "seed": 2}, ["seed=3"])
    assert isinstance(s, DPO)
    assert (s.model, s.beta, s.seed, s.max_length, s.batch_size) == ("from-recipe", 0.2, 3, 64, 32)
    assert recipe.load("dpo", path, {"data": "d", "out": "o", "seed": 2}).seed == 2


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("learning_rate=2e-4", "learning_rate", 2e-4),  # YAML 1.1 reads 2e-4 as text
        ("learning_rate=auto", "learning_rate", "auto"),
        ("lora=false", "lora", False),
        ("max_grad_norm=none", "max_grad_norm", None),
        ("max_grad_norm=null", "max_grad_norm", None),
        ("max_grad_norm=", "max_grad_norm", None),
        ("quantize=none", "quantize", "none"),
        ("report_to=wandb", "report_to", ["wandb"]),
        ("report_to=[wandb, mlflow]", "report_to", ["wandb", "mlflow"]),
        ("columns={prompt: señal}", "columns", {"prompt": "señal"}),
        ("lora_target_modules=.*q_proj|.*v_proj", "lora_target_modules", ".*q_proj|.*v_proj"),
        ("eval_data=a=b.jsonl", "eval_data", "a=b.jsonl"),
        ("sample_prompts=prompts.txt", "sample_prompts", "prompts.txt"),
        ("sample_prompts=8", "sample_prompts", 8),
        ("peft_config={peft_type: IA3}", "peft_config", {"peft_type": "IA3"}),
        ("method=dpo", "method", "dpo"),
    ],
)
def test_a_value_is_read_as_meant(text: str, key: str, value: object) -> None:
    assert getattr(dpo(text), key) == value


@pytest.mark.parametrize("method", METHODS)
def test_none_is_taken_by_every_setting_that_has_such_a_word(method: str) -> None:
    """Of REINFORCE, ``baseline`` is mean or none, where none is a word and not the absence of a value."""
    fields = METHODS[method].settings.model_fields
    worded = [key for key, field in fields.items() if "none" in get_args(field.annotation)]
    needs = {"reward": "r"} if "reward" in fields else {}
    made = recipe.load(method, None, {**BASE, **needs}, [f"{key}=none" for key in worded])
    assert {key: getattr(made, key) for key in worded} == dict.fromkeys(worded, "none")
    assert ("baseline" in worded) == (method == "reinforce")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("beta=-1", "beta=-1: beta must be a number above 0, not -1."),
        ("beta=.inf", "beta must be a number above 0, not inf"),
        ("learning_rate=fast", "learning_rate must be a number above 0 or auto, not 'fast'"),
        ("batch_size=yes", "batch_size must be a whole number from 1, not true"),
        ("batch_size=2.5", "batch_size must be a whole number from 1, not 2.5"),
        ("loss_type=dpo", "loss_type must be sigmoid, ipo, hinge, robust, simpo, orpo, cpo or kto, not 'dpo'"),
        ("label_smoothing=0.5", "label_smoothing must be a number from 0 up to, not including, 0.5, not 0.5"),
        ("lam=0.9", "lam is a setting of method ppo, not of dpo."),
        ("report_to=[wandb, excel]", "report_to must be a list of tensorboard | wandb | trackio | mlflow"),
        ("betta=1", "betta is not a setting. Did you mean beta?"),
        ("zzzzzz=1", "zzzzzz is not a setting. `prefiere recipe show dpo` lists them all."),
        ("completion_only_loss=true", "completion_only_loss is a setting of method sft, not of dpo."),
        ("max_length={a: 1}", "max_length holds nested keys (a). Keys are flat"),
        ("seed=[", "seed=[: the value is not valid YAML"),
        ("method=sft", "this is a recipe for `prefiere sft`, not for `prefiere dpo`"),
        ("method=trpo", "method must be one of sft, dpo, reward, ppo, rloo, grpo, reinforce, not 'trpo'"),
        ("early_stopping_patience=3", "early_stopping_patience needs a metric to watch"),
    ],
)
def test_a_bad_value_is_one_clear_line(text: str, message: str) -> None:
    with pytest.raises(RecipeError) as e:
        dpo(text)
    assert message in str(e.value)
    assert "\n" not in str(e.value)


def test_what_is_missing_is_named() -> None:
    with pytest.raises(
        RecipeError, match=r"^data is missing: give --data or write `data:` in the recipe \(file, folder"
    ):
        recipe.load("dpo", None, {"model": "m", "out": "o"})


def test_settings_that_do_not_agree() -> None:
    with pytest.raises(RecipeError, match=r"^quantize=nf4: quantize holds a frozen base"):
        dpo("quantize=nf4", "lora=false")
    with pytest.raises(RecipeError, match=r"^lora_r=4: lora_r is for peft_config to say"):
        dpo("lora_r=4", "peft_config=adapter_config.json")
    assert dpo("quantize=nf4").quantize == "nf4"


def test_all_disagreements_are_said_at_once_beside_reward_weights() -> None:
    given = {"model": "m", "data": "d", "out": "o", "reward": ["a", "b"]}
    words = ["quantize=nf4", "lora=false", "reward_weights=[1]", "reward_ensemble=min", "target_kl=6", "kl_coef=0"]
    with pytest.raises(RecipeError) as e:
        recipe.load("rloo", None, given, words)
    assert str(e.value).splitlines()[1:] == [
        "  quantize=nf4: quantize holds a frozen base, and full fine-tuning has none: set lora to true or auto.",
        "  reward_weights=[1]: reward_weights needs one number for each reward, 2 in all.",
        "  reward_weights=[1]: reward_weights is a sum, and reward_ensemble another way: leave one of the two out.",
        "  target_kl=6: target_kl steers kl_coef: start it above 0.",
    ]


@pytest.mark.parametrize(
    ("key", "value", "ours"),
    [
        ("per_device_train_batch_size", 1, "batch_size"),
        ("gradient_accumulation_steps", 1, "batch_size"),
        ("bf16", True, "dtype"),
        ("finetuning_type", "freeze", "lora"),
        ("stage", "dpo", "method"),
        ("sequence_len", 1, "max_length"),
        ("optim", "sgd", "nothing"),
        ("warmup_ratio", 1, "warmup_steps"),
    ],
)
def test_a_key_of_another_tool_that_differs_names_ours(tmp_path: Path, key: str, value: object, ours: str) -> None:
    with pytest.raises(RecipeError, match=rf"r\.yaml:2: {key} is not a setting here; write {ours}\b"):
        dpo(path=write(tmp_path, f"beta: 0.1\n{key}: {value}\n"))


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("pref_beta: 0.3", "beta", 0.3),
        ("pref_ftx: 1", "rpo_alpha", 1),
        ("cutoff_len: 64", "max_length", 64),
        ("lora_rank: 4", "lora_r", 4),
        ("load_in_4bit: true", "quantize", "nf4"),
        ("load_in_4bit: false", "quantize", "none"),
        ("quantization_bit: 8", "quantize", "int8"),
        ("finetuning_type: full", "lora", False),
        ("adapter: qlora", "quantize", "nf4"),
        ("warmup_ratio: 0.2", "warmup_steps", 0.2),
        ("warmup_steps: 20", "warmup_steps", 20),
        ("loss_type: [ipo]", "loss_type", "ipo"),
        ("torch_dtype: float32", "dtype", "float32"),
        ("do_train: true", "beta", 0.1),
    ],
)
def test_a_key_of_another_tool_that_means_the_same_is_read(tmp_path: Path, text: str, key: str, value: object) -> None:
    assert getattr(dpo(path=write(tmp_path, text)), key) == value


def test_the_table_of_foreign_keys_names_settings_that_exist_and_hides_none() -> None:
    ours = {key for model in METHODS.values() for key in model.settings.model_fields}
    assert not ours & set(foreign.HINTS)
    for key, hint in foreign.HINTS.items():
        first = hint.replace(":", " ").replace(",", " ").replace(";", " ").split()[0]
        assert first in ours | {"nothing", "the"}, key
    assert set(foreign._OURS.values()) <= ours
    assert set(foreign._OURS) | set(foreign._VALUES) <= set(foreign.HINTS)


def test_a_mistake_in_a_file_names_file_line_and_key(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"r\.yaml:3: beta must be a number above 0, not 0\."):
        dpo(path=write(tmp_path, "# a comment\nseed: 1\nbeta: 0\n"))
    with pytest.raises(
        RecipeError, match=r"r\.yaml:2: training holds nested keys|r\.yaml:2: training is not a setting"
    ):
        dpo(path=write(tmp_path, "seed: 1\ntraining:\n  beta: 1\n"))
    with pytest.raises(RecipeError, match=r"r\.yaml:3: seed stands here a second time"):
        dpo(path=write(tmp_path, "seed: 1\nbeta: 1\nseed: 2\n"))
    with pytest.raises(RecipeError, match=r"r\.yaml:2: not valid YAML"):
        dpo(path=write(tmp_path, "seed: 1\nbeta: 1: 2\n"))
    with pytest.raises(RecipeError, match=r"r\.yaml: a recipe is lines of"):
        dpo(path=write(tmp_path, "- 1\n"))
    with pytest.raises(RecipeError, match=r"r\.yaml:1: this is a recipe for `prefiere sft`"):
        dpo(path=write(tmp_path, "method: sft\n"))
    with pytest.raises(FileNotFoundError, match="no such recipe file"):
        dpo(path=tmp_path / "missing.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"model: caf\xe9\n")
    with pytest.raises(RecipeError, match="not UTF-8 text at byte 10"):
        dpo(path=tmp_path / "latin.yaml")


def test_an_empty_recipe_is_the_defaults(tmp_path: Path) -> None:
    assert dpo(path=write(tmp_path, "# nothing yet\n")) == dpo()


def test_without_a_command_the_recipe_names_its_method(tmp_path: Path) -> None:
    path = write(tmp_path, "method: sft\nmodel: m\ndata: d\nout: o\n")
    assert isinstance(recipe.load(None, path), SFT)
    with pytest.raises(
        RecipeError, match=r"r\.yaml: no method is named. Write `method: dpo`, or another of sft, dpo, reward"
    ):
        recipe.load(None, write(tmp_path, "model: m\n"))


def test_simpo_has_its_own_beta_unless_given() -> None:
    assert dpo("loss_type=simpo").beta == 2.0
    assert dpo("loss_type=simpo", "beta=2.5").beta == 2.5
    assert dpo().beta == 0.1


def test_an_option_that_a_loss_would_ignore_is_an_error() -> None:
    from prefiere.asked.kinds import LOSSES_WITH
    from prefiere.objectives.preference import LOSSES

    for loss, how in LOSSES.items():
        for key, losses in LOSSES_WITH.items():
            if key != "rpo_alpha":  # a term of its own, added to any loss over pairs
                assert (key in how.options) == (loss in losses), (loss, key)
            text = [f"loss_type={loss}", f"{key}=0.25"]
            if loss in losses:
                assert getattr(dpo(*text), key) == 0.25
            else:
                with pytest.raises(RecipeError, match=rf"^{key}=0.25: {key} has no effect with loss_type {loss}"):
                    dpo(*text)


def test_a_run_keeps_its_settings_exactly(tmp_path: Path) -> None:
    before = dpo("learning_rate=2e-5", "adam_epsilon=1e-8", "columns={prompt: q}", "report_to=mlflow", "lora=true")
    run = Run.create(tmp_path)
    run.recipe = before.model_dump(mode="json")
    assert recipe.load("dpo", tmp_path / "recipe.yaml") == before
    assert recipe.changed(run.recipe, before.model_dump(mode="json")) == []


def test_changed_settings() -> None:
    old = dpo().model_dump(mode="json")
    assert recipe.changed(old, dpo("beta=0.2", "seed=1").model_dump(mode="json")) == ["seed", "beta"]
    free = ["save_steps=7", "report_to=wandb", "out=elsewhere", "tokens_per_microbatch=512", "guard=false"]
    assert recipe.changed(old, dpo(*free).model_dump(mode="json")) == []
    before = {k: v for k, v in old.items() if k != "warmup_steps"} | {"warmup_ratio": 0.2}  # under its former name
    assert recipe.changed(before, dpo("warmup_steps=0.2").model_dump(mode="json")) == []
    assert recipe.changed(before, old) == ["warmup_steps"]
    older = {k: v for k, v in old.items() if k != "dpop_lambda"}  # written before this setting existed
    assert recipe.changed(older, old) == []
    assert recipe.changed(older, dpo("dpop_lambda=1").model_dump(mode="json")) == ["dpop_lambda"]


def test_settings_cannot_be_changed_in_place() -> None:
    with pytest.raises(ValueError, match="frozen"):
        dpo().beta = 1.0


def test_every_setting_is_explained() -> None:
    for method in METHODS:
        for key, kinds, default, meaning in pages.settings_table(method):
            assert kinds, key
            assert default, key
            assert len(meaning) >= 4, key


def test_the_schema_describes_every_setting_and_takes_every_recipe() -> None:
    schema = pages.schema()
    json.dumps(schema, allow_nan=False)
    for name, model in (("SFT", SFT), ("DPO", DPO)):
        properties = schema["$defs"][name]["properties"]
        assert set(properties) == set(model.model_fields)
        assert all("description" in p for p in properties.values())
        assert schema["$defs"][name]["additionalProperties"] is False


RECIPES = sorted((Path(__file__).parents[1] / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.name)
def test_the_shipped_recipes_are_valid(path: Path) -> None:
    settings = recipe.load(None, path)
    assert set(yaml.safe_load(path.read_text(encoding="utf-8"))) >= {"method", "model", "data", "out"}
    assert settings.model_dump()["method"] in METHODS


def test_there_are_shipped_recipes() -> None:
    assert len(RECIPES) >= 4


def test_the_page_of_settings_is_up_to_date() -> None:
    page = Path(__file__).parents[1] / "docs" / "settings.md"
    assert page.read_text(encoding="utf-8") == pages.settings_page(), (
        "run `prefiere recipe show --markdown > docs/settings.md`"
    )


def test_a_recipe_that_stands_for_a_billion_values_is_refused_at_once(tmp_path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
    (tmp_path / "bomb.yaml").write_text("method: dpo\n" + "\n".join(lines) + "\nmodel: *a8\n")
    with pytest.raises(RecipeError, match=r"bomb\.yaml: not a recipe: it stands for more than 10,000 values"):
        recipe.load(None, tmp_path / "bomb.yaml", {"model": "m", "data": "d", "out": "o"})
    (tmp_path / "deep.yaml").write_text("model: " + "[" * 5000)
    with pytest.raises(RecipeError, match=r"deep\.yaml"):
        recipe.load("dpo", tmp_path / "deep.yaml", {"model": "m", "data": "d", "out": "o"})


def test_many_mistakes_are_counted_and_twenty_are_shown(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("".join(f"key{i}: 1\n" for i in range(300)))
    with pytest.raises(recipe.RecipeError) as e:
        recipe.load("dpo", path, {"model": "m", "data": "d", "out": "o"})
    lines = str(e.value).splitlines()
    assert lines[0] == "300 settings to put right:"
    assert lines[20].startswith("  ")
    assert lines[21] == "  and 280 more"
    assert len(lines) <= 23
