"""numpy and torch behind one face: advantages carry no gradient, so numpy does the arithmetic.

Tensors on the CPU are shared, not copied. torch is never imported here.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpusched.errors import InputError

Array = NDArray[np.floating[Any]]


def is_tensor(values: Any) -> bool:
    """Whether ``values`` is a torch tensor."""
    return type(values).__module__.split(".")[0] == "torch"


def as_numpy(name: str, values: Any) -> Array:
    """Return float32 or float64 figures, nan allowed.

    Raises:
        InputError: not numbers, or infinite.
    """
    if is_tensor(values):
        values = values.detach().cpu()
        double = str(values.dtype) == "torch.float64"
        array = np.asarray((values.double() if double else values.float()).numpy())
    else:
        try:
            array = np.asarray(values)
            array = array.astype(
                np.float32 if array.dtype == np.float32 else np.float64, copy=False
            )
        except (TypeError, ValueError) as error:
            raise InputError(f"{name}: not an array of numbers ({error})") from None
    # the sum is finite or nan unless something is infinite or enormous
    with np.errstate(invalid="ignore"):
        if not np.isfinite(array.sum()) and np.isinf(array).any():
            at = tuple(int(i) for i in np.argwhere(np.isinf(array))[0])
            raise InputError(
                f"{name}: infinite at {at}; nan means that an objective does not apply"
            )
    return array


def like(array: NDArray[Any], values: Any) -> Any:
    """Return an array in the kind, type and place of ``values``."""
    if not is_tensor(values):
        return array
    import torch

    kind = values.dtype if values.dtype.is_floating_point else torch.float32
    return torch.from_numpy(np.ascontiguousarray(array)).to(values.device, kind)
