"""Kills trainings and certifications with SIGKILL at random moments, goes on, and compares the end with an undisturbed
run's: every tensor of the last checkpoint, every row of the certificates.

python benchmarks/kill_runs.py --kills 50
"""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import click
import torch

from lirpa_lip.training.checkpoint import checkpoints_in, load_checkpoint

ROOT = Path(__file__).resolve().parents[1]
TRAIN = ("train --dataset digits --arch cnn-tiny --eps 0.2 --limit 600 --batch-size 30 --ramp 1 --lr 5e-3 --epochs 3 "
         "--augment crop-flip --bound local-product --log-every 1 --checkpoint-every 3").split()  # fmt: skip
CERTIFY = "--bound local-product --certificate probabilistic --eps 0.05,0.2 --limit 60 --batch-size 5".split()
CERTIFY += "--pgd-steps 5 --radius-steps 1".split()


@dataclass
class Clock:
    """Random moments of a run.

    Attributes:
        longest: seconds that it takes undisturbed; less once the machine is less busy, or no kill would come in time.
    """

    chance: random.Random
    longest: float

    def moment(self) -> float:
        return self.chance.uniform(0.0, self.longest)


def start(arguments: list[str], processes: int = 1) -> subprocess.Popen:
    launcher = ["-m", "lirpa_lip.cli"]
    if processes > 1:
        launcher = ["-m", "torch.distributed.run", f"--nproc-per-node={processes}", "--standalone", *launcher]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(
        [sys.executable, *launcher, *arguments], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def finish(arguments: list[str], processes: int = 1) -> None:
    process = start(arguments, processes)
    output = process.communicate(timeout=900)[0]
    if process.returncode:
        raise RuntimeError(f"{' '.join(arguments)} ended with {process.returncode}: {output.decode()[-2000:]}")


def killed_after(arguments: list[str], clock: Clock) -> bool:
    """Whether the process was still at work when SIGKILL came, at a random moment of what it takes at most."""
    process, seconds, begun = start(arguments), clock.moment(), time.monotonic()
    try:
        output = process.communicate(timeout=seconds)[0]
        if process.returncode:
            raise RuntimeError(f"{' '.join(arguments)} ended with {process.returncode}: {output.decode()[-2000:]}")
        clock.longest = min(clock.longest, time.monotonic() - begun)
        return False
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.communicate()
        return process.returncode == -signal.SIGKILL


def tensors_of(run: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(checkpoints_in(run / "checkpoints")[-1]).tensors


def rows_of(folder: Path) -> list[str]:
    lines = [line for path in folder.glob("rows-*.csv") for line in path.read_text().splitlines()]
    return sorted(line for line in lines if re.fullmatch(r"\d+,.*,[01]?,[0-9a-f]{16}", line))


def same_tensors(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def disturbed_training(folder: Path, clock: Clock, kills: int) -> int:
    """Trains with so many kills at most; returns how many there were."""
    done = 0
    for _ in range(kills):
        resume = ["--resume"] if checkpoints_in(folder / "checkpoints") else []
        if not killed_after([*TRAIN, *resume, "--out", str(folder)], clock):
            return done
        done += 1
    resume = ["--resume"] if checkpoints_in(folder / "checkpoints") else []
    finish([*TRAIN, *resume, "--out", str(folder)])
    return done


def disturbed_certification(run: Path, rows: Path, folder: Path, clock: Clock, kills: int) -> int:
    call = ["certify", str(run), *CERTIFY, "--out", str(folder)]
    folder.mkdir()
    shutil.copy(rows / "certify.json", folder)  # it holds the seed of the norms' random starts
    done = 0
    for _ in range(kills):
        if not killed_after(call, clock):
            return done
        done += 1
    finish(call)
    return done


@click.command()
@click.option("--kills", type=int, default=50, show_default=True, help="In all, half of them in training.")
@click.option("--each", type=int, default=5, show_default=True, help="At most so many in one run.")
@click.option("--seed", type=int, default=0, show_default=True)
def main(kills: int, each: int, seed: int) -> None:
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        begun = time.monotonic()
        finish([*TRAIN, "--out", str(work / "whole")])
        training, begun = Clock(chance, time.monotonic() - begun), time.monotonic()
        finish(["certify", str(work / "whole"), *CERTIFY, "--out", str(work / "rows")])
        certification = Clock(chance, time.monotonic() - begun)
        counts, runs, equal = {"train": 0, "certify": 0}, 0, 0
        while sum(counts.values()) < kills:
            runs += 1
            what = min(counts, key=lambda key: counts[key])
            if what == "train":
                counts[what] += disturbed_training(work / f"t{runs}", training, each)
                good = same_tensors(tensors_of(work / "whole"), tensors_of(work / f"t{runs}"))
            else:
                folder = work / f"c{runs}"
                counts[what] += disturbed_certification(work / "whole", work / "rows", folder, certification, each)
                good = rows_of(work / "rows") == rows_of(folder)
            equal += good
            click.echo(f"{what}: {counts[what]} kills so far, end {'equal' if good else 'DIFFERENT'}")
        click.echo(f"{sum(counts.values())} kills in {runs} runs: {equal} ended as the undisturbed one")
        if equal < runs:
            raise SystemExit(1)


if __name__ == "__main__":
    main()
