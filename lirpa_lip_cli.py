"""The command ``lirpa-lip``: a group whose sub-commands are imported when they are called.

It stands beside the package because whatever stands inside imports torch and auto_LiRPA first: so ``--help`` and
``--version`` answer at once, and where auto_LiRPA is not installed too. A sub-command is one file in ``lirpa_lip/cli``
and one row of ``COMMANDS``; nothing else knows of it.
"""

from __future__ import annotations

import errno
import os
import re
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import click

COMMANDS: dict[str, tuple[str, str]] = {
    "train": ("lirpa_lip.cli.train:train", "Train a network with a certified loss."),
    "certify": ("lirpa_lip.cli.certify:certify", "Certify a trained network on a data set."),
    "verify": ("lirpa_lip.cli.verify:verify", "Verify a network file: a property, or every input of a data set."),
    "lipschitz": ("lirpa_lip.cli.lipschitz:lipschitz", "Local Lipschitz bounds of a network."),
    "compare": ("lirpa_lip.cli.compare:compare", "Compare bounds on the same network and data."),
    "monotonicity": ("lirpa_lip.cli.monotonicity:monotonicity", "Monotone inputs of a network."),
    "export": ("lirpa_lip.cli.export:export", "The network of a run alone, to be handed on."),
    "report": ("lirpa_lip.cli.report:report", "Table and figure of several certified runs."),
}
"""Name -> (``module:command``, the line shown by ``lirpa-lip --help``)."""

TRAIN_MODULES = {"accelerate", "foolbox", "matplotlib", "sklearn", "tensorboard", "torchvision", "yaml", "PIL"}
"""What the extra ``[train]`` brings; the library itself needs none of it."""


class LazyGroup(click.Group):
    """Imports a sub-command on its first use, and turns the package's errors into one line on the terminal."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        ctx.with_resource(import_module("lirpa_lip.cli.terminal").warnings_in_a_line())
        import_module("lirpa_lip.memory").keep_freed_memory()
        module, attribute = COMMANDS[cmd_name][0].split(":")
        command: click.Command = getattr(import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Lists the sub-commands from the table, so that ``--help`` need not import them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in COMMANDS.items()])

    def main(self, *args: Any, **options: Any) -> Any:
        try:
            return super().main(*args, **options)
        except SystemExit as end:
            if isinstance(end.code, int | None):
                _end_of_several(end.code or 0)
            raise

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except Exception as error:
            line = one_line(error)
            if line is None:
                raise
            number = getattr(error, "signal_number", None)
            if number is not None:  # stopped on purpose: no error, but the shell's code for it
                click.echo(line, err=True)
                ctx.exit(128 + number)
            raise click.ClickException(line) from error


def _end_of_several(code: int) -> None:
    """Ends a process of several, once its work is done and written, without the interpreter's own end: there a thread
    of the conversation between them that asks for Python aborts the process."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return
    if torch.distributed.get_world_size() > 1:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)


def one_line(error: Exception) -> str | None:
    """What to tell a user of an error that is no fault of the program; ``None`` for any other."""
    if isinstance(error, OSError):  # a full disk, a folder that may not be written, …; click ends at a closed pipe
        return None if isinstance(error, BrokenPipeError) else _of_the_system(error)
    memory = sys.modules.get("lirpa_lip.memory")  # imported by every sub-command
    if memory is not None and memory.is_out_of_memory(error):
        said = f" ({str(error).splitlines()[0]})" if str(error) else ""
        return f"there is not enough memory{said}; ask for less at once, or a smaller network."
    errors = sys.modules.get("lirpa_lip.errors")  # imported by whoever raised one of them
    if errors is not None and isinstance(error, errors.LirpaLipError):
        return str(error)
    if isinstance(error, ModuleNotFoundError) and error.name == "auto_LiRPA" and errors is not None:
        return f"lirpa_lip needs auto_LiRPA. Install it with:  {errors.INSTALL_AUTO_LIRPA}"
    if isinstance(error, ModuleNotFoundError) and (error.name or "").split(".")[0] in TRAIN_MODULES:
        return f"this command needs {error.name}. Install what it runs on with:  pip install 'lirpa_lip[train]'"
    return None


def _of_the_system(error: OSError) -> str:
    """With what to do about it."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{error.filename or 'a file'}: the disk is full. Make room, and start the same command again."
    if error.filename is None or error.strerror is None:
        return str(error)
    if isinstance(error, FileExistsError | NotADirectoryError):
        return f"{error.filename}: there is a file where a folder is needed; choose another path."
    return f"{error.filename}: {error.strerror}; choose another path, or change what stands in the way."


def _print_version(ctx: click.Context, parameter: click.Parameter, wanted: bool) -> None:
    if not wanted:
        return
    source = Path(__file__).with_name("lirpa_lip") / "__init__.py"  # read: importing it takes a second, and auto_LiRPA
    found = re.search(r'^__version__ = "(.+)"$', source.read_text(encoding="utf-8"), re.MULTILINE)
    assert found is not None
    click.echo(f"lirpa-lip, version {found[1]}")
    ctx.exit()


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version, help="Show the version."
)
def main() -> None:
    """Valid, tight and fast local Lipschitz bounds: train, certify, compare."""


if __name__ == "__main__":
    main(prog_name="lirpa-lip")
