"""The data of a plan, as its model reads it: how text becomes tokens, and the examples or prompts that come of it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date

from transformers import PreTrainedTokenizerBase

from prefiere.asked.language import in_words
from prefiere.console import Display
from prefiere.models.classifier import ends
from prefiere.models.load import load_tokenizer
from prefiere.models.reward_model import score_encoder
from prefiere.models.source import generation_config
from prefiere.plan.choices import Choice
from prefiere.plan.examples import ExampleData, PromptData, read_data
from prefiere.plan.plan import Plan
from prefiere.plan.prompts import read_prompts
from prefiere.settings import SFT, PolicyGradient, Settings
from prefiere.tokens.dialect import Manner, tells_the_date
from prefiere.tokens.encoder import Encoder
from prefiere.tokens.schedule import updates_per_epoch
from prefiere.tokens.text_pairs import PairEncoder
from prefiere.tokens.tokenizer import eos_ids_of
from prefiere.tokens.truncation import Truncation


@dataclass(frozen=True, slots=True)
class Reader:
    """The tokenizer of a run's model, what ends its answers, and how it makes tokens of text."""

    tokenizer: PreTrainedTokenizerBase
    eos_ids: list[int]
    encoder: Encoder | PairEncoder
    manner: Manner

    @property
    def choices(self) -> list[Choice]:
        """The day that the chat template prints, where it prints one."""
        day = self.manner["day"]
        return [] if day is None else [Choice(DAY, day.isoformat(), in_words("why.first_day"))]

    @classmethod
    def of(cls, plan: Plan) -> Reader:
        """Raises ModelError where the model has no tokenizer."""
        settings, source = plan.settings, plan.policy
        tokenizer = load_tokenizer(source)
        eos_ids = ends(source, tokenizer) if plan.both_ways else eos_ids_of(generation_config(source), tokenizer)
        kept = Truncation(plan.max_length, settings.max_prompt_length, settings.max_completion_length)
        on_bad, day = settings.on_bad, first_day(plan, tokenizer)
        manner: Manner = {"template": settings.template, "template_kwargs": settings.template_kwargs, "day": day}
        encoder: Encoder | PairEncoder
        if plan.scores:
            encoder = score_encoder(source, tokenizer, kept, both_ways=plan.both_ways, on_bad=on_bad, **manner)
        else:
            alone = not isinstance(settings, SFT) or settings.completion_only_loss
            encoder = Encoder(tokenizer, kept, eos_ids=eos_ids, completion_only=alone, on_bad=on_bad, **manner)
        return cls(tokenizer, eos_ids, encoder, manner)

    @property
    def typed(self) -> bool:
        """Whether the answer's tokens have a type of their own, as the tokenizer of a BERT pairs texts."""
        return isinstance(self.encoder, PairEncoder) and self.encoder.typed

    def read(self, plan: Plan, display: Display, *, with_columns: bool = False) -> ExampleData | PromptData:
        """The run's data: prompts to answer, or examples to learn from. Raises ValueError where nothing is left.

        with_columns: prompts that are answered keep the data's columns, for functions that read them.
        """
        settings = plan.settings
        if not isinstance(settings, PolicyGradient):
            return read_data(settings, self.encoder, plan.reads, display, with_columns=with_columns)
        return read_prompts(
            settings,
            self.tokenizer,
            self.eos_ids,
            display,
            max_length=plan.max_length,
            manner=self.manner,
            with_columns=with_columns,
        )


DAY = "template_date"
"""The choice under which a run keeps the day that its chat template prints."""


def first_day(plan: Plan, tokenizer: PreTrainedTokenizerBase) -> date | None:
    """The day on which a run began, where its chat template prints it; None where it prints none."""
    if not tells_the_date(tokenizer) or plan.settings.template == "never":
        return None
    return date.fromisoformat(str(plan.recorded[DAY])) if DAY in plan.recorded else date.today()


def updates_of(settings: Settings, examples: int) -> int:
    """How many updates a run makes on so many examples."""
    per_epoch = updates_per_epoch(examples, settings.batch_size)
    return settings.max_steps or max(1, round(settings.num_train_epochs * per_epoch))
