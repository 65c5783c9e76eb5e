"""The command line ``lirpa-lip``: a group whose sub-commands are imported when they are called.

A sub-command is one file here and one row of ``COMMANDS``; nothing else knows of it.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import click

from lirpa_lip.errors import LirpaLipError, RunInterruptedError

COMMANDS: dict[str, tuple[str, str]] = {
    "train": ("lirpa_lip.cli.train:train", "Train a network with a certified loss."),
    "certify": ("lirpa_lip.cli.certify:certify", "Certify a trained network on a data set."),
    "lipschitz": ("lirpa_lip.cli.lipschitz:lipschitz", "Local Lipschitz bounds of a network."),
    "compare": ("lirpa_lip.cli.compare:compare", "Compare bounds on the same network and data."),
    "monotonicity": ("lirpa_lip.cli.monotonicity:monotonicity", "Monotone inputs of a network."),
    "report": ("lirpa_lip.cli.report:report", "Table and figure of several certified runs."),
}
"""Name -> (``module:command``, the line shown by ``lirpa-lip --help``)."""


class LazyGroup(click.Group):
    """Imports a sub-command on its first use, and turns the package's errors into one line on the terminal."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, attribute = COMMANDS[cmd_name][0].split(":")
        command: click.Command = getattr(import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Lists the sub-commands from the table, so that ``--help`` need not import them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        from lirpa_lip.cli.terminal import warnings_in_a_line

        try:
            with warnings_in_a_line():
                return super().invoke(ctx)
        except RunInterruptedError as error:
            click.echo(str(error), err=True)
            ctx.exit(128 + error.signal_number)
        except (LirpaLipError, OSError) as error:  # OSError: a full disk, a folder that may not be written, …
            raise click.ClickException(str(error)) from error


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="lirpa_lip", prog_name="lirpa-lip")
def main() -> None:
    """Valid, tight and fast local Lipschitz bounds: train, certify, compare."""


__all__ = ["COMMANDS", "main"]
