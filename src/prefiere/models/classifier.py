"""Reward models as transformers holds them: AutoModelForSequenceClassification with one label.

On a decoder the score is read at the answer's last token, its end token included, on packed rows; an encoder runs on
padded rows with its own pooler and classifier. The score head computes in fp32 whatever surrounds it, is trained
whatever the adapter, and starts at zero, so that every pair is a tie before training.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import (
    PeftConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    load_peft_weights,
    set_peft_model_state_dict,
)
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as hf_logging

from prefiere.asked.language import in_words
from prefiere.kernels import attention
from prefiere.kernels.linear import route
from prefiere.models import quantize
from prefiere.models.adapter import Adapter, make_room
from prefiere.models.check.rows import probe
from prefiere.models.load import loaded
from prefiere.models.score_head import KEY, SAVED, EncoderTrunk, Head, Normalisation, head_of, rescale
from prefiere.models.source import ModelError, Source, adapter_config, config_of, positions, readable
from prefiere.models.trunk import POLICY, Trunk, activate
from prefiere.tokens.pack import PackedBatch

# -- what a folder holds ----------------------------------------------------------------------------------------------


def is_classifier(source: Source) -> bool:
    """Whether a folder holds a score head already. Raises ModelError for one with several labels."""
    if source.adapter:
        return str(adapter_config(source.adapter).task_type) in ("SEQ_CLS", "TaskType.SEQ_CLS")
    config = config_of(source)
    if not any(a.endswith("ForSequenceClassification") for a in config.architectures or []):
        return False
    if config.num_labels != 1:
        raise ModelError(f"{source.base} has {config.num_labels} labels: a reward model has one, the score.")
    return True


def _one_label(source: Source) -> Any:
    config = config_of(source)
    config.num_labels = 1
    return config


def skeleton(source: Source) -> PreTrainedModel:
    """The model without its weights: its shape. Raises ModelError where transformers has no classifier of its kind."""
    with readable(source.base), torch.device("meta"):
        model: PreTrainedModel = AutoModelForSequenceClassification.from_config(
            _one_label(source), trust_remote_code=source.trust
        )
    return model


def decodes(model: PreTrainedModel) -> bool:
    """Whether the score is a bias-free linear map of the last token's state, which is how decoders are classified."""
    head = getattr(model, "score", None)
    return isinstance(head, nn.Linear) and head.bias is None


def room(source: Source, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The longest row that an encoder takes: its tokenizer may know of positions that are set apart."""
    limits = [n for n in (positions(source), tokenizer.model_max_length) if n is not None and n < 10**9]
    return min(limits, default=None)


def ends(source: Source, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What ends an encoder's text: its end token, or the separator."""
    found = [i for i in (tokenizer.eos_token_id, tokenizer.sep_token_id) if i is not None]
    if not found:
        raise ModelError(f"{source.base}: its tokenizer has neither eos_token nor sep_token: set one of them.")
    return found


def normalisation(source: Source) -> Normalisation | None:
    """What was saved with a reward model; None where nothing was."""
    if source.adapter:
        path = Path(source.adapter) / SAVED
        saved = json.loads(path.read_text()) if path.is_file() else None
    else:
        saved = getattr(config_of(source), KEY, None)
    return Normalisation(**saved) if saved else None


# -- loading ----------------------------------------------------------------------------------------------------------


def load_reward(
    source: Source,
    *,
    compute: torch.dtype,
    adapter: Adapter | None,
    device: torch.device | str = "cpu",
    gradient_checkpointing: bool = False,
    max_length: int = 1024,
    packed: bool | None = None,
    typed: bool = False,
    train: bool = True,
) -> tuple[Trunk, str]:
    """The trunk of a reward model, and in words how its rows run; arguments as for `load_policy`.

    A source without a score head gets one of zeros. To ``train`` on, the scale of a normalised one is taken back out
    of its head, so that differences of scores are log-odds. The head of a decoder is ``trunk.heads[POLICY]``.
    """
    has_head = is_classifier(source)
    adapted = adapter is not None or source.adapter is not None
    options = {} if has_head and not source.adapter else {"config": _one_label(source)}
    kind = AutoModelForSequenceClassification
    with _quiet():  # of a head that is missing: it is made here
        base, missing = loaded(source, compute if adapted else torch.float32, device, kind, **options)
    name = install_head(base, source)
    fresh = any(key.startswith(f"{name}.") for key in missing)
    if has_head and not source.adapter and missing:
        lost = ", ".join(sorted(missing)[:2])
        raise ModelError(f"{source.base} says it is a classifier, but lacks weights of its score head ({lost}).")
    if fresh and not (has_head and source.adapter):
        for p in base.get_submodule(name).parameters():
            nn.init.zeros_(p)
    decoder = decodes(base)
    packed, how = _rows(base, decoder, packed, max_length)
    if packed:
        base.set_attn_implementation(attention.NAME)
    quantize.norms_in_fp32(base)
    model: PreTrainedModel | PeftModel = _adapted(base, source, adapter, name, missing) if adapted else base
    for p in model.parameters() if adapted else ():
        if p.requires_grad:
            p.data = p.data.float()
    route(model)
    trunk = Trunk(model, packed=packed) if decoder else EncoderTrunk(model, typed=typed)
    if decoder:
        trunk.heads[POLICY] = head_of(trunk)
    saved = normalisation(source)
    if saved is not None and train:
        rescale(head_of(trunk), saved.std)
        trunk.lm.config.__dict__.pop(KEY, None)
    if gradient_checkpointing:
        trunk.checkpoint_gradients()
        if adapted:
            trunk.lm.enable_input_require_grads()
    return trunk.train(), how


@contextmanager
def _quiet() -> Iterator[None]:
    before = hf_logging.get_verbosity()
    hf_logging.set_verbosity_error()
    try:
        yield
    finally:
        hf_logging.set_verbosity(before)


def _rows(base: PreTrainedModel, decoder: bool, packed: bool | None, max_length: int) -> tuple[bool, str]:
    if not decoder:
        return False, in_words("why.both_ways", model=type(base).__name__)
    if packed is None:
        weights = torch.randn(base.config.get_text_config().hidden_size, generator=torch.Generator().manual_seed(0))

        def read(trunk: Trunk, batch: PackedBatch) -> Tensor:
            states = trunk.states(batch, batch.predictor_N, batch.owner_N, None, batch.reads).float()
            return states @ weights.to(states.device)

        reason = probe(base, max_length, read)
        return reason is None, in_words("why.padded", why=reason) if reason else in_words("why.packed")
    return packed, in_words("why.packed" if packed else "why.padded_as_asked")


def install_head(model: PreTrainedModel, source: Source) -> str:
    """Put a `Head` in the place of the last linear map to one number; returns its name."""
    found = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear) and m.out_features == 1]
    if not found:
        raise ModelError(f"{source.base} has no linear score head ({type(model).__name__}).")
    name, old = found[-1]
    head = Head(old.in_features, 1, bias=old.bias is not None, device=old.weight.device, dtype=old.weight.dtype)
    head.weight, head.bias = old.weight, old.bias
    model.set_submodule(name, head)
    return name


def scoring_config(config: PeftConfig, head: str, fresh: Iterable[str] = ()) -> PeftConfig:
    """An adapter's configuration as one that classifies, with the score head trained beside it.

    head: the name of the linear map within the model. fresh: names of further modules that no checkpoint holds: they
    are trained whole, and saved. Raises ModelError for a kind of adapter that cannot.
    """
    made: Any = copy.deepcopy(config)
    if not hasattr(made, "modules_to_save"):
        raise ModelError(f"peft_config: {made.peft_type} cannot train a score head beside it: use LORA or its kin.")
    made.task_type, made.inference_mode = "SEQ_CLS", False
    whole = [*(made.modules_to_save or []), head.split(".")[0], *fresh]
    made.modules_to_save = list(dict.fromkeys(whole))
    if fresh and made.target_modules == "all-linear":
        made.exclude_modules = [*(made.exclude_modules or []), *fresh]
    return made


def _fresh_modules(missing: set[str], head: str) -> list[str]:
    """The modules, but for those with the head, whose weights were drawn anew."""
    found = dict.fromkeys(n.rpartition(".")[0] for n in sorted(missing))
    return [n for n in found if n.split(".")[0] != head.split(".")[0]]


def _adapted(base: PreTrainedModel, source: Source, adapter: Adapter | None, name: str, missing: set[str]) -> PeftModel:
    """An adapter of the kind that classifies, with the score head beside it; a source's own weights go on in it.

    missing: names of weights that the base's checkpoint lacks.
    """
    config = scoring_config((adapter or Adapter.saved(str(source.adapter))).config, name, _fresh_modules(missing, name))
    weights = load_peft_weights(str(source.adapter), device="cpu") if source.adapter else {}
    make_room(base, weights)
    try:
        model = get_peft_model(base, config, revision=source.revision)
    except (ValueError, TypeError, AttributeError, ImportError) as e:
        raise ModelError(f"the adapter does not fit {source.base}: {str(e).splitlines()[0]}") from e
    assert isinstance(model, PeftModel)
    if source.adapter:
        _continue(model, source, name, weights)
    activate(model, POLICY)
    return model


def _continue(model: PeftModel, source: Source, head: str, weights: dict[str, Tensor]) -> None:
    whole: Any = model.peft_config[POLICY]
    inside = tuple(f".{n}." for n in whole.modules_to_save)
    own = {n: w for n, w in get_peft_model_state_dict(model).items() if any(i in n for i in inside)}
    lost = sorted(own.keys() - weights.keys())
    if is_classifier(source):
        labels = weights.get(f"base_model.model.{head}.weight")
        if labels is not None and labels.shape[0] != 1:
            raise ModelError(f"{source.adapter} has {labels.shape[0]} labels: a reward model has one, the score.")
        if lost:
            raise ModelError(
                f"{source.adapter} lacks weights that it was trained beside ({lost[0]}), which no checkpoint holds: "
                "they were drawn at random and are gone. Train it again."
            )
    try:
        found: Any = set_peft_model_state_dict(model, own | weights)
    except RuntimeError as e:
        raise ModelError(f"{source.adapter} does not fit {source.base}: {str(e).splitlines()[-1].strip()}") from e
    if found.unexpected_keys:
        name = found.unexpected_keys[0]
        raise ModelError(f"{source.adapter} adapts what a reward model does not have ({name}): merge it first.")
