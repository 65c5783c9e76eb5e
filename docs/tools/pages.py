"""The board of certified networks, built from the CSV files of benchmarks/results, and the tables that pages include."""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass, field
from pathlib import Path

import curves
import fragments
import pictures
from fragments import RESULTS, ROOT, read, tables

_SHARED = "networks that others trained are looked for in the folder that `LIRPA_LIP_SHARED` names"


_OWN = "`python benchmarks/contribute.py runs/mine --name my_network`, after `lirpa-lip train` and `lirpa-lip certify`."

#: Sections of the board: how names of networks begin, a heading, and what the networks are.
_GROUPS = (
    ("sdpcrown_", "SDP-CROWN's networks", "Trained by the authors of SDP-CROWN (Chiu et al., ICML 2025), at their radii."),
    (("mnist_", "cifar_"), "Trained by others", "Given networks; adversarially trained ones end in adv, mixed training is mix."),
    ("small_", "Trained for a small norm product", "By `benchmarks/small_lipschitz.py`."),
    ("", "Contributed", "By the command above, with the answer for every image in the certificate file."),
    (("digits-", "mnist-"), "Certified training, setting by setting",
     "By `benchmarks/train_cpu.py`. A name says: data, ε of training, the bound in the loss, the activation, epochs."),
)  # fmt: skip

#: Front matter of pages with wide tables.
_WIDE = "---\nhtml_theme.sidebar_secondary.remove: true\n---\n\n"


@dataclass(frozen=True)
class Entry:
    """One certificate of one network: accuracies in per cent, processor seconds per image, and what repeats it."""

    network: str
    eps: str
    images: str
    clean: float
    pgd: float
    method: str
    certified: float
    seconds: str
    kind: str
    command: str
    source: dict[str, str] = field(default_factory=dict, compare=False)


def board() -> list[Entry]:
    """Every measured row, from the CSV file of the script that measured it."""
    sources = {"sdp_crown": _verified, "verify": _given, "board": _contributed, "train_cpu": _trained}
    return [entry for name, entries in sources.items() for entry in entries(read(RESULTS / f"{name}.csv"))]


def _verified(rows: list[dict[str, str]]) -> list[Entry]:
    """Of the verifier: what no counterexample was found for is what its attack leaves; clean accuracy is not kept."""
    return [
        Entry(
            row["network"],
            row["eps"],
            row["images"],
            math.nan,
            100 * (1 - float(row["share_refuted"])),
            f"verify, {float(row['time_limit']):g} s",
            100 * float(row["share_certified"]),
            f"{float(row['cpu_seconds_median']):.2g}",
            row["certificate"],
            f"python benchmarks/sdp_crown.py --networks {row['network']} --images {row['images']}"
            f" --time-limit {row['time_limit']} --out build/again.csv",
            row,
        )
        for row in rows
    ]


def _contributed(rows: list[dict[str, str]]) -> list[Entry]:
    return [
        Entry(row["network"], row["eps"], row["images"], 100 * float(row["clean"]), 100 * float(row["pgd"]), row["method"],
              100 * float(row["certified"]), "", row["certificate"], f"{row['train']}\n{row['certify']}", row)
        for row in rows
    ]  # fmt: skip


def _given(rows: list[dict[str, str]]) -> list[Entry]:
    return [
        Entry(
            row["network"],
            row["eps"],
            row["images"],
            100 * float(row["clean"]),
            100 * float(row["pgd"]),
            row["method"],
            100 * float(row["certified"]),
            f"{float(row['cpu_seconds_per_image']):.2g}",
            row["certificate"],
            f"python benchmarks/verify.py --networks {row['network']} --eps {row['eps']} --methods {row['method']}"
            f" --images {row['images']} --out build/again.csv",
            row,
        )
        for row in rows
        if int(row["images"] or 0)
    ]


def _trained(rows: list[dict[str, str]]) -> list[Entry]:
    entries = []
    for row in rows:
        sparsity = "-sparsity" if float(row["sparsity"]) else ""
        name = f"{row['setting']}-{row['method']}-{row['activation']}{sparsity}-{row['epochs']}"
        command = (
            f"python benchmarks/train_cpu.py --only {row['setting']} --epochs {row['epochs']} --seed {row['seed']}"
            f" --samples {row['samples']} --out build/again.csv"
        )
        for key in row:
            if key.startswith("certified_"):
                entries.append(
                    Entry(name, row["setting"].rpartition("-")[2], row["samples"], float(row["clean"]),
                          float(row["pgd"]), key[10:], float(row[key]), "", row["certificate"], command, row)
                )  # fmt: skip
    return entries


def _best(entries: list[Entry]) -> list[Entry]:
    """Of each network and radius the row on most images, and of such rows the certificate of the largest share."""
    groups = dict.fromkeys((e.network, e.eps) for e in entries)
    return [
        max((e for e in entries if (e.network, e.eps) == group), key=lambda e: (int(e.images), e.certified))
        for group in groups
    ]


def _table(entries: list[Entry], link: bool) -> str:
    head = ["network", "ε", "images", "clean", "PGD", "certified", "method", "kind", "s per image"]
    body = [
        [f"[{e.network}]({e.network}.md)" if link else e.network, e.eps, e.images, "" if math.isnan(e.clean) else f"{e.clean:.1f}", f"{e.pgd:.1f}",
         f"{e.certified:.1f}", e.method, e.kind, e.seconds]
        for e in entries
    ]  # fmt: skip
    empty = [k for k in range(len(head)) if all(row[k] == "" for row in body)] + ([] if link else [0])
    head, *body = [[cell for k, cell in enumerate(row) if k not in empty] for row in (head, *body)]
    return f"```{{table}}\n:class: board\n\n{tables.markdown([head, *body])}\n```"


def _sections(entries: list[Entry]) -> str:
    """The board's tables, a section for each origin."""
    found: dict[str, list[Entry]] = {title: [] for _, title, _ in _GROUPS}
    for entry in entries:
        known = [title for start, title, _ in _GROUPS if start and entry.network.startswith(start)]
        found["Contributed" if "train" in entry.source else known[0]].append(entry)
    about = {title: text for _, title, text in _GROUPS}
    return "\n\n".join(f"## {t}\n\n{about[t]}\n\n{_table(here, True)}" for t, here in found.items() if here)


def _wrapped(command: str) -> str:
    """On lines of their own what would be too wide for a page; a shell reads it as one."""
    lines = [""]
    for part in command.split(" --"):
        part = part if lines == [""] else f" --{part}"
        if len(lines[-1]) + len(part) > 100:
            lines.append("   ")
        lines[-1] += part
    return " \\\n".join(lines)


def write(folder: Path) -> None:
    """Writes ``board/index.md``, a page per network beside it, and the tables that pages include."""
    entries = board()
    names = list(dict.fromkeys(e.network for e in entries))
    toc = "\n".join(["```{toctree}", ":hidden:", "", *names, "```"])
    _write(
        folder / "board" / "index.md",
        f"{_WIDE}# Board of certified networks\n\n{len(names)} networks; accuracies in per cent of the first test images, ε an "
        "ℓ₂ radius in pixels of [0, 1], PGD what an attack leaves, seconds of one core. A line shows, of the rows on most images, the method that "
        "certifies most; a network's own page has all rows, the certificate file, and the commands that repeat them. "
        f"A network of your own takes one command: {_OWN}\n\n{_sections(_best(entries))}\n\n{toc}\n",
    )
    for name in names:
        here = [e for e in entries if e.network == name]
        commands = "\n".join(dict.fromkeys(_wrapped(line) for e in here for line in e.command.splitlines()))
        files = sorted((ROOT / "docs" / "board" / name).glob("*.csv"))
        curves.draw(here, files, folder / "board" / f"{name}.png")
        links = [f"[{file.name}](../../board/{name}/{file.name})" for file in files] or [_rows_file(folder, name, here)]
        _write(
            folder / "board" / f"{name}.md",
            f"{_WIDE}# {name}\n\n{_table(here, False)}\n\n![certified accuracy]({name}.png)\n\n"
            f"Certificate file: {', '.join(links)}.\n\n## Repeat\n\nFrom a checkout ({_SHARED}); training repeats up to "
            "the machine's rounding, and a command that names a setting trains all its networks:\n\n"
            f"```sh\n{commands}\n```\n",
        )
    fragments.write(folder / "tables")
    pictures.write(folder / "figures")


def _rows_file(folder: Path, name: str, entries: list[Entry]) -> str:
    """Writes the measured rows of a network, with the verdict of every image where it was kept; returns a link."""
    rows = list({id(e.source): e.source for e in entries}.values())
    with (folder / "board" / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
        # a network may have rows of several benchmarks, each with columns of its own
        writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)), restval="")
        writer.writeheader()
        writer.writerows(rows)
    return f"[{name}.csv]({name}.csv)"


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
