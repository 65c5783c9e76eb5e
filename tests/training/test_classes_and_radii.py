"""What labels stand for is part of a run; radii come from the data set and are compared with its distances."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from lirpa_lip.cli import main
from lirpa_lip.errors import ConfigError, DataError
from lirpa_lip.training.config import TrainConfig, config_from
from lirpa_lip.training.data import DATASETS, DEFAULT_EPS, load_data
from lirpa_lip.training.separation import check_radius, separation_of
from lirpa_lip.training.sources import TensorSource


def draw(root, classes, count=8):
    for split in ("train", "test"):
        for level, name in enumerate(classes):
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                Image.new("L", (8, 8), 40 * level + index).save(folder / f"{index}.png")
    return root


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    draw(root / "abc", ["ant", "bee", "cat"])
    call = ["train", "--dataset", "imagefolder", "--data-dir", str(root / "abc"), "--image-size", "8", "--loss",
            "plain", "--arch", "mlp-small", "--epochs", "1", "--batch-size", "8",
            "--out", str(root / "run")]  # fmt: skip
    result = CliRunner().invoke(main, call)
    assert result.exit_code == 0, result.output
    return root


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (["ant", "bee", "cat", "dog"], "unknown to it: dog"),
        (["ant", "cat"], "missing: bee"),
        (["ant", "bee", "cow"], "missing: cat; unknown to it: cow"),
    ],
)
def test_other_classes_are_an_error(run_folder, tmp_path, classes, message):
    draw(tmp_path / "data", classes)
    for call in (["certify", "--bound", "ibp"], ["compare", "--eps", "0.1"], ["lipschitz"]):
        result = CliRunner().invoke(
            main, [call[0], str(run_folder / "run"), *call[1:], "--data-dir", str(tmp_path / "data")]
        )
        assert result.exit_code == 1 and message in result.output and "Traceback" not in result.output


def test_a_class_that_only_the_test_images_have(tmp_path):
    draw(tmp_path, ["ant", "bee"])
    (tmp_path / "test" / "cat").mkdir()
    with pytest.raises(DataError, match="cat"):
        load_data("imagefolder", tmp_path, image_size=8)


def test_hidden_folders_are_no_classes(tmp_path):
    draw(tmp_path, ["ant", "bee"])
    (tmp_path / "train" / ".cache").mkdir()
    assert load_data("imagefolder", tmp_path, image_size=8).class_names == ("ant", "bee")


def test_one_class_is_none_to_tell_apart(tmp_path):
    draw(tmp_path, ["ant"])
    with pytest.raises(DataError, match="one class, ant"):
        load_data("imagefolder", tmp_path, image_size=8)


def test_every_data_set_has_a_usual_radius():
    assert set(DEFAULT_EPS) == set(DATASETS)
    assert TrainConfig(dataset="digits").eps == "0.5" and TrainConfig(dataset="mnist").eps == "1.58"
    assert TrainConfig(dataset="digits", eps="0.1").eps == "0.1"
    assert config_from({"dataset": "cifar10"}).radius == "36/255"


def test_half_the_distance_between_classes():
    images = torch.zeros(4, 1, 1, 2)
    images[1, 0, 0, 0], images[2, 0, 0, 1], images[3] = 0.1, 0.6, 0.9
    found = separation_of(TensorSource(images, torch.tensor([0, 0, 1, 1])))
    near, far = 0.6 / 2, math.hypot(0.8, 0.9) / 2
    assert found.halves == pytest.approx((near, near, math.hypot(0.1, 0.6) / 2, far))
    assert found.smallest == pytest.approx(0.3) and found.too_close(0.31) == 0.75 and found.too_close(0.1) == 0


def test_a_radius_no_network_could_withstand():
    data = load_data("digits").test
    assert check_radius(Fraction(1, 100), data, (1, 8, 8)) is None
    assert "of another class within" in check_radius(Fraction(158, 100), data, (1, 8, 8))
    with pytest.raises(ConfigError, match="largest distance"):
        check_radius(Fraction(81, 10), data, (1, 8, 8))
    one_class = TensorSource(torch.rand(3, 1, 8, 8), torch.zeros(3, dtype=torch.long))
    assert check_radius(Fraction(1), one_class, (1, 8, 8)) is None


def test_train_warns_in_one_line(tmp_path):
    call = ["train", "--dataset", "digits", "--arch", "mlp-small", "--loss", "plain", "--epochs", "1", "--limit", "200",
            "--batch-size", "50", "--out", str(tmp_path / "r"), "--eps", "1.58"]  # fmt: skip
    result = CliRunner().invoke(main, call)
    assert result.exit_code == 0 and result.output.count("warning: eps=1.58") == 1
