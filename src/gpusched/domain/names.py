"""Names in documents: of GPUs in the catalog, and of models (catalog name, Hugging Face id, or path of
a config.json)."""

from typing import Annotated

from pydantic import AfterValidator

from gpusched.domain.catalog import load_gpu, load_model
from gpusched.errors import InputError


def _known_model(name: str) -> str:
    try:
        load_model(name)
    except (InputError, ValueError) as error:
        raise ValueError(str(error)) from None
    return name


def _known_gpu(name: str) -> str:
    try:
        return load_gpu(name).name
    except InputError as error:
        raise ValueError(str(error)) from None


GpuName = Annotated[str, AfterValidator(_known_gpu)]
ModelName = Annotated[str, AfterValidator(_known_model)]
