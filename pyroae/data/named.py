"""The data sets known by name."""

import gzip
import math
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock

from ..checks import InputError
from . import matlab
from .limits import check_size
from .readers import unzipped
from .schema import Schema
from .splits import DataSet, Split

_SHAPE = Schema(image_shape=(28, 28))
_FLOATS = 5.0  # bytes that a byte takes, with the float32 that is made of it


def _digits() -> DataSet:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    x, y = load_digits(return_X_y=True)
    parts = train_test_split(x / 16, y, test_size=360, random_state=0, stratify=y)
    train, test, *labels = (torch.as_tensor(part) for part in parts)
    schema = Schema(image_shape=(8, 8))
    return DataSet("digits", *(Split(x.float(), y, "unit", schema=schema) for x, y in zip((train, test), labels)))


def _torchvision(name: str, kind: str, limit: float) -> DataSet:
    folder = _data_home() / kind / "raw"
    if not any(folder.glob("train-images-idx3-ubyte*")):
        folder = _download(kind)

    def split(which: str) -> Split:
        images, labels = (_idx(folder / f"{which}-{file}-ubyte", limit) for file in ("images-idx3", "labels-idx1"))
        x = torch.from_numpy(images.reshape(len(images), -1)).float().div_(255)
        return Split(x, torch.from_numpy(labels).long(), "unit", schema=_SHAPE)

    return DataSet(name, split("train"), split("t10k"))


def _download(kind: str) -> Path:
    from torchvision import datasets

    cache = _cache()
    try:
        with FileLock(cache / f"{kind}.lock"):  # of several processes one does it
            getattr(datasets, kind)(cache, download=True)
    except (OSError, RuntimeError) as error:
        raise InputError(
            f"data: {kind} is not in {_data_home()} and cannot be downloaded ({error}); "
            f"put its .gz files into {_data_home() / kind / 'raw'}"
        ) from error
    return cache / kind / "raw"


def _idx(path: Path, limit: float) -> np.ndarray:
    """An array of bytes in LeCun's IDX format, packed or not; its header says how much is read."""
    packed = path.with_name(path.name + ".gz")
    try:
        with gzip.open(packed) if packed.exists() else open(path, "rb") as file:
            depth = file.read(4)[3]
            shape = np.frombuffer(file.read(4 * depth), ">i4", depth).tolist()
            if min(shape) < 0:
                raise ValueError(f"its header says that it holds an array of shape {shape}")
            check_size(_FLOATS * math.prod(shape), limit, f"{path}, an array of shape {shape} by its header,")
            return np.frombuffer(bytearray(file.read(math.prod(shape))), np.uint8).reshape(shape)
    except InputError:
        raise
    except (OSError, EOFError, ValueError, IndexError) as error:
        raise InputError(f"data: {path} is missing or damaged ({error}); remove it and let it be downloaded again") from error


def _binarized_mnist(limit: float) -> DataSet:
    folder = _data_home() / "binarized_mnist"
    arrays = None
    if (folder / "binarized_mnist.npz").exists():
        packed = unzipped(folder / "binarized_mnist.npz", limit, 8 * _FLOATS)
        arrays = {name: np.unpackbits(packed[name], axis=1)[:, :784] for name in ("train", "valid", "test")}
    elif (folder / "binarized_mnist_train.amat").exists():
        arrays = {name: _amat(folder / f"binarized_mnist_{name}.amat", limit) for name in ("train", "valid", "test")}
    if arrays is None:
        raise InputError(
            f"data: expected binarized_mnist.npz or binarized_mnist_train.amat, _valid.amat and _test.amat "
            f"in {folder}, found neither; set PYROAE_DATA to the folder above them"
        )
    splits = {name: Split(torch.from_numpy(rows).float(), None, "binary", schema=_SHAPE) for name, rows in arrays.items()}
    return DataSet("binarized-mnist", splits["train"], splits["test"], splits["valid"])


def _amat(path: Path, limit: float) -> np.ndarray:
    """Larochelle's text: lines of 784 zeros and ones with blanks between."""
    if not path.is_file():
        raise InputError(f"data: there is no file {path}")
    check_size(_FLOATS * path.stat().st_size, limit, path.name)
    text = np.frombuffer(path.read_bytes(), np.uint8)
    bits = text[(text == ord("0")) | (text == ord("1"))] - ord("0")
    if len(bits) == 0 or len(bits) % 784 or not np.isin(text, list(b"01 \r\n")).all():
        raise InputError(f"data: expected lines of 784 zeros and ones in {path}, got something else")
    return bits.reshape(-1, 784)


def _omniglot(limit: float) -> DataSet:
    places = [_data_home() / "chardata.mat", _data_home() / "omniglot" / "chardata.mat"]
    path = next((place for place in places if place.exists()), None)
    if path is None:
        raise InputError(f"data: expected chardata.mat in {places[0].parent}, found none; set PYROAE_DATA to the folder that holds it")
    content = matlab.read(path, limit)

    def split(images: str, labels: str) -> Split:
        upright = content[images].T.reshape(-1, 28, 28).transpose(0, 2, 1).reshape(-1, 784)  # stored column by column
        classes = content[labels].argmax(0) if labels in content else None
        return Split(
            torch.from_numpy(upright.astype(np.float32)), None if classes is None else torch.from_numpy(classes), "unit", schema=_SHAPE
        )

    return DataSet("omniglot", split("data", "target"), split("testdata", "testtarget"))


NAMED: dict[str, Callable[[float], DataSet]] = {  # each is called with the bytes that its files may take in memory
    "digits": lambda limit: _digits(),
    "mnist": lambda limit: _torchvision("mnist", "MNIST", limit),
    "fashion-mnist": lambda limit: _torchvision("fashion-mnist", "FashionMNIST", limit),
    "binarized-mnist": _binarized_mnist,
    "omniglot": _omniglot,
}


def _data_home() -> Path:
    """The folder that PYROAE_DATA names, otherwise a cache of our own."""
    named = os.environ.get("PYROAE_DATA")
    if named and not Path(named).is_dir():
        raise InputError(f"data: PYROAE_DATA names the folder {named}, which is not there; correct or unset it")
    return Path(named) if named else _cache()


def _cache() -> Path:
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pyroae"
    try:
        home.mkdir(parents=True, exist_ok=True)
        return home
    except OSError:  # a home that cannot be written
        return Path(tempfile.gettempdir()) / "pyroae"
