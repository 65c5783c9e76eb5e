"""Tables: whole heads on a terminal of 80 columns, nothing but CSV in a pipe, and what is shown is still a bound."""

from __future__ import annotations

import csv
import io

import pytest
from click.testing import CliRunner
from rich.console import Console

from lirpa_lip.cli import main
from lirpa_lip.cli.tables import CERTIFIED, EPS, PGD, WORTH, Column, show_table, shown_as


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "run"
    options = "--dataset digits --arch mlp-small --loss plain --epochs 1 --out"
    result = CliRunner().invoke(main, ["train", *options.split(), str(folder)])
    assert result.exit_code == 0, result.output
    return folder


CALLS = {
    "certify": "--eps 0.02,36/255 --limit 3 --pgd-steps 1 --radius-steps 0 --certificate probabilistic",
    "compare": "--eps 0.02,36/255 --limit 3 --methods crown,sdp-crown-global,local-lip --certificate probabilistic",
    "lipschitz": "--limit 2 --time-limit 0.2 --norm 2 --region 2",
    "verify": "--data digits --limit 4 --eps 0.02 --no-branch --pgd-steps 2 --restarts 0 --certificate probabilistic",
}
HEADS = {
    "certify": ("PGD %", "certified %", "kind", "probabilistic"),
    "compare": ("certified", "Lipschitz", "stable", "ms per", "kind", "deterministic", "sdp-crown-global"),
    "lipschitz": ("sample", "upper", "lower", "kind", "deterministic", "clarke-jacobian + BaB", "mean"),
    "verify": ("input", "label", "dicted", "status", "seen", "kind", "decided", "attack"),
}


def call(command, run, tmp_path):
    out = tmp_path / ("folder" if command in ("certify", "verify") else "table.csv")
    result = CliRunner().invoke(main, [command, str(run), *CALLS[command].split(), "--out", str(out)])
    assert result.exit_code == 0, result.output
    return result, out


@pytest.mark.parametrize("command", CALLS)
def test_whole_heads_at_80_columns(command, run, tmp_path, monkeypatch):
    for name, value in {"FORCE_COLOR": "1", "COLUMNS": "80", "TERM": "dumb"}.items():
        monkeypatch.setenv(name, value)
    text = call(command, run, tmp_path)[0].stdout
    assert "…" not in text and all(head in text for head in HEADS[command]), text
    rows = [line for line in text.splitlines() if "inistic" in line or "babilistic" in line]
    assert rows and max(map(len, rows)) <= 80


@pytest.mark.parametrize("command", CALLS)
def test_a_pipe_holds_csv_and_nothing_else(command, run, tmp_path):
    result, out = call(command, run, tmp_path)
    rows = list(csv.DictReader(io.StringIO(result.stdout)))
    assert rows and all(None not in row and None not in row.values() for row in rows)
    assert {"certificate", "delta"} <= set(rows[0])
    assert "wrote" in result.stderr
    if command == "compare":
        assert result.stdout == out.read_text(encoding="utf-8")
    if command == "lipschitz":
        kept = list(csv.DictReader(out.open(encoding="utf-8")))
        assert rows[: len(kept)] == kept and {row["sample"] for row in rows[len(kept) :]} == {"mean"}


def test_a_column_without_values_takes_no_room(monkeypatch):
    columns = (Column("a", "first"), Column("b", "second"), Column("c", "third", blank_zero=True))
    for rows, heads in (
        ([(1, None, 0)], ["first"]),
        ([(1, 2, 0), (1, None, 1)], ["first", "second", "third"]),
        ([], 3),
    ):
        file = io.StringIO()
        show_table("", columns, rows, Console(file=file, force_terminal=True, width=80, color_system=None))
        shown = [name for name in ("first", "second", "third") if name in file.getvalue()]
        assert shown == heads or len(shown) == heads


def test_lipschitz_means(run, tmp_path):
    result, _ = call("lipschitz", run, tmp_path)
    rows = list(csv.DictReader(io.StringIO(result.stdout)))
    for mean in (row for row in rows if row["sample"] == "mean"):
        mine = [float(row["upper"]) for row in rows if row["method"] == mean["method"] and row["sample"] != "mean"]
        assert len(mine) == 2 and float(mean["upper"]) == pytest.approx(sum(mine) / 2)


def test_lipschitz_rows_are_written_as_they_come(run, tmp_path, monkeypatch):
    from lirpa_lip.cli import lipschitz

    seen, original = [], lipschitz.bound_sample

    def counting(*arguments, **options):
        seen.append(len((tmp_path / "t.csv").read_text().splitlines()) - 1)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return original(*arguments, **options)

    monkeypatch.setattr(lipschitz, "bound_sample", counting)
    options = ["--methods", "naive,fastlip", "--limit", "3", "--out", str(tmp_path / "t.csv")]
    CliRunner().invoke(main, ["lipschitz", str(run), *options])
    assert seen == [0, 1, 2] and len((tmp_path / "t.csv").read_text().splitlines()) == 3


def test_lipschitz_does_not_overwrite_other_files(run, tmp_path):
    mine = tmp_path / "mine.csv"
    mine.write_text("my own data\n")
    options = ["lipschitz", str(run), "--methods", "naive", "--limit", "1", "--out", str(mine)]
    refused = CliRunner().invoke(main, options)
    assert refused.exit_code != 0 and "--force" in refused.output and mine.read_text() == "my own data\n"
    assert CliRunner().invoke(main, [*options, "--force"]).exit_code == 0
    assert CliRunner().invoke(main, options).exit_code == 0  # its own table it may write again


def test_a_pickle_as_state_is_refused(run, tmp_path):
    import pickle

    class Dangerous:
        def __reduce__(self):
            return open, (str(tmp_path / "mark"), "w")

    (tmp_path / "state").write_bytes(pickle.dumps(Dangerous()))
    options = ["--methods", "clarke-jacobian", "--limit", "1", "--state", str(tmp_path / "state")]
    result = CliRunner().invoke(main, ["lipschitz", str(run), *options])
    assert result.exit_code != 0 and "states of branch and bound" in result.output
    assert not (tmp_path / "mark").exists() and "Traceback" not in result.output


@pytest.mark.parametrize("flags", ["--time-limit nan", "--limit -3", "--memory inf", "--max-domains 0", "--limit 0"])
def test_numbers_out_of_range(flags, run):
    result = CliRunner().invoke(main, ["lipschitz", str(run), *flags.split()])
    assert result.exit_code == 2 and flags.split()[0] in result.output


@pytest.mark.parametrize(
    ("value", "column", "text"),
    [
        (0.123456, Column("u", "u", ".3g", "up"), "0.124"),
        (0.123456, Column("u", "u", ".3g", "down"), "0.123"),
        (0.5, Column("u", "u", ".3g", "up"), "0.5"),
        (1.23456e-9, Column("u", "u", ".3g", "up"), "1.24e-9"),
        (9.9996, Column("u", "u", "#.4g", "down"), "9.99"),
        (123456.7, Column("u", "u", ".3g", "up"), "1.24e+5"),
        (0.29, CERTIFIED, "29.00"),
        (0.99999, CERTIFIED, "99.99"),
        (0.99999, PGD, "100.00"),
        (None, PGD, "–"),
        (float("inf"), Column("u", "u", ".3g", "up"), "inf"),
    ],
)
def test_shown_numbers_stay_bounds(value, column, text):
    assert shown_as(value, column) == text


def test_a_narrow_terminal_breaks_lines_and_cuts_nothing():
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=20, color_system=None)
    show_table("title", (EPS, PGD, CERTIFIED, *WORTH), [("36/255", 0.5, 0.25, "probabilistic", 1e-6)], console)
    assert all(word in file.getvalue() for word in ("certified %", "probabilistic", "36/255", "1e-06"))
