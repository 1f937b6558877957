"""When which operation of a deploy ran on which host, read from what pyinfra prints while it works.

pyinfra's JSON says what an operation did, but not when. Its log says both, and a deploy that is killed leaves what it
had done: a line begins each operation on all hosts at once, and one line for each host ends it there.
"""

from __future__ import annotations

import datetime
import re
from dataclasses import dataclass

READING = "Look at what is there"

_BEGIN = re.compile(r"--> Starting (?:[a-z, ]+ )?operation: (?P<name>.*)")
_READ = re.compile(r"--> Preparing operation files")
_END = re.compile(r"\s*\[(?P<host>[^\]\s]+)\]\s+(?P<result>Success|No changes|Skipped|Ready: |Error\b)")
_RESULTS = {
    "Success": "changed",
    "No changes": "was so",
    "Skipped": "skipped",
    "Ready: ": "read",
    "Error": "failed",
}


@dataclass(frozen=True)
class Operation:
    """One operation on one host. `result` is `changed`, `was so`, `skipped`, `read` (facts only) or `failed`."""

    deploy: str
    name: str
    host: str
    started_at: str
    seconds: float
    result: str


class OperationReader:
    """Reads pyinfra's log line by line; each line that ends an operation on a host gives that operation."""

    def __init__(self, deploy: str) -> None:
        self._deploy = deploy
        self._name: str | None = None
        self._began = datetime.datetime.now(datetime.UTC)

    def read(self, line: str, at: datetime.datetime) -> Operation | None:
        """Take the line seen `at`, and return the operation that it ends."""
        begin = _BEGIN.match(line)
        if begin is not None:
            self._name, self._began = begin["name"].strip(), at
        elif _READ.match(line) is not None:
            self._name, self._began = READING, at
        end = _END.match(line)
        if end is None or self._name is None:
            return None
        return Operation(
            deploy=self._deploy,
            name=self._name,
            host=end["host"],
            started_at=self._began.isoformat(),
            seconds=round((at - self._began).total_seconds(), 3),
            result=_RESULTS[end["result"]],
        )
