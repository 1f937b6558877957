"""How a program of the compiler ends: every failure becomes a message and the exit code of its kind."""

from __future__ import annotations

import errno
import traceback
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
        return _internal(error) if error.errno not in (errno.ENOSPC, errno.EDQUOT) else _disk_full(error)
    except Exception as error:
        return _internal(error)
    return 0


def _disk_full(error: OSError) -> int:
    full = StoreFailed(
        "build-disk-full",
        "The disk is full.",
        why=str(error),
        fixes=("Tell the operator: a node has no room for builds.", "Leave out what the app does not need to run."),
    )
    output.refuse(full)
    return full.code


def _internal(error: Exception) -> int:
    """Show a mistake of the compiler's own: it is neither the app's nor the source's."""
    for line in "".join(traceback.format_exception(error)).rstrip().split("\n"):
        output.detail(line)
    bug = StoreFailed(
        "build-internal-error", "The compiler failed by a mistake of its own.", fixes=("Tell the operator.",)
    )
    output.refuse(bug)
    return bug.code
