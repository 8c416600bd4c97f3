"""Images and labels: scikit-learn's digits; CIFAR-10 by TensorFlow Datasets or `datasets`."""

import hashlib
import importlib.util
import logging
import os
import shutil
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from .cli import UsageError, first_line

HUB = "uoft-cs/cifar10"
Examples = Callable[[str], Iterator[tuple[np.ndarray, int]]]  # images and labels of a split


class Data(NamedTuple):
    """Images `[examples, 32, 32, channels]`, float32 in [-1, 1]; int32 labels; on the device."""

    train_images: jax.Array
    train_labels: jax.Array
    test_images: jax.Array
    test_labels: jax.Array


def load(name: str, data_dir: str | None = None) -> Data:
    """The dataset called `name`.

    Args:
      name: `"digits"` or `"cifar10"`.
      data_dir: the TensorFlow Datasets folder that holds, or will hold, CIFAR-10, or a folder with
        the parquet files of `HUB`; None is the usual place in the home folder, or a download.

    Raises:
      UsageError: the dataset is unknown, missing, or cannot be downloaded.
    """
    if name == "digits":
        return digits()
    if name == "cifar10":
        return cifar10(data_dir)
    raise UsageError(f"unknown dataset {name!r}")


def digits() -> Data:
    """1,797 scans of handwritten digits, 8x8, scaled to 32x32; 1,437 train and 360 test."""
    from PIL import Image
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    scans = load_digits()
    bilinear = Image.Resampling.BILINEAR
    scaled = [
        np.asarray(Image.fromarray(scan.astype(np.float32)).resize((32, 32), bilinear))
        for scan in scans.images
    ]
    images = np.stack(scaled)[..., None] / np.float32(8) - 1
    train_x, test_x, train_y, test_y = train_test_split(
        images, scans.target.astype(np.int32), test_size=360, random_state=0, stratify=scans.target
    )
    return jax.device_put(Data(train_x, train_y, test_x, test_y))


def out_of_distribution(name: str) -> jax.Array:
    """Images with the shape of the dataset `name`, from none of its classes.

    For digits, 520 gray patches of scikit-learn's two bundled photographs; for CIFAR-10, digits.
    """
    if name == "cifar10":
        return jax.numpy.repeat(digits().test_images, 3, axis=-1)
    from sklearn.datasets import load_sample_images

    photos = np.stack(load_sample_images().images).mean(-1)[:, : 13 * 32, : 20 * 32]
    patches = photos.reshape(2, 13, 32, 20, 32).swapaxes(2, 3).reshape(-1, 32, 32, 1)
    return jax.device_put(patches.astype(np.float32) / np.float32(127.5) - 1)


def cifar10(data_dir: str | None) -> Data:
    """CIFAR-10: 50,000 train and 10,000 test photographs in 10 classes; decoded once, then cached.

    The cache lies in `$XDG_CACHE_HOME/diffopt`, by default `~/.cache/diffopt`.
    """
    if data_dir is not None and not Path(data_dir).is_dir():
        raise UsageError(f"--data-dir {data_dir} is not a folder")
    if data_dir is not None and any(Path(data_dir).glob("**/*.parquet")):
        folder, examples = from_parquet(data_dir)
    else:
        folder, examples = from_tfds(data_dir)
    files = sorted((str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in folder.iterdir())
    digest = hashlib.sha256(repr(files).encode()).hexdigest()[:16]
    cache_home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    cache = cache_home / "diffopt" / f"cifar10-{digest}.npz"
    splits = read_cache(cache)
    if splits is None:
        try:
            splits = []
            for split in ("train", "test"):
                images, labels = zip(*examples(split), strict=True)
                splits += [np.stack(images), np.array(labels, np.int32)]
        except Exception as error:  # as many types as there are files that can be damaged
            raise UsageError(f"cifar10 in {folder} is damaged: {first_line(error)}") from error
        if fault := find_fault(splits):
            raise UsageError(f"cifar10 in {folder} is damaged: {fault}")
        store_cache(cache, dict(zip(Data._fields, splits, strict=True)))
    train_x, train_y, test_x, test_y = splits
    scale = lambda images: images / np.float32(127.5) - 1
    return jax.device_put(Data(scale(train_x), train_y, scale(test_x), test_y))


def from_tfds(data_dir: str | None) -> tuple[Path, Examples]:
    """CIFAR-10 of TensorFlow Datasets: the folder of its files, and a function that reads a split.

    Where it has to be downloaded into its usual place, `datasets` does that if it is installed.
    """
    logging.getLogger("absl").setLevel(logging.ERROR)
    import tensorflow_datasets as tfds

    place = data_dir or tfds.core.constants.DATA_DIR
    try:
        builder = tfds.builder("cifar10", data_dir=data_dir, file_format="array_record")
    except Exception as error:  # as many types as there are files that can be damaged
        raise UsageError(f"cifar10 in {place} is damaged: {first_line(error)}") from error
    if not builder.is_prepared():
        if data_dir is None and importlib.util.find_spec("datasets"):
            return from_parquet(HUB)
        download(builder)

    def examples(split: str) -> Iterator[tuple[np.ndarray, int]]:
        return ((e["image"], e["label"]) for e in builder.as_data_source(split=split))

    return Path(builder.data_dir).resolve(), examples


def download(builder: Any) -> None:
    """Let TensorFlow Datasets download and prepare `builder`, after checking that it can."""
    missing = f"{builder.name} is not in {builder.data_dir}"
    if importlib.util.find_spec("tensorflow") is None:
        raise UsageError(
            f"{missing}: pip install datasets and leave out --data-dir to download it, or give"
            " --data-dir a folder that holds it as array_record or parquet files (TensorFlow"
            " Datasets' own download needs pip install tensorflow)"
        )
    try:
        for url in builder.url_infos:
            request = urllib.request.Request(url, method="HEAD")
            urllib.request.urlopen(request, timeout=10).close()
        builder.download_and_prepare()
    except Exception as error:  # TensorFlow Datasets' own errors have no common type
        raise UsageError(
            f"{missing}, and it could not be downloaded: {first_line(error)}"
        ) from error


def from_parquet(place: str) -> tuple[Path, Examples]:
    """CIFAR-10 by `datasets`, from the hub's `HUB` or a folder of the same parquet files."""
    try:
        import datasets
    except ImportError as error:
        raise UsageError(
            f"cifar10 in {place} is parquet: pip install datasets to read it"
        ) from error
    datasets.disable_progress_bars()
    files = {split: f"**/{split}-*.parquet" for split in ("train", "test")}
    try:
        splits = datasets.load_dataset(place, data_files=files)
        if splits["train"].column_names != ["img", "label"]:
            raise ValueError(f"columns {splits['train'].column_names}, not ['img', 'label']")
        splits = splits.cast_column("img", datasets.Image())
        folder = Path(splits["train"].cache_files[0]["filename"]).parent
    except Exception as error:  # of the network, of files, of columns: no common type
        raise UsageError(f"cifar10 cannot be read from {place}: {first_line(error)}") from error

    def examples(split: str) -> Iterator[tuple[np.ndarray, int]]:
        return ((np.asarray(e["img"].convert("RGB")), e["label"]) for e in splits[split])

    return folder, examples


def read_cache(path: Path) -> list[Any] | None:
    """What `store_cache` saved; None where there is nothing, or it is damaged, which is printed."""
    if not path.exists():
        return None
    try:
        with path.open("rb") as file, np.load(file) as arrays:
            splits = [arrays[field] for field in Data._fields]
        fault = find_fault(splits)
    except Exception as error:  # of zipfile, zlib, pickle, the operating system, ...
        fault = first_line(error)
    if not fault:
        return splits
    print(f"the cache {path} is damaged and made anew: {fault}", file=sys.stderr)
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    return None


def find_fault(splits: list[np.ndarray]) -> str:
    """What is wrong with the images and labels of CIFAR-10, if anything is."""
    for images, labels in (splits[:2], splits[2:]):
        if images.dtype != np.uint8 or images.shape != (len(labels), 32, 32, 3):
            return f"images of {images.dtype} {images.shape}"
        if labels.dtype != np.int32 or labels.ndim != 1 or not len(labels):
            return f"labels of {labels.dtype} {labels.shape}"
        if labels.min() < 0 or labels.max() > 9:
            return f"labels from {labels.min()} to {labels.max()}"
    return ""


def store_cache(path: Path, arrays: dict[str, Any]) -> None:
    """Save `arrays` at once or not at all; a cache that cannot be written is done without."""
    part = path.with_suffix(f".{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with part.open("wb") as file:
                np.savez(file, **arrays)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        print(f"no cache of the decoded images: {error}", file=sys.stderr)
