"""The WSGI app that serves a static site: the files that lie under its root when it starts, and nothing else.

WhiteNoise looks a path up in a table made at the start, so no request can name a file outside it. It is configured by
`site.json` beside this file, which the static buildpack writes from the app's static.json.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from wsgiref.headers import Headers

from whitenoise import WhiteNoise  # type: ignore[import-not-found,import-untyped,unused-ignore]

Environ = dict[str, Any]
StartResponse = Callable[..., Any]
NOT_SERVED = ("Procfile", "Aptfile", "static.json", "app.json")
PLAIN_404 = b"<!doctype html><title>Not found</title><h1>404: not found</h1>\n"


class Site(WhiteNoise):  # type: ignore[misc,unused-ignore]
    """A static site. `settings` is site.json: root, clean_urls, error_page, fallback, headers."""

    def __init__(self, app: Path, settings: dict[str, Any]) -> None:
        self._root = (app / settings["root"]).resolve()
        self._settings = settings
        super().__init__(self._missing, index_file=True, allow_all_origins=False, add_headers_function=self._headers)
        self.add_files(str(self._root))
        self._error_page = self._page(settings.get("error_page")) or PLAIN_404
        self._fallback = self._page(settings.get("fallback"))

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """Answer a request. A file's time says nothing about its age here, so only ETags are compared."""
        environ.pop("HTTP_IF_MODIFIED_SINCE", None)
        return super().__call__(environ, start_response)  # type: ignore[no-any-return,unused-ignore]

    def update_files_dictionary(self, root: str, prefix: str) -> None:
        """List the files to serve: no dot files, nothing that a link brings in from outside."""
        found = {str(path): path.stat() for path in self._files()}
        for name in sorted(found):
            url = prefix + os.path.relpath(name, root)
            self.add_file_to_dictionary(url, name, stat_cache=found)
            if self._settings.get("clean_urls") and url.endswith(".html") and not url.endswith("/index.html"):
                self.files[url.removesuffix(".html")] = self.files[url]

    def _files(self) -> Iterable[Path]:
        for folder, folders, names in os.walk(self._root):
            folders[:] = sorted(name for name in folders if not name.startswith(".") or name == ".well-known")
            for name in names:
                path = Path(folder) / name
                if not name.startswith(".") and name not in NOT_SERVED and path.is_file() and self._inside(path):
                    yield path

    def _inside(self, path: Path) -> bool:
        return path.resolve().is_relative_to(self._root)

    def _headers(self, headers: Headers, path: str, url: str) -> None:
        headers["ETag"] = f'"{hashlib.sha256(Path(path).read_bytes()).hexdigest()[:32]}"'
        headers["X-Content-Type-Options"] = "nosniff"
        for pattern, extra in self._settings.get("headers", {}).items():
            if _matches(pattern, url):
                for name, value in extra.items():
                    headers[name] = value

    def _page(self, name: str | None) -> bytes | None:
        if name is None:
            return None
        path = self._root / name.lstrip("/")
        return path.read_bytes() if path.is_file() and self._inside(path) else None

    def _missing(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        body, status = self._error_page, "404 Not Found"
        if self._fallback is not None and environ["REQUEST_METHOD"] in ("GET", "HEAD"):
            body, status = self._fallback, "200 OK"
        start_response(status, [("Content-Type", "text/html; charset=utf-8"), ("Content-Length", str(len(body)))])
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]


def _matches(pattern: str, url: str) -> bool:
    """Whether a static.json pattern (`/**`, `/assets/**`, `/x.html`) covers a URL path."""
    if pattern.endswith("/**"):
        return url.startswith(pattern.removesuffix("**"))
    return url == pattern


def load() -> Site:
    """Return the site that site.json beside this file describes."""
    folder = Path(__file__).resolve().parent
    return Site(folder.parent, json.loads((folder / "site.json").read_text()))
