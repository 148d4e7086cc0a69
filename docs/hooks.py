"""What the site's build does beyond Markdown: sections of other files in place, and pages for files outside docs/.

A fact stands in one file.  A page shows it with a line of its own, ``<!-- include: FILE -->`` or
``<!-- include: FILE#HEADING -->`` (``#`` alone: what precedes the first section), where FILE is a path from the
repository's root.  Links to code lead to a page with that code, so that the site can be read without the repository.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
_INCLUDE = re.compile(r"^<!-- include: (?P<file>[^\s#]+)(?:#(?P<heading>.*))? -->$", re.MULTILINE)
_LINK = re.compile(r"(?P<start>\]\()(?P<target>[^)\s#]+)(?P<anchor>#[^)\s]*)?(?P<end>\))")
_LANGUAGES = {".py": "python", ".yaml": "yaml", ".yml": "yaml", ".toml": "toml", ".json": "json", ".txt": "text"}


class IncludeError(ValueError):
    """A page asks for what is not there."""


def section(text: str, heading: str) -> str:
    """The part of a Markdown text under a heading of level 2, the heading left out; "" is what precedes the first.

    Raises:
        IncludeError: no such heading.
    """
    parts = re.split(r"^## +(.+?) *$", text, flags=re.MULTILINE)
    named = {"": re.sub(r"\A# .*\n", "", parts[0]), **dict(zip(parts[1::2], parts[2::2], strict=True))}
    if heading not in named:
        raise IncludeError(f"no section {heading!r}: there are {', '.join(map(repr, named))}")
    return named[heading].strip()


def expanded(page: str, folder: str) -> str:
    """A page of ``folder`` (a path from the root) with its includes in place and their links bent to that folder.

    Raises:
        IncludeError: an include leads nowhere.
    """

    def included(match: re.Match[str]) -> str:
        file = ROOT / match["file"]
        if not file.is_file():
            raise IncludeError(f"{match[0]}: no such file")
        text = file.read_text(encoding="utf-8")
        if match["heading"] is not None:
            text = section(text, match["heading"])
        return text if file.suffix == ".svg" else _bent(text, posixpath.dirname(match["file"]), folder)

    return _INCLUDE.sub(included, page)


def _bent(text: str, source: str, folder: str) -> str:
    """Relative links of a text from ``source``, such that they hold from ``folder``."""

    def link(match: re.Match[str]) -> str:
        if _is_external(match["target"]):
            return match[0]
        target = posixpath.relpath(posixpath.join(source, match["target"]), folder)
        return f"{match['start']}{target}{match['anchor'] or ''}{match['end']}"

    return _LINK.sub(link, text)


def targets(page: str, folder: str) -> Iterator[str]:
    """Paths from the root that the relative links of a page in ``folder`` lead to."""
    for match in _LINK.finditer(page):
        if not _is_external(match["target"]):
            yield posixpath.normpath(posixpath.join(folder, match["target"]))


def _is_external(target: str) -> bool:
    return "://" in target or target.startswith(("mailto:", "/"))


def code_page(path: str) -> str:
    """Markdown that shows a file, or every file of a folder, from the repository."""
    place = ROOT / path
    files = [place] if place.is_file() else sorted(f for f in place.iterdir() if f.is_file())
    return "\n\n".join([f"# `{path}`", *(_shown(file) for file in files)]) + "\n"


def _shown(file: Path) -> str:
    text = file.read_text(encoding="utf-8")
    fence = "`" * (3 + max((len(run) for run in re.findall(r"`{3,}", text)), default=0))
    title = file.relative_to(ROOT).as_posix()
    return f'{fence}{_LANGUAGES.get(file.suffix, "text")} title="{title}"\n{text.rstrip()}\n{fence}'


def pages_of_code(documents: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Site paths of the code that the (path from the root, text) documents link to, by path from the root."""
    found: dict[str, str] = {}
    for path, text in documents:
        folder = posixpath.dirname(path)
        for target in targets(expanded(text, folder), folder):
            if not target.startswith("docs/") and (ROOT / target).exists():
                found[target] = f"code/{target}.md"
    return found


def on_files(files: Any, config: Any) -> Any:
    """mkdocs event: add a page for every file outside docs/ that a page links to."""
    from mkdocs.structure.files import File

    documents = [(f"docs/{f.src_uri}", f.content_string) for f in files.documentation_pages()]
    config.extra["code_pages"] = pages_of_code(documents)
    for path, uri in config.extra["code_pages"].items():
        files.append(File.generated(config, uri, content=code_page(path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """mkdocs event: includes in place, links to code bent to its page."""
    if page.file.src_uri.startswith("code/"):
        return markdown
    folder = posixpath.dirname(f"docs/{page.file.src_uri}")
    known = config.extra["code_pages"]

    def link(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(folder, match["target"]))
        if _is_external(match["target"]) or target not in known:
            return match[0]
        return f"{match['start']}{posixpath.relpath(f'docs/{known[target]}', folder)}{match['end']}"

    return _LINK.sub(link, expanded(markdown, folder))
