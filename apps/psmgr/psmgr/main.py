"""The process manager's program. It never exits by itself: what is missing is waited for, and said once.

psmgr acts when: the database answers, the platform's row says that it is our stage, and we hold the lock. Stage 0's also
asks the platform's routers, and does nothing where one knows a later epoch.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import time

import redis
from sqlalchemy.exc import SQLAlchemyError

from blackstart.model.bus import ABLE_SECONDS, able_key, connect
from blackstart.model.epoch import EpochWatch
from blackstart.model.tables import Release
from psmgr.backoff import delay
from psmgr.desired import read_stage
from psmgr.engine import EngineError
from psmgr.leader import Leader, LeadershipLost
from psmgr.loop import Reconciler
from psmgr.settings import SettingRefused, Settings, settings_from
from psmgr.store import Store
from psmgr.swarm import Swarm
from psmgr.trial import Trial
from psmgr.wake import Wake, listen

log = logging.getLogger("psmgr")
RECENT_S = 0.6  # for so long after an event what it tells of may still come: tasks' states, a dyno's first answer
# After a black start everything waits for the leader, and two process managers ask too little to be a burden.
RETRY_S = 2.0
STANDBY_S = 1.0  # no event ends it: what the leader does would have every other one ask the database and the engine too


class Psmgr:
    """Takes part in leading until it is stopped."""

    def __init__(self, settings: Settings, wake: Wake) -> None:
        self._settings, self._wake = settings, wake
        self._bus = connect(settings.bus_url, settings.ca)
        self._engine = Swarm(settings.docker_host)
        self._store = Store(settings)
        self._epochs = EpochWatch(settings.node_addresses, settings.domain, settings.ca)
        self._trial = Trial()
        self._failures = 0
        self._told = self._unable = ""

    def run(self) -> None:
        """Lead, stand by, or wait for the database, until stopped."""
        if self._settings.role == "stage-0":
            self._epochs.start()
        listen(self._wake, self._bus, self._engine)
        while not self._wake.stopping.is_set():
            try:
                with Leader(self._settings.database_url) as leader:
                    self._with_database(leader)
            except (SQLAlchemyError, LeadershipLost, OSError) as error:
                self._failed("database", error)

    def _with_database(self, leader: Leader) -> None:
        while not self._wake.stopping.is_set():
            with leader.session() as session:
                stage = read_stage(session)
            if self._epochs.reason:
                leader.release()
                self._tell(self._epochs.reason)
                self._wake.stopping.wait(STANDBY_S)
            elif stage != self._settings.stage:
                leader.release()
                self._tell(f"standing by: the platform's stage is {stage}, this one is for {self._settings.stage}")
                self._wake.stopping.wait(STANDBY_S)
            elif self._trial.handed_to is not None:
                self._on_trial(leader, stage)
            elif not leader.acquire():
                self._failures = 0
                self._tell("standing by: another process manager leads")
                self._say_able()
                self._wake.stopping.wait(STANDBY_S)
            else:
                self._lead(leader, stage)
        leader.release()

    def _lead(self, leader: Leader, stage: str) -> None:
        self._tell("leading")
        reconciler = Reconciler(
            self._settings,
            self._engine,
            self._bus,
            self._store,
            stopping=self._wake.stopping.is_set,
            trial=self._trial,
            wake=self._wake.up,
        )
        woken_at = float("-inf")
        try:
            while not self._wake.stopping.is_set():
                with leader.session() as session:
                    if read_stage(session) != stage or self._epochs.reason:
                        return
                try:
                    pause = reconciler.step(leader, stage, woken=time.monotonic() - woken_at < RECENT_S)
                    self._recovered()
                except EngineError as error:
                    self._failed("engine", error)
                    continue
                if self._trial.handing_over:
                    leader.release()
                    return
                if self._wake.wait(pause):
                    woken_at = time.monotonic()
        finally:
            reconciler.close()

    def _on_trial(self, leader: Leader, stage: str) -> None:
        """Stand by while our successor leads on trial; lead again when its time is over and its release still pending."""
        self._tell("standing by: the new release leads on trial")
        with leader.session() as session:
            release = session.get(Release, self._trial.handed_to)
            pending = release is not None and release.status == "pending"
        if not pending:
            self._trial.forget()
        elif self._trial.over and leader.depose():
            log.warning("the new release did not lead: leading again")
            self._lead(leader, stage)
            self._trial.forget()
        else:
            self._say_able()
            self._wake.stopping.wait(STANDBY_S)

    def _say_able(self) -> None:
        """Say on the bus that this one could lead: the leader hands over to a new release only when it says so."""
        if self._settings.task_id is None:
            return
        try:
            self._engine.services(self._settings.platform)
            self._bus.set(able_key(self._settings.task_id), "able", ex=ABLE_SECONDS)
        except (EngineError, redis.RedisError) as error:
            why = str(error).splitlines()[0]
            if why != self._unable:
                log.warning("could not lead now: %s", why)
            self._unable = why
        else:
            self._unable = ""

    def _failed(self, what: str, error: Exception) -> None:
        self._failures += 1
        # The first line of a driver's message says it; the rest is SQL.
        self._tell(f"the {what} cannot be used, will try again: {str(error).splitlines()[0]}")
        self._wake.stopping.wait(delay(self._failures, cap=RETRY_S))

    def _recovered(self) -> None:
        if self._failures:
            self._failures = 0
            self._tell("leading")

    def _tell(self, text: str) -> None:
        if text != self._told:
            log.info(text)
            self._told = text


def main() -> int:
    """Run until SIGTERM or SIGINT. Exit code 2: the settings are wrong."""
    logging.basicConfig(
        stream=sys.stdout, level=os.environ.get("LOG_LEVEL", "INFO"), format="%(levelname)s %(message)s", force=True
    )
    for noisy in ("botocore", "boto3", "urllib3", "docker"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        settings = settings_from()
    except ValueError as error:
        log.error("%s: %s", SettingRefused.__name__, error)
        return 2
    wake = Wake()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: wake.stop())
    started = time.monotonic()
    Psmgr(settings, wake).run()
    log.info("stopped after %.0f s", time.monotonic() - started)
    return 0


if __name__ == "__main__":
    sys.exit(main())
