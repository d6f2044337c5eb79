"""What a sweep decides depends on its seed and its trials alone, in whatever order they end."""

import math
import random
from dataclasses import dataclass, field

import pytest

from distrain.service.sweeps.decisions import decide, find_known, must_prune
from distrain.service.sweeps.parameters import Params, read_parameters
from distrain.service.sweeps.rungs import cut_cohorts, promoted
from distrain.service.sweeps.spec import SweepSpec
from distrain.service.sweeps.suggestion import suggest
from distrain.service.sweeps.trial import Trial

RUNGS = (1, 3)
END = 9
PARAMETERS = read_parameters(["lr=log(1e-4, 1)", "model=[a, b]"])


def spec(prune: str, **fields: object) -> SweepSpec:
    given = {"recipe": "digits", "trials": 30, "lag": 4, "seed": 5, "prune": prune, "parallel": 3, **fields}
    rungs = () if prune == "none" else RUNGS
    cohorts = cut_cohorts(30, 2) if prune == "asha" else ()
    return SweepSpec.model_validate({**given, "rungs": rungs, "cohorts": cohorts})


def accuracy(params: Params, epochs: int) -> float:
    """A learning curve: the better the rate, the higher, and rates cross each other."""
    distance = abs(math.log10(params["lr"]) + 1.5) + (params["model"] == "b") * 0.3
    return round(float((1 - math.exp(-epochs / (1 + distance))) / (1 + 0.2 * distance)), 2)


@dataclass
class Simulation:
    """A sweep whose runs train an epoch at a time, in a random order."""

    spec: SweepSpec
    order: random.Random
    trials: list[Trial] = field(default_factory=list)
    epochs: dict[int, int] = field(default_factory=dict)

    def run(self) -> list[Trial]:
        self.decide()
        while len(self.trials) < (self.spec.trials or 0) or not all(trial.is_over for trial in self.trials):
            active = [trial for trial in self.trials if trial.is_active]
            assert active, "nothing runs, and nothing can begin"
            self.train(self.order.choice(active))
            self.decide()
        return self.trials

    def decide(self) -> None:
        found = decide(self.spec, self.trials, sign=1)
        for number in found.prune:
            self.trials[number].state = "pruned"
        for number, stage in found.promote.items():
            if self.has_place:
                self.trials[number].stage, self.trials[number].state = stage, "running"
        while self.has_place and decide(self.spec, self.trials, sign=1).suggest:
            number = len(self.trials)
            known = find_known(self.spec, self.trials, number)
            params = suggest(PARAMETERS, self.spec.sampler, known, number, seed=self.spec.seed, sign=1)
            stage = 0 if self.spec.prune == "asha" else len(self.spec.rungs or ())
            self.trials.append(Trial(number=number, params=dict(params), run=f"s-{number:04}", stage=stage))

    @property
    def has_place(self) -> bool:
        return sum(trial.is_active for trial in self.trials) < self.spec.parallel

    def train(self, trial: Trial) -> None:
        rungs = self.spec.rungs or ()
        epoch = self.epochs[trial.number] = self.epochs.get(trial.number, 0) + 1
        if trial.number % 11 == 7:
            trial.state = "failed"
            return
        if epoch in rungs:
            trial.value = accuracy(trial.params, epoch)
            trial.rungs.append(trial.value)
            if must_prune(self.spec, self.trials, trial, sign=1):
                trial.state = "pruned"
            elif trial.stage < len(rungs) and epoch == rungs[trial.stage]:
                trial.state = "paused"
        elif epoch == END:
            trial.value, trial.state = accuracy(trial.params, epoch), "finished"


@pytest.mark.parametrize("prune", ["none", "median", "asha"])
def test_table_is_the_same_however_many_run_and_in_whatever_order_they_end(prune: str) -> None:
    tables = [
        Simulation(spec(prune, parallel=parallel), random.Random(seed)).run()
        for parallel, seed in ((1, 0), (3, 1), (4, 2), (3, 3))
    ]
    rows = [[trial.model_dump() for trial in table] for table in tables]
    assert rows[0] == rows[1] == rows[2] == rows[3]
    states = [trial.state for trial in tables[0]]
    assert states.count("failed") == 3
    assert (states.count("pruned") > 5) == (prune != "none")
    assert states.count("finished") >= 3


def test_without_reproducibility_the_order_of_ends_matters_and_the_sweep_still_ends() -> None:
    tables = []
    for seed in range(3):
        trials = Simulation(spec("asha", reproducible=False, parallel=8), random.Random(seed)).run()
        assert all(trial.is_over for trial in trials)
        assert any(trial.state == "finished" for trial in trials)
        tables.append([trial.params for trial in trials])
    assert tables[0] != tables[1]


def test_another_seed_gives_another_table() -> None:
    first = Simulation(spec("none"), random.Random(0)).run()
    second = Simulation(spec("none", seed=6), random.Random(0)).run()
    assert [trial.params for trial in first] != [trial.params for trial in second]


def test_search_finds_better_rates_than_chance() -> None:
    found = {
        sampler: max(trial.value or 0 for trial in Simulation(spec("none", sampler=sampler), random.Random(0)).run())
        for sampler in ("tpe", "random")
    }
    assert found["tpe"] >= found["random"] > 0.8


def paused(number: int, value: float | None) -> Trial:
    return Trial(number=number, params={}, run=f"s-{number}", state="paused", rungs=[value], value=value)


def test_ties_go_to_the_lower_number_and_what_is_not_finite_is_not_promoted() -> None:
    trials = [paused(number, 0.5) for number in range(6)]
    assert promoted(trials, 0, size=6, sign=1) == frozenset({0, 1})
    trials[0] = paused(0, None)
    assert promoted(trials, 0, size=6, sign=1) == frozenset({1, 2})
    trials[1] = Trial(number=1, params={}, run="s-1", state="failed")
    assert promoted(trials, 0, size=6, sign=-1) == frozenset({2, 3})


def test_nothing_is_promoted_before_the_whole_cohort_has_reached_the_rung() -> None:
    trials = [paused(number, 0.5) for number in range(5)]
    assert promoted(trials, 0, size=6, sign=1) is None
    trials.append(Trial(number=5, params={}, run="s-5", state="running"))
    assert promoted(trials, 0, size=6, sign=1) is None
    trials[5].state = "failed"
    assert promoted(trials, 0, size=6, sign=1) == frozenset({0, 1})


def test_more_trials_are_a_cohort_of_their_own() -> None:
    assert cut_cohorts(12, 2) == (9, 3)
    assert cut_cohorts(5, 3) == (5,)
    assert sum(cut_cohorts(40, 3)) == 40
