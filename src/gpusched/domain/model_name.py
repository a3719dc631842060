"""Names of models in documents: of the catalog, a Hugging Face id, or the path of a config.json."""

from typing import Annotated

from pydantic import AfterValidator

from gpusched.domain.catalog import load_model
from gpusched.errors import InputError


def _known(name: str) -> str:
    try:
        load_model(name)
    except (InputError, ValueError) as error:
        raise ValueError(str(error)) from None
    return name


ModelName = Annotated[str, AfterValidator(_known)]
