"""What stops a build, one tree. The exit codes are `bin/build`'s, a contract with psmgr.

Failure               what failed, why, numbered fixes, a stable machine-readable reason
├── AppRefused     1  the app cannot be compiled
├── SourceRefused  2  the source is no good
├── OverTime       3  the build took longer than it may
└── StoreFailed    4  the object store, or the platform's part of the build, failed
"""

from __future__ import annotations


class Failure(Exception):
    """A build cannot go on. `what` is one sentence; `fixes` are steps a user can take."""

    code = 1

    def __init__(self, reason: str, what: str, *, why: str = "", fixes: tuple[str, ...] = ()) -> None:
        super().__init__(what)
        self.reason = reason
        self.what = what
        self.why = why
        self.fixes = fixes


class AppRefused(Failure):
    """The app cannot be compiled."""

    code = 1


class SourceRefused(Failure):
    """The source is no tarball, is damaged, is too large, or climbs out of its folder."""

    code = 2


class OverTime(Failure):
    """The build took longer than it may."""

    code = 3


class StoreFailed(Failure):
    """The object store did not do its part, or the build dyno is not set up as it must be."""

    code = 4
