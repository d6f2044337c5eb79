"""Keeps a copy of a sweep as a journal of Optuna, for its dashboard and other programs; the sweep never reads it back.

`optuna-dashboard runs/NAME/journal.log` shows it while the sweep runs. The controller is its only writer. A journal
that is missing, damaged, or of other trials is written again from the trials.
"""

from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from distrain.service.sweeps.decisions import Known
from distrain.service.sweeps.folder import SweepFolder
from distrain.service.sweeps.parameters import Parameter
from distrain.service.sweeps.suggestion import as_optuna, as_optuna_params, quiet_optuna
from distrain.service.sweeps.trial import Trial

if TYPE_CHECKING:
    from optuna import Study


class Journal:
    """The journal of a sweep in its folder."""

    def __init__(
        self,
        folder: SweepFolder,
        parameters: Sequence[Parameter],
        trials: Sequence[Trial],
        *,
        sign: int,
        rungs: Sequence[int],
    ) -> None:
        self._folder = folder
        self._parameters = parameters
        self._sign = sign
        self._rungs = rungs
        self._written: list[Trial] = []
        with quiet_optuna():
            self._study = self._open(trials)

    def update(self, trials: Sequence[Trial]) -> None:
        """Write what has changed in the trials."""
        with quiet_optuna():
            for trial in trials:
                before = self._written[trial.number] if trial.number < len(self._written) else None
                if before is None:
                    self._study.add_trial(as_optuna(self._parameters, Known(trial, is_running=True)))
                    self._written.append(Trial(number=trial.number, params=trial.params, run=trial.run))
                    before = self._written[trial.number]
                if trial != before:
                    self._write(trial, before)
                    self._written[trial.number] = trial.model_copy(deep=True)

    def read_importance(self) -> dict[str, float]:
        """Return how much of the variance of the metric each parameter explains, by fANOVA; empty where too few ended.

        Hutter, Hoos and Leyton-Brown, "An efficient approach for assessing hyperparameter importance", ICML 2014.
        """
        with quiet_optuna(), suppress(ImportError):  # of scikit-learn, which the extra `sweep` installs
            from optuna.importance import FanovaImportanceEvaluator, get_param_importances
            from optuna.trial import TrialState

            ended = self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
            if len(ended) < 2 or len({trial.value for trial in ended}) < 2:
                return {}
            return dict(get_param_importances(self._study, evaluator=FanovaImportanceEvaluator(seed=0)))
        return {}

    def _open(self, trials: Sequence[Trial]) -> "Study":
        """Open the journal, or begin it again where it does not fit the trials."""
        try:
            study = self._load()
            written = [dict(trial.params) for trial in study.get_trials(deepcopy=False)]
            states = [trial.state.is_finished() for trial in study.get_trials(deepcopy=False)]
        except Exception:  # noqa: BLE001 - whatever Optuna raises for a damaged file: it is only a copy
            written, states = [{}], [True]
        expected = [as_optuna_params(self._parameters, trial.params) for trial in trials]
        is_own = written == expected[: len(written)]
        if not is_own or any(done and not trial.is_over for done, trial in zip(states, trials, strict=False)):
            self._folder.journal.unlink(missing_ok=True)
            return self._load()
        for trial, is_done in zip(trials, states, strict=False):
            known = Trial(number=trial.number, params=trial.params, run=trial.run)
            self._written.append(trial.model_copy(deep=True) if is_done else known)
        return study

    def _load(self) -> "Study":
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        return optuna.create_study(
            storage=JournalStorage(JournalFileBackend(str(self._folder.journal))),
            study_name=self._folder.name,
            direction="maximize" if self._sign > 0 else "minimize",
            load_if_exists=True,
        )

    def _write(self, trial: Trial, before: Trial) -> None:
        from optuna.trial import Trial as OptunaTrial
        from optuna.trial import TrialState

        storage_id = self._study.get_trials(deepcopy=False)[trial.number]._trial_id
        written = OptunaTrial(self._study, storage_id)
        for rung, value in list(zip(self._rungs, trial.rungs, strict=False))[len(before.rungs) :]:
            if value is not None:
                written.report(value, rung)
        if trial.state == "finished" and trial.value is not None:
            self._study.tell(trial.number, trial.value)
        elif trial.state == "pruned" and trial.value is not None:
            self._study.tell(trial.number, state=TrialState.PRUNED)
        elif trial.is_over:
            self._study.tell(trial.number, state=TrialState.FAIL)
