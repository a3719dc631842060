import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpusched.errors import InputError
from gpusched.timing.overlap import asas_makespan_s, best_schedule, makespan_s

WORKED = {
    (1, 1, 1, 4, 2, 3, 1): (9, 9),
    (2, 1, 1, 4, 2, 3, 1): (18, 18),
    (2, 2, 1, 4, 2, 3, 1): (27, 25),
    (3, 2, 2, 4, 2, 3, 1): (42, 44),
    (4, 3, 2, 2, 1, 4, 3): (104, 104),
    (60, 4, 2, 2.0, 0.5, 0.8, 0.6): (602.3, 600.8),
}


@pytest.mark.parametrize("instance", WORKED)
def test_worked_instances(instance):
    asas, aass = WORKED[instance]
    assert makespan_s(*instance, "asas") == pytest.approx(asas, rel=1e-12)
    assert makespan_s(*instance, "aass") == pytest.approx(aass, rel=1e-12)
    assert asas_makespan_s(*instance) == pytest.approx(asas, rel=1e-12)


def step_by_step(layers, r1, r2, t_a, t_s, t_e, t_x, order):
    """Every task's start, then the last end; returns the tasks to check them as well."""
    tasks, ends = [], {}
    machine = dict.fromkeys(("AG", "UP", "EG", "DN"), 0.0)

    def run(name, where, after, time):
        start = max([machine[where], *(ends[key] for key in after if key in ends)])
        machine[where] = ends[name] = start + time
        tasks.append((where, start, start + time))

    for t in range(layers):
        back = lambda i, t=t: [("D", t - 1, i, r2 - 1), ("S", t - 1, i)]  # noqa: E731
        if order == "asas":
            for i in range(r1):
                run(("A", t, i), "AG", back(i), t_a)
                run(("S", t, i), "AG", [("A", t, i)], t_s)
        else:
            for i in range(r1):
                run(("A", t, i), "AG", back(i), t_a)
            for i in range(r1):
                run(("S", t, i), "AG", [("A", t, i)], t_s)
        for i in range(r1):
            for j in range(r2):
                run(("U", t, i, j), "UP", [("A", t, i)], t_x)
                run(("E", t, i, j), "EG", [("U", t, i, j)], t_e)
                run(("D", t, i, j), "DN", [("E", t, i, j)], t_x)
    return max(ends.values()), tasks


durations = st.one_of(st.integers(0, 8).map(float), st.floats(0.01, 10))
instances = st.tuples(
    st.integers(1, 30), st.integers(1, 6), st.integers(1, 5), durations, durations, durations,
    durations,
)  # fmt: skip


@given(instances, st.sampled_from(["asas", "aass"]))
def test_makespan_is_that_of_the_tasks_one_by_one(instance, order):
    expected, tasks = step_by_step(*instance, order)
    assert makespan_s(*instance, order) == pytest.approx(expected, rel=1e-9)
    for machine in ("AG", "UP", "EG", "DN"):
        spans = sorted((start, end) for where, start, end in tasks if where == machine)
        assert all(b[0] >= a[1] - 1e-9 for a, b in itertools.pairwise(spans))


@given(instances)
def test_closed_form_and_bounds(instance):
    layers, r1, r2, t_a, t_s, t_e, t_x = instance
    asas, aass = (makespan_s(*instance, order) for order in ("asas", "aass"))
    assert asas_makespan_s(*instance) == pytest.approx(asas, rel=1e-9, abs=1e-12)
    chain = t_a + 2 * t_x + t_e + (r2 - 1) * max(t_e, t_x)
    bound = layers * max(r1 * (t_a + t_s), r1 * r2 * t_e, r1 * r2 * t_x, chain)
    assert min(asas, aass) >= bound * (1 - 1e-9)
    if t_s == 0 or r1 == 1:
        assert aass == pytest.approx(asas, rel=1e-9, abs=1e-12)
    if r1 == r2 == 1:
        assert asas == pytest.approx(layers * max(t_a + t_s, chain), rel=1e-9, abs=1e-12)


def test_many_layers_are_extrapolated_exactly():
    for order in ("asas", "aass"):
        for times in ((2.0, 0.5, 0.8, 0.6), (1.0, 3.0, 0.3, 0.2), (1.0, 0.9, 0.25, 0.7)):
            expected = step_by_step(200, 4, 3, *times, order)[0]
            assert makespan_s(200, 4, 3, *times, order) == pytest.approx(expected, rel=1e-10)


@given(st.integers(0, 10_000))
def test_search_is_the_best_of_all(seed):
    rng = np.random.default_rng(seed)
    r1, r2 = np.array([1, 2, 4]), np.array([1, 2, 3])
    t_a, t_s, weight = rng.uniform(0.1, 3, 3), rng.uniform(0, 2, 3), rng.uniform(1, 5, 3)
    t_e, t_x = rng.uniform(0.1, 2, (3, 3)), rng.uniform(0.1, 2, (3, 3))
    found = best_schedule(7, r1, r2, t_a, t_s, t_e, t_x, weight)
    every = {
        (i, int(r2[j]), order): weight[i]
        / makespan_s(7, int(r1[i]), int(r2[j]), t_a[i], t_s[i], t_e[i, j], t_x[i, j], order)
        for i in range(3)
        for j in range(3)
        for order in ("asas", "aass")
    }
    assert weight[found.candidate] / found.makespan_s == pytest.approx(max(every.values()))
    assert every[found[:3]] == pytest.approx(max(every.values()))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 1, 1, 1, 1, 1, 1), "layers, r1 and r2"),
        ((1, 65, 1, 1, 1, 1, 1), "r1 at most 64"),
        ((1, 1, 1, float("nan"), 1, 1, 1), "attention_s: must be finite"),
        ((1, 1, 1, 1, 1, -1, 1), "expert_s: must be finite and at least 0"),
        ((1, 1, 1, 1, 1, 1, 1, "sasa"), "order: must be asas or aass"),
    ],
)
def test_impossible_instances_are_named(arguments, message):
    with pytest.raises(InputError, match=message):
        makespan_s(*arguments)


def test_the_job_shop_optimum_is_near(capsys):
    cp_model = pytest.importorskip("ortools.sat.python.cp_model")
    gaps = []
    for times in ((4, 2, 3, 1), (2, 2, 2, 2), (1, 3, 2, 1), (3, 1, 1, 3)):
        best = min(makespan_s(2, 2, 2, *times, order) for order in ("asas", "aass"))
        gaps.append(best / _job_shop(cp_model, 2, 2, 2, *times))
    assert min(gaps) >= 1
    assert max(gaps) < 1.25


def _job_shop(cp_model, layers, r1, r2, t_a, t_s, t_e, t_x):
    model, machines = cp_model.CpModel(), {}

    def task(machine, time, after):
        start = model.new_int_var(0, 200, "")
        for end in after:
            model.add(start >= end)
        interval = model.new_fixed_size_interval_var(start, time, "")
        machines.setdefault(machine, []).append(interval)
        return start + time

    ready = [[] for _ in range(r1)]
    for _ in range(layers):
        for i in range(r1):
            attention = task("AG", t_a, ready[i])
            ready[i] = [task("AG", t_s, [attention])]
            for _ in range(r2):
                there = task("UP", t_x, [attention])
                done = task("EG", t_e, [there])
                ready[i].append(task("DN", t_x, [done]))
    for intervals in machines.values():
        model.add_no_overlap(intervals)
    last = model.new_int_var(0, 200, "")
    for ends in ready:
        for end in ends:
            model.add(last >= end)
    model.minimize(last)
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 1
    assert solver.solve(model) == cp_model.OPTIMAL
    return solver.objective_value
