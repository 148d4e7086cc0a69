"""Extensions of the site's build: including sections of other files, and pages for linked files outside docs/.

``<!-- include: FILE -->`` on a line of its own is replaced by the file, ``<!-- include: FILE#HEADING -->`` by the
section under that heading (``#`` alone: the text before the first section).  FILE is a path from the repository's
root.  A link to code leads to a generated page with that code, so that the site can be read without the repository.
"""

from __future__ import annotations

import json
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
    """A page includes a file or section that does not exist."""


def section(text: str, heading: str) -> str:
    """The part of a Markdown text under a heading of level 2, without the heading; "" is the part before the first.

    Raises:
        IncludeError: there is no such heading.
    """
    parts = re.split(r"^## +(.+?) *$", text, flags=re.MULTILINE)
    named = {"": re.sub(r"\A# .*\n", "", parts[0]), **dict(zip(parts[1::2], parts[2::2], strict=True))}
    if heading not in named:
        raise IncludeError(f"no section {heading!r}: there are {', '.join(map(repr, named))}")
    return named[heading].strip()


def expanded(page: str, folder: str) -> str:
    """A page of ``folder`` (a path from the root) with its includes replaced, their links relative to that folder.

    Raises:
        IncludeError: an included file or section does not exist.
    """

    def included(match: re.Match[str]) -> str:
        file = ROOT / match["file"]
        if not file.is_file():
            raise IncludeError(f"{match[0]}: no such file")
        text = file.read_text(encoding="utf-8")
        if match["heading"] is not None:
            text = section(text, match["heading"])
        return text if file.suffix == ".svg" else _relinked(text, posixpath.dirname(match["file"]), folder)

    return _INCLUDE.sub(included, page)


def _relinked(text: str, source: str, folder: str) -> str:
    """The text of a page in ``source`` with its relative links rewritten for a page in ``folder``."""

    def link(match: re.Match[str]) -> str:
        if _is_external(match["target"]):
            return match[0]
        target = posixpath.relpath(posixpath.join(source, match["target"]), folder)
        return f"{match['start']}{target}{match['anchor'] or ''}{match['end']}"

    return _LINK.sub(link, text)


def targets(page: str, folder: str) -> Iterator[str]:
    """Targets of the relative links of a page in ``folder``, as paths from the root."""
    for match in _LINK.finditer(page):
        if not _is_external(match["target"]):
            yield posixpath.normpath(posixpath.join(folder, match["target"]))


def _is_external(target: str) -> bool:
    return "://" in target or target.startswith(("mailto:", "/"))


def code_page(path: str) -> str:
    """Markdown that shows a file of the repository, or every file of a folder."""
    place = ROOT / path
    files = [place] if place.is_file() else sorted(f for f in place.iterdir() if f.is_file())
    return "\n\n".join([f"# `{path}`", *(_shown(file) for file in files)]) + "\n"


def _shown(file: Path) -> str:
    text = file.read_text(encoding="utf-8")
    title = file.relative_to(ROOT).as_posix()
    if file.suffix != ".ipynb":
        return _fenced(text, _LANGUAGES.get(file.suffix, "text"), title)
    folder = posixpath.dirname(title)
    cells = [(cell["cell_type"], "".join(cell["source"])) for cell in json.loads(text)["cells"]]
    return "\n\n".join(
        _fenced(source, "python", title)
        if kind == "code"
        else re.sub(r"^# ", "## ", _relinked(source, folder, f"docs/code/{folder}"))
        for kind, source in cells
    )


def _fenced(text: str, language: str, title: str) -> str:
    fence = "`" * (3 + max((len(run) for run in re.findall(r"`{3,}", text)), default=0))
    return f'{fence}{language} title="{title}"\n{text.rstrip()}\n{fence}'


def included_whole(documents: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Site paths of pages that consist of one included file (such as CONTRIBUTING.md), by that file's path."""
    matches = ((path, _INCLUDE.fullmatch(text.strip())) for path, text in documents)
    return {match["file"]: path.removeprefix("docs/") for path, match in matches if match and match["heading"] is None}


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
    whole = included_whole(documents)
    config.extra["outside_pages"] = pages_of_code(documents) | whole
    for path, uri in config.extra["outside_pages"].items():
        if path not in whole:
            files.append(File.generated(config, uri, content=code_page(path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """mkdocs event: replace includes, and point links to files outside docs/ at their pages."""
    if page.file.src_uri.startswith("code/"):
        return markdown
    folder = posixpath.dirname(f"docs/{page.file.src_uri}")
    known = config.extra["outside_pages"]

    def link(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(folder, match["target"]))
        if _is_external(match["target"]) or target not in known:
            return match[0]
        return f"{match['start']}{posixpath.relpath(f'docs/{known[target]}', folder)}{match['end']}"

    return _LINK.sub(link, expanded(markdown, folder))
