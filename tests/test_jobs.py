"""Tasks in processes and on Ray give what one process gives, in order."""

import os
import sys
from types import SimpleNamespace

import pytest

from gpusched.errors import InputError
from gpusched.jobs import cores, run_all


def double(x):
    return 2 * x


def fail_on_three(x):
    if x == 3:
        raise InputError("three is wrong")
    return x


def die_in_a_child(pid):
    if os.getpid() != pid:
        os._exit(9)
    return pid


@pytest.mark.parametrize("jobs", [1, 2, 7])
def test_answers_come_in_order(jobs):
    seen = []
    assert run_all(double, range(5), jobs=jobs, progress=seen.append) == [0, 2, 4, 6, 8]
    assert seen == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("jobs", [1, 2])
def test_errors_of_tasks_reach_the_user(jobs):
    with pytest.raises(InputError, match="three is wrong"):
        run_all(fail_on_three, range(6), jobs=jobs)


def test_a_killed_process_is_told_of():
    with pytest.raises(InputError, match="memory"):
        run_all(die_in_a_child, [os.getpid()] * 4, jobs=2)


def test_cores_are_counted():
    assert 1 <= cores() <= os.cpu_count()


class FakeRay:
    """As much of Ray as is used: an address that answers, tasks that run when asked for."""

    def __init__(self, address="head:6379"):
        self.address = address
        self.events = []

    def init(self, address, log_to_driver):
        if address != self.address:
            raise ConnectionError(f"Could not find any running Ray instance at {address}\nmore")
        self.events.append("init")

    def remote(self, function):
        return SimpleNamespace(remote=lambda task: (function, task))

    def get(self, reference):
        function, task = reference
        self.events.append(task)
        try:
            return function(task)
        except InputError as error:
            raise RayTaskError(error) from None

    def shutdown(self):
        self.events.append("shutdown")


class RayTaskError(InputError):
    """Ray raises an error that is of the cause's type too, its message a traceback."""

    def __init__(self, cause):
        super().__init__("ray::fail_on_three() Traceback ...")
        self.cause = cause


def test_ray_runs_every_task_and_is_left(monkeypatch):
    ray = FakeRay()
    monkeypatch.setitem(sys.modules, "ray", ray)
    assert run_all(double, [3, 1, 2], ray_address="head:6379") == [6, 2, 4]
    assert ray.events == ["init", 3, 1, 2, "shutdown"]


def test_errors_on_ray_lose_their_traceback(monkeypatch):
    ray = FakeRay()
    monkeypatch.setitem(sys.modules, "ray", ray)
    with pytest.raises(InputError, match=r"^three is wrong$"):
        run_all(fail_on_three, range(5), ray_address="head:6379")
    assert ray.events[-1] == "shutdown"


def test_no_cluster_at_the_address(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", FakeRay())
    with pytest.raises(InputError, match=r"no Ray cluster answers at 'nowhere:1'.*running Ray"):
        run_all(double, range(3), ray_address="nowhere:1")


def test_ray_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"gpusched\[ray\]"):
        run_all(double, range(3), ray_address="auto")
