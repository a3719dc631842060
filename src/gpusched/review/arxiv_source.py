"""arXiv through its client: pages of entries, three seconds between requests."""

from collections.abc import Iterator, Sequence
from datetime import date
from itertools import islice
from pathlib import Path
from typing import Any

import arxiv
import requests

from gpusched.errors import InputError
from gpusched.review.found import Found, clean, cleaned, says_withdrawn
from gpusched.review.paper import split_version
from gpusched.review.responses import KeptAnswers

PAGE = 100
PAUSE_S = 3.0
"""What arXiv's terms of use ask for."""


def arxiv_client(cache: Path, offline: bool) -> arxiv.Client:
    """Return a client that keeps answers in a folder."""
    client = arxiv.Client(page_size=PAGE, delay_seconds=0.0 if offline else PAUSE_S, num_retries=2)
    client._session.mount("https://", KeptAnswers(cache, offline, pause_s=0.0, retries=0))
    return client


def new_papers(
    client: arxiv.Client, query: str, since: date, until: date, offset: int
) -> Iterator[tuple[list[Found], int]]:
    """Yield pages of papers submitted within days, each with the offset of the next page.

    Raises:
        InputError: arXiv cannot be reached, refuses the query, or its answer is cut short.
    """
    window = f"submittedDate:[{since:%Y%m%d}0000 TO {until:%Y%m%d}2359]"
    search = arxiv.Search(
        query=f"({query}) AND {window}",
        max_results=None,
        sort_by=arxiv.SortCriterion.SubmittedDate,
        sort_order=arxiv.SortOrder.Ascending,
    )
    results = client.results(search, offset=offset)
    while page := _page(results):
        offset += len(page)
        yield [found(entry) for entry in page], offset


def known_papers(client: arxiv.Client, identifiers: Sequence[str]) -> list[Found]:
    """Return what arXiv says of known papers now.

    Raises:
        InputError: as for ``new_papers``.
    """
    search = arxiv.Search(id_list=list(identifiers), max_results=len(identifiers))
    results = client.results(search)
    entries = []
    while page := _page(results):
        entries += page
    return [found(entry) for entry in entries]


def found(entry: Any) -> Found:
    """Return an entry of the client as a paper found.

    Raises:
        InputError: the entry reports an error of the query.
    """
    if "/api/errors" in entry.entry_id:
        raise InputError(f"arXiv refuses the query: {clean(entry.summary, 200)}")
    identifier, version = split_version(entry.entry_id)
    return Found(
        arxiv=identifier,
        title=clean(entry.title),
        updated=entry.updated.date(),
        version=version,
        submitted=entry.published.date(),
        authors=cleaned([author.name for author in entry.authors]),
        affiliations=cleaned(
            [place for author in entry.authors for place in getattr(author, "affiliation", [])]
        ),
        abstract=clean(entry.summary, 10_000),
        withdrawn=says_withdrawn(entry.comment, entry.summary),
    )


def _page(results: Iterator[Any]) -> list[Any]:
    try:
        return list(islice(results, PAGE))
    except arxiv.ArxivError as error:
        raise InputError(f"arXiv: {error}; the update goes on from here when run again") from None
    except requests.RequestException as error:
        raise InputError(
            f"arXiv cannot be reached ({_reason(error)}); the update goes on from here when run "
            "again, or works on kept answers with --offline"
        ) from None
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(f"arXiv: an entry cannot be read ({error}); run again later") from None


def _reason(error: requests.RequestException) -> str:
    inner = error.args[0] if error.args else error
    return str(getattr(inner, "reason", None) or inner).split(": ", 1)[-1][:160]
