"""The loop that all algorithms share: step, log, validate, sample, guard, checkpoint.

Whatever ends it (the last step, Ctrl-C, the guard, an error) leaves a run folder that can be read and reported, and
one that can be resumed from its last checkpoint as if nothing had happened.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from prefiere.asked.endpoint import EndpointError
from prefiere.asked.language import in_words
from prefiere.evaluate.guards import degenerate, exploited
from prefiere.evaluate.moved import WeightsMoved
from prefiere.evaluate.rows import derived
from prefiere.evaluate.sampled import AnswerEvaluator
from prefiere.evaluate.singles import KeptRows
from prefiere.evaluate.start import of_own_answers
from prefiere.methods import METHODS
from prefiere.metrics import BOUNDS, column, measured_again
from prefiere.plan.rhythm import chosen_by
from prefiere.run import Stop
from prefiere.stats import Moments, wilson
from prefiere.tokens.schedule import updates_per_epoch
from prefiere.train import checkpoint, previous, trackers
from prefiere.train.algorithm import Algorithm
from prefiere.train.checkpoint import State
from prefiere.train.engine import TrainingError
from prefiere.train.interrupt import Interrupt
from prefiere.train.logs import cut_logs, noted, spoken, sync_logs
from prefiere.train.optimizer import peak_memory_mb
from prefiere.train.setup import Session


class Loop:
    """One run of updates. ``run()`` returns why it ended early, or None when it reached the last step."""

    def __init__(self, session: Session, algorithm: Algorithm, evaluator: AnswerEvaluator | None):
        self.session, self.algorithm, self.evaluator = session, algorithm, evaluator
        self.engine, self.run_folder, self.settings = session.engine, session.run, session.settings
        self.state = State()
        total = session.total_steps
        logs, rhythm = self.settings.logging_steps, session.rhythm
        self.log_every = max(1, total // 100) if logs == "auto" else int(logs)
        self.eval_every, self.sample_every, self.save_every = rhythm.validate, rhythm.answer, rhythm.save
        self.kept = KeptRows(self.eval_every, total)
        self.main = session.world.main
        self.interrupt = Interrupt(session.display.say, session.world.hurry)
        self.moved = WeightsMoved(session.trunk)  # before a checkpoint is taken up: from where the run began
        self._saved = -1  # the step of the checkpoint that was read or written last
        self._rows: dict[str, int] = {}
        self._began = time.perf_counter(), 0  # when this process began to train, and at which step

    # -- the loop -------------------------------------------------------------------------------------------------

    def run(self) -> Stop | None:
        """Train to the last step."""
        s = self.state
        if s.stop:  # it had ended, and was killed before it could say so
            return s.stop
        try:
            stop = self._train()
        except EndpointError as e:  # there were no answers, and the run can go on from where they were asked for
            stop = Stop("rollouts", str(e))
        if stop and s.step > 0:
            with self.interrupt:
                self._save()
                self._note(last=True)  # after the checkpoint: where the run goes on, it was not the last one
        return stop

    def _train(self) -> Stop | None:
        s, total, display = self.state, self.session.total_steps, self.session.display
        if s.step == 0:
            self._begin()
        with self.interrupt, display.stage(in_words("progress.training"), total, s.step, opening=False) as advance:
            self._began = time.perf_counter(), s.step
            while s.goes_on(total):
                s.owed = s.owed or self._update(advance)
                s.stop = self._after(*s.owed)
                interrupted = self._stop_asked()
                if s.stop or interrupted:
                    return s.stop or Stop("interrupted", "interrupted")
        return None

    def _update(self, advance: Callable[..., None]) -> list[float]:
        """One step; returns its gradient norm and rate."""
        s, began = self.state, time.perf_counter()
        rate = float(self.engine.scheduler.get_last_lr()[0])
        update = self.algorithm.step(s.step)
        self.engine.scheduler.step()
        s.step += 1
        s.pending_tokens += update.tokens
        s.tokens += update.tokens
        elapsed = time.perf_counter() - began
        s.pending_seconds += elapsed
        s.seconds += elapsed
        self._collect(update.metrics)
        advance(1, note=noted(update.metrics, self.algorithm.shown, METHODS[self.settings.method].family))
        return [update.grad_norm, rate]

    def _after(self, grad_norm: float, rate: float) -> Stop | None:
        """Everything that is due after an update; returns why to stop, if there is a reason."""
        s, last = self.state, self.state.step == self.session.total_steps
        due = {n: last or s.step % n == 0 for n in (self.log_every, self.eval_every, self.save_every)}
        sample = self.evaluator is not None and (last or s.step % self.sample_every == 0)
        answers, s.owed = self._sample() if sample else {}, None  # first: without answers, all of this stays owed
        stop, best = None, False
        if due[self.log_every] or due[self.eval_every] or sample:
            row = self._row() | self._training_columns() | {"grad_norm": grad_norm, "learning_rate": rate}
            if due[self.eval_every]:
                row |= self.algorithm.validate() | {"weights/moved": self.moved.share()}
            row |= answers
            if sample if chosen_by(self.settings) == "sample_steps" else due[self.eval_every]:
                best, stop = self._watch_best(row)
            self._write(row, due[self.eval_every] or sample)
            self._note(held=due[self.eval_every])
            stop = (self._guard(row) if sample else None) or self.algorithm.stop(row) or stop
            stop, best = self.session.world.broadcast((stop, best))  # one process's answers decide for all
        if not stop and (due[self.save_every] or best):
            self._save()
        return stop

    def _begin(self) -> None:
        """Step 0: the model before any update."""
        row = self._row()
        with self.session.display.stage(in_words("progress.before"), 1) as advance:
            row |= self.algorithm.begin()
            if self.evaluator is not None:
                columns = self._sample(first=True)
                self.state.baseline = {k: v for k, v in columns.items() if np.isfinite(v)}
                row |= columns
            advance(1)
        self._write(row)
        self._watch_best(row, begin=True)

    # -- rows -----------------------------------------------------------------------------------------------------

    def _row(self) -> dict[str, Any]:
        s = self.state
        per_epoch = updates_per_epoch(self.algorithm.examples, self.settings.batch_size)
        return {"step": s.step, "epoch": round(s.step / per_epoch, 4), "seconds": round(s.seconds, 3)}

    def _collect(self, metrics: dict[str, Moments]) -> None:
        for name, m in metrics.items():
            old = Moments(*self.state.pending.get(name, (0.0, 0.0, 0.0)))
            new = old + m
            self.state.pending[name] = [new.count, new.total, new.squares]

    def _training_columns(self) -> dict[str, Any]:
        s, row = self.state, dict[str, Any]()
        for name, parts in s.pending.items():
            m = Moments(*parts)
            row[name] = m.mean
            share = column(name).interval == "share" and m.count
            row[f"{name}_low"], row[f"{name}_high"] = wilson(m.total, m.count) if share else m.interval()
            row[f"{name}_n"] = m.count
        row = derived(row) | {
            "tokens": s.tokens,
            "tokens_per_second": s.pending_tokens / s.pending_seconds if s.pending_seconds else None,
            "peak_memory_mb": peak_memory_mb(),
        }
        if self.engine.scaler.is_enabled():
            row |= {"loss_scale": self.engine.scaler.get_scale(), "loss_scale_backoffs": self.engine.backoffs}
        s.pending, s.pending_tokens, s.pending_seconds = {}, 0, 0.0
        return row

    def _sample(self, *, first: bool = False) -> dict[str, Any]:
        """Columns of sampled answers. The first: before any update, with how far the reward agrees with itself on them,
        and what they owe to their prompts."""
        assert self.evaluator is not None
        rows_asked = self.evaluator.sampling.samples * len(self.evaluator.prompts)
        with self.session.display.stage(in_words("progress.answers"), rows_asked) as advance:
            answers = self.evaluator(
                self.session.trunk,
                self.algorithm.reference,
                version=self.state.step,
                progress=advance,
                unmoved=first,
            )
        rows: list[Mapping[str, Any]] = [{"step": self.state.step, **row} for row in answers.rows]
        if self.main:
            self.run_folder.log_samples(rows)
            trackers.track_samples(self.session.world, self.state.step, rows)
        if not first:
            return answers.columns()
        groups = [self.evaluator.group(s) for s in answers.samples]
        plan, engine = self.session.plan, self.engine
        own = of_own_answers(self.session.trunk, groups, plan.max_length, engine.budget, engine.compute, answers.logps)
        return answers.columns() | self.evaluator.retest(answers) | own

    def _write(self, row: dict[str, Any], measured: bool = True) -> None:
        """Log a row. measured: it holds held-out data or sampled answers."""
        if self.main:
            self.run_folder.log(row)
            self._status("running")
            self._say(row)
            for event in ("on_log", "on_evaluate")[: 1 + measured]:
                self.session.given.tell(event, self.state.step, dict(row))
        trackers.track(self.session.world, self.settings, row)

    def _say(self, row: dict[str, Any]) -> None:
        """A line about this row where there is no bar to watch."""
        display, s, total = self.session.display, self.state, self.session.total_steps
        if not display.live:
            spent, done = time.perf_counter() - self._began[0], s.step - self._began[1]
            left = spent / done * (total - s.step) if done else None
            display.say(spoken(row, total, self.algorithm.shown, METHODS[self.settings.method].family, left))

    def _note(self, *, held: bool = False, last: bool = False) -> None:
        """Write what single examples showed; held: those of a validation as well, as far as there is room."""
        rows = self.kept.due(self.algorithm.singles(), self.state.step if held else None, last=last)
        if self.main and rows:
            self.run_folder.log_pairs(rows)

    def _status(self, state: str, reason: str | None = None, stop: Stop | None = None) -> None:
        self.run_folder.status = {
            "state": state, "step": self.state.step, "total_steps": self.session.total_steps, "reason": reason,
            "stop": asdict(stop) if stop else None, "seconds": round(self.state.seconds, 3),
        }  # fmt: skip

    # -- reasons to stop ------------------------------------------------------------------------------------------

    def _watch_best(self, row: dict[str, Any], *, begin: bool = False) -> tuple[bool, Stop | None]:
        """Whether this validation is the best so far, and why to stop. To ``begin``, it only looks for the metric."""
        name, s = self.settings.metric_for_best_model, self.state
        if name is None:
            return False, None
        if name not in row or not np.isfinite(row[name]):
            known = ", ".join(sorted(k for k in row if measured_again(k) and not k.endswith(BOUNDS)))
            raise TrainingError(f"metric_for_best_model={name} is not measured. There are: {known}")
        greater, better = self.settings.greater_is_better, column(name).better
        if begin:
            if greater is None and better is None:
                what = f"metric_for_best_model={name} is better in neither direction: set greater_is_better"
                raise TrainingError(what)
            return False, None
        if greater is None:
            greater = better != "lower"
        value = float(row[name]) * (1 if greater else -1)
        best = s.best is None or value > s.best
        if best:
            s.best, s.best_step, s.stale = value, s.step, 0
        else:
            s.stale += 1
        patience = self.settings.early_stopping_patience
        if patience is not None and s.stale >= patience:
            return best, Stop("early", f"early stopping: {name} has not improved in {patience} validations")
        return best, None

    def _guard(self, row: dict[str, Any]) -> Stop | None:
        if not (self.settings.guard and self.algorithm.guarded):
            return None
        return degenerate(self.state.baseline, row) or exploited(self.state.baseline, row)

    def _stop_asked(self) -> bool:
        flag = torch.tensor(float(self.interrupt.asked), device=self.session.trunk.device)
        return bool(self.session.world.sum(flag) > 0)

    # -- checkpoints ----------------------------------------------------------------------------------------------

    def _save(self) -> None:
        s, folder = self.state, self.run_folder.checkpoints
        if self._saved == s.step and s.stop is None:
            return
        rows = {}
        self._note(last=s.stop is not None)
        if self.main:
            with self.run_folder.writing():
                rows = sync_logs(self.run_folder.folder)
        state = asdict(s) | {"rows": rows, "waiting": self.kept.waiting, "method": self.algorithm.state()}
        try:
            checkpoint.save(folder, s.step, self.engine, state)
        except OSError as e:
            whole = checkpoint.found(folder)
            kept = f"{whole[-1]} is whole" if whole else "there is no earlier one"
            raise TrainingError(f"cannot write a checkpoint to {folder}: {e}. Free some space; {kept}") from e
        self._saved = s.step
        if self.main:
            checkpoint.rotate(folder, s.step, self.settings.save_total_limit, s.best_step)
            previous.drop(self.run_folder.folder)
            self.session.given.tell("on_save", s.step, folder / f"step-{s.step:08d}")

    def resume(self) -> None:
        """Take up the newest checkpoint that is whole, if there is any. Nothing is written.

        Raises ValueError where none of them is whole, or where it does not fit this model.
        """
        path = self.session.world.broadcast(
            checkpoint.newest(self.run_folder.checkpoints, self.session.display.say) if self.main else None
        )
        if path is None:
            return
        saved = checkpoint.restore(path, self.engine, self.algorithm.restore)
        names = State.__dataclass_fields__
        self.state = State(**{k: v for k, v in saved.items() if k in names} | {"stop": Stop.read(saved["stop"])})
        lifted = self.state.stop is not None and self.state.stop.kind in ("degenerate", "exploited")
        if lifted and not self.settings.guard:
            self.state.stop = None
        self._saved, self._rows = self.state.step, dict(saved.get("rows", {}))
        self.kept.waiting = list(saved.get("waiting", ()))
        self.session.display.say(in_words("progress.continuing", step=self.state.step, total=self.session.total_steps))

    def begin(self) -> None:
        """From here on this process writes: logs are cut to where the run goes on, and it counts as running."""
        if self.main:
            with self.run_folder.writing():
                missing = cut_logs(self.run_folder.folder, self._saved, self._rows)
            for said in missing:
                self.session.display.say(f"{said}; the run goes on without them")
            self._status("running")

    def finish(self, stop: Stop | None) -> None:
        """Write the final status and, unless the weights at a stop are no result, model/.

        model/ holds the best checkpoint's weights where a metric names one, else the last.
        """
        s, reason = self.state, stop.text if stop else None
        ended = stop is None or stop.finished
        put_back = ended and s.best_step is not None and s.best_step != s.step
        if put_back:
            best = self.run_folder.checkpoints / f"step-{s.best_step:08d}"
            if (off := checkpoint.damage(best)) is not None:
                raise TrainingError(f"{best / off} is damaged, and it holds the best weights. Restore it from a copy.")
            checkpoint.load_weights(best, self.engine)
            reason = f"{reason + '; ' if reason else ''}model/ holds the best step, {s.best_step}"
        usable = stop is None or stop.usable
        if usable:
            self.algorithm.complete(put_back=put_back)
            session = self.session
            checkpoint.save_model(
                session.trunk, session.tokenizer, self.run_folder.model, session.plan.saved_dtype, main=self.main
            )
        if self.main:
            self._status("finished" if ended else "stopped", reason, stop)
        self.session.world.finish_trackers()
