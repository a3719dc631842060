"""OpenAlex through its client: what arXiv does not tell (affiliations, references, retractions)."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import pyalex
import requests

from gpusched.errors import InputError
from gpusched.review.found import Found, clean, cleaned
from gpusched.review.paper import split_version
from gpusched.review.responses import KeptAnswers

PAGE = 100
PAUSE_S = 0.2
FIRST = "*"
"""Cursor of the first page."""


class Works(pyalex.Works):  # type: ignore[misc]
    """The client's works, asked for over a session of ours; the name makes the address."""

    session: requests.Session

    def _get_from_url(self, url: str, session: Any = None) -> Any:
        try:
            return super()._get_from_url(url, self.session)
        except requests.RequestException as error:
            status = getattr(error.response, "status_code", None)
            why = f"status {status}" if status else str(error).split(": ")[-1][:160]
            raise InputError(
                f"OpenAlex cannot be reached ({why}); the update goes on from here when run "
                "again, or works on kept answers with --offline"
            ) from None
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"OpenAlex refuses the query or its answer is odd: {error}") from None


def openalex_session(cache: Path, offline: bool) -> requests.Session:
    """Return a session that keeps answers in a folder."""
    session = requests.Session()
    session.mount("https://", KeptAnswers(cache, offline, 0.0 if offline else PAUSE_S, retries=3))
    return session


def new_works(
    session: requests.Session, words: str, since: date, until: date, cursor: str
) -> Iterator[tuple[list[Found], str]]:
    """Yield pages of works published within days, each with the cursor of the next page.

    Raises:
        InputError: OpenAlex cannot be reached, or its answer is cut short.
    """
    following: str | None = cursor
    while following:
        works = _works(session).search(words)
        works.filter(from_publication_date=str(since), to_publication_date=str(until))
        page = works.get(per_page=PAGE, cursor=following)
        following = (page.meta or {}).get("next_cursor") if len(page) else None
        yield _found_all(page), following or ""


def known_works(session: requests.Session, identifiers: Sequence[str]) -> list[Found]:
    """Return what OpenAlex says of papers by arXiv id.

    Raises:
        InputError: as for ``new_works``.
    """
    works = _works(session).filter_or(doi=[f"10.48550/arxiv.{i}" for i in identifiers])
    return _found_all(works.get(per_page=PAGE))


def found(work: Mapping[str, Any]) -> Found | None:
    """Return a work as a paper found; None where it has no title or date."""
    title = clean(work.get("title") or work.get("display_name"))
    try:
        day = date.fromisoformat(str(work.get("publication_date")))
    except ValueError:
        return None
    if not title:
        return None
    places = [work.get("doi"), (work.get("ids") or {}).get("arxiv")]
    for location in work.get("locations") or []:
        places += [(location or {}).get("landing_page_url"), (location or {}).get("pdf_url")]
    known = [split_version(place) for place in places if isinstance(place, str)]
    identifier = next((i for i, _ in known if i), "")
    authorships = work.get("authorships") or []
    return Found(
        arxiv=identifier,
        title=title,
        updated=day,
        authors=cleaned([(a.get("author") or {}).get("display_name") or "" for a in authorships]),
        affiliations=cleaned(
            [i.get("display_name") or "" for a in authorships for i in a.get("institutions") or []]
        ),
        abstract=clean(pyalex.invert_abstract(work.get("abstract_inverted_index")), 10_000),
        withdrawn=work.get("is_retracted") is True,
        openalex=_short(work.get("id")),
        references=tuple(
            dict.fromkeys(s for r in work.get("referenced_works") or [] if (s := _short(r)))
        ),
    )


def _works(session: requests.Session) -> Works:
    works = Works()
    works.session = session
    return works


def _found_all(page: Sequence[Mapping[str, Any]]) -> list[Found]:
    return [paper for work in page if (paper := found(work)) is not None]


def _short(address: object) -> str | None:
    tail = str(address).rsplit("/", 1)[-1]
    return tail if tail[:1] == "W" and tail[1:].isdigit() else None
