"""One leader, and no write by one that was deposed; the program as a process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from psmgr.fenced import FencedEngine
from psmgr.leader import Leader, LeadershipLost
from sqlalchemy import NullPool, create_engine, make_url, text, update
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from blackstart.model.tables import Platform

ROOT = Path(__file__).parents[3]


def cut_all_connections(url: str) -> None:
    engine = create_engine(url, poolclass=NullPool)
    with engine.connect() as connection:
        others = "FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname = current_database()"
        connection.execute(text(f"SELECT pg_terminate_backend(pid) {others}"))


def test_one_leads(database: str) -> None:
    with Leader(database) as first, Leader(database) as second:
        assert first.acquire()
        assert first.acquire()
        assert not second.acquire()
        first.release()
        assert second.acquire()
        with pytest.raises(LeadershipLost):
            first.check()


def test_a_leader_is_deposed_also_where_the_login_acts_as_another_role(database: str) -> None:
    """As on a fenced platform: `platform_1` logs in, its sessions begin as `platform`."""
    admin, login = create_engine(database, poolclass=NullPool), f"login_{os.getpid()}"
    with admin.connect() as connection:
        owner = f"owner_{os.getpid()}"
        connection.execute(text(f"CREATE ROLE {owner} NOLOGIN; CREATE ROLE {login} LOGIN"))
        connection.execute(text(f"GRANT {owner} TO {login}; ALTER ROLE {login} SET role TO {owner}"))
        connection.commit()
    url = make_url(database).set(username=login).render_as_string(hide_password=False)
    with Leader(url) as first, Leader(url) as second:
        assert first.acquire()
        assert second.depose()
        with pytest.raises(LeadershipLost):
            first.check()


def test_a_leader_without_its_connection_leads_no_more(database: str) -> None:
    with Leader(database) as first:
        assert first.acquire()
        cut_all_connections(database)
        with Leader(database) as second:
            assert second.acquire()
            with pytest.raises(LeadershipLost):
                first.check()
        assert not first.leads


def test_a_deposed_leader_writes_neither_to_the_database_nor_to_the_engine(database: str, engine: Any) -> None:
    with Leader(database) as first:
        assert first.acquire()
        fenced = FencedEngine(engine, first.check)
        cut_all_connections(database)
        with pytest.raises(LeadershipLost):
            fenced.remove("s")
        with pytest.raises(LeadershipLost):
            fenced.scale("s", 1)
        with pytest.raises(LeadershipLost):
            fenced.ensure_network("n", None)
        assert engine.writes == []
        assert engine.networks == set()
        with pytest.raises(SQLAlchemyError), first.session() as session:
            session.execute(update(Platform).values(stage="x"))


def test_the_advisory_lock_is_gone_with_the_process(database: str) -> None:
    program = (
        "import sys; from psmgr.leader import Leader; leader = Leader(sys.argv[1]); "
        "print(leader.acquire(), flush=True); sys.stdin.read()"
    )
    env = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT}/apps/psmgr"}
    child = subprocess.Popen(
        [sys.executable, "-c", program, database],
        env=env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with child, Leader(database) as other:
        assert child.stdout is not None
        assert child.stdout.readline() == "True\n"
        assert not other.acquire()
        child.kill()
        child.wait()
        deadline = time.monotonic() + 5
        while not other.acquire():
            assert time.monotonic() < deadline


class Program:
    """psmgr as a process; its lines come one by one."""

    def __init__(self, settings: Any, **env: str) -> None:
        values = {
            "PLATFORM": "tst",
            "DOMAIN": "tst.internal",
            "DATABASE_URL": settings.database_url,
            "BUS_URL": settings.bus_url,
            "OBJECTS_URL": "http://127.0.0.1:9",
            "OBJECTS_KEY": "k",
            "OBJECTS_SECRET": "s",
            "SECRET_KEY": settings.secret_key,
            "STACK": settings.stack,
            "STACK_BUILD": settings.stack_build,
            "DOCKER_HOST": "unix:///nowhere/docker.sock",
            "PYTHONPATH": f"{ROOT}:{ROOT}/apps/psmgr",
            "PATH": os.environ["PATH"],
        } | env
        self.process = subprocess.Popen(
            [sys.executable, "-m", "psmgr.main"],
            env=values,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def says(self, part: str) -> str:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if part in line:
                return line
        raise AssertionError(f"the program ended without saying {part!r}")

    def stop(self) -> float:
        started = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        self.process.communicate(timeout=25)
        assert self.process.returncode == 0
        return time.monotonic() - started


@pytest.fixture
def programs() -> Iterator[list[Program]]:
    running: list[Program] = []
    yield running
    for program in running:
        if program.process.poll() is None:
            program.process.kill()
        program.process.communicate()


@pytest.mark.timeout(60)
def test_the_program_acts_only_in_its_stage_and_stops_when_asked(settings: Any, programs: list[Program]) -> None:
    engine = create_engine(settings.database_url, poolclass=NullPool)
    programs.append(Program(settings, ROLE="stage-0"))
    assert "stage is self-hosted, this one is for stage-0" in programs[0].says("standing by")
    with Session(engine) as session, session.begin():
        session.execute(update(Platform).values(stage="stage-0"))
    programs[0].says("INFO leading")
    programs[0].says("the engine cannot be used, will try again")
    programs.append(Program(settings, ROLE="stage-0"))
    programs[1].says("another process manager leads")
    programs[0].process.kill()
    killed = time.monotonic()
    programs[1].says("INFO leading")
    assert time.monotonic() - killed < 5
    assert programs[1].stop() < 5


@pytest.mark.timeout(60)
def test_the_program_waits_for_a_dead_database(settings: Any, programs: list[Program]) -> None:
    programs.append(Program(settings, DATABASE_URL="postgresql+psycopg://u@127.0.0.1:9/x"))
    programs[0].says("the database cannot be used, will try again")
    assert programs[0].process.poll() is None
    assert programs[0].stop() < 5


@pytest.mark.timeout(60)
def test_a_wrong_setting_is_named(settings: Any, programs: list[Program]) -> None:
    programs.append(Program(settings, PLATFORM="-rf"))
    assert "platform name '-rf' is refused" in programs[0].says("platform name")
    assert programs[0].process.wait(10) == 2
