"""A copy of the review, and sources that answer from files in the form of the real ones."""

import shutil
from pathlib import Path

import pytest
import requests

ROOT = Path(__file__).parents[2]
ANSWERS = Path(__file__).parent / "answers"


@pytest.fixture
def repository(tmp_path):
    """A repository with the review and what it links to."""
    root = tmp_path / "repository"
    shutil.copytree(ROOT / "review", root / "review", ignore=shutil.ignore_patterns("cache"))
    shutil.copytree(ROOT / "docs", root / "docs", ignore=shutil.ignore_patterns("_build"))
    (root / "src").symlink_to(ROOT / "src")
    return root


@pytest.fixture
def folder(repository):
    return repository / "review"


class Sources:
    """Stands where the network would be; keeps the addresses asked for."""

    def __init__(self):
        self.asked = []
        self.answers = {
            "arxiv known": ANSWERS / "arxiv_known.xml",
            "arxiv new": ANSWERS / "arxiv_new.xml",
            "openalex known": ANSWERS / "openalex_known.json",
            "openalex new": ANSWERS / "openalex_new.json",
        }

    def kind(self, url):
        if "arxiv.org/api" in url:
            return "arxiv new" if "id_list=&" in url else "arxiv known"
        return "openalex known" if "filter=doi" in url else "openalex new"

    def send(self, adapter, request, *args, **kwargs):
        self.asked.append(request.url)
        kind = self.kind(request.url)
        first = sum(self.kind(url) == kind for url in set(self.asked)) == 1
        body = self.answers[kind]
        if isinstance(body, Exception):
            raise body
        if kind.endswith("new") and not first:
            body = ANSWERS / ("arxiv_empty.xml" if "arxiv" in kind else "openalex_empty.json")
        answer = requests.Response()
        answer.status_code = 200
        if isinstance(body, int):
            answer.status_code, body = body, b"{}"
        answer.url, answer.request = request.url, request
        answer._content = body if isinstance(body, bytes) else body.read_bytes()
        return answer


@pytest.fixture
def sources(monkeypatch):
    pytest.importorskip("arxiv")
    pytest.importorskip("pyalex")
    from gpusched.review import arxiv_source, openalex_source

    stand_in = Sources()
    monkeypatch.setattr(
        requests.adapters.HTTPAdapter,
        "send",
        lambda adapter, request, *a, **k: stand_in.send(adapter, request, *a, **k),
    )
    monkeypatch.setattr(arxiv_source, "PAUSE_S", 0.0)
    monkeypatch.setattr(openalex_source, "PAUSE_S", 0.0)
    return stand_in
