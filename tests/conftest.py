"""Two workers share the suite: one has the platform's tests, whose order counts and which wait a lot, one has all others."""

from __future__ import annotations

import pytest
from xdist.scheduler import LoadScopeScheduling


class PlatformBesideOthers(LoadScopeScheduling):
    """Gives each worker one of the two parts."""

    def _split_scope(self, nodeid: str) -> str:
        return "platform" if "/test_platform" in nodeid else "others"


@pytest.hookimpl
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> PlatformBesideOthers:
    return PlatformBesideOthers(config, log)
