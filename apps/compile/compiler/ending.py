"""How a program of the compiler ends: every failure becomes a message and the exit code of its kind."""

from __future__ import annotations

import errno
from collections.abc import Callable

from compiler import output, processes
from compiler.errors import Failure, StoreFailed


def ended(work: Callable[[], None]) -> int:
    """Do `work`; print what stopped it, if anything did, and return the exit code."""
    try:
        work()
    except Failure as failure:
        output.refuse(failure)
        return failure.code
    except MemoryError:
        too_large = processes.out_of_memory("The compiler")
        output.refuse(too_large)
        return too_large.code
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        full = StoreFailed(
            "build-disk-full",
            "The disk is full.",
            why=str(error),
            fixes=("Tell the operator: a node has no room for builds.", "Leave out what the app does not need to run."),
        )
        output.refuse(full)
        return full.code
    return 0
