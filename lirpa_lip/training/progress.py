"""What a run shows on the terminal: nothing, or a rich progress bar with a line per epoch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class Progress:
    """Shows nothing; the base of what shows something."""

    def start(self, total: int, done: int = 0) -> None: ...

    def advance(self) -> None: ...

    def epoch(self, row: Mapping[str, Any]) -> None: ...

    def stop(self) -> None: ...


class RichProgress(Progress):
    """A bar with the time left (on a terminal), and one line per validated epoch (everywhere)."""

    def start(self, total: int, done: int = 0) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        console = Console()
        self.bar = Bar(
            *(TextColumn("training"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()),
            console=console,
            disable=not console.is_terminal,
        )
        self.console = console
        self.task = self.bar.add_task("training", total=total, completed=done)
        self.bar.start()

    def advance(self) -> None:
        self.bar.advance(self.task)

    def epoch(self, row: Mapping[str, Any]) -> None:
        self.console.print(
            f"epoch {row['epoch']:6.1f}  clean {row['clean']:6.1%}  certified (estimate) "
            f"{row['certified_estimate']:6.1%} at ε {row['eps']:.4g}  lr {row['lr']:.2g}",
            highlight=False,
        )

    def stop(self) -> None:
        self.bar.stop()
