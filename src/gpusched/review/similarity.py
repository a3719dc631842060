"""How much a paper's words are like those of accepted papers."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise
from math import log

import numpy as np

from gpusched.review.paper import Paper

NEIGHBOURS = 3
STOP = frozenset(
    re.findall(
        r"\w+",
        """a an and are as at be been both but by can do does for from has have how in into is it its
        more most not of on or our show such than that the their them these they this those to under
        up use used using via was we were when where which while who with within without also based
        new novel propose proposed paper method approach result work however""",
    )
)


class Likeness:
    """TF-IDF vectors of accepted papers; similarity is the mean cosine to the three nearest."""

    def __init__(self, papers: Sequence[Paper]) -> None:
        """Take words from titles, tags and takeaways."""
        self.papers = tuple(papers)
        counts = [_counts(_own_words(p)) for p in papers]
        holders = Counter(word for own in counts for word in own)
        self.rarest = log(1 + len(papers)) + 1
        self.rarity = {w: log((1 + len(papers)) / (1 + n)) + 1 for w, n in holders.items()}
        self.column = {word: j for j, word in enumerate(sorted(holders))}
        self.vectors = np.zeros((len(papers), len(self.column)))
        for i, own in enumerate(counts):
            for word, count in own.items():
                self.vectors[i, self.column[word]] = (1 + log(count)) * self.rarity[word]
        norms = np.linalg.norm(self.vectors, axis=1, keepdims=True)
        self.vectors /= np.where(norms > 0, norms, 1.0)

    def __call__(self, title: str, abstract: str) -> tuple[float, str | None]:
        """Return the similarity, 0 to 1, and the arXiv id of the nearest accepted paper."""
        counts = _counts(f"{title} {title} {abstract}")
        vector = np.zeros(len(self.column))
        norm = 0.0
        for word, count in counts.items():
            weight = (1 + log(count)) * self.rarity.get(word, self.rarest)
            norm += weight**2
            if word in self.column:
                vector[self.column[word]] = weight
        if not norm or not self.papers:
            return 0.0, None
        cosines = self.vectors @ vector / norm**0.5
        nearest = int(np.argmax(cosines))
        if cosines[nearest] <= 0:
            return 0.0, None
        best = np.sort(cosines)[::-1][:NEIGHBOURS]
        return round(min(float(best.mean()), 1.0), 3), self.papers[nearest].arxiv


def words_of(text: str) -> list[str]:
    """Return the words of a text that carry meaning, plurals folded, and pairs of neighbours."""
    words = re.findall(r"[a-z][a-z0-9]+", text.lower())
    words = [w[:-1] if len(w) > 4 and w[-1] == "s" and w[-2] not in "su" else w for w in words]
    words = [w for w in words if w not in STOP]
    return words + [f"{a} {b}" for a, b in pairwise(words)]


def _counts(text: str) -> Counter[str]:
    return Counter(words_of(text))


def _own_words(paper: Paper) -> str:
    tags: Iterable[str] = (tag.replace("_", " ") for tag in (*paper.methods, *paper.problems))
    return f"{paper.title} {paper.title} {'. '.join(tags)}. {paper.takeaway or ''}"
