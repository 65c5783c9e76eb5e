"""Help of a command with many flags: in groups, each under its own head."""

from __future__ import annotations

import click

#: Head -> parameters, as ``lirpa-lip train`` has them.
TRAIN_GROUPS: dict[str, tuple[str, ...]] = {
    "Run": ("config_file", "resume", "trust_arch", "out", "seed", "checkpoint_every", "log_every", "force"),
    "Data": ("dataset", "data_dir", "image_size", "limit", "validation", "augment", "normalize"),
    "Network": ("arch", "activation", "threshold", "init", "start_from"),
    "Loss and bound": (*("eps", "train_eps", "loss", "bound", "bound_iterations", "kappa", "sparsity", "saturation"),),
    "Optimisation": (
        *(
            "epochs",
            "batch_size",
            "lr",
            "end_lr",
            "lr_rise",
            "lr_hold",
            "lr_decay",
            "weight_decay",
            "clip_grad",
            "ema",
            "warmup",
            "ramp",
        ),
        "precision",
    ),
}


class GroupedCommand(click.Command):
    """A command whose ``--help`` shows its options under the heads of ``TRAIN_GROUPS``; any other under "Options"."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        records = {
            parameter.name: record
            for parameter in self.get_params(ctx)
            if (record := parameter.get_help_record(ctx)) is not None
        }
        for head, names in TRAIN_GROUPS.items():
            found = [records.pop(name) for name in names if name in records]
            if found:
                with formatter.section(head):
                    formatter.write_dl(found)
        if records:
            with formatter.section("Options"):
                formatter.write_dl(list(records.values()))
