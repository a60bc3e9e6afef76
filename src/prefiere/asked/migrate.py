"""``prefiere recipe from FILE``: a recipe from a file of TRL, LLaMA-Factory or Axolotl; what it lacks here is said.

Each key is taken over, taken over with a difference that is said, or left out for a reason that is said; what a file
leaves to its tool's defaults is written out where prefiere's are others. No torch here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from prefiere import recipe
from prefiere.asked.axolotl import AXOLOTL
from prefiere.asked.foreign import HINTS, ON_POLICY_HINTS, taken
from prefiere.asked.llamafactory import LLAMA_FACTORY
from prefiere.asked.translation import OF_ALL, Leave, Take, Tool, command_words
from prefiere.asked.trl import TRL
from prefiere.files import visible, without_passwords
from prefiere.methods import METHODS
from prefiere.recipe import RecipeError
from prefiere.settings import PolicyGradient

TOOLS = {"trl": TRL, "llama-factory": LLAMA_FACTORY, "axolotl": AXOLOTL}


@dataclass
class Migration:
    """What became of a file: each of its keys is taken over, idle, or left.

    taken: keys of theirs, and the settings that they became. settings: ours, which are valid together. differs: keys
    that say something a little else here, and what. left: keys without a counterpart, and why. idle: keys that ask for
    nothing. of_tool: settings of ours that stand for the tool's defaults. values: all keys as they were.
    """

    source: str
    tool: str
    settings: dict[str, Any]
    taken: dict[str, tuple[str, ...]] = field(default_factory=dict)
    differs: dict[str, str] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)
    idle: list[str] = field(default_factory=list)
    of_tool: set[str] = field(default_factory=set)
    values: Mapping[str, Any] = field(default_factory=dict)

    def text(self) -> str:
        """The recipe, with what differs and what is left out as comments."""
        lines = [f"# From {_line(self.source)}, a file of {self.tool}, by `prefiere recipe from`."]
        for key, value in self.settings.items():
            lines.append(f"{key}: {_value(value)}" + (f"  # the default of {self.tool}" if key in self.of_tool else ""))
        return "\n".join([*lines, *(f"# {line}" for line in self.lines())]) + "\n"

    def lines(self) -> list[str]:
        """What differs and what is left out, a line each under its heading."""
        found: list[str] = []
        for title, about in (("Taken over with a difference:", self.differs), ("Not taken over:", self.left)):
            if about:
                shown = {key: _short(_without_secrets(self.values.get(key), key)) for key in about}
                found += [
                    title,
                    *(f"  {_line(k)}: {shown[k]}: {why.removeprefix('nothing: ')}" for k, why in about.items()),
                ]
        if not self.settings.keys() & {"eval_size", "eval_data"}:
            found.append(
                "Held out by prompt: a tenth of data, at most 512 examples (eval_size: 0 trains on all of it)."
            )
        if self.idle:
            found.append(f"Asks for nothing: {', '.join(map(_line, self.idle))}")
        return found


def migrate(path: str | Path, tool: str | None = None, method: str | None = None) -> Migration:
    """Translate a file. tool, method: where its keys do not say them. Raises RecipeError, naming what to add."""
    keys = _keys_of(path)
    theirs = TOOLS[tool] if tool else _tool_of(str(path), keys)
    if method is not None and theirs is not TRL:
        raise RecipeError(f"{path}: a file of {theirs.name} says its method itself: leave --method out.")
    keys |= {"trainer": method} if method is not None else {}
    told = theirs.method(keys)
    if told is None:
        what = "trainer it is for: add --method dpo (or sft, reward, kto, ppo, rloo, grpo)"
        raise RecipeError(f"{path}: its keys do not say which {what}.")
    ours, said, used = told
    made = Migration(str(path), theirs.name, {"method": ours, **said}, values=keys)
    for key, value in keys.items():
        if key not in used:
            _take_over(made, theirs, key, value)
    for key, value in theirs.defaults(ours, keys).items():
        row = METHODS[ours].settings.model_fields
        if key not in made.settings and key in row and row[key].default != value:
            made.settings[key] = value
            made.of_tool.add(key)
    _make_valid(made)
    order = [*METHODS[ours].settings.model_fields]
    made.settings = {key: made.settings[key] for key in order if key in made.settings}
    return made


def _take_over(made: Migration, tool: Tool, key: str, value: Any) -> None:
    """Take one key over, or say why not."""
    method = str(made.settings["method"])
    model = METHODS[method].settings
    rule = tool.rules.get(key) or OF_ALL.get(key)
    if value is None or (_asks_nothing(value) and rule is None and key not in model.model_fields):
        made.idle.append(key)
        return
    exact = taken(key, value)
    if rule is not None:
        found = rule(value, made.values)
    elif key in model.model_fields:
        found = Take({key: value})
    elif exact is not None and exact.keys() <= model.model_fields.keys():
        found = Take(exact)
    else:
        hints = HINTS | (ON_POLICY_HINTS if issubclass(model, PolicyGradient) else {})
        others = [name for name, row in METHODS.items() if key in row.settings.model_fields]
        elsewhere = f"a setting of method {', '.join(others)} alone" if others else "unknown to prefiere"
        found = Leave(hints.get(key) or elsewhere)
    if isinstance(found, Leave):
        if _asks_nothing(value):
            made.idle.append(key)
        else:
            made.left[key] = found.why
        return
    for ours, said in found.settings.items():
        if ours not in model.model_fields:
            made.left[key] = f"{ours} is no setting of method {method}"
        elif made.settings.setdefault(ours, said) != said:
            made.left[key] = f"{ours} is {_short(made.settings[ours])} already, by another key"
    if key not in made.left:
        made.taken[key] = tuple(found.settings)
        if found.differs:
            made.differs[key] = found.differs


def _make_valid(made: Migration) -> None:
    """Leave out what cannot be, alone or together, with the reason: what remains is a valid recipe."""
    for _ in range(len(made.settings)):
        fields = METHODS[str(made.settings["method"])].settings.model_fields
        missing = {key: "?" for key, f in fields.items() if f.is_required() and key not in made.settings}
        try:
            recipe.load(None, None, {**missing, **made.settings})
            return
        except RecipeError as e:
            problems = e.problems
        for problem in problems:
            key = problem.key
            if key is None or key == "method" or key not in made.settings:
                raise RecipeError(f"{made.source}: {problem.line}")
            stands = f"; {_value(fields[key].default)}, the default, stands in its place" if key in fields else ""
            theirs = next((name for name, became in made.taken.items() if key in became), key)
            made.left[theirs] = problem.line.removesuffix(".") + stands
            made.values = {theirs: made.settings[key], **made.values}
            made.taken.pop(theirs, None)
            del made.settings[key]
            made.of_tool.discard(key)


def _asks_nothing(value: Any) -> bool:
    """Whether a value asks for nothing; 0 is a number like others."""
    return value is False or (isinstance(value, str | list | dict) and value in ("", "none", "no", [], {}))


def _keys_of(path: str | Path) -> dict[str, Any]:
    """The keys of a YAML file, or of the first command of TRL in any other text. Raises as `recipe.read_keys`."""
    if Path(path).suffix in (".yaml", ".yml", ".json"):
        return {key: value for key, (value, _) in recipe.read_keys(path).items()}
    try:
        found = command_words(_text_of(Path(path)))
    except (OSError, UnicodeDecodeError) as e:
        raise RecipeError(f"{path}: cannot be read: {e}.") from e
    except ValueError as e:
        raise RecipeError(f"{path}: {e}.") from e
    if found is None:
        raise RecipeError(f"{path}: no YAML file (.yaml), and no command such as `trl dpo --learning_rate 1e-6` in it.")
    trainer, options, others = found
    values = {k: _value_of(v) if isinstance(v, str) else v for k, v in options.items()}
    more = {"further commands": others} if others else {}
    return {"trainer": trainer, **{k: float(v) if _is_number(v) else v for k, v in values.items()}, **more}


def _text_of(path: Path) -> str:
    """A file's text; of a notebook, its cells of code. Raises OSError, and ValueError for what is none."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".ipynb":
        return text
    try:
        cells = json.loads(text)["cells"]
        return "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    except (ValueError, KeyError, TypeError, RecursionError) as e:
        raise ValueError("no notebook: it holds no cells") from e


def _value_of(word: str) -> Any:
    """The YAML value of a word of a command; of any other word itself (``@x``)."""
    try:
        return recipe.value_of(word)
    except (yaml.YAMLError, ValueError):
        return word


def _is_number(value: Any) -> bool:
    """Whether it is a number that YAML reads as text: 1e-6."""
    if not isinstance(value, str):
        return False
    try:
        float(value)
    except ValueError:
        return False
    return True


def _tool_of(path: str, keys: Mapping[str, Any]) -> Tool:
    """The tool whose keys a file has most of. Raises RecipeError where no tool's are more."""
    counts = sorted(((len(tool.marks & keys.keys()), name) for name, tool in TOOLS.items()), reverse=True)
    if counts[0][0] == counts[1][0]:
        raise RecipeError(f"{path}: its keys do not say whose file it is: add --tool {' or '.join(TOOLS)}.")
    return TOOLS[counts[0][1]]


def _value(value: Any) -> str:
    """A value on one line of YAML."""
    return yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("\n...\n").strip()


def _short(value: Any) -> str:
    said = _line(_value(value))
    return said if len(said) <= 80 else f"{said[:77]}..."


_SECRET = (
    r"(?<!pad_)(?<!bos_)(?<!eos_)(?<!unk_)(?<!stop_)token|secrets?|passw(?:or)?ds?|credentials?|(?<!num_)(?:api)?keys?"
    r"|authorization"
)
_SECRET_NAME = re.compile(rf"(?:.*[\W_])?(?:{_SECRET})(?:[\W_].*)?", re.IGNORECASE | re.DOTALL)
_SECRET_EQUATION = re.compile(rf"\b((?:\w*_)?(?:{_SECRET})(?:_\w*)?=)[^\s&]+", re.IGNORECASE)


def _without_secrets(value: Any, name: str = "") -> Any:
    """A value to show: *** for what its name says is a secret (``hub_token``), anywhere in it. A key may be a number or
    a date to YAML; yes, no and nothing are no secrets."""
    secret = _SECRET_NAME.fullmatch(name) is not None
    if isinstance(value, Mapping):
        return {k: _without_secrets(v, name if secret else str(k)) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_without_secrets(v, name) for v in value]
    if secret and value is not None and not isinstance(value, bool):
        return "***"
    return without_passwords(_SECRET_EQUATION.sub(r"\1***", value)) if isinstance(value, str) else value


def _line(text: str) -> str:
    return visible(" ".join(text.split()))
