"""Tables of the site, from the CSV files of benchmarks/results and from the code, at every build: pages type none."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
sys.path.append(str(ROOT / "benchmarks"))

import tables  # noqa: E402
from lib.table import read  # noqa: E402

Rows = list[dict[str, str]]


def _methods(columns: str, timed: str, rows: Rows) -> list[list[str]]:
    return tables.verification(rows, columns.split(","), timed.split(","))


_COMMON, _RENDERED, _TIGHT = (partial(_methods, *pair) for pair in tables.VERIFICATION)

_ROUNDING = {"network": "network", "eps": "ε", "method": "method", "images": "images", "cpu_seconds": "s",
             "cpu_seconds_without": "s without", "ratio": "ratio", "loosened": "margins loosened by",
             "added": "added"}  # fmt: skip
_SMOOTH = {"activation": "activation", "scale": "weights ×", "widths": "widths", "eps": "ε", "lower": "lower",
           "branched": "BaB", "clarke_jacobian": "clarke-jacobian", "ranges": "ranges of slopes",
           "auto_lirpa": "JacobianOP", "seconds": "s", "seconds_auto_lirpa": "s, JacobianOP"}  # fmt: skip
_DEEP = {"activation": "activation", "width": "width", "layers": "layers", "eps": "ε", "lower": "at least",
         "branched": "BaB", "gap": "BaB over it", "seconds_branched": "s, BaB", "clarke_jacobian": "clarke-jacobian",
         "local_lip": "local-lip", "eclipse_fast": "ECLipsE-Gen-Local Fast", "eclipse_cf": "its CF"}  # fmt: skip
_MEMORY = {"network": "network", "activation": "activation", "eps": "ε", "batch": "images", "call": "call",
           "kept": "kept", "seconds": "s", "kernel_seconds": "s of the kernel", "peak_gib": "GiB",
           "times_default": "time over not kept"}  # fmt: skip
_IMPORTS = {"call": "call", "cpu_seconds": "s", "times_base": "over torch and auto_LiRPA alone"}
_ESTIMATES = {"vectors": "kept vectors", "step": "step", "loss": "loss", "upper": "certified norm product",
              "estimate": "estimate over it", "seconds_per_step": "s a step"}  # fmt: skip
_PRETRAINED = {"network": "network", "eps": "ε", "bound": "certified by", "images": "test images", "clean": "clean",
               "pgd": "PGD", "certified": "certified", "certificate": "kind", "delta": "δ"}  # fmt: skip
_RADII = {
    "network": "network",
    "eps": "ε",
    "bound": "bound",
    "samples": "images",
    "radius_steps": "verdicts for radii",
    "seconds": "s",
    "share_of_search": "share",
    "certified": "certified at ε",
    "mean_radius": "mean radius",
}
_SCALE = {"network": "network", "parameters": "parameters", "neurons": "neurons", "batch": "images", "call": "call",
          "grad": "gradients", "forward": "forward, s", "seconds": "s", "seconds_per_image": "s per image",
          "ratio": "over a forward pass", "peak_gib": "GiB", "note": "note"}  # fmt: skip
_CERTIFY = {"network": "network", "method": "bound", "images": "images", "clean": "clean", "certified": "certified",
            "forward": "forward, s", "seconds": "s per image", "ratio": "over a forward pass"}  # fmt: skip

#: Name of the fragment -> (CSV file, what makes a table of its rows).
TABLES: dict[str, tuple[str, Callable[[Rows], list[list[str]]]]] = {
    "published": ("sdp_crown", tables.published),
    "branching": ("branching", tables.branching),
    "methods": ("verify", _COMMON),
    "rendered": ("verify", _RENDERED),
    "tight": ("verify", _TIGHT),
    "training": ("train_cpu", tables.training),
    "training_step": ("train_step", tables.steps),
    "jacobians_inf": ("clarke", partial(tables.jacobians, norm="inf")),
    "jacobians_2": ("clarke", partial(tables.jacobians, norm="2")),
    "smooth_jacobian": ("smooth_jacobian", partial(tables.columns, names=_SMOOTH)),
    "deep_lipschitz": ("deep_lipschitz", partial(tables.columns, names=_DEEP)),
    "products": ("products", partial(tables.products, classifiers=True)),
    "products_ranges": ("products", partial(tables.products, classifiers=False)),
    "rounding": ("rounding", partial(tables.columns, names=_ROUNDING)),
    "scale": ("scale", partial(tables.columns, names=_SCALE)),
    "certify_cost": ("certify_cost", partial(tables.columns, names=_CERTIFY)),
    "memory": ("memory", partial(tables.columns, names=_MEMORY)),
    "imports": ("imports", partial(tables.latest, key="call", names=_IMPORTS)),
    "radius_search": ("radius_search", partial(tables.columns, names=_RADII)),
    "training_estimates": ("train_estimates", partial(tables.columns, names=_ESTIMATES)),
    "pretrained": ("pretrained", partial(tables.columns, names=_PRETRAINED)),
    "norm_speed": ("norms", tables.norm_speed),
    "norm_bounds": ("norms", tables.norm_bounds),
    "norm_elimination": ("norms", partial(tables.norm_values, section="elimination", across="eliminated")),
    "norm_starts": ("norms", partial(tables.norm_values, section="starts", across="iterations")),
    "norm_step": ("norms", partial(tables.norm_ranges, section="step")),
    "norm_memory": ("norms", partial(tables.norm_ranges, section="memory")),
    "norm_training": ("norms", partial(tables.norm_values, section="training", across="weights")),
}


def methods_by_name() -> str:
    """The table of `lirpa_lip.methods`."""
    from lirpa_lip.methods import METHODS

    rows = [[f"`{m.name}`", m.bounds, m.kind, m.cost, ", ".join(m.doors), m.source] for m in METHODS.values()]
    return tables.markdown([["name", "bound", "kind", "cost", "where", "source"], *rows])


def commands() -> str:
    """Every sub-command with its options, from the parser itself."""
    import click

    from lirpa_lip.cli import COMMANDS, main

    parts = []
    for name in COMMANDS:
        command = main.get_command(click.Context(main), name)
        assert command is not None
        parts.append(f"## lirpa-lip {name}\n\n{_prose(command.help)}")
        rows = [["option", "meaning"]]
        for option in command.params:
            if isinstance(option, click.Option):
                rows.append([f"`{', '.join([*option.opts, *option.secondary_opts])}`", _prose(option.help)])
        parts.append(tables.markdown(rows))
    return "\n\n".join(parts)


def _prose(text: str | None) -> str:
    escaped = " ".join((text or "").split()).replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")
    return re.sub(r"(?<![\w`-])(--[a-z][\w-]*)(?![^`]*`(?:[^`]*`[^`]*`)*[^`]*$)", r"`\1`", escaped)


#: Name of the fragment -> what writes it from the code.
FROM_CODE: dict[str, Callable[[], str]] = {"methods_by_name": methods_by_name, "commands": commands}


def write(folder: Path) -> None:
    """Writes ``<name>.md`` for each."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, made in FROM_CODE.items():
        (folder / f"{name}.md").write_text(made() + "\n", encoding="utf-8")
    for name, (source, make) in TABLES.items():
        text = tables.markdown(make(read(RESULTS / f"{source}.csv")))
        (folder / f"{name}.md").write_text(text + "\n", encoding="utf-8")
