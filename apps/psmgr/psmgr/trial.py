"""A new release of the process manager leads on trial before the old one goes.

A broken process manager cannot replace itself by the old one. So the old leader decides nothing about its successor: when
the new one is up and says that it could lead, the old one lets go of the lock and stands by. The new one leads, makes whole
passes, and only then writes down that its release succeeded. When that does not come in time, the old one ends the
new one's connection, leads again, and fails the release. A new one that dies loses the lock by dying.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable
from typing import Literal

from psmgr import spec
from psmgr.desired import WantedRelease
from psmgr.engine import Service
from psmgr.plan import version_of

TRIAL_S = 30.0
LEADS_S = 5.0
PASSES = 3
NOT_TAKEN = f"the new process manager got the lead and did not show within {TRIAL_S:.0f} seconds that it leads"

Verdict = Literal["good", "not yet", "hand over"]


class Trial:
    """What one process manager knows of its own release, and of one that it handed over to."""

    def __init__(self) -> None:
        self._own: tuple[str, int] | None = None
        self._began = self._handed_at = 0.0
        self._passes = 0
        self.handed_to: uuid.UUID | None = None
        self._took_back = False

    def leads(self) -> None:
        """This process manager begins to lead."""
        self._began, self._passes = time.monotonic(), 0
        self._took_back = self.handed_to is not None

    def look(self, task_id: str | None, services: Iterable[Service]) -> None:
        """Find which app and version this process manager is of; stage 0 and a program outside of the engine are of none."""
        self._own = next(
            (
                (service.labels.get(spec.APP_ID, ""), version_of(service))
                for service in services
                if task_id is not None and any(task.id == task_id for task in service.tasks)
            ),
            None,
        )

    def passed(self) -> None:
        """A whole pass was made."""
        self._passes += 1

    def verdict(self, app_id: uuid.UUID, release: WantedRelease) -> Verdict:
        """Say what to do with a healthy `release`: it may be our own successor, or us on trial."""
        if self._own is None or self._own[0] != str(app_id):
            return "good"
        if self._own[1] == release.version:
            led = time.monotonic() - self._began >= LEADS_S and self._passes >= PASSES
            return "good" if led else "not yet"
        self.handed_to, self._handed_at, self._took_back = release.id, time.monotonic(), False
        return "hand over"

    def failed(self, release_id: uuid.UUID) -> bool:
        """Whether this release led on trial in vain."""
        return self._took_back and self.handed_to == release_id

    @property
    def handing_over(self) -> bool:
        """Whether the leader is to let go now."""
        return self.handed_to is not None and not self._took_back

    @property
    def over(self) -> bool:
        """Whether the time of the one on trial is over."""
        return time.monotonic() - self._handed_at > TRIAL_S

    def forget(self) -> None:
        """The release that was handed over to has ended."""
        self.handed_to, self._took_back = None, False
