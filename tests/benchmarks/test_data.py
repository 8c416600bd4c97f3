"""CIFAR-10: its cache is made anew where it is damaged, and a damaged data set is named."""

import io
import shutil
import sys
import types

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from benchmarks.lib import cli, data


def examples(number, label=3):
    rng = np.random.default_rng(number)
    images = rng.integers(0, 256, (number, 32, 32, 3), np.uint8)
    return [{"image": image, "label": label} for image in images]


@pytest.fixture
def cifar10(tmp_path, monkeypatch):
    """A function that loads a small data set of the same kind; how often it was decoded."""
    home = tmp_path / "cifar10"
    home.mkdir()
    splits = {"train": examples(6), "test": examples(4)}
    decoded = []

    def as_data_source(split):
        decoded.append(split)
        return splits[split]

    builder = types.SimpleNamespace(
        is_prepared=lambda: True, data_dir=home, as_data_source=as_data_source
    )
    monkeypatch.setattr(tfds, "builder", lambda *_, **__: builder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return types.SimpleNamespace(
        load=lambda: data.cifar10(str(tmp_path)),
        cache=lambda: next((tmp_path / "cache").glob("diffopt/*.npz")),
        decoded=decoded,
        splits=splits,
        home=home,
    )


def cut(path):
    path.write_bytes(path.read_bytes()[:1000])


def turn_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def make_folder(path):
    path.unlink()
    path.mkdir()
    (path / "file").touch()


def save(**changes):
    def replace(path):
        with np.load(path) as arrays:
            content = {name: changes.get(name, arrays[name]) for name in data.Data._fields}
        np.savez(path, **content)

    return replace


DAMAGES = {
    "cut": cut,
    "empty": lambda path: path.write_bytes(b""),
    "no archive": lambda path: path.write_bytes(b"no archive" * 100),
    "one bit turned": turn_a_bit,
    "a folder": make_folder,
    "unreadable link": lambda path: (path.unlink(), path.symlink_to(path.parent)),
    "pickled": save(train_labels=np.array([None] * 6)),
    "another shape": save(test_images=np.zeros((4, 28, 28), np.uint8)),
    "another length": save(train_labels=np.zeros(5, np.int32)),
    "another dtype": save(train_images=np.zeros((6, 32, 32, 3))),
    "another label": save(test_labels=np.full(4, 10, np.int32)),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_cache_is_made_anew(cifar10, damage, capsys):
    first = cifar10.load()
    assert cifar10.decoded == ["train", "test"] and first.train_images.shape == (6, 32, 32, 3)
    cifar10.load()
    assert len(cifar10.decoded) == 2 and not capsys.readouterr().err

    cache = cifar10.cache()
    damage(cache)
    again = cifar10.load()
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith(f"the cache {cache} is damaged and made anew: ")
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    cifar10.load()
    assert len(cifar10.decoded) == 4 and not capsys.readouterr().err


@pytest.mark.parametrize("damage", ["an error", "a label", "nothing in it"])
def test_a_damaged_data_set_is_named(cifar10, damage):
    if damage == "an error":
        cifar10.splits["test"] = ({"image": 1 / 0} for _ in range(1))
    elif damage == "a label":
        cifar10.splits["train"] = examples(6, label=11)
    else:
        cifar10.splits["train"] = []
    with pytest.raises(cli.UsageError, match=f"^cifar10 in {cifar10.home} is damaged: \\S"):
        cifar10.load()


@pytest.mark.parametrize("content", ["{", "[]", "", '{"name": 3}'])
def test_a_broken_description_of_the_data_set_is_named(tmp_path, content):
    folder = tmp_path / "cifar10" / "3.0.2"
    folder.mkdir(parents=True)
    (folder / "dataset_info.json").write_text(content)
    (folder / "features.json").write_text("{}")
    with pytest.raises(cli.UsageError, match=f"^cifar10 (in {tmp_path}|is not in {folder})"):
        data.cifar10(str(tmp_path))
    shutil.rmtree(folder)


def png(image):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "png")
    return {"bytes": file.getvalue(), "path": None}


@pytest.fixture
def parquet(tmp_path, monkeypatch):
    """A folder of the form of uoft-cs/cifar10, and the images in it."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hub")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "plain_text"
    folder.mkdir()
    images = {"train": examples(6), "test": examples(4, label=9)}
    for split, rows in images.items():
        columns = {"img": [png(e["image"]) for e in rows], "label": [e["label"] for e in rows]}
        path = folder / f"{split}-00000-of-00001.parquet"
        pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return types.SimpleNamespace(folder=folder, images=images, home=tmp_path)


def test_parquet_files_are_read_without_tensorflow(parquet, capsys):
    for _ in range(2):  # decoded, then from the cache
        loaded = data.cifar10(str(parquet.home))
        np.testing.assert_array_equal(loaded.train_labels, [3] * 6)
        np.testing.assert_array_equal(loaded.test_labels, [9] * 4)
        for split, images in (("train", loaded.train_images), ("test", loaded.test_images)):
            pixels = np.stack([e["image"] for e in parquet.images[split]])
            np.testing.assert_allclose((np.asarray(images) + 1) * 127.5, pixels, atol=1e-4)
    assert len(list(parquet.home.glob("cache/diffopt/*.npz"))) == 1
    assert "tensorflow" not in sys.modules and not capsys.readouterr().err


def test_parquet_files_of_another_form_are_named(parquet):
    for path in parquet.folder.iterdir():
        pyarrow.parquet.write_table(pyarrow.table({"image": [1], "label": [1]}), path)
    with pytest.raises(cli.UsageError, match=f"^cifar10 cannot be read from {parquet.home}: \\S"):
        data.cifar10(str(parquet.home))


def test_parquet_files_without_datasets_say_what_to_install(parquet, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(cli.UsageError, match="is parquet: pip install datasets to read it$"):
        data.cifar10(str(parquet.home))


def test_without_a_folder_datasets_downloads_what_is_not_there(parquet, monkeypatch):
    missing = types.SimpleNamespace(is_prepared=lambda: False)
    monkeypatch.setattr(tfds, "builder", lambda *_, **__: missing)
    monkeypatch.setattr(data, "HUB", str(parquet.home))
    assert data.cifar10(None).train_images.shape == (6, 32, 32, 3)
