"""A human's word on a candidate: accepted or rejected."""

from datetime import date
from typing import Any

from gpusched.domain.document import validate
from gpusched.errors import InputError
from gpusched.review.paper import Paper
from gpusched.review.records import without_empty
from gpusched.review.store import Store


def accept(store: Store, identifier: str, today: date, **changes: Any) -> Paper:
    """Accept a candidate, or change an accepted paper, and write the store.

    A machine's draft is dropped: its takeaway is kept only where ``changes`` repeat it.

    Args:
        store: of the review.
        identifier: arXiv id.
        today: the day to list it under where it has none yet.
        changes: fields of the record; what is None stays as it is.

    Raises:
        InputError: no such paper, it is withdrawn, a field is wrong, or one that an accepted
            paper needs is missing.
    """
    paper = store.paper(identifier)
    if paper.status == "withdrawn":
        raise InputError(f"{paper.arxiv}: was withdrawn on {paper.withdrawn}; it is not accepted")
    given = {name: value for name, value in changes.items() if value is not None}
    values = paper.model_dump(mode="python") | given
    values |= {
        "status": "accepted",
        "seen": paper.seen or today,
        "draft": None,
        "similarity": None,
        "nearest": None,
    }
    accepted = validate(Paper, without_empty(values), paper.arxiv)
    store.replace(accepted)
    return accepted


def reject(store: Store, identifier: str, note: str | None) -> Paper:
    """Reject a candidate; its record stays, so that it is not proposed again.

    Raises:
        InputError: no such paper, or it is not a candidate.
    """
    paper = store.paper(identifier)
    if paper.status != "candidate":
        raise InputError(f"{paper.arxiv}: is {paper.status}; only a candidate is rejected")
    rejected = paper.model_copy(
        update={"status": "rejected", "draft": None, "note": note or paper.note}
    )
    store.replace(rejected)
    return rejected
