"""Parts of the reproduction that take seconds."""

from dataclasses import replace

import pytest

from gpusched.policies.admission.fluid import fluid_plan
from gpusched.reproduce import gate_and_route as experiment
from gpusched.reproduce.claim import Setting


def test_claims_without_simulation():
    claims = [
        *experiment.calibration(),
        *experiment.service_terms(),
        *experiment.sensitivities(),
    ]
    holds = {claim.claim.split(" ")[0]: claim.holds for claim in claims}
    assert holds["Prefill"]
    assert not holds["Decode"]
    assert len(claims) == 7


def test_random_trials_are_of_the_published_ranges():
    trials = experiment.random_trials(50, 1)
    again = experiment.random_trials(50, 1)
    assert trials == again
    for trial in trials:
        assert trial.server.mixed_s >= trial.server.solo_s
        assert 0.02 <= trial.server.solo_s <= 0.1
        assert 1e-5 <= trial.server.token_s <= 1e-3
        for request in trial.classes:
            assert 0.25 <= request.rate_rps <= 0.5
            assert min(request.prompt_tokens, request.output_tokens) >= 200


def test_new_plans_mend_wrong_rates():
    classes = experiment.base(1.0, 1.0)
    wrong = experiment.at_rates(classes, (1.3, 1.3))
    run = experiment.Run(
        classes, experiment.SERVER, 100, "gate-and-route-credit", 300.0, 600.0, 0, wrong
    )
    value = fluid_plan(classes, experiment.SERVER, experiment.PRICES).value

    def share(task):
        return task.simulate().revenue(classes, experiment.PRICES) / value

    once, again = share(run), share(experiment.Replanned(run))
    informed = share(replace(run, planned=classes))
    assert once < again - 0.05
    assert again == pytest.approx(informed, rel=0.02)


@pytest.mark.parametrize("jobs", [1, 2])
def test_answers_come_in_the_order_of_the_tasks(jobs):
    told = []
    setting = Setting(jobs=jobs, progress=told.append)
    assert experiment.in_processes(abs, [-3, 2, -1], setting, "values") == [3, 2, 1]
    assert told[-1] == "values: 3 of 3 runs"
