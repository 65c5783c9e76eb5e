"""``lirpa-lip train``: every setting of ``TrainConfig`` is a flag, and every flag a line of a ``--config`` file."""

from __future__ import annotations

import warnings
from dataclasses import Field, fields
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from lirpa_lip.cli.groups import GroupedCommand
from lirpa_lip.cli.terminal import MethodName, Number, refuse_foreign
from lirpa_lip.errors import CheckpointError
from lirpa_lip.training.checkpoint import checkpoints_in, load_checkpoint
from lirpa_lip.training.config import TrainConfig, config_from, is_run_config, read_config, read_run_config
from lirpa_lip.training.lock import FolderLock
from lirpa_lip.training.models import refuse_code_of_a_file
from lirpa_lip.training.run_state import config_of

_TYPES: dict[str, type] = {"str": str, "int": int, "float": float}
_NEWEST = ""


def _with_settings(command: Any) -> Any:
    """Adds one option per field of ``TrainConfig``; its range, choices and help are the field's."""
    for item in reversed(fields(TrainConfig)):
        flag, shown = "--" + item.name.replace("_", "-"), "none" if item.default is None else item.default
        help_text = f"{item.metadata['help']}  [default: {shown}]"
        if item.type == "bool":
            option = click.option(f"{flag}/--no-{flag[2:]}", item.name, default=item.default, help=help_text)
        else:
            option = click.option(flag, item.name, type=_click_type(item), default=None, help=help_text)
        command = option(command)
    return command


def _click_type(item: Field) -> Any:
    choices, allowed = item.metadata["choices"], item.metadata["range"]
    kind = _TYPES[str(item.type).replace(" | None", "")]
    if item.name == "bound":
        return MethodName("train")
    if choices:
        return click.Choice(choices)
    return kind if allowed is None else Number(kind, allowed)


@click.command(cls=GroupedCommand)
@click.option(
    "--config", "config_file", type=click.Path(path_type=Path), help="YAML file of settings; flags override it."
)
@click.option(
    "--resume",
    is_flag=False,
    flag_value=_NEWEST,
    default=None,
    metavar="[PATH]",
    help="Go on from a checkpoint, or from the newest one in --out, with the run's settings.",
)
@click.option("--trust-arch", is_flag=True, help="Import the network's module where a file names it: runs its code.")
@click.option("--force", is_flag=True, help="Write to --out although files are there that no run wrote.")
@_with_settings
@click.pass_context
def train(
    ctx: click.Context, config_file: Path | None, resume: str | None, trust_arch: bool, force: bool, **flags: Any
) -> None:
    """Train a network whose predictions can be certified.

    One process: as is. Several: `torchrun --nproc-per-node 4 -m lirpa_lip.cli train ...` or `accelerate launch`.
    """
    given = {n: v for n, v in flags.items() if ctx.get_parameter_source(n) is not ParameterSource.DEFAULT}
    chosen = _checkpoint(resume, given, config_file)
    config = resolve(given, config_file, resume is not None, chosen or _newest(resume, given))
    if "arch" not in given and not trust_arch:
        refuse_code_of_a_file(config.arch, str(config_file or Path(config.out) / "config.yaml"))
    from lirpa_lip.training.processes import process_state
    from lirpa_lip.training.progress import RichProgress
    from lirpa_lip.training.trainer import Trainer

    folder = Path(config.out)
    with FolderLock(folder, wanted=process_state().is_main_process):
        if resume is None:
            _refuse_what_is_there(folder, force)
        trainer = Trainer(config, RichProgress())
        if resume is not None:
            trainer.say(f"resumed from {trainer.resume(chosen)}")
        best = trainer.fit()
    trainer.say(f"best checkpoint: {best}\ncertify it with: lirpa-lip certify {folder}")


def _checkpoint(resume: str | None, given: dict[str, Any], config_file: Path | None) -> Path | None:
    """The checkpoint that ``--resume PATH`` names, None for the newest; its run's folder becomes ``--out``."""
    if not resume:
        return None
    path = Path(resume)
    if not path.exists():
        raise CheckpointError(f"--resume {path} does not exist; give a checkpoint, a run's folder, or nothing.")
    if path.name == "checkpoints" and checkpoints_in(path):  # the folder in a run's folder
        path = path.resolve().parent
    is_run = (path / "checkpoints").is_dir()
    if config_file is None:
        given.setdefault("out", str(path if is_run else path.resolve().parent.parent))
    return None if is_run else path


def _newest(resume: str | None, given: dict[str, Any]) -> Path | None:
    found = checkpoints_in(Path(str(given.get("out") or TrainConfig().out)) / "checkpoints")
    return found[-1] if resume is not None and found else None


def _refuse_what_is_there(folder: Path, force: bool) -> None:
    if checkpoints_in(folder / "checkpoints"):
        raise click.UsageError(f"{folder} holds a run already: add --resume to go on with it, or choose another --out.")
    refuse_foreign([folder / "config.yaml"], is_run_config, force)
    if not (folder / "config.yaml").is_file():
        refuse_foreign([folder / "metrics.csv"], lambda path: False, force)


def resolve(
    given: dict[str, Any], config_file: Path | None, resume: bool, checkpoint: Path | None = None
) -> TrainConfig:
    """Flags over the ``--config`` file over, when resuming, the run's own saved configuration, or the checkpoint's.

    Raises:
        ConfigError: a value that cannot be; the message names the file, or the command line, that it is from.
    """
    values, source = (read_config(config_file), config_file) if config_file is not None else ({}, None)
    out = given.get("out") or values.get("out") or TrainConfig().out
    saved = Path(str(out)) / "config.yaml"
    if resume and config_file is None and saved.is_file():
        values, source = read_run_config(saved), saved
    if resume and config_file is None and not saved.is_file() and checkpoint is not None:
        values, source = config_of(load_checkpoint(checkpoint)).to_dict(), checkpoint
    if source is not None:
        with warnings.catch_warnings():  # they come again with the values that count
            warnings.simplefilter("ignore")
            config_from(values, str(source))
    return config_from({**{str(k).replace("-", "_"): v for k, v in values.items()}, **given}, "command line")
