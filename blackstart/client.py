"""A client of the Platform API (Heroku's v3 shape). Every call has a deadline; refusals become PlatformError."""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit, urlunsplit

import httpx

from blackstart.errors import PlatformError
from blackstart.sources import SourceTarball

ACCEPT = "application/vnd.heroku+json; version=3"
CALL_SECONDS = 30.0
UPLOAD_SECONDS = 300.0
STORE_SECONDS = 60.0
SILENCE_SECONDS = 120.0
POLL_SECONDS = 0.3

T = TypeVar("T")


@dataclass(frozen=True)
class Endpoint:
    """Where an API is: the name in its certificate, and the address and port to connect to."""

    host: str
    address: str
    port: int = 443

    def url(self, path: str) -> str:
        """Return the URL of `path`."""
        return f"https://{self.address}:{self.port}{path}"


class Client:
    """Talks to the API at `endpoint` with a bearer token, trusting only the CA in `ca`.

    Presigned URLs under the same domain are sent to the same address, so no DNS is needed.
    `seconds` is a call's deadline, `store_seconds` how long an object store that starts is waited for.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        token: str,
        ca: Path,
        seconds: float = CALL_SECONDS,
        store_seconds: float = STORE_SECONDS,
    ) -> None:
        self.endpoint = endpoint
        self._token, self._store_seconds = token, store_seconds
        self._http = httpx.Client(verify=ssl.create_default_context(cafile=str(ca)), timeout=seconds, trust_env=False)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def call(self, method: str, path: str, body: Any = None, *, headers: dict[str, str] | None = None) -> Any:
        """Return the JSON answer to `method path`. Raises PlatformError with the API's own message."""
        response = self._request(method, path, body, headers or {})
        if response.status_code >= 400:
            raise refused(method, path, response)
        return response.json() if response.content else None

    def maybe(self, path: str) -> Any:
        """Return the JSON of GET `path`, or None when there is no such thing."""
        response = self._request("GET", path, None, {})
        if response.status_code == 404:
            return None
        if response.status_code >= 400:
            raise refused("GET", path, response)
        return response.json()

    def text(self, path: str) -> str:
        """Return the text of GET `path`."""
        response = self._request("GET", path, None, {})
        if response.status_code >= 400:
            raise refused("GET", path, response)
        return response.text

    def wait_until_up(self, *, seconds: float) -> None:
        """Wait until the API answers for this token."""
        wait_for(lambda: self.call("GET", "/account"), f"the API at {self.endpoint.host}", seconds=seconds)

    def upload(self, source: SourceTarball) -> str:
        """Store a source and return the URL that a build takes."""
        blob = self.call("POST", "/sources")["source_blob"]
        self.put(blob["put_url"], source.data)
        get_url: str = blob["get_url"]
        return get_url

    def put(self, presigned: str, data: bytes) -> None:
        """Store `data` at a presigned URL that the API gave out."""
        wait_for(lambda: self._put(presigned, data), "an upload", seconds=self._store_seconds)

    def download(self, presigned: str) -> bytes:
        """Return the bytes at a presigned URL that the API gave out."""
        return wait_for(lambda: self._download(presigned), "a download", seconds=self._store_seconds)

    def _download(self, presigned: str) -> bytes:
        url, headers, extensions = self._route(presigned)
        try:
            response = self._http.get(url, headers=headers, extensions=extensions, timeout=UPLOAD_SECONDS)
        except httpx.HTTPError as error:
            raise PlatformError("the object store did not answer", why=f"{type(error).__name__}: {error}") from error
        if response.status_code >= 300:
            raise refused("GET", "from the object store", response)
        return response.content

    def _put(self, presigned: str, data: bytes) -> bool:
        """Store once. A store that starts refuses connections for some seconds."""
        url, headers, extensions = self._route(presigned)
        try:
            response = self._http.put(url, content=data, headers=headers, extensions=extensions, timeout=UPLOAD_SECONDS)
        except httpx.HTTPError as error:
            raise PlatformError(
                "the object store did not take an upload", why=f"{type(error).__name__}: {error}"
            ) from error
        if response.status_code >= 300:
            raise refused("PUT", "to the object store", response)
        return True

    def build(self, app: str, source: SourceTarball, *, version: str, release: bool = True) -> dict[str, Any]:
        """Start a build of `source` and return it. Without `release` it ends with a slug that nothing runs."""
        blob = {"url": self.upload(source), "version": version, "checksum": f"SHA256:{source.sha256}"}
        body = {"source_blob": blob} if release else {"source_blob": blob, "release": False}
        build: dict[str, Any] = self.call("POST", f"/apps/{app}/builds", body)
        return build

    def release_slug(self, app: str, slug: str, *, description: str | None = None) -> dict[str, Any]:
        """Start a release of the slug with the id `slug` and the app's present config, and return it."""
        body = {"slug": slug} if description is None else {"slug": slug, "description": description}
        release: dict[str, Any] = self.call("POST", f"/apps/{app}/releases", body)
        return release

    def output(self, build: dict[str, Any], *, seconds: float = SILENCE_SECONDS) -> Iterator[str]:
        """Yield the text of a build's output as it comes. Raises PlatformError after `seconds` without a byte."""
        parts = urlsplit(build["output_stream_url"])
        url = self.endpoint.url(f"{parts.path}?{parts.query}")
        timeout = httpx.Timeout(CALL_SECONDS, read=seconds)
        sent, names = {"Host": self.endpoint.host}, {"sni_hostname": self.endpoint.host}
        try:
            with self._http.stream("GET", url, headers=sent, extensions=names, timeout=timeout) as response:
                if response.status_code >= 400:
                    response.read()
                    raise refused("GET", "a build's output", response)
                yield from response.iter_text()
        except httpx.HTTPError as error:
            raise PlatformError("a build's output broke off", why=f"{type(error).__name__}: {error}") from error

    def finished_build(self, app: str, build_id: str, *, seconds: float) -> dict[str, Any]:
        """Return the build when it ended."""
        return wait_for(
            lambda: self._ended(self.call("GET", f"/apps/{app}/builds/{build_id}")),
            f"build {build_id} of {app}",
            seconds=seconds,
        )

    def running_slug(self, component: str) -> str:
        """Return the sha256 of the slug that serves a component."""
        components = self.call("GET", "/platform")["components"]
        return next(str(each["slug"]) for each in components if each["app"] == component)

    def deployed(
        self, app: str, build: dict[str, Any], *, seconds: float, show: Callable[[str], None] | None = None
    ) -> dict[str, Any]:
        """Return the release of a build that was started, when both succeeded.

        `show` gets the build's output as it comes. Raises PlatformError with the end of the output, or the release's failure.
        """
        if show is not None:
            for text in self.output(build):
                show(text)
        ended = self.finished_build(app, build["id"], seconds=seconds)
        if ended["status"] != "succeeded":
            shown = "its output is above" if show is not None else "".join(self.output(ended))[-3000:]
            raise PlatformError(f"{app} was not built", why=shown, fix="correct the source and deploy again")
        release = self.released(app, ended["release"]["id"], seconds=seconds)
        if release["status"] != "succeeded":
            raise PlatformError(
                f"release v{release['version']} of {app} failed",
                why=str(release.get("failure") or ""),
                fix="the release before serves on; correct the app and deploy again",
            )
        return release

    def released(self, app: str, version: int | str, *, seconds: float) -> dict[str, Any]:
        """Return the release when it succeeded or failed."""
        return wait_for(
            lambda: self._ended(self.call("GET", f"/apps/{app}/releases/{version}")),
            f"release v{version} of {app}",
            seconds=seconds,
        )

    @staticmethod
    def _ended(thing: dict[str, Any]) -> dict[str, Any] | None:
        return thing if thing["status"] in ("succeeded", "failed") else None

    def _request(self, method: str, path: str, body: Any, headers: dict[str, str]) -> httpx.Response:
        sent = {"Accept": ACCEPT, "Authorization": f"Bearer {self._token}", "Host": self.endpoint.host, **headers}
        try:
            return self._http.request(
                method,
                self.endpoint.url(path),
                json=body,
                headers=sent,
                extensions={"sni_hostname": self.endpoint.host},
            )
        except httpx.HTTPError as error:
            raise PlatformError(
                f"the API at {self.endpoint.host} ({self.endpoint.address}:{self.endpoint.port}) did not answer {method} {path}",
                why=f"{type(error).__name__}: {error}",
                fix="look at `python3 bootstrap.py status`; run this again when the API answers",
            ) from error

    def _route(self, url: str) -> tuple[str, dict[str, str], dict[str, str]]:
        """Return (URL by address, headers, TLS name) for a URL that the API gave out."""
        parts = urlsplit(url)
        if parts.hostname is None:
            raise PlatformError(f"the API gave out a URL without a host: {url[:80]}")
        ours = parts.hostname.partition(".")[2] == self.endpoint.host.partition(".")[2] and "." in self.endpoint.host
        if not ours or parts.port is not None:
            return url, {}, {}
        there = urlunsplit(parts._replace(netloc=f"{self.endpoint.address}:{self.endpoint.port}"))
        return there, {"Host": parts.hostname}, {"sni_hostname": parts.hostname}


def refused(method: str, path: str, response: httpx.Response) -> PlatformError:
    """Return the error for a refused request, with the API's id and message when it sent them."""
    try:
        body = response.json()
        why = f"{body['id']}: {body['message']}"
    except (ValueError, KeyError, TypeError):
        why = response.text[:300]
    return PlatformError(f"the API refused {method} {path} ({response.status_code})", why=why)


def wait_for(probe: Callable[[], T | None], what: str, *, seconds: float, poll: float = POLL_SECONDS) -> T:
    """Return the first value of `probe` that is not None. Raises PlatformError when `seconds` are over."""
    deadline = time.monotonic() + seconds
    last = "it did not come about"
    while True:
        try:
            value = probe()
        except PlatformError as error:
            value, last = None, str(error)
        if value is not None:
            return value
        if time.monotonic() > deadline:
            raise PlatformError(f"gave up on {what} after {seconds:.0f} s", why=last)
        time.sleep(poll)
