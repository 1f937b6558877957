"""Around every request: an id, a limit of the body's size, one log line. Pure ASGI, so that streams pass through."""

from __future__ import annotations

import re
import time
import uuid
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.errors import MAX_BODY, TOO_LARGE, answer
from api.log import say

REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
# No limit is enforced; clients that watch the header must not slow down.
RATE_LIMIT_REMAINING = "4500"


class Around:
    """The outermost layer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        # Every body is JSON, whatever the client calls it: `curl -d` says it sends a form.
        MutableHeaders(scope=scope)["Content-Type"] = "application/json"
        started, state = time.monotonic(), _State(_request_id(Headers(scope=scope)))
        try:
            await self._limited(scope, receive, state.sending(send))
        finally:
            _log(scope, state, time.monotonic() - started)

    async def _limited(self, scope: Scope, receive: Receive, send: Send) -> None:
        length = Headers(scope=scope).get("content-length", "0")
        if not length.isdigit() or int(length[:12]) > MAX_BODY:
            await answer(413, "payload_too_large", TOO_LARGE)(scope, receive, send)
            return
        seen = 0

        async def receive_limited() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > MAX_BODY:
                raise HTTPException(413)
            return message

        await self._app(scope, receive_limited, send)


class _State:
    def __init__(self, request_id: str) -> None:
        self.request_id = request_id
        self.status = 0

    def sending(self, send: Send) -> Send:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["Request-Id"] = self.request_id
                headers["RateLimit-Remaining"] = RATE_LIMIT_REMAINING
                headers["Cache-Control"] = "private, no-store"
            await send(message)

        return send_with_headers


def _request_id(headers: Headers) -> str:
    """Return the caller's request id when it is a plain one; the CLI sends a growing list, which is not echoed."""
    given = headers.get("request-id", "")
    return given if REQUEST_ID.fullmatch(given) is not None else str(uuid.uuid4())


def _log(scope: Scope, state: _State, seconds: float) -> None:
    """Log the route, not the path: a path may carry a secret, and names are in the answers."""
    route: Any = scope.get("route")
    app = (scope.get("path_params") or {}).get("app")
    say(
        "request",
        method=scope["method"],
        route=getattr(route, "path", None),
        app=app,
        status=state.status,
        ms=round(seconds * 1000),
        account=(scope.get("state") or {}).get("account"),
        request_id=state.request_id,
    )
