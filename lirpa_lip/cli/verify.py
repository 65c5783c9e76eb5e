"""``lirpa-lip verify``: any network file, any property: certified, refuted with a counterexample, or open."""

from __future__ import annotations

import hashlib
import json
import math
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from lirpa_lip.cli.tables import Column, Table, say
from lirpa_lip.cli.terminal import NewPath, option, refuse_foreign, refuse_results_of_others, refuse_unread
from lirpa_lip.ranges import COUNT, FINITE, NOT_NEGATIVE, POSITIVE, PROBABILITY, SEED, Range

#: Exit codes with --exit-code; without it every verdict is 0.
EXIT_CODES = {"unsat": 0, "sat": 10, "unknown": 20, "timeout": 30}
#: Flags of --data alone.
_OF_DATA = ("norm", "eps", "box", "within", "radius", "data_dir", "split", "limit", "out")
_WRITTEN = ("verdicts.csv", "summary.json", "counterexamples.npz", "report.html")
_COLUMNS = (
    Column("index", "instance"),
    Column("label", "label"),
    Column("prediction", "predicted"),
    Column("status", "status"),
    Column("word", ""),
    Column("lower", "margin ≥", "#.4g", "down"),
    Column("upper", "seen ≤", "#.4g", "up"),
    Column("gap", "gap", "#.3g", "up"),
    Column("certificate", "kind"),
    Column("delta", "δ ≤", ".1g", "up", blank_zero=True),
    Column("decided_by", "decided by"),
    Column("seconds", "s", ".2f"),
    Column("radius", "radius ≥", "#.4g", "down"),
    Column("radius_failed", "radius <", "#.4g", "up"),
)


@click.command()
@click.argument("network", type=click.Path(path_type=Path))
@click.option("--property", "claim", type=click.Path(path_type=Path), help="A VNN-LIB file, version 1.0 or 2.0.")
@click.option("--data", help="Inputs: .npz, .npy, a folder of images, or a data set of train.")
@click.option(
    "--norm", type=click.Choice(["2", "inf"]), default="2", show_default=True, help="Of the ball around each."
)
@click.option("--eps", help="Radius of the ball, such as 24/255; read exactly.")
@click.option("--box", metavar="LOW,HIGH", help="Possible inputs, such as 0,1; they cut the ball.")
@click.option("--mean", help="Per channel, comma-separated: the network sees (x - mean) / std.")
@click.option("--std", help="Per channel, beside --mean.")
@click.option("--within", help="Outputs must stay within this of those at the centre (regression), not labels first.")
@click.option("--radius", help="Search each certified radius to this resolution, starting from --eps.")
@option("--time-limit", float, POSITIVE, default=60.0, help="Seconds for each instance.")
@option("--restarts", int, NOT_NEGATIVE, default=10, help="Random starts of the attack for each rival.")
@option("--pgd-steps", int, NOT_NEGATIVE, default=100, help="Steps of the attack; 0 looks at its starts alone.")
@option("--optimize", int, NOT_NEGATIVE, default=30, help="Steps of descent of sdp-crown and alpha-crown.")
@click.option("--branch/--no-branch", default=True, show_default=True, help="Branch on what bounds leave open.")
@click.option(
    "--certificate",
    type=click.Choice(["auto", "deterministic", "probabilistic"]),
    default="auto",
    show_default=True,
    help="What the norms must be worth.",
)
@option("--delta", float, PROBABILITY, default=1e-6, help="Failure probability per instance, at most.")
@click.option("--inference", type=click.Choice(["float32", "bfloat16"]), help="Count the rounding of this arithmetic.")
@click.option("--arch", metavar="MODULE:FACTORY", help="The network, where the file holds weights alone.")
@click.option("--trust-arch", is_flag=True, help="Let the network's file run code that it names or holds.")
@click.option("--input-shape", help="Of one input, such as 1,28,28, where the file does not say it.")
@option("--classes", int, COUNT, help="Outputs of a network from weights.  [default: read off the weights]")
@click.option("--data-dir", help="Folder of a data set of train.")
@click.option("--split", type=click.Choice(["test", "validation", "train"]), default="test", show_default=True)
@option("--limit", int, COUNT, help="Verify this many inputs at most.")
@option("--seed", int, SEED, default=0, help="Of the attack's random starts.")
@click.option("--counterexample", type=NewPath(), help="File for a property's counterexample.")
@click.option("--exit-code", is_flag=True, help="Exit with 0 for unsat, 10 sat, 20 unknown, 30 timeout.")
@click.option("--out", type=NewPath(), help="Folder for the results.  [default: verify-results/…]")
@click.option(
    "--force", is_flag=True, help="Overwrite --counterexample, and files in --out that no verification wrote."
)
def verify(network: Path, claim: Path | None, data: str | None, **options: Any) -> None:
    """Verify a network: NETWORK is .onnx, .safetensors, .pth, TorchScript, torch.export, or a run's folder.

    With --property it prints VNN-COMP's word on a line of its own: unsat (the property's negation has no solution: it
    holds), sat (a counterexample follows), unknown or timeout. With --data it decides every input: CSV lines into a
    pipe, a table on a terminal; verdicts, counterexamples and a report go to a folder. Started again, it goes on where
    it was stopped. Several processes: `torchrun --nproc-per-node 4 -m lirpa_lip.cli verify ...`.
    """
    if (claim is None) == (data is None):
        raise click.UsageError("give either --property, or --data.")
    if data is None:
        refuse_unread(_OF_DATA, "without --data")
    else:
        refuse_unread(("counterexample",), "without --property")
    from lirpa_lip.errors import ConfigError
    from lirpa_lip.verify.network import normalised
    from lirpa_lip.verify.readers import read_network
    from lirpa_lip.verify.settings import VerifySettings

    names = ("time_limit", "restarts", "pgd_steps", "optimize", "branch", "certificate", "delta", "inference", "seed")
    settings = VerifySettings(**{name: options[name] for name in names})
    if options["counterexample"] is not None:
        refuse_foreign([options["counterexample"]], lambda path: False, options["force"])
        options["counterexample"].parent.mkdir(parents=True, exist_ok=True)
    shape = _numbers("--input-shape", options["input_shape"], int, COUNT)
    mean, std = (_numbers(f"--{name}", options[name], float, FINITE) for name in ("mean", "std"))
    read = read_network(network, options["arch"], options["trust_arch"], shape, options["classes"])
    if shape is not None and tuple(shape) != tuple(read.shape):
        raise ConfigError(f"--input-shape {options['input_shape']}: {network} says {tuple(read.shape)}; leave it out.")
    if mean is not None or std is not None:
        read = normalised(read, mean or [], std or [])
    if options["classes"] not in (None, read.outputs):
        raise ConfigError(f"--classes {options['classes']}: {network} has {read.outputs} outputs; leave it out.")
    if claim is not None:
        word = _one_property(read, claim, settings, options)
    else:
        assert data is not None
        word = _data_set(read, data, settings, options)
    if options["exit_code"]:
        click.get_current_context().exit(EXIT_CODES[word])


def _numbers(flag: str, text: str | None, kind: Any, allowed: Range) -> Any:
    if text is None:
        return None
    from lirpa_lip.errors import ConfigError

    try:
        found = [kind(part) for part in text.split(",")]
    except ValueError as error:
        raise ConfigError(f"{flag} {text!r} is no list of numbers; write it as 1,28,28 or 0.5,0.5,0.5.") from error
    for number in found:
        allowed.check(f"every number of {flag}", number)
    return found


def _one_property(network: Any, claim: Path, settings: Any, options: dict[str, Any]) -> str:
    import time

    from lirpa_lip.training.rows import write_whole
    from lirpa_lip.verify.cascade import decide_property
    from lirpa_lip.verify.vnnlib import read_vnnlib

    begun = time.monotonic()
    read = read_vnnlib(claim, network.shape, network.outputs, network.dtype)
    verdict = decide_property(network, read, settings, started=begun)
    click.echo(verdict.word)
    if verdict.counterexample is not None:
        text = vnncomp(verdict.counterexample.flatten().tolist(), verdict.output.flatten().tolist())  # type: ignore[union-attr]
        if options["counterexample"] is not None:
            write_whole(options["counterexample"], text + "\n")
            say(f"wrote the counterexample to {options['counterexample']}")
        else:
            click.echo(text)
    stages = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in verdict.seconds.items())
    worth = f", {verdict.certificate}" + (f" (δ ≤ {verdict.delta:.1g})" if verdict.delta else "")
    least = f"margin at least {verdict.lower:.6g}, " if verdict.lower > -math.inf else ""
    say(f"{least}least margin seen {verdict.upper:.6g}{worth}; {stages}")
    return verdict.word


def vnncomp(x: list[float], y: list[float]) -> str:
    """A counterexample as VNN-COMP writes it."""
    lines = [f"(X_{i} {value!r})" for i, value in enumerate(x)] + [f"(Y_{i} {value!r})" for i, value in enumerate(y)]
    return "(" + "\n ".join(lines) + ")"


def _data_set(network: Any, data: str, settings: Any, options: dict[str, Any]) -> str:
    from rich.console import Console

    from lirpa_lip.training.lock import FolderLock
    from lirpa_lip.training.progress import Pace, counted
    from lirpa_lip.verify.data import read_samples
    from lirpa_lip.verify.report import write_report
    from lirpa_lip.verify.rows import read_entries
    from lirpa_lip.verify.run import cells, check_labels, fork_rng, identity, verify_shard, write_results

    samples = read_samples(data, network.shape, options["data_dir"], options["split"]).first(options["limit"])
    question = _question(options, samples)
    if question.within is None:
        check_labels(network, samples)
    rank, processes, wait = _process()
    mark = hashlib.sha256(
        json.dumps([identity(network, question, settings), data, options["split"]]).encode()
    ).hexdigest()
    out = options["out"] or Path("verify-results") / f"{Path(network.name.split(' ')[0]).stem}-{mark[:12]}"
    refuse_results_of_others(out, "verify.json", _WRITTEN, options["force"])
    console = Console(stderr=True, quiet=rank != 0)
    title = f"{network.name}: {_asked(options)}"
    with FolderLock(out, wanted=rank == 0), _kept(out), fork_rng():
        table = Table(_COLUMNS, title) if rank == 0 else None
        there = read_entries(out)
        mine = range(rank, len(samples), processes)
        pace = Pace(len(mine), sum(index in there for index in mine))
        with counted(console, "verifying", "instances", pace) as advance:

            def show(entry: Any) -> None:
                if table is not None and processes == 1:
                    table.add(*cells(entry))
                advance(1)

            verify_shard(network, samples, question, settings, out, rank=rank, processes=processes, progress=show)
        wait()
        if rank:
            return "unsat"  # exits with 0, or torchrun would stop the first process, which is still writing
        entries = {i: e for i, e in read_entries(out).items() if i < len(samples)}
        assert table is not None
        for index, entry in entries.items():  # what was there before, or other processes found
            if index in there or processes > 1:
                table.add(*cells(entry))
        table.close()
        summary = write_results(out, len(samples))
        write_report(out / "report.html", title, samples, entries, summary)
    say(
        f"{summary['certified']} certified, {summary['refuted']} refuted, {summary['open']} open of "
        f"{summary['instances']}; wrote verdicts.csv, summary.json, counterexamples.npz and report.html to {out}"
    )
    words = {entry.verdict.word for entry in entries.values()}
    return next((word for word in ("sat", "timeout", "unknown") if word in words), "unsat")


def _question(options: dict[str, Any], samples: Any) -> Any:
    from lirpa_lip.errors import ConfigError
    from lirpa_lip.training.epsilon import parse_epsilon
    from lirpa_lip.verify.question import Question
    from lirpa_lip.verify.rounding import exact

    box = None
    if options["box"] is not None:
        ends = options["box"].split(",")
        if len(ends) != 2 or exact(ends[0]) >= exact(ends[1]):
            raise ConfigError(f"--box {options['box']} is no box; write it as 0,1.")
        box = (ends[0].strip(), ends[1].strip())
    for name in ("eps", "radius"):
        if options[name] is not None:
            parse_epsilon(options[name])
    if options["within"] is not None:
        exact(options["within"])
    if options["eps"] is None and samples.low is None:
        raise click.UsageError("give --eps, the radius around each input, or data with low and high for each.")
    if options["radius"] is not None and (options["eps"] is None or parse_epsilon(options["radius"]) == 0):
        raise click.UsageError("--radius, a positive resolution, needs --eps to start from.")
    return Question(options["norm"], options["eps"], box, options["within"], options["radius"])


def _asked(options: dict[str, Any]) -> str:
    region = "given ranges" if options["eps"] is None else f"ℓ{options['norm']} balls of radius {options['eps']}"
    region += "" if options["box"] is None else f" within [{options['box']}]"
    return f"{region}, outputs within {options['within']}" if options["within"] else f"{region}, labels stay first"


def _process() -> Any:
    """Rank, number of processes, and what waits for all of them."""
    import os

    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return 0, 1, lambda: None
    from lirpa_lip.training.processes import process_state

    state = process_state()
    return state.process_index, state.num_processes, state.wait_for_everyone


@contextmanager
def _kept(out: Path) -> Iterator[None]:
    """Says so, and how to go on, where somebody stops the run or another process of it is lost."""
    from lirpa_lip.errors import LirpaLipError, RunInterruptedError
    from lirpa_lip.training.interrupts import sigterm_as_interrupt
    from lirpa_lip.verify.rows import read_entries

    def stopped(why: str, number: int) -> RunInterruptedError:
        kept = f"{len(read_entries(out))} verdicts are kept in {out}"
        return RunInterruptedError(f"{why}: {kept}. The same command goes on from there.", number)

    try:
        with sigterm_as_interrupt():
            yield
    except KeyboardInterrupt as error:
        number = error.args[0] if error.args else int(signal.SIGINT)
        raise stopped("stopped", number) from error
    except RuntimeError as error:
        import torch

        if isinstance(error, LirpaLipError) or not torch.distributed.is_initialized():
            raise
        from lirpa_lip.training.processes import lost_process

        if not lost_process(error):
            raise
        raise stopped("another process was lost", int(signal.SIGTERM)) from error
