"""Runs a sweep: suggests trials, queues their runs, and promotes or prunes them, until all are over.

Whatever it decides is written to `trials.jsonl` before anything is done about it, and what runs have reached is read
from their folders. So a controller that was killed at any point loses no trial and begins none twice: the next one
reads the table, creates the runs that are missing, resumes those that were stopped with it, and continues.
"""

import math
import time
from collections.abc import Callable, Sequence

from distrain.config import change_recipe
from distrain.config.metrics import format_value
from distrain.errors import DataError, ModelError, PreflightError, RecipeError, TaskError
from distrain.runs.directory import RunDirectory
from distrain.runs.liveness import is_alive
from distrain.runs.pause import Pause
from distrain.service.sweeps.decisions import Decision, decide, find_known, must_prune
from distrain.service.sweeps.journal import Journal
from distrain.service.sweeps.parameters import as_overrides, as_text
from distrain.service.sweeps.results import SweepResult, find_best, rank
from distrain.service.sweeps.setup import OpenSweep
from distrain.service.sweeps.suggestion import suggest
from distrain.service.sweeps.trial import Trial
from distrain.service.sweeps.trial_runs import RunState, TrialRuns, describe_failure
from distrain.service.table import find_disk_fault
from distrain.system.files import strict_json, write_atomically
from distrain.system.signals import StopRequest

_TICK_S = 0.25
_HOPELESS = 3  # if the first trials have all failed, no more are tried
_REFUSALS = (RecipeError, DataError, ModelError, PreflightError)  # of a combination of values
_IMPORTANCE_EVERY = 5  # trials


class Controller:
    """The controller of a sweep, which holds the lock of its folder meanwhile."""

    def __init__(self, sweep: OpenSweep, runs: TrialRuns, *, notify: Callable[[str], None]) -> None:
        self._sweep = sweep
        self._spec = sweep.spec
        self._folder = sweep.folder
        self._runs = runs
        self._notify = notify
        self.trials = self._folder.read_trials()
        self.repeats = self._folder.read_repeats()
        self._resumable = {trial.run for trial in self.trials + self.repeats if trial.is_active}
        self._evaluated: dict[str, float] = {}  # by run: the step of the evaluation that was last read
        self._stopping: list[RunDirectory] = []  # runs that were pruned while they trained
        self._held: str | None = None  # why no trial begins
        self._explained = 0  # trials that had ended when the importance was last computed
        self._best: Trial | None = None
        self._journal = Journal(
            self._folder, sweep.parameters, self.trials, sign=sweep.sign, rungs=self._spec.rungs or ()
        )

    def run(self, stop: StopRequest) -> SweepResult:
        """Run the sweep to its end, or until a stop is requested; then its trials save and end first.

        Raises `TaskError` where the first trials have all failed, or all.
        """
        is_over = False
        try:
            while not stop.is_set() and not is_over and not self._is_hopeless:
                is_over = self._advance()
                self._runs.tick()
                time.sleep(_TICK_S)
            if not is_over:
                self._stop()
            _wait_for(self._stopping)
        finally:
            self._runs.close()
        self._explain(is_last=True)
        if self._is_hopeless or (is_over and not any(trial.state == "finished" for trial in self.trials)):
            reasons = [trial.reason for trial in self.trials if trial.reason] or [f"{self._spec.metric} is not finite"]
            raise TaskError(f"no trial of {self._folder.name} has finished; the first failed because: {reasons[0]}")
        return self.result(is_over=is_over)

    def result(self, *, is_over: bool) -> SweepResult:
        """Return what the sweep has found so far."""
        return SweepResult(self._folder.path, self._spec, tuple(self.trials), tuple(self.repeats), is_over=is_over)

    def _advance(self) -> bool:
        """Read what has happened and do what follows; returns whether the sweep is over."""
        self._observe(self.trials)
        self._observe(self.repeats)
        decision = decide(self._spec, self.trials, sign=self._sweep.sign)
        for number in decision.prune:
            self._change(self.trials[number], state="pruned")
        self._begin(decision)
        if all(trial.is_over for trial in self.trials) and len(self.trials) == self._spec.trials:
            self._plan_repeats()
            return all(trial.is_over for trial in self.repeats)
        return False

    def _begin(self, decision: Decision) -> None:
        """Promote trials, the furthest first, then begin new ones, while fewer than `parallel` are active."""
        for number, stage in sorted(decision.promote.items(), key=lambda one: (-one[1], one[0])):
            if self._is_full:
                return
            trial = self.trials[number]
            self._resumable.add(trial.run)
            self._change(trial, state="queued", stage=stage)
        while not self._is_full and decision.suggest and not self._is_hopeless and self._is_disk_free():
            self._suggest()
            decision = decide(self._spec, self.trials, sign=self._sweep.sign)

    @property
    def _is_full(self) -> bool:
        active = sum(trial.is_active for trial in [*self.trials, *self.repeats])
        return active >= self._spec.parallel

    def _suggest(self) -> None:
        number = len(self.trials)
        known = find_known(self._spec, self.trials, number)
        params = suggest(
            self._sweep.parameters, self._spec.sampler, known, number, seed=self._spec.seed, sign=self._sweep.sign
        )
        trial = Trial(number=number, params=dict(params), run=self._folder.run_name(number))
        if self._spec.prune != "asha":
            trial.stage = len(self._spec.rungs or ())
        self.trials.append(trial)
        self._save()
        self._create(trial)

    def _create(self, trial: Trial) -> None:
        """Create and queue the run of a trial; a combination that is refused has failed."""
        try:
            self._runs.create(self._folder.run(trial), as_overrides(trial.params), self._pause(trial))
        except _REFUSALS as error:
            self._fail(trial, f"refused: {error.lines[0]}")
        else:
            self._notify(f"trial {_name(trial)}  {_describe(trial.params)}")

    def _pause(self, trial: Trial) -> Pause | None:
        rungs = self._spec.rungs or ()
        return Pause(at=rungs[trial.stage], unit=self._spec.rung_unit) if trial.stage < len(rungs) else None

    def _observe(self, trials: Sequence[Trial]) -> None:
        """Bring the active trials up to date with their runs."""
        active = [trial for trial in trials if trial.is_active]
        states = self._runs.read_states([self._folder.run(trial) for trial in active])
        for trial, state in zip(active, states, strict=True):
            self._follow(trial, state)

    def _follow(self, trial: Trial, state: RunState) -> None:
        run = self._folder.run(trial)
        if state == "none":
            self._create(trial)
            return
        if trial.seed is None:
            self._read_rungs(trial, run, is_over=state in {"stopped", "finished", "failed"})
        if trial.state == "pruned":
            return
        if state in {"queued", "running"}:
            self._resumable.discard(trial.run)
            if trial.state != state:
                self._change(trial, state=state)
        elif state == "finished":
            self._finish(trial, run)
        elif state == "failed":
            self._fail(trial, describe_failure(run))
        elif len(trial.rungs) > trial.stage and trial.seed is None:
            self._change(trial, state="paused")
        elif trial.run in self._resumable:
            self._runs.resume(run, self._pause(trial))
        else:
            self._fail(trial, "its run was stopped by the user")

    def _read_rungs(self, trial: Trial, run: RunDirectory, *, is_over: bool) -> None:
        """Add the values at rungs that the run has passed; `median` may prune the trial at one of them."""
        rungs, metric = self._spec.rungs or (), self._spec.metric or ""
        last = run.read_status().last
        if not rungs or last is None or (self._evaluated.get(trial.run) == last["step"] and not is_over):
            return
        key = "epoch" if self._spec.rung_unit == "epochs" else "step"
        values = {record[key]: record[metric] for record in run.read_metrics() if metric in record}
        upto = min(trial.stage + 1, len(rungs))
        for rung in rungs[len(trial.rungs) : upto]:
            if rung not in values:
                break
            value = values[rung] if math.isfinite(values[rung]) else None
            self._change(trial, rungs=[*trial.rungs, value], value=value)
            if must_prune(self._spec, self.trials, trial, sign=self._sweep.sign):
                self._runs.stop(run)
                self._stopping.append(run)
                self._change(trial, state="pruned")
                return
        self._evaluated[trial.run] = last["step"]

    def _finish(self, trial: Trial, run: RunDirectory) -> None:
        metric = self._spec.metric or ""
        value = (run.read_status().last or {}).get(metric)
        if value is None:
            self._fail(trial, f"its evaluations have no {metric}")
        elif not math.isfinite(value):
            self._fail(trial, f"{metric} is not finite at its end")
        else:
            self._change(trial, state="finished", value=value)

    def _fail(self, trial: Trial, reason: str) -> None:
        self._change(trial, state="failed", reason=reason)

    def _change(self, trial: Trial, **fields: object) -> None:
        """Change fields of a trial, save the table, and say what has happened."""
        before = trial.state
        for name, value in fields.items():
            setattr(trial, name, value)
        self._save()
        if trial.state != before and (trial.is_over or trial.state == "paused"):
            self._notify(f"trial {_name(trial)}  {trial.state}{self._describe_value(trial)}")
            self._explain(is_last=False)

    def _describe_value(self, trial: Trial) -> str:
        if trial.reason:
            return f": {trial.reason}"
        if trial.value is None:
            return ""
        metric = self._spec.metric or ""
        at = ""
        if trial.state in {"paused", "pruned"} and trial.rungs:
            rung = (self._spec.rungs or ())[len(trial.rungs) - 1]
            at = f" at {self._spec.rung_unit.removesuffix('s')} {rung}"
        return f"  {metric} {format_metric_value(metric, trial.value)}{at}"

    def _save(self) -> None:
        """Write the table, the best recipe and the journal."""
        self._folder.write_trials(self.trials)
        if self.repeats:
            self._folder.write_repeats(self.repeats)
        self._write_best()
        self._journal.update(self.trials)

    def _write_best(self) -> None:
        best = find_best(self.trials, self.repeats, sign=self._sweep.sign)
        if best is None or best == self._best:
            return
        recipe = change_recipe(self._sweep.base, as_overrides(best.params))
        head = f"# Trial {best.number} of the sweep {self._folder.name}: {self._spec.metric} {best.value:.6g}\n"
        write_atomically(self._folder.best, f"{head}# {_describe(best.params)}\n\n{recipe.to_yaml()}")
        self._best = best.model_copy(deep=True)

    def _explain(self, *, is_last: bool) -> None:
        ended = sum(trial.state == "finished" for trial in self.trials)
        if ended != self._explained and (is_last or ended - self._explained >= _IMPORTANCE_EVERY):
            self._explained = ended
            write_atomically(self._folder.importance, strict_json(self._journal.read_importance()))

    def _plan_repeats(self) -> None:
        """Add the repetitions of the best trials that do not exist yet."""
        spec = self._spec
        for trial in rank(self.trials, sign=self._sweep.sign)[: spec.top if spec.seeds else 0]:
            first = int(trial.params.get("train.seed", self._sweep.base.train.seed)) + 1
            for seed in range(first, first + spec.seeds):
                name = self._folder.run_name(trial.number, seed)
                if name not in {repeat.run for repeat in self.repeats}:
                    params = {**trial.params, "train.seed": seed}
                    self.repeats.append(Trial(number=trial.number, params=params, run=name, state="paused", seed=seed))
        for repeat in self.repeats:
            if repeat.state == "paused" and not self._is_full and self._is_disk_free():
                repeat.state, repeat.stage = "queued", len(spec.rungs or ())
                self._save()
                self._create(repeat)

    @property
    def _is_hopeless(self) -> bool:
        """Whether the first trials have all failed, and no other has reached anything."""
        failed = [trial for trial in self.trials if trial.state == "failed"]
        is_early = all(trial.state == "failed" or trial.is_active for trial in self.trials)
        return is_early and len(failed) >= max(_HOPELESS, self._spec.parallel)

    def _is_disk_free(self) -> bool:
        """Whether there is space for another trial; says once that there is not."""
        fault = find_disk_fault(self._folder.path.parent)
        if fault is not None and fault != self._held:
            self._notify(f"no trial begins: {fault}")
        self._held = fault
        return fault is None

    def _stop(self) -> None:
        """Have all trials save and end; the next controller resumes them."""
        active = [trial for trial in [*self.trials, *self.repeats] if trial.is_active]
        runs = [self._folder.run(trial) for trial in active]
        for run in runs:
            if run.exists:
                self._runs.stop(run)
        _wait_for([run for run in runs if run.exists])
        for trial in active:
            trial.state = "queued"  # even if it has finished meanwhile: the next controller reads that from its run
        self._save()


def format_metric_value(metric: str, value: float) -> str:
    """Return the value of a metric for display."""
    name = metric.removeprefix("val/")
    return format_value(name, {metric: value}) if "/" not in name else f"{value:.4g}"


def _wait_for(runs: Sequence[RunDirectory]) -> None:
    """Return once no process trains in these runs, which have been requested to stop."""
    while any(is_alive(run) for run in runs):
        time.sleep(_TICK_S)


def _describe(params: dict[str, object]) -> str:
    return "  ".join(f"{key}={as_text(value)}" for key, value in params.items())


def _name(trial: Trial) -> str:
    return f"{trial.number}" if trial.seed is None else f"{trial.number}, seed {trial.seed}"
