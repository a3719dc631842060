"""Writing the review: one Markdown page with its picture, and a static site."""

from dataclasses import dataclass
from pathlib import Path

from gpusched.errors import InputError
from gpusched.review.check import shortcomings
from gpusched.review.contents import Contents, gather
from gpusched.review.files import read_text, write_text
from gpusched.review.links import dead_links_of
from gpusched.review.markdown import render_markdown
from gpusched.review.picture import standalone
from gpusched.review.site import render_site
from gpusched.review.store import Store

ADDRESS = "http://127.0.0.1:8000/"


@dataclass(frozen=True)
class Built:
    """What a build wrote or found."""

    contents: Contents
    files: tuple[Path, ...]
    shortcomings: tuple[str, ...]


def build(
    store: Store, markdown: Path, site: Path | None, address: str = ADDRESS, seed: int = 0
) -> Built:
    """Write the review.

    Raises:
        InputError: the store is wrong, or a file cannot be written.
    """
    contents = gather(store, seed)
    files = {
        markdown.parent / name: text for name, text in _page(store, contents, markdown).items()
    }
    if site is not None:
        _own(site)
        made = render_site(contents, store.root, address)
        files |= {site / name: text for name, text in made.items()}
        for old in site.glob("*.html"):
            if old.name not in made:
                old.unlink()
    for path, text in files.items():
        write_text(path, text)
    lines = [*shortcomings(store, contents), *dead_links_of(markdown)]
    return Built(contents, tuple(files), tuple(lines))


def check(store: Store, markdown: Path, seed: int = 0) -> Built:
    """Return what a review owes, without writing; a page that is not up to date counts.

    Raises:
        InputError: the store is wrong.
    """
    contents = gather(store, seed)
    lines = shortcomings(store, contents)
    for name, text in _page(store, contents, markdown).items():
        path = markdown.parent / name
        if not path.is_file() or read_text(path) != text:
            lines.append(f"{path}: not up to date; run 'gpusched review build'")
    if markdown.is_file():
        lines += dead_links_of(markdown)
    return Built(contents, (), tuple(lines))


def _page(store: Store, contents: Contents, markdown: Path) -> dict[str, str]:
    picture = markdown.with_suffix(".svg").name
    return {
        markdown.name: render_markdown(contents, store.root, markdown, picture),
        picture: standalone(contents),
    }


def _own(site: Path) -> None:
    """Refuse a folder that holds other things than a site of ours: it is cleared of old pages."""
    if site.is_dir() and any(site.iterdir()) and not (site / "feed.xml").is_file():
        raise InputError(f"--site: {site} holds other files; choose an empty or new folder")
