"""New papers, new versions and withdrawals from arXiv and OpenAlex; proposes, never accepts."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import arxiv
import pyalex
import requests

from gpusched.errors import InputError
from gpusched.review import arxiv_source, openalex_source
from gpusched.review.files import load_abstracts, write_text
from gpusched.review.found import Found
from gpusched.review.merge import Merger, Tally
from gpusched.review.responses import NotKeptError
from gpusched.review.search_plan import (
    Progressed,
    SearchPlan,
    UnderWay,
    begin,
    load_plan,
    load_state,
    save_state,
)
from gpusched.review.similarity import Likeness
from gpusched.review.store import Store

GROUP = 50
"""Known papers asked for at once."""
Page = tuple[list[Found], str]
Step = Callable[[str | None], Iterator[Page]]


@dataclass(frozen=True)
class Updated:
    """What an update did."""

    store: Store
    since: date
    until: date
    tally: Tally


def update(
    store: Store,
    cache: Path,
    today: date,
    *,
    offline: bool = False,
    progress: Callable[[str], None] = lambda message: None,
) -> Updated:
    """Bring a store up to a day.

    The store and the state are written after every page, so that an update that fails goes on
    where it stopped. Without network, kept answers are used, steps without any are skipped, and
    the state stays where it is.

    Raises:
        InputError: a source cannot be reached or its answer is cut short, or a file is wrong, or
            no answer at all is kept.
    """
    plan = load_plan(store.folder)
    state = load_state(store.folder)
    way = begin(plan, state, today, offline)
    abstracts = load_abstracts(cache)
    merger = Merger(store.papers, Likeness(store.reviewed), plan.floor, today)
    steps = [(n, s) for n, s in _steps(plan, store, way, cache, offline) if n not in way.done]
    for name, step in steps:
        try:
            for page, following in step(way.at if way.step == name else None):
                progress(f"{name}: {merger.tally.seen + len(page)} entries")
                for found in page:
                    merger.add(found)
                    if found.arxiv in merger.papers and found.abstract:
                        abstracts[found.arxiv] = found.abstract
                store = store.save(merger.papers.values())
                kept = json.dumps(abstracts, indent=0, sort_keys=True)
                write_text(cache / "abstracts.json", kept)
                way = way.model_copy(update={"step": name, "at": following or None})
                if not offline:
                    save_state(store.folder, state.model_copy(update={"under_way": way}))
        except NotKeptError as error:
            merger.tally.skipped.append(name)
            if len(merger.tally.skipped) == len(steps):
                raise InputError(str(error)) from None
        way = way.model_copy(update={"done": (*way.done, name), "step": None, "at": None})
        if not offline:
            save_state(store.folder, state.model_copy(update={"under_way": way}))
    if not offline:
        save_state(store.folder, Progressed(harvested_since=way.since, harvested_until=way.until))
    return Updated(store, way.since, way.until, merger.tally)


def _steps(
    plan: SearchPlan, store: Store, way: UnderWay, cache: Path, offline: bool
) -> Iterator[tuple[str, Step]]:
    client = arxiv_source.arxiv_client(cache, offline)
    session = openalex_source.openalex_session(cache, offline)
    pyalex.config.email = plan.mail
    known = [p.arxiv for p in store.papers if p.status in ("accepted", "candidate")]
    groups = [known[i : i + GROUP] for i in range(0, len(known), GROUP)]

    def _whole(ask: Callable[[list[str]], list[Found]], group: list[str]) -> Step:
        return lambda at: iter([(ask(group), "")])

    for i, group in enumerate(groups, 1):
        yield (
            f"arXiv, known papers {i}",
            _whole(lambda g: arxiv_source.known_papers(client, g), group),
        )
    for i, query in enumerate(plan.arxiv, 1):
        yield f"arXiv, query {i}", _arxiv_step(client, query, way)
    for i, group in enumerate(groups, 1):
        yield (
            f"OpenAlex, known papers {i}",
            _whole(lambda g: openalex_source.known_works(session, g), group),
        )
    for i, words in enumerate(plan.openalex, 1):
        yield f"OpenAlex, query {i}", _openalex_step(session, words, way)


def _arxiv_step(client: arxiv.Client, query: str, way: UnderWay) -> Step:
    def step(at: str | None) -> Iterator[Page]:
        pages = arxiv_source.new_papers(client, query, way.since, way.until, int(at or 0))
        return ((page, str(offset)) for page, offset in pages)

    return step


def _openalex_step(session: requests.Session, words: str, way: UnderWay) -> Step:
    def step(at: str | None) -> Iterator[Page]:
        first = at or openalex_source.FIRST
        return openalex_source.new_works(session, words, way.since, way.until, first)

    return step
