"""Answers that say no: Heroku's `{"id", "message"}` with its ids and status codes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, InterfaceError, InternalError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.exceptions import HTTPException

from api.log import say
from blackstart.model.component import ComponentRefused
from blackstart.model.names import NameRefused
from blackstart.model.secrets import SealedWithAnotherKey
from blackstart.model.sizes import SizeUnknown

MAX_BODY = 1024 * 1024
TOO_LARGE = f"The request body is larger than {MAX_BODY} bytes."


class ApiError(Exception):
    """A refusal: HTTP `status`, Heroku's error `id`, a message for people."""

    def __init__(self, status: int, id: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.id = id
        self.message = message


class DatabaseDown(Exception):
    """The database does not answer; the message says how it failed, without credentials."""


def not_found(thing: str) -> ApiError:
    """Return the answer for what is not there, or is not the caller's."""
    return ApiError(404, "not_found", f"Couldn't find that {thing}.")


def invalid(message: str) -> ApiError:
    """Return the answer for values that are not allowed."""
    return ApiError(422, "invalid_params", message)


def forbidden(message: str) -> ApiError:
    """Return the answer for what the caller may see but not do."""
    return ApiError(403, "forbidden", message)


def unauthorized() -> ApiError:
    """Return the answer to a missing, unknown or expired token."""
    return ApiError(401, "unauthorized", "Invalid credentials provided.")


def unavailable(id: str, message: str) -> ApiError:
    """Return the answer for what will work again later."""
    return ApiError(503, id, message)


def answer(status: int, id: str, message: str) -> JSONResponse:
    """Return the response that carries an error."""
    headers = {"Retry-After": "2"} if status == 503 else {}
    if status == 401:
        headers["WWW-Authenticate"] = "Basic"
    return JSONResponse({"id": id, "message": message}, status, headers=headers)


def install_handlers(app: FastAPI) -> None:
    """Make `app` answer every failure in Heroku's form."""
    for kind in (NameRefused, SizeUnknown, ComponentRefused):
        app.add_exception_handler(kind, _refused_value)
    for down in (OperationalError, InterfaceError, InternalError, PoolTimeout, DatabaseDown):
        app.add_exception_handler(down, _database_down)
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(RequestValidationError, _bad_body)
    app.add_exception_handler(HTTPException, _no_route)
    app.add_exception_handler(IntegrityError, _conflict)
    app.add_exception_handler(DataError, _bad_data)
    app.add_exception_handler(SealedWithAnotherKey, _other_key)
    app.add_exception_handler(Exception, _bug)


def _api_error(_: Request, error: Exception) -> JSONResponse:
    if not isinstance(error, ApiError):
        raise error
    return answer(error.status, error.id, error.message)


def _refused_value(_: Request, error: Exception) -> JSONResponse:
    return answer(422, "invalid_params", str(error))


def _database_down(_: Request, error: Exception) -> JSONResponse:
    say("database_down", error=type(error).__name__, why=reason(error))
    return answer(503, "database_unavailable", f"The platform's database does not answer ({reason(error)}). Try again.")


def reason(error: Exception) -> str:
    """Return what a database error says, on one line, without the connection's parameters."""
    cause = getattr(error, "orig", None)
    name = type(error if cause is None else cause).__name__
    words = {
        "QueryCanceled": "a statement took too long",
        "ReadOnlySqlTransaction": "it is read-only at the moment",
        "AdminShutdown": "it is shutting down",
        "CannotConnectNow": "it is starting",
        "ConnectionTimeout": "no answer within 3 s",
        "TimeoutError": "all connections are busy",
        "DatabaseDown": str(error),
    }
    return words.get(name, "no connection" if isinstance(error, DBAPIError) else name)


def _conflict(_: Request, error: Exception) -> JSONResponse:
    say("conflict", error=type(getattr(error, "orig", error)).__name__)
    return answer(409, "conflict", "Another request changed the same thing at the same time. Look at it and try again.")


def _bad_data(_: Request, __: Exception) -> JSONResponse:
    return answer(422, "invalid_params", "A value is too long, too large, or holds a NUL.")


def _bug(_: Request, error: Exception) -> JSONResponse:
    say("bug", error=type(error).__name__)
    return answer(500, "internal_server_error", "The API failed. Its log says where, by the request's id.")


def _other_key(_: Request, error: Exception) -> JSONResponse:
    say("wrong_secret_key", why=str(error))
    return answer(
        500, "wrong_secret_key", f"The app's config vars cannot be read: {error}. Restore the right SECRET_KEY."
    )


def _no_route(_: Request, error: Exception) -> JSONResponse:
    status = error.status_code if isinstance(error, HTTPException) else 500
    if status == 404:
        return answer(404, "not_found", "The requested API endpoint was not found. Are you using the right HTTP verb?")
    if status == 405:
        return answer(405, "method_not_allowed", "This API endpoint does not take that HTTP verb.")
    if status == 413:
        return answer(413, "payload_too_large", TOO_LARGE)
    return answer(status, "bad_request", "The request could not be understood.")


def _bad_body(_: Request, error: Exception) -> JSONResponse:
    problems: Sequence[Any] = error.errors() if isinstance(error, RequestValidationError) else []
    if any(problem["type"] == "json_invalid" for problem in problems):
        return answer(400, "bad_request", "Unable to parse the JSON in the request body.")
    return answer(422, "invalid_params", "; ".join(_problem(problem) for problem in problems[:5]))


def _problem(problem: Any) -> str:
    path = ".".join(str(part) for part in problem["loc"] if part != "body") or "the body"
    said = str(problem["msg"]).removeprefix("Value error, ")
    return f"{path}: {said}"
