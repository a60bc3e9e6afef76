"""From settings to everything a loop needs: device, data, model, engine, with each automatic choice named."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from prefiere.asked.language import in_words
from prefiere.console import Display
from prefiere.evaluate.functions import Answered
from prefiere.evaluate.judges import Judge, functions_of
from prefiere.evaluate.sampled import AnswerEvaluator
from prefiere.in_memory import InMemory
from prefiere.kernels.split import Split
from prefiere.models.adapter import NAME_THEM
from prefiere.models.check.trial import share_rows, try_policy, try_scores
from prefiere.models.check.weights import ids_fit
from prefiere.models.classifier import load_reward
from prefiere.models.configuration import no_dropout, published
from prefiere.models.load import fingerprint, load_policy
from prefiere.models.reference import Reference, model_key, token_logps
from prefiere.models.reward_model import RewardModel
from prefiere.models.score_head import settle_padding
from prefiere.models.shard.hand_out import described, is_empty
from prefiere.models.shard.spread import mesh_of, shard, whole
from prefiere.models.trunk import Trunk
from prefiere.plan.choices import Choice, as_it_began, describe_quantization
from prefiere.plan.examples import ExampleData, PromptData
from prefiere.plan.plan import Plan
from prefiere.plan.reading import Reader, updates_of
from prefiere.plan.rhythm import Rhythm, choose_rhythm, choose_watched
from prefiere.plan.together import read_together
from prefiere.run import Run, RunError
from prefiere.sample.local import LocalRollouts
from prefiere.sample.plain import set_way
from prefiere.sample.sampling import Rollouts, Sample, Sampling, Vocabulary
from prefiere.sample.served import ServedRollouts
from prefiere.settings import PolicyGradient, Settings
from prefiere.tokens.dialect import Manner
from prefiere.tokens.groups import PromptGroup
from prefiere.tokens.tokenizer import decode
from prefiere.train.checkpoint import save_model
from prefiere.train.engine import Engine
from prefiere.train.host import apply_products, choose_products, keep_few_kernels, keep_freed_memory
from prefiere.train.optimizer import make_optimizer, make_scheduler
from prefiere.train.roles import give_critic, load_rewards, opener
from prefiere.world import World

CHECK, DECODING = "check", "decoding"
"""What a trial of the model is recorded under, and the way that it decodes."""


@dataclass
class Session:
    """One run's parts, built from its plan. found: what only building could tell, with reasons.
    manner: how its model reads text. given: what a call in Python brought. reference: where one is kept.
    reward_fingerprints: of each reward model by name, before anything is trained; a function has none."""

    plan: Plan
    run: Run
    display: Display
    world: World
    tokenizer: PreTrainedTokenizerBase
    trunk: Trunk
    engine: Engine
    rollouts: Rollouts
    data: ExampleData | PromptData
    eos_ids: list[int]
    judge: Judge | None
    reward: Judge | None
    total_steps: int
    rhythm: Rhythm
    fingerprint: str
    found: list[Choice] = field(default_factory=list)
    manner: Manner = field(default_factory=Manner)
    given: InMemory = field(default_factory=InMemory)
    reference: Reference | None = None
    reward_fingerprints: dict[str, str] = field(default_factory=dict)

    @property
    def settings(self) -> Settings:
        """As they were given."""
        return self.plan.settings

    @property
    def choices(self) -> list[Choice]:
        """What was decided for the user: by the plan, and while building."""
        return [*self.plan.choices, *self.found]

    @cached_property
    def reference_key(self) -> dict[str, str]:
        """What the reference's log-probs depend on besides the data. To be read before the first update."""
        return model_key(self.trunk)

    def decode(self, tokens: np.ndarray) -> str:
        """The text of an answer."""
        return decode(self.tokenizer, tokens, skip_special=True)


def build_session(plan: Plan, run: Run, display: Display, *, world: World, given: InMemory | None = None) -> Session:
    """Read the data, load the models, make the engine. given: functions that the settings name.

    Raises ValueError, or OSError, for data and models that cannot be used.
    """
    settings, device = plan.settings, world.device
    for note in plan.notes:
        display.note(note)
    torch.set_num_threads(plan.threads)
    keep_freed_memory(device)
    keep_few_kernels(device)
    reader = Reader.of(plan)
    products = products_together(plan, world)
    opened = opener(plan, device, products, display.say)
    given = given or InMemory()
    named = [s.name for s in (*plan.roles.rewards, *plan.roles.judges) if s.where == "function"]
    functions = functions_of(named, given.functions)
    columns = any(f.call.reads_columns for f in functions.values())
    data = read_together(world, partial(reader.read, plan, display, with_columns=columns))
    example = _example(data)
    judge = Judge.load(settings.judge, model=opened, functions=functions, example=example) if settings.judge else None
    torch.manual_seed(settings.seed)
    display.say(in_words("progress.loading", model=settings.model, size=f"{plan.parameters / 1e6:,.1f}"))
    trunk, found = load_together(plan, world, typed=reader.typed)
    apply_products(trunk, str(products.value))
    found += [products, *reader.choices]
    if plan.scores:
        display.note(settle_padding(trunk, reader.tokenizer, reader.eos_ids))
    ids_fit(trunk.lm, reader.tokenizer, settings.model)
    if plan.scheme is not None:
        found.append(describe_quantization(plan.scheme, trunk.lm))
    start = world.broadcast(fingerprint(trunk.model) if world.main else "")
    reward = None
    if plan.method.family == "policy":
        reward = load_rewards(plan, trunk, opened, display.say, functions, example)
        if plan.roles.critic != "none":
            found.append(give_critic(plan, trunk, reward))
        no_dropout(trunk)  # an adapter may have been trained with it, the policy's own or one that is mounted
    scorers = reward.scorers if reward is not None else {}
    marks = {name: m.fingerprint() for name, m in scorers.items() if isinstance(m, RewardModel)}
    reference = Reference(trunk) if plan.roles.reference != "none" else None
    if settings.torch_compile and plan.shard == "none":
        trunk.compile(dynamic=True)
    if plan.shard != "none":
        _spread(plan, run, world, trunk, reference.copied if reference is not None else None)
    if settings.sequence_parallel_size > 1:
        _share_rows(plan, world, trunk, reference.copied if reference is not None else None)
    steps = updates_of(settings, len(data.train))
    engine = engine_of(plan, trunk, steps, world, display)
    data, watching = choose_watched(plan, data)
    rhythm, _, chosen = choose_rhythm(plan, data)
    found += [*watching, *chosen]
    rollouts = rollouts_of(plan, run, world, engine, reader, data)
    return Session(
        plan, run, display, world, reader.tokenizer, trunk, engine, rollouts, data, reader.eos_ids, judge, reward,
        steps, rhythm, start, found, reader.manner, given, reference, marks,
    )  # fmt: skip


def rollouts_of(
    plan: Plan, run: Run, world: World, engine: Engine, reader: Reader, data: ExampleData | PromptData
) -> Rollouts:
    """Where answers come from: the model in this process, or the plan's servers."""
    trunk, vocabulary = engine.trunk, Vocabulary.of(reader.tokenizer, reader.eos_ids)
    settings = plan.settings
    if not plan.servers:
        return LocalRollouts(trunk.lm, vocabulary, plan.compute, partial(whole, trunk))
    assert isinstance(settings, PolicyGradient)
    assert isinstance(data, PromptData)

    def scored(prompts: Sequence[np.ndarray], samples: Sequence[Sample], temperature: float) -> np.ndarray:
        groups = [PromptGroup(prompts[s.prompt], (s.tokens,), (np.ones(len(s.tokens), bool),)) for s in samples]
        return token_logps(trunk, groups, budget=engine.budget, autocast=plan.compute, temperature=temperature)

    return ServedRollouts(
        plan.servers,
        vocabulary,
        size=int(trunk.lm.config.get_text_config().vocab_size),
        world=world,
        folder=Path(settings.rollouts_folder).expanduser() if settings.rollouts_folder else run.folder / "adapters",
        write=lambda folder: save_model(trunk, reader.tokenizer, folder),
        scored=scored,
        probes=data.train.ids,
        sampling=Sampling(temperature=settings.temperature, max_new_tokens=settings.max_new_tokens),
        adapted=plan.adapter is not None,
        each=settings.max_staleness > 0,
    )


def make_ready(session: Session, step: int) -> None:
    """Let answers come from the weights that the run begins or goes on with, and make sure that they do.

    Raises ValueError where they do not.
    """
    session.rollouts.publish(session.trunk, step)
    if said := session.rollouts.check(session.trunk):
        session.display.say(f"  {said}")
        session.found.append(Choice("rollouts", session.rollouts.limit, said))


def _spread(plan: Plan, run: Run, world: World, *trunks: Trunk | None) -> None:
    """Spread these trunks over the processes. Raises RunError where one of them does not see the run folder."""
    assert plan.shard != "none"
    if blind := [rank for rank, seen in enumerate(world.gather([(run.folder / ".lock").is_file()])) if not seen]:
        raise RunError(
            f"{run.folder}: process {blind[0]} is on a node that does not see it, and each process writes its part of "
            "a checkpoint there: put out on a file system that all nodes share, or set shard=none"
        )
    mesh = mesh_of(world.device, world.size, world.nodes, plan.shard)
    for trunk in trunks:
        if trunk is not None:
            empty = any(world.gather([is_empty(trunk)]))
            asked = plan.settings
            shard(trunk, mesh, from_first=empty, compiled=asked.torch_compile, offload=asked.cpu_offload)


def _share_rows(plan: Plan, world: World, *trunks: Trunk | None) -> None:
    """Let teams of processes share the tokens of the rows of these trunks."""
    world.form_teams(plan.settings.sequence_parallel_size)
    team = world.team
    for trunk in trunks:
        if trunk is not None:
            split = Split(team.place, team.size, team.exchange, team.add)
            share_rows(trunk, split, plan.settings.model, compute=plan.compute)


def products_together(plan: Plan, world: World) -> Choice:
    """The library of fp32 products, one for all processes: each measures on its own processor, and oneDNN is taken
    where it is faster for all of them."""
    each = world.gather([choose_products(world.device, plan.dtype)])
    found = next((c for c in each if c.value == "default"), each[0])
    return as_it_began(found.name, plan.recorded) if found.name in plan.recorded else found


def _example(data: ExampleData | PromptData) -> Answered | None:
    """An answer to the first prompt, to try functions on that read the data's columns."""
    prompts = data.train if isinstance(data, PromptData) else data.watched
    if not len(prompts):
        return None
    return Answered(prompts.texts[:1], ["a"], [np.zeros(1, np.int32)], prompts.columns[:1])


def load_together(plan: Plan, world: World, *, typed: bool) -> tuple[Trunk, list[Choice]]:
    """The model to train, in each process, and what was found on the way.

    Where its weights are to be spread, the first process reads them and tries the model out; the others make it
    without contents, and `_spread` gives each its part. Each reads all where other weights join them (a critic's, a
    mounted reward model's), and where it cannot be made alike without them.
    """
    if plan.shard == "none":
        return load_trunk(plan, world.device, typed=typed)
    cpu = torch.device("cpu")  # a GPU sees its part alone
    if plan.roles.mounted or plan.roles.critic != "none":
        return load_trunk(plan, cpu, typed=typed)
    trunk, found = load_trunk(plan, cpu, typed=typed) if world.main else (None, [])
    told = world.broadcast((found, described(trunk), torch.get_rng_state()) if trunk is not None else None)
    assert told is not None
    found, alike, random = told
    if trunk is None:
        known = {c.name: c.value for c in found}
        same = replace(plan, rows=known["rows"] == "packed", recorded={**plan.recorded, **known})
        trunk, _ = load_trunk(same, torch.device("meta"), typed=typed)
        if described(trunk) != alike:
            trunk, _ = load_trunk(same, cpu, typed=typed)
    torch.set_rng_state(random)  # as if each had made the model with contents
    return trunk, found


def load_trunk(plan: Plan, device: torch.device, *, typed: bool = False) -> tuple[Trunk, list[Choice]]:
    """The model to train, tried out, and what was found on the way. ``typed``: see `EncoderTrunk`."""
    load: Callable[..., tuple[Trunk, str]] = partial(load_reward, typed=typed) if plan.scores else load_policy
    trunk, how = load(
        plan.policy,
        compute=plan.dtype,
        adapter=plan.adapter if plan.policy.adapter is None else None,
        device=device,
        gradient_checkpointing=plan.settings.gradient_checkpointing,
        max_length=plan.max_length,
        packed=plan.rows,
    )
    found = [Choice("rows", "packed" if trunk.packed else "padded", how)]
    if published(trunk.lm).auxiliary:
        found.append(Choice("auxiliary_loss", "left out", in_words("why.router_loss")))
    return trunk, [*found, *tried(plan, trunk)]


def tried(plan: Plan, trunk: Trunk) -> list[Choice]:
    """The outcome of the model's trial (`models.check.trial`); a resumed run's, as it is recorded."""
    if CHECK in plan.recorded:
        if DECODING in plan.recorded:
            set_way(trunk.lm, plan.recorded[DECODING])
        return [as_it_began(n, plan.recorded) for n in (DECODING, CHECK) if n in plan.recorded]
    every = plan.settings.peft_config is None and plan.settings.lora_target_modules == "all-linear"
    hint = NAME_THEM if plan.adapter is not None and every else ""
    trial = (try_scores if plan.scores else try_policy)(trunk, plan.settings.model, compute=plan.compute, hint=hint)
    found = []
    if trial.way is not None:
        found.append(Choice(DECODING, trial.way, trial.why or in_words("why.sampled_equal")))
    return [*found, Choice(CHECK, "passed", trial.holds)]


def engine_of(plan: Plan, trunk: Trunk, steps: int, world: World, display: Display) -> Engine:
    """The optimizer, its schedule, and what runs updates."""
    optimizer = make_optimizer(trunk, plan.settings, plan.learning_rate, plan.critic_rate)
    return Engine(
        trunk,
        optimizer,
        make_scheduler(optimizer, plan.settings, steps),
        world=world,
        compute=plan.compute,
        max_grad_norm=plan.settings.max_grad_norm,
        budget=plan.budget,
        adapt=plan.adapt,
        notice=display.say,
    )


def make_evaluator(session: Session) -> AnswerEvaluator:
    """What asks the session's sample prompts along the run, with the same seed each time."""
    s = session.settings
    return AnswerEvaluator(
        prompts=session.data.watched.ids,
        asked=session.data.watched.texts,
        decode=session.decode,
        rollouts=session.rollouts,
        sampling=Sampling(
            samples=s.samples_per_prompt,
            temperature=s.sample_temperature,
            max_new_tokens=s.max_new_tokens,
            seed=s.seed,
        ),
        budget=session.engine.budget,
        autocast=session.engine.compute,
        judge=session.judge,
        reward=session.reward,
        columns=session.data.watched.columns,
        total=session.total_steps,
        world=session.world,
    )
