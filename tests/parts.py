"""What tests do for want of an installed part."""

import os
from typing import NoReturn

import pytest


def missing(reason: object) -> NoReturn:
    """Skip a test; fail it where the parts are promised (``GPUSCHED_ENGINES=installed``)."""
    if os.environ.get("GPUSCHED_ENGINES") == "installed":
        pytest.fail(f"a part that is said to be installed is missing: {reason}")
    pytest.skip(str(reason).splitlines()[0])
