"""``lirpa-lip train``: every setting of ``TrainConfig`` is a flag, and every flag a line of a ``--config`` file."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from lirpa_lip.cli.groups import GroupedCommand
from lirpa_lip.training.checkpoint import checkpoints_in
from lirpa_lip.training.config import TrainConfig, config_from, read_config
from lirpa_lip.training.models import refuse_code_of_a_file

_TYPES = {"str": str, "int": int, "float": float}


def _with_settings(command: Any) -> Any:
    """Adds one option per field of ``TrainConfig``; all text but the choices, ``config_from`` converts and checks."""
    for item in reversed(fields(TrainConfig)):
        flag, kind = "--" + item.name.replace("_", "-"), str(item.type).replace(" | None", "")
        choices, shown = item.metadata["choices"], "none" if item.default is None else item.default
        help_text = f"{item.metadata['help']}  [default: {shown}]"
        if kind == "bool":
            option = click.option(f"{flag}/--no-{flag[2:]}", item.name, default=item.default, help=help_text)
        else:
            click_type: Any = click.Choice(choices) if choices else _TYPES[kind]
            option = click.option(flag, item.name, type=click_type, default=None, help=help_text)
        command = option(command)
    return command


@click.command(cls=GroupedCommand)
@click.option(
    "--config", "config_file", type=click.Path(path_type=Path), help="YAML file of settings; flags override it."
)
@click.option("--resume", is_flag=True, help="Go on from the newest checkpoint in --out, with its settings.")
@click.option("--trust-arch", is_flag=True, help="Import the network's module where a file names it: runs its code.")
@_with_settings
@click.pass_context
def train(ctx: click.Context, config_file: Path | None, resume: bool, trust_arch: bool, **flags: Any) -> None:
    """Train a network whose predictions can be certified.

    One process: as is. Several: `torchrun --nproc-per-node 4 -m lirpa_lip.cli train ...` or `accelerate launch`.
    """
    given = {n: v for n, v in flags.items() if ctx.get_parameter_source(n) is not ParameterSource.DEFAULT}
    config = resolve(given, config_file, resume)
    if "arch" not in given and not trust_arch:
        refuse_code_of_a_file(config.arch, str(config_file or Path(config.out) / "config.yaml"))
    from lirpa_lip.training.progress import RichProgress
    from lirpa_lip.training.trainer import Trainer

    folder = Path(config.out)
    if not resume and checkpoints_in(folder / "checkpoints"):
        raise click.UsageError(f"{folder} holds a run already: add --resume to go on with it, or choose another --out.")
    trainer = Trainer(config, RichProgress())
    if resume:
        trainer.say(f"resumed from {trainer.resume()}")
    best = trainer.fit()
    trainer.say(f"best checkpoint: {best}\ncertify it with: lirpa-lip certify {folder}")


def resolve(given: dict[str, Any], config_file: Path | None, resume: bool) -> TrainConfig:
    """Flags over the ``--config`` file over, when resuming, the run's own saved configuration."""
    values = read_config(config_file) if config_file is not None else {}
    out = given.get("out") or values.get("out") or TrainConfig().out
    if resume and config_file is None and (Path(out) / "config.yaml").is_file():
        values = read_config(Path(out) / "config.yaml")
    source = str(config_file) if config_file is not None else "command line"
    return config_from({**{str(k).replace("-", "_"): v for k, v in values.items()}, **given}, source)
