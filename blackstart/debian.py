"""Where Debian packages for machines and stacks come from: the inventory's mirror, else the host's own sources."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

SUITE = "trixie"
PUBLIC_MIRROR = "http://deb.debian.org/debian"
PUBLIC_SECURITY = "http://deb.debian.org/debian-security"
SOURCES = (Path("/etc/apt/sources.list"), Path("/etc/apt/sources.list.d"))

_DEBIAN_SUITE = re.compile(r"(bookworm|trixie|stable)")
_SECURITY_SUITE = re.compile(r"(bookworm|trixie|stable)-security")


def debian_sources(mirror: str | None = None, places: tuple[Path, ...] = SOURCES) -> tuple[str, ...]:
    """Return the sources of Debian 13 as lines of a sources.list.

    A given mirror is the only source. Else this host's mirrors of Debian are taken, else the public ones.
    """
    if mirror is not None:
        return (f"deb {mirror} {SUITE} main", f"deb {mirror} {SUITE}-updates main")
    archive, security = PUBLIC_MIRROR, PUBLIC_SECURITY
    for uri, suite in _host_sources(places):
        if _DEBIAN_SUITE.fullmatch(suite) is not None:
            archive = uri
        if _SECURITY_SUITE.fullmatch(suite) is not None:
            security = uri
    return (
        f"deb {archive} {SUITE} main",
        f"deb {archive} {SUITE}-updates main",
        f"deb {security} {SUITE}-security main",
    )


def _host_sources(places: tuple[Path, ...]) -> Iterator[tuple[str, str]]:
    """Yield (URI, suite) of the packages sources in both formats of sources.list(5)."""
    for path in _files(places):
        text = path.read_text(errors="replace")
        yield from _deb822(text) if path.suffix == ".sources" else _one_line(text)


def _files(places: tuple[Path, ...]) -> Iterator[Path]:
    for place in places:
        if place.is_dir():
            yield from sorted(path for path in place.iterdir() if path.suffix in (".list", ".sources"))
        elif place.is_file():
            yield place


def _one_line(text: str) -> Iterator[tuple[str, str]]:
    for line in text.splitlines():
        words = re.sub(r"\[[^]]*\]", "", line.split("#", 1)[0]).split()
        if len(words) >= 3 and words[0] == "deb" and words[1].startswith("http"):
            yield words[1].rstrip("/"), words[2]


def _deb822(text: str) -> Iterator[tuple[str, str]]:
    for paragraph in re.split(r"\n\s*\n", text):
        fields = dict(re.findall(r"^([A-Za-z-]+):[ \t]*(.*)$", paragraph, flags=re.MULTILINE))
        uris = [uri.rstrip("/") for uri in fields.get("URIs", "").split() if uri.startswith("http")]
        if "deb" in fields.get("Types", "").split() and fields.get("Enabled", "yes") != "no" and uris:
            for suite in fields.get("Suites", "").split():
                yield uris[0], suite
