"""The command line's sub-commands, one a file; the group that calls them is ``lirpa_lip_cli``, beside the package."""

from __future__ import annotations

from lirpa_lip_cli import COMMANDS, main

__all__ = ["COMMANDS", "main"]
