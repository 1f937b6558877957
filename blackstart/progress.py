"""What an operator sees while long work goes on: a live table in a terminal, plain lines elsewhere. Always on stderr."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

TAIL_LINES = 6


@dataclass
class Row:
    """One step: `state` is `waiting`, `running`, `done`, `was so` or `failed`."""

    title: str
    state: str = "waiting"
    started: float = 0.0
    seconds: float = 0.0
    tail: list[str] = field(default_factory=list)


_MARKS = {
    "waiting": "[dim]·[/dim]",
    "running": "[yellow]→[/yellow]",
    "done": "[green]✓[/green]",
    "was so": "[green]=[/green]",
    "failed": "[red]✗[/red]",
}


class Progress:
    """Shows the steps. `quiet` shows nothing (for `--json`)."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._console = Console(stderr=True, quiet=quiet, highlight=False)
        self._rows: dict[str, Row] = {}
        self._began = time.monotonic()
        self._live: Live | None = None

    @contextlib.contextmanager
    def showing(self, titles: dict[str, str]) -> Iterator[None]:
        """Show the steps `{name: title}` until the block ends."""
        self._rows = {name: Row(title) for name, title in titles.items()}
        if not self._console.is_terminal:
            yield
            return
        with Live(get_renderable=self._render, console=self._console, refresh_per_second=8) as live:
            self._live = live
            try:
                yield
            finally:
                self._live = None

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Show a step as running while the block runs."""
        row = self._rows.setdefault(name, Row(name))
        row.state, row.started = "running", time.monotonic()
        self._plain(name, row.title)
        try:
            yield
        except BaseException:
            self._end(name, "failed")
            raise
        self._end(name, "done")

    def already(self, name: str) -> None:
        """Show that a step need not run: its result is there."""
        self._rows.setdefault(name, Row(name)).state = "was so"
        self._plain(name, "is so already")

    def line(self, name: str, text: str) -> None:
        """Show a line of what a step does."""
        row = self._rows.get(name)
        if row is not None:
            row.tail = [*row.tail, text][-TAIL_LINES:]
        self._plain(name, text)

    def say(self, text: str) -> None:
        """Show a line that belongs to no step."""
        self._console.print(escape(text))

    def seconds(self, name: str) -> float:
        """Return how long a step ran."""
        return self._rows[name].seconds

    @property
    def elapsed(self) -> float:
        """Seconds since this began."""
        return time.monotonic() - self._began

    def _end(self, name: str, state: str) -> None:
        row = self._rows[name]
        row.state, row.seconds = state, time.monotonic() - row.started
        self._plain(name, f"{state} ({row.seconds:.1f} s)")

    def _plain(self, name: str, text: str) -> None:
        if self._live is None:
            self._console.print(f"{self.elapsed:7.1f}s  {escape(f'[{name}]')} {escape(text)}", soft_wrap=True)

    def _render(self) -> RenderableType:
        table = Table.grid(padding=(0, 1))
        for row in self._rows.values():
            now = time.monotonic() - row.started if row.state == "running" else row.seconds
            table.add_row(_MARKS[row.state], escape(row.title), f"{now:.1f} s" if now else "")
        tail = [
            Text(f"    {line}", style="dim", no_wrap=True, overflow="ellipsis")
            for row in self._running()
            for line in row.tail
        ]
        return Group(table, *tail, Text(f"  {self.elapsed:.0f} s", style="dim"))

    def _running(self) -> list[Row]:
        return [row for row in self._rows.values() if row.state == "running"]


def error(text: str) -> None:
    """Print an error on stderr."""
    Console(stderr=True, highlight=False).print(
        Text(text), style="red" if sys.stderr.isatty() else None, soft_wrap=True
    )
