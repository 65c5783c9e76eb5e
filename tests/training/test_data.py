"""Data sets: splits, formats, and one clear error for each way a path can be wrong."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from lirpa_lip.errors import ConfigError, DataError, UnknownMethodError
from lirpa_lip.training.data import DATASETS, load_data


def everything(source):
    return source.batch(torch.arange(len(source)))


def test_digits():
    data = load_data("digits")
    assert (len(data.train), len(data.validation), len(data.test)) == (1293, 144, 360)
    images, labels = everything(data.test)
    assert images.shape == (360, 1, 8, 8) and images.dtype == torch.float32
    assert images.min() == 0 and images.max() == 1
    assert set(labels.tolist()) == set(range(10)) == set(range(data.classes))


def test_validation_comes_from_the_training_images_alone():
    whole, carved = load_data("digits", validation=0), load_data("digits", validation=200, seed=3)
    assert len(carved.validation) == 200 and len(carved.train) + 200 == len(whole.train)
    torch.testing.assert_close(everything(carved.test)[0], everything(whole.test)[0])
    both = torch.cat([everything(carved.train)[0], everything(carved.validation)[0]]).flatten(1).numpy()
    assert sorted(map(bytes, both)) == sorted(map(bytes, everything(whole.train)[0].flatten(1).numpy()))


def test_split_depends_on_the_seed_alone():
    one, same, other = (everything(load_data("digits", seed=s).validation)[0] for s in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_limit():
    data = load_data("digits", limit=100, validation=0.1)
    assert (len(data.train), len(data.validation), len(data.test)) == (90, 10, 100)


def write_archive(path, count: int = 6) -> None:
    rng = np.random.default_rng(0)
    arrays = {"classes": np.array(["a", "b", "c"])}
    for split in ("train", "test"):
        encoded = []
        for _ in range(count):
            buffer = io.BytesIO()
            Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(buffer, "JPEG")
            encoded.append(np.frombuffer(buffer.getvalue(), dtype=np.uint8))
        arrays[f"{split}_jpeg"] = np.concatenate(encoded)
        arrays[f"{split}_offset"] = np.cumsum([0, *(len(e) for e in encoded)])
        arrays[f"{split}_label"] = np.arange(count) % 3
    np.savez(path, **arrays)


def test_jpeg_archive(tmp_path):
    write_archive(tmp_path / "images.npz")
    data = load_data("cifar10", tmp_path / "images.npz", validation=2)
    images, labels = everything(data.test)
    assert images.shape == (6, 3, 32, 32) and 0 <= images.min() <= images.max() <= 1
    assert labels.tolist() == [0, 1, 2, 0, 1, 2] and data.classes == 3 and len(data.train) == 4


def test_image_folder(tmp_path):
    for split, count in (("train", 4), ("test", 2)):
        for shade, name in enumerate(("dark", "light")):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                Image.new("RGB", (20, 10), (shade * 255,) * 3).save(folder / f"{index}.png")
    data = load_data("imagefolder", tmp_path, image_size=8, validation=0)
    images, labels = everything(data.train)
    assert data.shape == (3, 8, 8) and images.shape == (8, 3, 8, 8)
    assert torch.equal(images.mean(dim=(1, 2, 3)), labels.float())
    with pytest.raises(ConfigError, match="image_size"):
        load_data("imagefolder", tmp_path)
    (tmp_path / "train" / "dark" / "0.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"0\.png"):
        everything(load_data("imagefolder", tmp_path, image_size=8, validation=0).train)


def test_tiny_imagenet(tmp_path):
    root = tmp_path / "tiny-imagenet-200"
    for name in ("n01", "n02"):
        (root / "train" / name / "images").mkdir(parents=True)
        Image.new("RGB", (64, 64)).save(root / "train" / name / "images" / "0.JPEG")
    (root / "val" / "images").mkdir(parents=True)
    Image.new("RGB", (64, 64)).save(root / "val" / "images" / "val_0.JPEG")
    (root / "val" / "val_annotations.txt").write_text("val_0.JPEG\tn02\t0\t0\t62\t62\n")
    data = load_data("tiny-imagenet", tmp_path, validation=0)
    assert data.classes == 2 and len(data.train) == 2
    assert everything(data.test)[1].tolist() == [1]


@pytest.mark.parametrize("name", sorted(set(DATASETS) - {"digits"}))
def test_wrong_folder(name, tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        load_data(name, tmp_path / "nowhere")
    with pytest.raises(DataError, match=str(tmp_path)):
        load_data(name, tmp_path, image_size=8)


def test_damaged_archive(tmp_path):
    (tmp_path / "images.npz").write_bytes(b"no archive")
    with pytest.raises(DataError, match="archive of JPEG"):
        load_data("cifar10", tmp_path / "images.npz")


def test_unknown_name_and_empty_split():
    with pytest.raises(UnknownMethodError, match="mnist"):
        load_data("mnits")
    with pytest.raises(ConfigError, match="leaves nothing"):
        load_data("digits", validation=10_000)
    with pytest.raises(DataError, match="cannot be downloaded"):
        load_data("imagefolder")


def test_real_mnist(shared_data):
    data = load_data("mnist", shared_data)
    assert (len(data.train), len(data.validation), len(data.test)) == (54_000, 6_000, 10_000)
    images, labels = data.test.batch(torch.arange(5))
    assert images.shape == (5, 1, 28, 28) and labels.tolist() == [7, 2, 1, 0, 4]
    assert images.max() == 1
