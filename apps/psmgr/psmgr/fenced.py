"""The engine for a leader: before each write it is made sure that this one still leads."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from psmgr.engine import Engine, Node, Service, ServiceSpec


class FencedEngine:
    """Passes everything on to `engine`; writes only after `check`, which raises when leadership is lost."""

    def __init__(self, engine: Engine, check: Callable[[], None]) -> None:
        self._engine, self._check = engine, check

    def nodes(self) -> list[Node]:
        """See Engine."""
        return self._engine.nodes()

    def services(self, platform: str) -> list[Service]:
        """See Engine."""
        return self._engine.services(platform)

    def create(self, spec: ServiceSpec) -> str:
        """See Engine."""
        self._check()
        return self._engine.create(spec)

    def scale(self, service_id: str, replicas: int) -> None:
        """See Engine."""
        self._check()
        self._engine.scale(service_id, replicas)

    def replace(self, service_id: str, spec: ServiceSpec) -> None:
        """See Engine."""
        self._check()
        self._engine.replace(service_id, spec)

    def remove(self, service_id: str) -> None:
        """See Engine."""
        self._check()
        self._engine.remove(service_id)

    def ensure_network(self, name: str, mtu: int | None) -> None:
        """See Engine."""
        self._check()
        self._engine.ensure_network(name, mtu)

    def log(self, service_id: str) -> bytes:
        """See Engine."""
        return self._engine.log(service_id)

    def follow(self, service_id: str) -> Iterator[bytes]:
        """See Engine."""
        return self._engine.follow(service_id)

    def events(self) -> Iterator[None]:
        """See Engine."""
        return self._engine.events()
