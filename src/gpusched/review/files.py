"""Files of the store: written whole or not at all, and never over somebody else's edit."""

import os
import tempfile
from pathlib import Path

from gpusched.domain.document import parse_document
from gpusched.errors import InputError

MAX_BYTES = 64 * 1024 * 1024


def read_text(path: Path) -> str:
    """Return a text file.

    Raises:
        InputError: it cannot be read or is not text.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InputError(f"{path}: larger than 64 MB; this is not part of a review")
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot read the file ({error.strerror})") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: not a text file in UTF-8") from None


def write_text(path: Path, text: str, before: str | None = None) -> None:
    """Replace a file at once; the old one stays until the new one is complete.

    Args:
        path: the file.
        text: its new content.
        before: what the file held when it was read, if that must still be so.

    Raises:
        InputError: it cannot be written, or somebody changed it since it was read.
    """
    if before is not None and path.exists() and read_text(path) != before:
        raise InputError(f"{path}: changed since it was read; nothing was written, run again")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(name, 0o644)
            os.replace(name, path)
        except BaseException:
            os.unlink(name)
            raise
    except OSError as error:
        raise InputError(f"{path}: cannot write the file ({error.strerror})") from None


def load_abstracts(cache: Path) -> dict[str, str]:
    """Return abstracts by arXiv id as updates kept them; they are not part of the store.

    Raises:
        InputError: the file is wrong.
    """
    path = cache / "abstracts.json"
    values = parse_document(read_text(path), str(path)) if path.exists() else {}
    return {name: text for name, text in values.items() if isinstance(text, str)}
