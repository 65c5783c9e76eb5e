"""The board is what the CSV files say, and its commands are ones that their scripts read."""

from __future__ import annotations

import importlib
import shlex
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from lirpa_lip.cli import main as cli

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def pages(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(ROOT / "docs" / "tools"), str(ROOT / "benchmarks"), *sys.path])
    return importlib.import_module("pages")


def test_pages_are_written_with_every_link_on_the_board(pages, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(pages.curves, "draw", lambda entries, files, path: drawn.append(path.stem))
    monkeypatch.setattr(pages.pictures, "write", lambda folder: drawn.append(folder.name))
    pages.write(tmp_path)
    entries = pages.board()
    names = {e.network for e in entries}
    assert len(names) >= 12 and set(drawn) == names | {"figures"}
    index = (tmp_path / "board" / "index.md").read_text()
    assert all(f"({name}.md)" in index and (tmp_path / "board" / f"{name}.md").exists() for name in names)
    assert "mnist_cnn_a_adv, 0.3" in (tmp_path / "tables" / "methods.md").read_text()


def test_no_certificate_exceeds_what_an_attack_leaves(pages):
    assert all(e.certified <= e.pgd + 1e-9 and not e.clean < e.pgd - 1e-9 for e in pages.board())


def test_a_line_of_the_board_stands_on_most_images(pages):
    def entry(images: int, certified: float) -> object:
        return pages.Entry("n", "0.1", str(images), 99.0, 95.0, f"m{images}", certified, "", "deterministic", "")

    few, most, weaker = entry(10, 90.0), entry(200, 80.0), entry(200, 70.0)
    assert pages._best([few, most, weaker]) == [most]


def test_every_network_of_the_board_has_a_section(pages):
    text = pages._sections(pages._best(pages.board()))
    assert text.count("## ") == len(pages._GROUPS) and text.count("```{table}") == len(pages._GROUPS)
    contributed = text[text.index("## Contributed") :].partition("\n## ")[0]
    assert "digits_cnn_relu_local" in contributed and "digits-0.5" not in contributed


def test_commands_in_lines_are_the_same_to_a_shell(pages):
    for command in dict.fromkeys(line for e in pages.board() for line in e.command.splitlines()):
        shown = pages._wrapped(command)
        assert shlex.split(shown.replace("\\\n", "")) == shlex.split(command)
        assert all(len(line) <= 110 for line in shown.splitlines())


def test_commands_are_ones_their_scripts_read(pages):
    for command in dict.fromkeys(line for e in pages.board() for line in e.command.splitlines()):
        program, script, *arguments = shlex.split(command)
        if program == "lirpa-lip":
            found = cli.get_command(click.Context(cli), script)
        else:
            found = importlib.import_module(Path(script).stem).main
        found.make_context(script, arguments)


def test_a_contributed_run_is_on_the_board(pages, tmp_path):
    """Its rows are what its certificates say, and writing it again replaces them."""
    contribute = importlib.import_module("contribute")
    run = tmp_path / "run"
    options = ["--epochs", "1", "--limit", "300", "--arch", "mlp-small", "--bound", "global-product", "--out", str(run)]
    assert CliRunner().invoke(cli, ["train", "--dataset", "digits", *options]).exit_code == 0
    certify = ["--limit", "4", "--eps", "0.01,0.1", "--bound", "global-product", "--pgd-steps", "1"]
    assert CliRunner().invoke(cli, ["certify", str(run), *certify]).exit_code == 0
    for _ in range(2):
        assert contribute.contribute(run, "mine", tmp_path / "board", tmp_path / "board.csv") == 2
    entries = pages._contributed(pages.read(tmp_path / "board.csv"))
    answers = pages.curves.read_answers(tmp_path / "board" / "mine" / "global-product-test.csv")
    assert [e.eps for e in entries] == ["0.01", "0.1"] and len(answers) == 4
    for entry in entries:
        safe = [a.prediction == a.label and a.radius >= float(entry.eps) for a in answers]
        assert entry.certified == 25 * sum(safe)
    for files in ([tmp_path / "board" / "mine" / "global-product-test.csv"], []):
        pages.curves.draw(entries, files, tmp_path / "curve.png")
        assert (tmp_path / "curve.png").stat().st_size > 1000
        (tmp_path / "curve.png").unlink()
    with pytest.raises(FileNotFoundError, match="lirpa-lip certify"):
        contribute.rows_of(tmp_path, "none")
    refused = CliRunner().invoke(contribute.main, [str(tmp_path), "--name", "none"])
    assert refused.exit_code == 1 and "Error: " in refused.output and "lirpa-lip certify" in refused.output


def test_rows_of_contributed_runs_are_what_their_certificate_files_say(pages):
    entries = pages._contributed(pages.read(pages.RESULTS / "board.csv"))
    for entry in entries:
        answers = pages.curves.read_answers(ROOT / "docs" / "board" / entry.network / f"{entry.method}-test.csv")
        safe = sum(a.prediction == a.label and a.radius >= float(entry.eps) for a in answers)
        assert len(answers) == int(entry.images) and entry.certified == pytest.approx(100 * safe / len(answers))
    folders = {path.name for path in (ROOT / "docs" / "board").iterdir()}
    assert folders == {entry.network for entry in entries}
