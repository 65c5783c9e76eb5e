"""Folders of results: others' files stay, damaged lines count for nothing, errors of the system say what to do."""

from __future__ import annotations

import errno
import re
from fractions import Fraction

import numpy as np
import pytest
from commands import invoke
from networks.files import BOX, convolutional, mlp

from lirpa_lip.cli import verify as verify_module
from lirpa_lip.training.rows import Row, append_rows, read_rows
from lirpa_lip.verify.rows import read_entries
from lirpa_lip_cli import one_line

EPS = (Fraction(1, 10), Fraction(3, 10))
#: What a disk may make of a line: no text, zeros, JSON of another kind, a row whose values no row has.
DAMAGE = (b"\xff\xfe,.\r\n", b"\0" * 40 + b"\n", b'"x"\n', b"[1]\n", b"{}\n",
          b"x,1,1,0.5,0.1,deterministic,0,inf,d,1,.\r\n",
          b"9,1,1,0.5,nan,deterministic,0,inf,d,1,.\r\n", b"9,1,1,0.5,0.1,deterministic,2,inf,d,1,.\r\n",
          b"9,1,1,0.5,0.1,certain,0,inf,d,1,.\r\n")  # fmt: skip


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    images = np.random.RandomState(0).rand(2, 1, 6, 6).astype(np.float32)
    np.savez(folder / "x.npz", x=images, y=[0, 1])
    return convolutional(folder / "net.onnx"), folder / "x.npz"


def verify(files, *options):
    short = "--eps 0.1 --no-branch --pgd-steps 2 --restarts 1 --optimize 0".split()
    return invoke("verify", files[0], "--data", files[1], *short, *options)


def test_damaged_verdicts_are_found_again(files, tmp_path):
    assert verify(files, "--out", tmp_path).exit_code == 0
    (path,) = tmp_path.glob("verdicts-*.jsonl")
    whole = {i: e.verdict.lower for i, e in read_entries(tmp_path).items()}
    first, second = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(DAMAGE) + first + second.replace(b'"status"', b'"stat\xff"'))
    assert list(read_entries(tmp_path)) == [0]
    result = verify(files, "--out", tmp_path)
    assert result.exit_code == 0, result.output
    assert {i: e.verdict.lower for i, e in read_entries(tmp_path).items()} == whole


def test_damaged_rows_count_for_nothing(tmp_path):
    (tmp_path / "rows-0-of-1.csv").write_bytes(
        b"index,label,prediction,margin,radius,certificate,delta,failed,sample,pgd@0.01,end\r\n"
        b"3,1,1,0.5,0.1,deterministic,0.0,inf,d,1,.\r\n" + b"".join(DAMAGE)
    )
    (row,) = read_rows(tmp_path)
    assert (row.index, row.radius) == (3, 0.1)
    (tmp_path / "rows-0-of-2.csv").write_bytes(b"\0" * 100)  # a head of zeros
    append_rows(tmp_path, "rows-0-of-2", [row], ["0.01"])
    assert read_rows(tmp_path) == [row]


def changed(content: bytes, start: int) -> list[bytes]:
    """``content`` with one byte another, for every byte from ``start`` on that ends no line."""
    places = [place for place in range(start, len(content)) if content[place] not in b"\r\n"]
    return [content[:place] + (b"9" if content[place] != ord("9") else b"1") + content[place + 1 :] for place in places]


def test_a_byte_of_a_row_or_of_its_head_that_changed_is_noticed(tmp_path):
    row = Row(3, 1, 1, 0.5, 0.125, "deterministic", 0.0, {"1/10": True, "0.3": False}, sample="d", eps=EPS)
    path = tmp_path / "rows-0-of-1.csv"
    append_rows(tmp_path, path.stem, [row], ["1/10", "0.3"])
    assert read_rows(tmp_path) == [row]
    for content in changed(path.read_bytes(), 0):
        path.write_bytes(content)
        assert read_rows(tmp_path) == [], content


def test_a_byte_of_a_verdict_that_changed_is_noticed(files, tmp_path):
    assert verify(files, "--out", tmp_path).exit_code == 0
    (path,) = tmp_path.glob("verdicts-*.jsonl")
    first, second = path.read_bytes().splitlines(keepends=True)
    for content in changed(second, 0):
        path.write_bytes(first + content)
        assert list(read_entries(tmp_path)) == [0], content


def test_verdicts_of_earlier_versions_are_read(files, tmp_path):
    """Their lines ended with a point."""
    assert verify(files, "--out", tmp_path).exit_code == 0
    (path,) = tmp_path.glob("verdicts-*.jsonl")
    before = read_entries(tmp_path)
    path.write_bytes(re.sub(rb'"end": "[0-9a-f]+"', b'"end": "."', path.read_bytes()))
    assert b'"end": "."' in path.read_bytes() and str(read_entries(tmp_path)) == str(before)


def test_only_the_first_process_has_an_exit_code(files, tmp_path, monkeypatch):
    """Another one that ended with an error's code would have torchrun stop the first one in its writing."""
    monkeypatch.setattr(verify_module, "_process", lambda: (1, 2, lambda: None))
    assert verify(files, "--exit-code", "--out", tmp_path).exit_code == 0
    assert list(read_entries(tmp_path)) == [1]


@pytest.mark.parametrize("name", ["verdicts.csv", "summary.json", "counterexamples.npz", "report.html"])
def test_verify_leaves_other_files_alone(files, tmp_path, name):
    (tmp_path / name).write_text("mine")
    refused = verify(files, "--out", tmp_path)
    assert refused.exit_code == 1 and name in refused.output and "--force" in refused.output
    assert [p.name for p in tmp_path.iterdir()] == [name] and (tmp_path / name).read_text() == "mine"


def test_verify_with_force(files, tmp_path):
    (tmp_path / "report.html").write_text("mine")
    assert verify(files, "--out", tmp_path, "--force").exit_code == 0
    assert verify(files, "--out", tmp_path).exit_code == 0  # its own it may write anew
    assert "mine" not in (tmp_path / "report.html").read_text()


def test_a_counterexample_goes_nowhere_unasked(tmp_path):
    (tmp_path / "p.vnnlib").write_text(BOX + "(assert (<= Y_0 100))")
    (tmp_path / "mine.txt").write_text("mine")
    call = ["verify", mlp(tmp_path / "mlp.onnx"), "--property", tmp_path / "p.vnnlib", "--counterexample"]
    refused = invoke(*call, tmp_path / "mine.txt")
    assert refused.exit_code == 1 and "sat" not in refused.stdout and (tmp_path / "mine.txt").read_text() == "mine"
    assert invoke(*call, tmp_path / "new" / "x.txt").exit_code == 0
    assert (tmp_path / "new" / "x.txt").read_text().startswith("((X_0")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--input-shape", "0,-1"], "must be at least 1"),
        (["--input-shape", "1,6,7"], "says (1, 6, 6)"),
        (["--mean", "nan", "--std", "1"], "every number of --mean must be finite"),
        (["--mean", "0", "--std", "inf"], "every number of --std must be finite"),
    ],
)
def test_lists_of_numbers_have_ranges_too(files, tmp_path, options, message):
    result = verify(files, *options, "--out", tmp_path / "out")
    assert result.exit_code == 1 and message in result.output and not (tmp_path / "out").exists()


def test_a_file_where_a_folder_is_needed(files, tmp_path):
    (tmp_path / "file").write_text("mine")
    result = verify(files, "--out", tmp_path / "file")
    assert result.exit_code == 1 and "a file where a folder is needed" in result.output
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full. Make room"),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), "/x: Permission denied; choose another"),
    ],
)
def test_errors_of_the_system_say_what_to_do(error, message):
    assert message in one_line(error)
