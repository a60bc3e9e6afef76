"""Reward models as transformers holds them: AutoModelForSequenceClassification with one label.

On a decoder the score is read at the answer's last token, its end token included, on packed rows; an encoder runs on
padded rows with its own pooler and classifier. The score head computes in fp32 whatever surrounds it, is trained
whatever the adapter, and starts at zero, so that every pair is a tie before training.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import (
    PeftConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    load_peft_weights,
    set_peft_model_state_dict,
)
from peft.utils.other import ModulesToSaveWrapper
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as hf_logging

from prefiere.data.batch import PackedBatch, unpack
from prefiere.models import attention, quantize
from prefiere.models.attention import AttentionPlan
from prefiere.models.load import Adapter, ModelError, Source, explain, loaded, positions, probe
from prefiere.models.roles import POLICY, Trunk, activate

SAVED = "reward.json"
"""Beside an adapter, which has no configuration of its own: the normalisation."""
KEY = "prefiere_reward"
"""In the configuration of a whole model: the same."""


@dataclass(frozen=True, slots=True)
class Normalisation:
    """score = logit - ``mean``. ``std`` is what the logits were divided by, so that demonstrations score 0 on average
    with unit scale; a difference of scores times ``std`` is the log-odds that the better answer is preferred.
    ``template``: the setting under which it was trained to read text."""

    mean: float = 0.0
    std: float = 1.0
    template: str = "auto"


class Head(nn.Linear):
    """A linear map in fp32, also under autocast."""

    def forward(self, input: Tensor) -> Tensor:
        with torch.autocast(input.device.type, enabled=False):
            bias = None if self.bias is None else self.bias.float()
            return nn.functional.linear(input.float(), self.weight.float(), bias)


class EncoderTrunk(Trunk):
    """A model that reads prompt and answer at once, both ways: each completion is a padded row of its own.

    ``typed``: the answer's tokens have token type 1, as the tokenizer of a BERT pairs texts.
    """

    def __init__(self, model: PreTrainedModel | PeftModel, *, typed: bool):
        super().__init__(model, packed=False)
        self.typed = typed

    def scores(self, batch: PackedBatch, role: str, plan: AttentionPlan | None = None) -> Tensor:
        """The model's own logit of each completion [C], in fp32."""
        rows = unpack(batch, self.lm.config.pad_token_id or 0)
        options = {}
        if self.typed:
            longest = rows.ids_CL.shape[1]
            before_C = torch.full_like(batch.last_C, longest).scatter_reduce(0, rows.row_N, rows.column_N, "amin")
            column_L = torch.arange(longest, device=before_C.device)
            options["token_type_ids"] = (column_L > before_C[:, None]).long() * rows.mask_CL
        with self.role(role):
            logits = self.model(input_ids=rows.ids_CL, attention_mask=rows.mask_CL, **options).logits
        scores: Tensor = logits[:, 0].float()
        return scores


# -- what a folder holds ----------------------------------------------------------------------------------------------


def is_classifier(source: Source) -> bool:
    """Whether a folder holds a score head already. Raises ModelError for one with several labels."""
    if source.adapter:
        return str(PeftConfig.from_pretrained(source.adapter).task_type) in ("SEQ_CLS", "TaskType.SEQ_CLS")
    config = _config(source)
    if not any(a.endswith("ForSequenceClassification") for a in config.architectures or []):
        return False
    if config.num_labels != 1:
        raise ModelError(f"{source.base} has {config.num_labels} labels: a reward model has one, the score.")
    return True


def _config(source: Source) -> Any:
    try:
        return AutoConfig.from_pretrained(source.base, trust_remote_code=source.trust)
    except (OSError, ValueError) as e:
        raise explain(source.base, e) from e


def _one_label(source: Source) -> Any:
    config = _config(source)
    config.num_labels = 1
    return config


def skeleton(source: Source) -> PreTrainedModel:
    """The model without its weights: its shape. Raises ModelError where transformers has no classifier of its kind."""
    try:
        with torch.device("meta"):
            model: PreTrainedModel = AutoModelForSequenceClassification.from_config(
                _one_label(source), trust_remote_code=source.trust
            )
    except (OSError, ValueError) as e:
        raise explain(source.base, e) from e
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
        saved = getattr(_config(source), KEY, None)
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
    name = _install_head(base, source)
    fresh = any(key.startswith(name) for key in missing)
    if has_head and not source.adapter and fresh:
        raise ModelError(f"{source.base} says it is a classifier, but has no weights of its score head ({name}).")
    if fresh and not (has_head and source.adapter):
        _zero(base.get_submodule(name))
    decoder = decodes(base)
    packed, how = _rows(base, decoder, packed, max_length)
    if packed:
        base.set_attn_implementation(attention.NAME)
    quantize.norms_in_fp32(base)
    model: PreTrainedModel | PeftModel = _adapted(base, source, adapter, name.split(".")[0]) if adapted else base
    for p in model.parameters() if adapted else ():
        if p.requires_grad:
            p.data = p.data.float()
    trunk = Trunk(model, packed=packed) if decoder else EncoderTrunk(model, typed=typed)
    if decoder:
        trunk.heads[POLICY] = head_of(trunk)
    saved = normalisation(source)
    if saved is not None and train:
        _rescale(head_of(trunk), saved.std)
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
        return False, f"padded rows: {type(base).__name__} reads an answer both ways"
    if packed is None:
        weights = torch.randn(base.config.get_text_config().hidden_size, generator=torch.Generator().manual_seed(0))

        def read(trunk: Trunk, batch: PackedBatch) -> Tensor:
            states = trunk.states(batch, batch.predictor_N, batch.owner_N).float()
            return states @ weights.to(states.device)

        reason = probe(base, max_length, read)
        return reason is None, f"padded rows: {reason}" if reason else "packed rows with shared prefixes"
    return packed, "packed rows with shared prefixes" if packed else "padded rows, as asked"


def _install_head(model: PreTrainedModel, source: Source) -> str:
    """Put a `Head` in the place of the last linear map to one number; returns its name."""
    found = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear) and m.out_features == 1]
    if not found:
        raise ModelError(f"{source.base} has no linear score head ({type(model).__name__}).")
    name, old = found[-1]
    head = Head(old.in_features, 1, bias=old.bias is not None, device=old.weight.device, dtype=old.weight.dtype)
    head.weight, head.bias = old.weight, old.bias
    model.set_submodule(name, head)
    return name


@torch.no_grad()
def _zero(head: nn.Module) -> None:
    for p in head.parameters():
        p.zero_()


def head_of(trunk: Trunk) -> Head:
    """The trained score head."""
    heads = [m for m in trunk.lm.modules() if isinstance(m, Head)]
    for wrapper in trunk.lm.modules():
        if isinstance(wrapper, ModulesToSaveWrapper):
            heads = [m for m in wrapper.modules_to_save[POLICY].modules() if isinstance(m, Head)] or heads
    return heads[-1]


def _adapted(base: PreTrainedModel, source: Source, adapter: Adapter | None, head: str) -> PeftModel:
    """An adapter of the kind that classifies, with the score head beside it; a source's own weights go on in it."""
    config = copy.deepcopy(adapter.config) if adapter else PeftConfig.from_pretrained(str(source.adapter))
    if not hasattr(config, "modules_to_save"):
        raise ModelError(f"peft_config: {config.peft_type} cannot train a score head beside it: use LORA or its kin.")
    config.task_type, config.inference_mode = "SEQ_CLS", False
    config.modules_to_save = list(dict.fromkeys([*(config.modules_to_save or []), head]))
    try:
        model = get_peft_model(base, config)
    except (ValueError, TypeError, AttributeError, ImportError) as e:
        raise ModelError(f"the adapter does not fit {source.base}: {str(e).splitlines()[0]}") from e
    assert isinstance(model, PeftModel)
    if source.adapter:
        _continue(model, source, head)
    activate(model, POLICY)
    return model


def _continue(model: PeftModel, source: Source, head: str) -> None:
    weights = load_peft_weights(str(source.adapter), device="cpu")
    own = {n: w for n, w in get_peft_model_state_dict(model).items() if f".{head}." in n}
    labels = next((w.shape[0] for n, w in weights.items() if f".{head}." in n and n.endswith("weight")), 1)
    if labels != 1 and is_classifier(source):
        raise ModelError(f"{source.adapter} has {labels} labels: a reward model has one, the score.")
    try:
        found: Any = set_peft_model_state_dict(model, own | weights)
    except RuntimeError as e:
        raise ModelError(f"{source.adapter} does not fit {source.base}: {str(e).splitlines()[-1].strip()}") from e
    if found.unexpected_keys:
        lost = found.unexpected_keys[0]
        raise ModelError(f"{source.adapter} adapts what a reward model does not have ({lost}): merge it first.")


# -- padding ----------------------------------------------------------------------------------------------------------

_SPARE = re.compile(r"pad|reserved|unused|extra_", re.IGNORECASE)


def settle_padding(trunk: Trunk, tokenizer: PreTrainedTokenizerBase, eos_ids: Sequence[int]) -> str | None:
    """Give tokenizer and model one padding token that never ends an answer; in words what was done, None for nothing.

    transformers reads a score at the last token that is no padding: where padding is the end token, it would be the
    one before. An unused token is taken where there is one, else a new one.
    """
    model = trunk.lm
    pad, why = tokenizer.pad_token_id, None
    if pad is None or pad in eos_ids:
        spare = [
            t.content
            for i, t in sorted(tokenizer.added_tokens_decoder.items())
            if t.special and i not in eos_ids and _SPARE.search(t.content)
        ]
        tokenizer.pad_token = spare[0] if spare else "<|pad|>"
        if not spare:
            tokenizer.add_special_tokens({"pad_token": "<|pad|>"})
        pad = tokenizer.pad_token_id
        table: Any = model.get_input_embeddings()
        if pad >= table.weight.shape[0]:
            model.resize_token_embeddings(pad + 1, mean_resizing=False)
        why = f"padding is {tokenizer.pad_token}, as the end token must be seen to be scored"
    for config in (model.config, model.config.get_text_config()):
        config.pad_token_id = pad
    return why


# -- normalisation ----------------------------------------------------------------------------------------------------


@torch.no_grad()
def _rescale(head: Head, factor: float) -> None:
    for p in head.parameters():
        p.mul_(factor)


def normalise(trunk: Trunk, scores: np.ndarray, *, template: str = "auto") -> Normalisation:
    """Divide the head by the standard deviation of these scores, and note their mean in the configuration."""
    spread = float(np.std(scores.astype(np.float64)))
    std = spread if spread > 1e-6 else 1.0
    _rescale(head_of(trunk), 1 / std)
    made = Normalisation(float(np.mean(scores.astype(np.float64))) / std, std, template)
    setattr(trunk.lm.config, KEY, asdict(made))
    return made


def save_normalisation(trunk: Trunk, folder: Path) -> None:
    """Write it beside an adapter; a whole model's configuration has it already."""
    saved = getattr(trunk.lm.config, KEY, None)
    if trunk.adapted and saved is not None:
        (folder / SAVED).write_text(json.dumps(saved, indent=2) + "\n")
