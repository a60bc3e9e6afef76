"""Every setting of a run: its name, its default, its meaning.

The keys carry the names that the field already uses; ours are few. recipe.py reads them from files and command lines.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from prefiere.asked.kinds import LOSSES_WITH, Amount, Auto, Count, Half, Positive, Several, Share, Tracker, Whole


class Settings(BaseModel):
    """What every training command takes."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())

    method: str
    model: str = Field(description="hub id, folder of a model or adapter, or a finished run")
    data: str = Field(description="file, folder or hub id, in any known layout")
    out: str = Field(description="the run folder")
    # data
    data_split: str | None = Field(None, description="split of a hub data set; none: train, or the only one")
    columns: dict[str, str | None] | None = Field(
        None, description="column map, ours to theirs ({prompt: question}; none hides a column), where it is ambiguous"
    )
    eval_data: str | None = Field(None, description="separate validation data; none: hold out prompts from data")
    eval_size: Amount = Field(
        0.1,
        description="held out by prompt: below 1 a share (at most 512 examples), from 1 a number of examples, 0 none",
    )
    on_bad: Literal["content", "error", "drop"] = Field(
        "content",
        description="content: an example without content (an empty answer, chosen equal to rejected) is left out and"
        " counted, a damaged line is an error; error: both are errors; drop: both are left out and counted",
    )
    max_length: Count = Field(1024, description="tokens of prompt and completion together; longer ones are truncated")
    max_prompt_length: Count | None = Field(
        None, description="prompt tokens kept, the last ones; none: what max_length leaves"
    )
    max_completion_length: Count | None = Field(
        None, description="completion tokens kept, the first ones; none: max_length"
    )
    template: Literal["auto", "always", "never"] = Field(
        "auto", description="use the model's own chat template: where it has one, always (else an error), or never"
    )
    template_kwargs: dict[str, Any] | None = Field(
        None, description="further variables of the chat template, such as {enable_thinking: false}"
    )
    # optimisation
    seed: Whole = Field(42, description="of data order, initialisation, split and sampling")
    learning_rate: Positive | Auto = Field(
        "auto", description="peak; auto suits the model, LoRA or not, and (dpo) how many pairs an update has"
    )
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup"] = Field(
        "linear", description="course of the learning rate after the warm-up; linear and cosine end at 0"
    )
    warmup_steps: Amount = Field(
        0.1, description="steps in which the learning rate rises: below 1 a share of all, from 1 a number"
    )
    weight_decay: Amount = Field(0.0, description="decoupled (AdamW); not on biases and norms")
    adam_beta1: Share = Field(0.9, description="AdamW: decay of the gradient's mean")
    adam_beta2: Share = Field(0.999, description="AdamW: decay of the gradient's square")
    adam_epsilon: Positive = Field(1e-8, description="AdamW: added to the denominator")
    max_grad_norm: Positive | None = Field(1.0, description="the gradient is scaled down to this norm; none: never")
    num_train_epochs: Positive = Field(1.0, description="passes over the data")
    max_steps: Count | None = Field(None, description="updates; where given, num_train_epochs does not count")
    batch_size: Count = Field(32, description="examples (pairs, prompts) per update, over all processes")
    tokens_per_microbatch: Count | Auto = Field(
        "auto", description="the memory knob, without effect on the result; auto is halved when memory runs out"
    )
    # the model in memory
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="auto: bfloat16 where supported"
    )
    quantize: Literal["none", "nf4", "int8"] = Field(
        "none", description="how the frozen base is held in memory under LoRA"
    )
    lora: bool | Auto = Field("auto", description="auto: from 1B parameters, or when full training would not fit")
    lora_r: Count = Field(16, description="rank")
    lora_alpha: Positive = Field(32.0, description="the adapter is scaled by lora_alpha / lora_r")
    lora_dropout: Share = Field(0.0, description="dropout on the adapter's input")
    lora_target_modules: str | list[str] = Field("all-linear", description="names, a regular expression, or all-linear")
    use_dora: bool = Field(False, description="DoRA: magnitude and direction apart")
    use_rslora: bool = Field(False, description="rsLoRA: scale by lora_alpha / sqrt(lora_r)")
    peft_config: dict[str, Any] | str | None = Field(
        None,
        description="any other PEFT configuration, as a map or the path of an adapter_config.json; replaces lora_*",
    )
    gradient_checkpointing: bool = Field(False, description="recompute activations in backward: slower, less memory")
    torch_compile: bool = Field(False, description="compile the model")
    shard: Literal["auto", "none", "full", "hybrid"] = Field("auto", description="whether processes share the weights")
    cpu_offload: bool = Field(False, description="sharded weights and their moments rest in the processor's memory")
    sequence_parallel_size: Count = Field(1, description="processes that share the tokens of each packed row (Ulysses)")
    attn: Literal["auto", "packed", "padded"] = Field(
        "auto",
        description="how rows run; auto: packed with shared prompts where a check at load time agrees, else padded",
    )
    trust_remote_code: bool = Field(False, description="run Python code, and load pickles, that come with the model")
    # along the run
    logging_steps: Count | Auto = Field("auto", description="steps between rows of training metrics")
    eval_steps: Count | Auto = Field("auto", description="steps between validations; auto: a budget of work")
    save_steps: Count | Auto = Field("auto", description="steps between checkpoints; auto: a budget of work")
    save_total_limit: Count = Field(2, description="checkpoints kept, besides the best one")
    metric_for_best_model: str | None = Field(
        None, description="metric that names the best checkpoint, such as eval_loss"
    )
    greater_is_better: bool | None = Field(None, description="of that metric; none: as docs/metrics.md has it")
    early_stopping_patience: Count | None = Field(None, description="stop after so many validations without a new best")
    sample_steps: Whole | Auto = Field("auto", description="the same between sampled answers; 0: none, and no guard")
    sample_prompts: Count | Auto | str = Field("auto", description="held-out prompts to answer (auto: ≤ 32), or a file")
    samples_per_prompt: Count = Field(1, description="answers to each of them")
    sample_temperature: Amount = Field(1.0, description="of those answers; 0 is greedy")
    max_new_tokens: Count = Field(128, description="of those answers")
    judge: str | None = Field(None, description="scores sampled answers: module:function, or a reward model")
    guard: bool = Field(True, description="stop when sampled answers degenerate, whatever the curves say")
    report_to: list[Tracker] = Field([], description="trackers that get every row as well")
    project: str | None = Field(None, description="of the trackers; none: WANDB_PROJECT and its like, else prefiere")
    run_name: str | None = Field(None, description="of the run in the trackers; none: the run folder's name")
    report_intervals: bool = Field(False, description="trackers get the ends of intervals and counts, too")

    # What a resumed run may change: it alters neither the weights nor the order of anything.
    free: ClassVar[frozenset[str]] = frozenset({
        "out", "report_to", "project", "run_name", "report_intervals", "logging_steps", "save_steps", "shard",
        "save_total_limit", "guard", "tokens_per_microbatch", "gradient_checkpointing", "sequence_parallel_size",
        "cpu_offload",
    })  # fmt: skip

    @field_validator("columns", mode="before")
    @classmethod
    def _none_hides(cls, value: Any) -> Any:
        return {k: None if v == "none" else v for k, v in value.items()} if isinstance(value, dict) else value

    @field_validator("report_to", mode="before")
    @classmethod
    def _one_tracker(cls, value: Any) -> Any:
        named = [value] if isinstance(value, str) else value
        return [] if named == ["none"] else named  # as transformers writes it

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if found := list(self.disagreements()):
            raise ValueError("\n".join(found))
        return self

    def disagreements(self) -> Iterator[str]:
        """What is wrong with settings that are right one by one: sentences that begin with the one to change."""
        if self.early_stopping_patience is not None and self.metric_for_best_model is None:
            yield ("early_stopping_patience needs a metric to watch: set metric_for_best_model, e.g. eval_loss")
        if self.quantize != "none" and self.lora is False:
            yield "quantize holds a frozen base, and full fine-tuning has none: set lora to true or auto"
        if self.peft_config is not None:
            if self.lora is False:
                yield "peft_config describes an adapter: set lora to true"
            fields = type(self).model_fields
            for key in ("lora_r", "lora_alpha", "lora_dropout", "lora_target_modules", "use_dora", "use_rslora"):
                if getattr(self, key) != fields[key].default:
                    yield f"{key} is for peft_config to say: leave one of the two out"


class SFT(Settings):
    """Supervised fine-tuning: imitate the answers."""

    method: Literal["sft"] = Field("sft", description="the command this recipe is for")
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup"] = Field(
        "cosine", description="course of the learning rate after the warm-up; linear and cosine end at 0"
    )
    num_train_epochs: Positive = Field(3.0, description="passes over the data")
    completion_only_loss: bool = Field(True, description="learn the answers only; false: the prompts too")


class DPO(Settings):
    """Direct preference optimisation and its family."""

    method: Literal["dpo"] = Field("dpo", description="the command this recipe is for")
    loss_type: Literal["sigmoid", "ipo", "hinge", "robust", "simpo", "orpo", "cpo", "kto"] = Field(
        "sigmoid", description="the objective; see docs/theory.md"
    )
    beta: Positive = Field(
        0.1, description="strength of the tie to the reference (simpo: scale of the reward, default 2)"
    )
    label_smoothing: Half = Field(0.0, description="share of labels taken to be flipped (cDPO; robust)")
    rpo_alpha: Amount = Field(0.0, description="weight of an added SFT term on the chosen answer, per token (RPO)")
    dpop_lambda: Amount = Field(
        0.0, description="penalty on a chosen answer less likely than under the reference (DPOP)"
    )
    simpo_gamma: Amount = Field(1.0, description="simpo: the margin that the rewards should keep")
    desirable_weight: Amount = Field(1.0, description="kto: weight of desirable answers")
    undesirable_weight: Amount = Field(1.0, description="kto: weight of undesirable answers")

    @model_validator(mode="before")
    @classmethod
    def _scale_of_simpo(cls, values: Any) -> Any:
        """SimPO's reward is a mean per token, so it takes a larger beta (Meng et al. 2024, section 3: 2.0 to 2.5)."""
        if isinstance(values, dict) and values.get("loss_type") == "simpo":
            return {"beta": 2.0, **values}
        return values

    def disagreements(self) -> Iterator[str]:
        yield from super().disagreements()
        for key, losses in LOSSES_WITH.items():
            if self.loss_type not in losses and getattr(self, key) != type(self).model_fields[key].default:
                yield f"{key} has no effect with loss_type {self.loss_type}: leave it out"


class Reward(Settings):
    """A reward model: a score for an answer, learnt from which of two was preferred."""

    method: Literal["reward"] = Field("reward", description="the command this recipe is for")
    center_rewards_coefficient: Amount = Field(
        0.0, description="weight of the squared sum of a pair's scores, which keeps scores around zero; 0.01 is usual"
    )
    label_smoothing: Half = Field(0.0, description="share of labels taken to be flipped")
    pairs_per_prompt: Literal["all", "best_worst"] = Field(
        "all", description="of several ranked answers: every ordered pair, or the best against the worst"
    )
    sample_steps: Whole | Auto = Field(0, description="always 0: a reward model answers nothing")

    def disagreements(self) -> Iterator[str]:
        yield from super().disagreements()
        for key in (
            "sample_steps", "sample_prompts", "samples_per_prompt", "sample_temperature", "max_new_tokens", "judge",
        ):  # fmt: skip
            if getattr(self, key) != type(self).model_fields[key].default:
                yield f"{key} has no effect: a reward model answers nothing. Leave it out"


class PolicyGradient(Settings):
    """Reinforcement learning from human feedback: sample answers, score them, make the better ones likelier."""

    data: str = Field(description="prompts: text with one a line, or data in any known layout")
    reward: str | list[str] = Field(
        description="what answers are scored by: a reward model (folder, hub id, run), module:function, or several"
    )
    reward_ensemble: Literal["mean", "min", "lower"] = Field(
        "mean", description="several rewards: their mean, the lowest, or the mean less reward_ensemble_k deviations"
    )
    reward_weights: list[Annotated[float, "numbers"]] | None = Field(
        None, description="several rewards: their sum, each times its weight, as in TRL; none: reward_ensemble"
    )
    reward_ensemble_k: Amount = Field(1.0, description="lower: standard deviations subtracted where rewards disagree")
    scale_rewards: bool = Field(True, description="divide rewards by their standard deviation in the first rollout")
    reward_clip: Positive | None = Field(10.0, description="scaled rewards stay within plus and minus this")
    missing_eos_penalty: Amount = Field(1.0, description="taken from the scaled reward of an answer that never ended")
    # sampling
    batch_size: Count = Field(128, description="prompts of one rollout, over all processes")
    num_generations: Count = Field(1, description="answers to each prompt")
    temperature: Positive = Field(1.0, description="of rollouts, and of the log-probs of every role")
    rollouts: str | list[str] | None = Field(
        None, description="rollout servers that sample the answers, as http://host:8000/v1; none: this process does"
    )
    max_staleness: Annotated[int, Field(ge=0, le=1), "0 or 1"] = Field(0, description="updates that answers may lag")
    rollouts_folder: str | None = Field(
        None, description="folder for the policy's versions that the servers read, too; none: in out"
    )
    # credit
    gamma: Annotated[float, Field(gt=0, le=1), "a number above 0 up to 1"] = Field(1.0, description="discount")
    whiten_advantages: bool = Field(True, description="advantages to mean 0 and deviation 1 over the rollout's tokens")
    # staying close
    kl_coef: Amount = Field(0.05, description="of the KL to the reference that is subtracted from rewards")
    target_kl: Positive | None = Field(
        None, description="nats per answer that kl_coef is steered towards; none: kl_coef stays"
    )
    kl_horizon: Positive = Field(10_000, description="answers over which kl_coef may change by a fifth")
    kl_loss_coef: Amount = Field(0.0, description="of the KL to the reference as a loss")
    kl_rollout_coef: Amount = Field(0.0, description="of the KL from the rollout's policy as a loss")
    max_kl: Positive | None = Field(None, description="stop the run at so many nats per answer from the reference")
    # the update
    num_ppo_epochs: Count = Field(1, description="passes over a rollout")
    num_mini_batches: Count = Field(1, description="updates of a pass")
    cliprange: Positive = Field(0.2, description="how far the ratio of new to old probability may pay off")
    dual_clip: Annotated[float, Field(gt=1), "a number above 1"] | None = Field(
        3.0, description="the ratio at which a bad token's loss stops growing"
    )
    max_approx_kl: Positive | None = Field(
        0.1, description="no further pass over a rollout once the policy is so far from it, in nats per token"
    )
    adam_epsilon: Positive = Field(1e-5, description="AdamW: added to the denominator")

    free: ClassVar[frozenset[str]] = Settings.free | {"rollouts", "rollouts_folder"}

    def disagreements(self) -> Iterator[str]:
        yield from super().disagreements()
        for key in ("max_staleness", "rollouts_folder"):
            if getattr(self, key) and not self.rollouts:
                yield f"{key} is for rollout servers: set rollouts, or leave it out"
        if self.max_completion_length is not None:
            yield "max_completion_length has no effect on answers that are sampled: write max_new_tokens"
        if self.lora_dropout:
            yield "lora_dropout must be 0: with dropout the policy that samples is not the one that learns"
        if self.reward_weights is not None:
            count = 1 if isinstance(self.reward, str) else len(self.reward)
            if len(self.reward_weights) != count:
                yield f"reward_weights needs one number for each reward, {count} in all"
            if self.reward_ensemble != "mean":
                yield "reward_weights is a sum, and reward_ensemble another way: leave one of the two out"
        if self.target_kl is not None and not self.kl_coef:
            yield "target_kl steers kl_coef: start it above 0"
        if self.num_mini_batches > self.batch_size:
            yield f"num_mini_batches must be at most batch_size={self.batch_size}"


class PPO(PolicyGradient):
    """Proximal policy optimisation, with a critic."""

    method: Literal["ppo"] = Field("ppo", description="the command this recipe is for")
    num_ppo_epochs: Count = Field(4, description="passes over a rollout")
    lam: Annotated[float, Field(ge=0, le=1), "a number from 0 to 1"] = Field(
        0.95, description="lambda of generalised advantages; 1 for answers of a thousand tokens and more"
    )
    cliprange_value: Positive | None = Field(0.2, description="how far the value may move in one rollout")
    vf_coef: Positive = Field(0.1, description="weight of the critic's loss")
    critic_learning_rate: Positive | Auto = Field("auto", description="peak; auto: 5 times learning_rate, up to 1e-3")
    critic_warmup_steps: Whole = Field(0, description="first steps, in which the critic alone learns")
    share_critic: bool = Field(
        False, description="full fine-tuning: the critic reads the policy's states; false: a model of its own"
    )


class RLOO(PolicyGradient):
    """REINFORCE, each answer against the others to its prompt (leave one out)."""

    method: Literal["rloo"] = Field("rloo", description="the command this recipe is for")
    batch_size: Count = Field(32, description="prompts of one rollout, over all processes")
    num_generations: Several = Field(4, description="answers to each prompt, which are compared")
    whiten_advantages: bool = Field(False, description="advantages to mean 0 and deviation 1 over the rollout's tokens")


class GRPO(PolicyGradient):
    """Group-relative policy optimisation: answers to one prompt against their mean and deviation."""

    method: Literal["grpo"] = Field("grpo", description="the command this recipe is for")
    batch_size: Count = Field(16, description="prompts of one rollout, over all processes")
    num_generations: Several = Field(8, description="answers to each prompt, which are compared")
    whiten_advantages: bool = Field(False, description="advantages to mean 0 and deviation 1 over the rollout's tokens")
    kl_coef: Amount = Field(0.0, description="of the KL to the reference that is subtracted from rewards")
    kl_loss_coef: Amount = Field(0.05, description="of the KL to the reference as a loss")


class Reinforce(PolicyGradient):
    """REINFORCE: the gradient of the expected reward, from the returns of whole answers."""

    method: Literal["reinforce"] = Field("reinforce", description="the command this recipe is for")
    baseline: Literal["mean", "none"] = Field(
        "mean", description="taken from each return: the mean of all other answers' returns, or nothing"
    )
