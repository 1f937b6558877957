"""Trying credentials where they would be used: run in a dyno on the platform's network, by blackstart/fencing.py.

Reads on standard input `{"ca": path, "sets": {"<name>": {"database": url, "bus": url, "objects": {"url", "key", "secret",
"bucket"}, "api": {"url", "token"}}}, "epoch": {the same as "objects"}}`, and prints
`{"sets": {"<name>": {"<store>": {"answer", "said"}}}, "epoch": {"marker", "second_write"}}`.

`answer` is `accepted`, `refused` (the store said no to the credential itself) or `unreachable` (anything else).
It stands alone: it is sent as text to the slug of `psmgr`, whose libraries it uses.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import boto3
import redis
import requests
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from sqlalchemy import NullPool, create_engine, text
from sqlalchemy.exc import SQLAlchemyError

SECONDS = 10
MARKER = "epoch/000001"
DATABASE_REFUSALS = ("password authentication failed", "is not permitted to log in", "pg_hba.conf rejects")
OBJECTS_REFUSALS = ("InvalidAccessKeyId", "SignatureDoesNotMatch", "AccessDenied")

Answer = dict[str, str]


def database(url: str, ca: str) -> Answer:
    """Log in to the database and read one row."""
    engine = create_engine(url, poolclass=NullPool, connect_args={"connect_timeout": SECONDS})
    try:
        with engine.connect() as connection:
            return _accepted(f"logged in as {connection.scalar(text('SELECT session_user'))}")
    except SQLAlchemyError as error:
        return _failed(_last_line(error), DATABASE_REFUSALS)


def bus(url: str, ca: str) -> Answer:
    """Log in to the bus and ping it."""
    client = redis.Redis.from_url(url, ssl_ca_certs=ca, socket_connect_timeout=SECONDS, socket_timeout=SECONDS)
    try:
        client.ping()
        return _accepted("PONG")
    except redis.AuthenticationError as error:
        return {"answer": "refused", "said": _last_line(error)}
    except (redis.RedisError, OSError) as error:
        return {"answer": "unreachable", "said": _last_line(error)}
    finally:
        client.close()


def objects(store: dict[str, str], ca: str) -> Answer:
    """List the bucket."""
    try:
        _s3(store, ca).list_objects_v2(Bucket=store["bucket"], MaxKeys=1)
        return _accepted("the bucket was listed")
    except ClientError as error:
        return _failed(_last_line(error), OBJECTS_REFUSALS)
    except (BotoCoreError, OSError) as error:
        return {"answer": "unreachable", "said": _last_line(error)}


def api(target: dict[str, str], ca: str) -> Answer:
    """Ask the API who calls."""
    headers = {
        "Authorization": f"Bearer {target['token']}",
        "Accept": "application/vnd.heroku+json; version=3",
    }
    try:
        answer = requests.get(f"{target['url']}/account", headers=headers, verify=ca, timeout=SECONDS)
    except (requests.RequestException, OSError) as error:
        return {"answer": "unreachable", "said": _last_line(error)}
    said = f"{answer.status_code} {answer.text[:200]}"
    words = {200: "accepted", 401: "refused"}
    return {"answer": words.get(answer.status_code, "unreachable"), "said": said}


TRIALS: dict[str, Callable[[Any, str], Answer]] = {"database": database, "objects": objects, "bus": bus, "api": api}


def epoch(store: dict[str, str], ca: str) -> dict[str, str]:
    """Say whether the epoch's marker is there, and what the store answers to a second writer of it."""
    client = _s3(store, ca)
    try:
        client.head_object(Bucket=store["bucket"], Key=MARKER)
    except (ClientError, BotoCoreError, OSError) as error:
        return {"marker": _last_line(error), "second_write": "not tried"}
    try:
        client.put_object(Bucket=store["bucket"], Key=MARKER, Body=b"another\n", IfNoneMatch="*")
    except ClientError as error:
        refused = error.response["ResponseMetadata"]["HTTPStatusCode"] == 412
        return {"marker": "there", "second_write": "refused" if refused else _last_line(error)}
    return {"marker": "there", "second_write": "taken"}


def _s3(store: dict[str, str], ca: str) -> Any:
    retries = {"total_max_attempts": 1}
    settings = Config(s3={"addressing_style": "path"}, connect_timeout=SECONDS, read_timeout=SECONDS, retries=retries)
    return boto3.client(
        "s3",
        endpoint_url=store["url"],
        aws_access_key_id=store["key"],
        aws_secret_access_key=store["secret"],
        region_name="us-east-1",
        verify=ca,
        config=settings,
    )


def _accepted(said: str) -> Answer:
    return {"answer": "accepted", "said": said}


def _failed(said: str, refusals: tuple[str, ...]) -> Answer:
    return {"answer": "refused" if any(word in said for word in refusals) else "unreachable", "said": said}


def _last_line(error: Exception) -> str:
    """Return what went wrong in one line. SQLAlchemy's own exceptions end with links; the driver's is the cause."""
    cause = getattr(error, "orig", None) or error
    return " ".join(str(cause).split())[:300]


def main() -> int:
    """Try everything that is given."""
    given = json.load(sys.stdin)
    ca = given["ca"]
    tried = {
        name: {store: TRIALS[store](value, ca) for store, value in credentials.items()}
        for name, credentials in given["sets"].items()
    }
    print(json.dumps({"sets": tried, "epoch": epoch(given["epoch"], ca)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
