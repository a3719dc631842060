"""HTTP answers of arXiv and OpenAlex: checked before they are used, kept for use without network.

Both clients work on ``requests`` sessions. An adapter mounted there looks into a folder first,
refuses answers that are cut short, and keeps the good ones.
"""

import hashlib
import json
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from xml.etree import ElementTree

import requests
from requests.adapters import HTTPAdapter
from requests.structures import CaseInsensitiveDict
from urllib3.util import Retry

from gpusched.errors import InputError

FRESH_S = 12 * 3600.0
TIMEOUT_S = 60.0
ATOM = "{http://www.w3.org/2005/Atom}feed"


class NotKeptError(InputError):
    """The network must not be asked and the answer is not at hand."""


class KeptAnswers(HTTPAdapter):
    """Answers from a folder, and from the network where it has none that is fresh."""

    def __init__(self, folder: Path, offline: bool, pause_s: float, retries: int) -> None:
        """Keep answers in a folder.

        Args:
            folder: of kept answers.
            offline: never ask the network, and take answers of any age.
            pause_s: least time between two requests.
            retries: of requests that the server was too busy for.
        """
        super().__init__(
            max_retries=Retry(
                total=retries,
                backoff_factor=1.0,
                status_forcelist=(429, 500, 502, 503),
                raise_on_status=False,
            )
        )
        self.folder = folder
        self.offline = offline
        self.pause_s = pause_s
        self.asked = -pause_s

    def send(
        self, request: requests.PreparedRequest, *args: Any, **kwargs: Any
    ) -> requests.Response:
        """Return the answer to a request.

        Raises:
            InputError: it is cut short or no answer of such a source.
            NotKeptError: it is not kept and the network must not be asked.
        """
        url = request.url or ""
        path = kept_file(self.folder, url)
        if path.is_file() and (self.offline or time.time() - path.stat().st_mtime < FRESH_S):
            return _answer(request, path.read_bytes())
        if self.offline:
            raise NotKeptError(f"--offline: no kept answer to {url} in {self.folder}")
        time.sleep(max(0.0, self.asked + self.pause_s - time.monotonic()))
        kwargs["timeout"] = TIMEOUT_S
        answer = super().send(request, *args, **kwargs)
        self.asked = time.monotonic()
        if answer.status_code == requests.codes.ok:
            check_answer(url, answer.content)
            self.folder.mkdir(parents=True, exist_ok=True)
            part = path.with_suffix(".part")
            part.write_bytes(answer.content)
            part.replace(path)
        return answer


def kept_file(folder: Path, url: str) -> Path:
    """Return where the answer to a request is kept."""
    digest = hashlib.sha256(url.encode()).hexdigest()[:20]
    return folder / f"{urlsplit(url).hostname}-{digest}{'.xml' if 'arxiv' in url[:30] else '.json'}"


def check_answer(url: str, body: bytes) -> None:
    """Refuse what is not a whole Atom feed (arXiv) or JSON object (OpenAlex).

    Raises:
        InputError: says what is wrong.
    """
    host = urlsplit(url).hostname or url
    try:
        if "arxiv" in host:
            if b"<!DOCTYPE" in body[:4096]:
                raise ValueError("it declares a document type")
            root = ElementTree.fromstring(body)
            if root.tag != ATOM:
                raise ValueError(f"its root is {root.tag}")
        elif not isinstance(json.loads(body), dict):
            raise ValueError("it is not a JSON object")
    except (ValueError, ElementTree.ParseError, RecursionError) as error:
        kind = "Atom feed" if "arxiv" in host else "JSON document"
        raise InputError(
            f"{host}: the answer is no complete {kind} ({error}); nothing of it was used and the "
            "update goes on from here when run again"
        ) from None


def _answer(request: requests.PreparedRequest, body: bytes) -> requests.Response:
    check_answer(request.url or "", body)
    answer = requests.Response()
    answer.status_code = 200
    answer.url = request.url or ""
    answer.request = request
    answer.headers = CaseInsensitiveDict()
    answer.encoding = "utf-8"
    answer._content = body
    return answer
