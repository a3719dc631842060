"""Run independent tasks in processes of this machine or on a Ray cluster, in their order."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from gpusched.errors import GpuschedError, InputError

Task = TypeVar("Task")
Answer = TypeVar("Answer")


def cores() -> int:
    """Return the number of cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def run_all(
    function: Callable[[Task], Answer],
    tasks: Sequence[Task],
    *,
    jobs: int = 1,
    ray_address: str | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[Answer]:
    """Return the answers to all tasks; ``progress`` is told how many are done.

    The first task runs here, so that what it compiles or reads is there for the others. ``function``
    and tasks travel by pickle; on a Ray cluster every node needs this package and the files named.

    Raises:
        InputError: a process was killed, Ray is not installed, or no cluster answers.
    """
    answers = []
    for answer in _in_order(function, tasks, min(jobs, len(tasks) - 1), ray_address):
        answers.append(answer)
        if progress is not None:
            progress(len(answers))
    return answers


def _in_order(
    function: Callable[[Task], Answer], tasks: Sequence[Task], jobs: int, ray_address: str | None
) -> Iterator[Answer]:
    if ray_address is not None:
        yield from _on_ray(function, tasks, ray_address)
    elif jobs > 1:
        yield function(tasks[0])
        try:
            with ProcessPoolExecutor(jobs) as pool:
                yield from pool.map(function, tasks[1:])
        except BrokenProcessPool:
            raise InputError(
                "a process was killed, probably because memory ran out; use fewer --jobs or a "
                "smaller trace (workload.limit)"
            ) from None
    else:
        yield from map(function, tasks)


def _on_ray(
    function: Callable[[Task], Answer], tasks: Sequence[Task], address: str
) -> Iterator[Answer]:
    try:
        import ray
    except ImportError:
        raise InputError(
            "--ray: Ray is not installed; install it with: pip install 'gpusched[ray]'"
        ) from None
    try:
        ray.init(address=address, log_to_driver=False)
    except Exception as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), "")
        raise InputError(
            f"--ray: no Ray cluster answers at {address!r} ({type(error).__name__}: "
            f"{reason.strip()}); give host:port of a running one, ray://host:10001, or auto"
        ) from None
    try:
        remote: Any = ray.remote(function)
        references = [remote.remote(task) for task in tasks]
        for reference in references:
            try:
                yield ray.get(reference)
            except GpuschedError as error:
                raise getattr(error, "cause", error) from None
    finally:
        ray.shutdown()
