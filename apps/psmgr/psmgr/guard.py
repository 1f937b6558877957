"""One failing app never stops the others: each piece of work is guarded by its key, logged once, and backs off."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from sqlalchemy.exc import DBAPIError

from psmgr.backoff import delay
from psmgr.engine import EngineUnavailable
from psmgr.leader import LeadershipLost

log = logging.getLogger(__name__)


class Guards:
    """Runs pieces of work by key."""

    def __init__(self) -> None:
        self._failures: dict[str, tuple[int, float, str]] = {}

    def run(self, key: str, work: Callable[[], None]) -> None:
        """Run `work` unless it failed a moment ago. Raises only what stops everything: no database, no engine."""
        count, not_before, told = self._failures.get(key, (0, 0.0, ""))
        if time.monotonic() < not_before:
            return
        try:
            work()
        except (LeadershipLost, EngineUnavailable):
            raise
        except Exception as error:
            if isinstance(error, DBAPIError) and error.connection_invalidated:
                raise
            text = f"{type(error).__name__}: {error}"
            if text != told:
                log.warning("%s failed, will try again: %s", key, text, exc_info=log.isEnabledFor(logging.DEBUG))
            self._failures[key] = (count + 1, time.monotonic() + delay(count + 1), text)
        else:
            if count:
                log.info("%s works again after %d failures", key, count)
                del self._failures[key]
