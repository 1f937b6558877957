"""Three workers share the suite: the tests of one platform, whose order counts; those of platforms that are hurt; all others.

Tests of machines wait most of their time, so three of them fill two cores.
"""

from __future__ import annotations

import pytest
from xdist.scheduler import LoadScopeScheduling

HURT = ("/test_kill", "/test_fencing", "/test_named_hosts")


class PlatformsBesideOthers(LoadScopeScheduling):
    """Gives each worker one of the three parts."""

    def _split_scope(self, nodeid: str) -> str:
        if "/test_platform" in nodeid:
            return "platform"
        return "hurt" if any(name in nodeid for name in HURT) else "others"


@pytest.hookimpl
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> PlatformsBesideOthers:
    return PlatformsBesideOthers(config, log)
