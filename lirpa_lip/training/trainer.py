"""The training loop: plain, resumable to the bit, and the same on one process or many (through Accelerate)."""

from __future__ import annotations

import math
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lirpa_lip.errors import CheckpointError, ConfigError, DivergedError, LirpaLipError, RunInterruptedError
from lirpa_lip.training.checkpoint import Checkpoint, checkpoints_in, load_checkpoint, save_checkpoint, set_aside_after
from lirpa_lip.training.config import TrainConfig, unused_settings, write_config
from lirpa_lip.training.data import load_data
from lirpa_lip.training.ema import WeightAverage
from lirpa_lip.training.epsilon import parse_epsilon, rounded_up
from lirpa_lip.training.interrupts import Interrupts
from lirpa_lip.training.lock import FolderLock
from lirpa_lip.training.models import build_model, check_classifier
from lirpa_lip.training.objective import Objective
from lirpa_lip.training.processes import lost_process, make_accelerator
from lirpa_lip.training.progress import Progress
from lirpa_lip.training.rows import cause_of
from lirpa_lip.training.run_state import RunState, check_data, restore, snapshot
from lirpa_lip.training.runlog import RunLog
from lirpa_lip.training.sampling import augmented, derived_seed, epoch_batches, prefetched, steps_per_epoch
from lirpa_lip.training.schedules import HoldThenDecay, LinearRamp
from lirpa_lip.training.separation import warn_of_radii
from lirpa_lip.training.starts import orthogonal_start, start_from
from lirpa_lip.training.totals import Totals


class Trainer:
    """Trains one network as a ``TrainConfig`` says.

    Every random draw is a function of the seed and the step, so a run that was killed and resumed ends with the same
    weights, bit for bit on a CPU, as one that never was.

    Args:
        config: the run's settings.
        progress: what to show; None shows nothing.
    """

    def __init__(self, config: TrainConfig, progress: Progress | None = None) -> None:
        self.config = config
        self.accelerator = make_accelerator()
        self.rank, self.processes = self.accelerator.process_index, self.accelerator.num_processes
        self.progress = progress if progress is not None and self.rank == 0 else Progress()
        self.folder = Path(config.out)
        self.data = load_data(
            config.dataset, config.data_dir, config.validation, config.seed, config.image_size, limit=config.limit
        )
        self.steps = steps_per_epoch(len(self.data.train), config.batch_size)
        radii = [parse_epsilon(text) for text in dict.fromkeys((config.radius, config.train_eps or config.radius))]
        warn_of_radii(radii, self.data.train, self.data.shape, aloud=self.rank == 0)
        for warning in unused_settings(config) if self.rank == 0 else ():
            warnings.warn(warning, stacklevel=2)
        torch.manual_seed(derived_seed("weights", config.seed))
        mean_std = (self.data.mean, self.data.std) if config.normalize else (None, None)
        model = build_model(
            config.arch,
            self.data.shape,
            self.data.classes,
            config.activation,
            mean_std[0],
            std=mean_std[1],
            threshold=config.threshold,
        )
        if ":" in config.arch:
            check_classifier(model, self.data.shape, self.data.classes, config.arch)
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise ConfigError(f"{config.arch} has no parameters to train.")
        if config.init == "orthogonal":
            orthogonal_start(model)
        model = model.to(self.accelerator.device)
        sample = torch.zeros(1, *self.data.shape, device=self.accelerator.device)
        self.objective = Objective(
            *(model, sample, config.loss, config.bound, config.sparsity),
            saturation=config.saturation,
            iterations=config.bound_iterations,
        ).to(self.accelerator.device)
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr, weight_decay=config.weight_decay)
        self.average = WeightAverage(model, config.ema) if config.ema is not None else None
        self.state = RunState()
        train_eps, eps = (rounded_up(parse_epsilon(text or config.radius)) for text in (config.train_eps, config.eps))
        self.eps, ramp = eps, (config.warmup, config.ramp)
        self.eps_ramp, self.kappa_ramp = LinearRamp(0.0, train_eps, *ramp), LinearRamp(1.0, config.kappa, *ramp)
        self.lr = HoldThenDecay(
            *(config.lr, config.end_lr, config.lr_hold * config.epochs, config.epochs, config.lr_decay),
            rise=config.lr_rise,
        )

    @property
    def model(self) -> torch.nn.Module:
        return self.objective.model

    def say(self, text: str) -> None:
        """Prints on the first process."""
        if self.rank == 0:
            self.accelerator.print(text)

    def resume(self, path: str | Path | None = None) -> Path:
        """Goes back to a checkpoint of this run, by default its newest; returns it.

        Later checkpoints, which the run will not come to again, are set aside as ``aside-…``.

        Raises:
            CheckpointError: there is none, it is damaged, or it belongs to another configuration.
            DataError: the data's classes are not those of the checkpoint.
        """
        found = checkpoints_in(self.folder / "checkpoints")
        if path is None and not found:
            raise CheckpointError(f"{self.folder} holds no checkpoint to resume from; train without --resume.")
        chosen = Path(path) if path is not None else found[-1]
        loaded = load_checkpoint(chosen)
        check_data(loaded, self.data)
        self.state = restore(loaded, self.objective, self.optimizer, self.average, self.config)
        if path is not None and self.rank == 0:
            set_aside_after(self.folder / "checkpoints", self.state.step)
        return chosen

    def fit(self) -> Path:
        """Trains to the end; returns the best checkpoint (by the validation split; the last one without a split).

        SIGINT and SIGTERM end it after the step at hand, with a checkpoint.

        Raises:
            DivergedError: the loss or a gradient became NaN or infinite; the last checkpoint is intact.
            CheckpointError: a checkpoint, or the log, could not be written.
            LockedError: another process trains in the same folder.
            RunInterruptedError: a signal came, or another process of the run was lost.
        """
        with FolderLock(self.folder, wanted=self.rank == 0), Interrupts() as self._interrupts:
            try:
                self._fit()
            except OSError as error:
                raise CheckpointError(
                    f"the run could not be written: {cause_of(error)}. {self._how_to_go_on()}"
                ) from error
            except RuntimeError as error:
                if self.processes == 1 or isinstance(error, LirpaLipError) or not lost_process(error):
                    raise
                raise RunInterruptedError(
                    f"another process of this run was lost ({str(error).splitlines()[0]}). {self._how_to_go_on()}"
                ) from error
        folder = self.folder / "checkpoints"
        return (checkpoints_in(folder, "best") or checkpoints_in(folder))[-1]

    def _fit(self) -> None:
        if self.config.start_from is not None and self.state.step == 0:  # a resumed run needs that file no more
            start_from(self.model, self.config.start_from)
            if self.average is not None:
                self.average = WeightAverage(self.model, self.average.decay)
        wrapped, optimizer = self.accelerator.prepare(self.objective, self.optimizer)
        if self.rank == 0:
            write_config(self.config, self.folder / "config.yaml")
        log = RunLog(self.folder, self.state.step) if self.rank == 0 else None
        self.progress.start(self.config.epochs * self.steps, self.state.step)
        try:
            while self.state.step < self.config.epochs * self.steps:
                self._epoch(wrapped, optimizer, log)
                self._end_of_epoch(log)
                self._stop_if_asked(saved=True)
        finally:
            self.progress.stop()
            if log is not None:
                log.close()

    def _stop_if_asked(self, saved: bool) -> None:
        number = self._interrupts.anywhere(self.processes, self.accelerator.device)
        if not number or self.state.step == self.config.epochs * self.steps:
            return
        if not saved:
            self._save()
        raise RunInterruptedError(f"stopped at step {self.state.step}, which is kept. {self._how_to_go_on()}", number)

    def _how_to_go_on(self) -> str:
        found = checkpoints_in(self.folder / "checkpoints")
        if not found:
            return "There is no checkpoint yet: start again."
        start = "lirpa-lip"
        if self.processes > 1:
            start = f"torchrun --nproc-per-node {self.processes} -m lirpa_lip.cli"
        return f"Go on from {found[-1].name} with: {start} train --resume --out {self.folder}"

    def _epoch(self, wrapped: torch.nn.Module, optimizer: Any, log: RunLog | None) -> None:
        config, epoch = self.config, self.state.step // self.steps
        first = self.state.step % self.steps
        place = {"rank": self.rank, "processes": self.processes}
        batches = epoch_batches(len(self.data.train), config.batch_size, config.seed, epoch, first, **place)
        wrapped.train()
        totals, begun = Totals(), time.perf_counter()
        for step, images, labels in prefetched(self.data.train, batches):
            images, labels = images.to(self.accelerator.device), labels.to(self.accelerator.device)
            images = augmented(images, config.augment, config.seed, epoch, step, **place)
            totals.add(len(labels), **self._step(wrapped, optimizer, images, labels))
            self.progress.advance()
            last = step + 1 == self.steps
            if self.state.step % config.log_every == 0 or last:
                row = self._row("train", totals, begun)
                totals, begun = Totals(), time.perf_counter()
                if log is not None:
                    log.add(row)
            due = self.state.step % config.checkpoint_every == 0 and not last
            if due:
                self._save()
            if not last:
                self._stop_if_asked(saved=due)

    def _step(self, wrapped: torch.nn.Module, optimizer: Any, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """One update; every source of chance is seeded by the step's number."""
        now = self.state.step / self.steps
        torch.manual_seed(derived_seed("step", self.config.seed, self.state.step, self.rank))
        for group in optimizer.param_groups:
            group["lr"] = self.lr(now)
        with torch.autocast(self.accelerator.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
            loss, counted = wrapped(images, labels, self.eps_ramp(now), self.kappa_ramp(now))
        optimizer.zero_grad()
        self.accelerator.backward(loss)
        limit = math.inf if self.config.clip_grad is None else self.config.clip_grad
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), limit)
        # Gradients are averaged over the processes, so all of them see a bad one and stop together.
        if not bool(torch.isfinite(norm)):
            raise DivergedError(
                f"the gradient became NaN or infinite at step {self.state.step} (loss {loss.item():.4g}, learning rate "
                f"{self.lr(now):.3g}); checkpoints in {self.folder / 'checkpoints'} are intact. Lower --lr, set "
                "--clip-grad, or lengthen --ramp, and --resume."
            )
        optimizer.step()
        if self.average is not None:
            self.average.update(self.model)
        self.state.step += 1
        return {"loss": loss.detach() * len(labels), **counted}

    def _end_of_epoch(self, log: RunLog | None) -> None:
        """Validates, keeps the best, writes a checkpoint."""
        if len(self.data.validation):
            begun = time.perf_counter()
            row = self._row("validation", self._validate(), begun)
            if log is not None:
                log.add(row)
            self.progress.epoch(row)
            ramped = self.state.step / self.steps >= min(self.config.warmup + self.config.ramp, self.config.epochs)
            # A plain network has no bound worth comparing: there, clean accuracy decides.
            key = "clean" if self.config.loss == "plain" else "certified_estimate"
            if ramped and row[key] >= self.state.best:
                self.state.best = row[key]
                self._save("best", keep=1)
        self._save()

    @torch.no_grad()
    def _validate(self) -> Totals:
        """The validation split, divided among the processes, with the averaged weights where there are any."""
        self.objective.eval()
        totals, count = Totals(), len(self.data.validation)
        device = self.accelerator.device
        if self.average is not None:
            with self.average.applied_to(self.model):
                self._count_validation(totals, count, device)
        else:
            self._count_validation(totals, count, device)
        self.objective.train()
        return totals

    def _count_validation(self, totals: Totals, count: int, device: torch.device) -> None:
        torch.manual_seed(derived_seed("validation", self.config.seed))
        for indices in torch.arange(self.rank, count, self.processes).split(self.config.batch_size):
            images, labels = (t.to(device) for t in self.data.validation.batch(indices))
            totals.add(len(labels), **self.objective.evaluate(images, labels, self.eps))

    def _row(self, split: str, totals: Totals, begun: float) -> dict[str, Any]:
        means = totals.means(self.accelerator)
        now = self.state.step / self.steps
        eps = self.eps_ramp(now) if split == "train" else self.eps
        return {
            **{"step": self.state.step, "epoch": round(now, 4), "split": split},
            **{
                "loss": means.get("loss", math.nan),
                "clean": means["correct"],
                "certified_estimate": means["certified"],
            },
            **{"eps": eps, "kappa": self.kappa_ramp(now), "lr": self.lr(now)},
            "seconds": round(time.perf_counter() - begun, 3),
        }

    def _save(self, kind: str = "step", keep: int = 2) -> None:
        if self.rank == 0:
            taken: Checkpoint = snapshot(
                self.state, self.objective, self.optimizer, self.average, self.config, data=self.data
            )
            save_checkpoint(self.folder / "checkpoints", taken, self.state.step, kind, keep)
        self.accelerator.wait_for_everyone()
