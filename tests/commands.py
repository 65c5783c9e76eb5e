"""The command line, called in this process."""

from __future__ import annotations

from click.testing import CliRunner, Result

from lirpa_lip.cli import main


def invoke(*arguments: object) -> Result:
    """What ``lirpa-lip`` answers to these arguments."""
    return CliRunner().invoke(main, [str(a) for a in arguments])
