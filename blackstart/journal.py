"""The journal: one JSON object per line, appended and fsynced. A hint for people and reports; `verify` is the truth."""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Journal:
    """The journal at `path`."""

    path: Path

    def add(self, event: str, **fields: Any) -> None:
        """Append one entry; it is on disk when this returns."""
        line = json.dumps(
            {"at": datetime.datetime.now(datetime.UTC).isoformat(), "event": event, **fields}, sort_keys=True
        )
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(descriptor, (self._separator() + line + "\n").encode())
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def entries(self) -> Iterator[dict[str, Any]]:
        """Yield the entries that can be read; a torn line (a crash while writing) is passed over."""
        try:
            lines = self.path.read_text(errors="replace").splitlines()
        except FileNotFoundError:
            return
        for line in lines:
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if isinstance(entry, dict):
                yield entry

    def _separator(self) -> str:
        """Return what must come first so that a torn last line does not swallow the next entry."""
        try:
            with self.path.open("rb") as stream:
                stream.seek(-1, os.SEEK_END)
                return "" if stream.read(1) == b"\n" else "\n"
        except (FileNotFoundError, OSError):
            return ""
