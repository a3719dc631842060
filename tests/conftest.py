"""Shared fixtures."""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder with public traces and measurements; tests that need it skip without it."""
    folder = Path(os.environ.get("GPUSCHED_SHARED", Path(__file__).parents[2] / "shared"))
    if not (folder / "traces").is_dir():
        pytest.skip("no folder with public traces (set GPUSCHED_SHARED)")
    return folder


EXAMPLES = 2000 if os.environ.get("GPUSCHED_FULL") == "1" else 100
settings.register_profile(
    "gpusched", max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("gpusched")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave measuring tests out where several workers run."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        kept = [item for item in items if item.get_closest_marker("quiet") is None]
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = kept
