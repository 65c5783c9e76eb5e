"""The flags that say whether code named by a checkpoint may run."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import click

Command = TypeVar("Command", bound=Callable)


def arch_options(command: Command) -> Command:
    """Adds ``--arch`` and ``--trust-arch``, as `model_from` takes them."""
    trust = click.option(
        "--trust-arch", is_flag=True, help="Import the network's module where the checkpoint names one: runs its code."
    )
    arch = click.option(
        "--arch", metavar="MODULE:FACTORY", help="The network, if it is your own.  [default: the checkpoint's, named]"
    )
    return arch(trust(command))
