"""The last good table on the node's disk: what the router serves when the bus is dead at boot."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from router.table import EMPTY, Table, TableRefused, dump, parse

NAME = "routes.json"


class StoreFailed(Exception):
    """The table could not be read or written. The message says why; the router goes on without."""


def load(folder: Path) -> Table:
    """Return the stored table; the empty one when none was ever stored. Raises `StoreFailed`."""
    path = folder / NAME
    try:
        return parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return EMPTY
    except (OSError, UnicodeDecodeError, TableRefused) as error:
        raise StoreFailed(f"{path} cannot be read: {error}") from error


def save(folder: Path, table: Table) -> None:
    """Write `table` so that a power cut leaves either the old or the new one, whole. Raises `StoreFailed`."""
    path = folder / NAME
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{NAME}.", dir=folder)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(dump(table))
                file.flush()
                os.fsync(file.fileno())
            os.rename(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        _sync_folder(folder)
    except OSError as error:
        raise StoreFailed(f"{path} cannot be written: {error}") from error


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
