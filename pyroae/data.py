"""Data sets with their domain, shape and splits: real ones by name, files, folders of images, tensors."""

import csv
import gzip
import os
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Callable, Literal

import numpy as np
import torch
from torch import Tensor

from .part import did_you_mean

Domain = Literal["binary", "unit", "real", "counts", "categories"]
Binarize = Literal["threshold", "static", "dynamic"]


@dataclass(frozen=True)
class Split:
    """Data ``x`` of shape ``(N, *event)``, with labels where there are some."""

    x: Tensor
    labels: Tensor | None
    domain: Domain
    dynamic: bool = False  # binarized afresh whenever it is drawn

    def draw(self, x: Tensor) -> Tensor:
        """A batch as the model sees it: drawn from Bernoulli(x), on its device, under dynamic binarization."""
        return torch.bernoulli(x) if self.dynamic else x

    @property
    def event_shape(self) -> torch.Size:
        """Shape of one x."""
        return self.x.shape[1:]

    def __len__(self) -> int:
        return len(self.x)


@dataclass(frozen=True)
class DataSet:
    """Splits of one data set; ``image_shape`` says how to draw an x, where it is an image."""

    name: str
    train: Split
    test: Split
    validation: Split | None = None
    image_shape: tuple[int, ...] | None = None

    @property
    def domain(self) -> Domain:
        """What values the entries of x take."""
        return self.train.domain

    @property
    def event_shape(self) -> torch.Size:
        """Shape of one x."""
        return self.train.event_shape

    def __repr__(self) -> str:
        sizes = ", ".join(f"{len(split):,} {name}" for name in ("train", "validation", "test") if (split := getattr(self, name)))
        return f"DataSet({self.name!r}: {sizes}; {tuple(self.event_shape)} numbers each, {self.domain})"


def load(
    data: str | os.PathLike | Tensor | np.ndarray = "digits",
    *,
    binarize: Binarize | None = None,
    domain: Domain | None = None,
    validation: float = 0.0,
    test: float = 0.2,
) -> DataSet:
    """A data set by name, from a file or folder, or from a tensor; each x is a vector of floats.

    Names: ``digits`` (8x8, inside scikit-learn), ``mnist``, ``fashion-mnist``, ``binarized-mnist`` (Larochelle's, as
    ``.npz`` or ``.amat``), ``omniglot`` (Burda's ``chardata.mat``); they are looked for in the folder that the
    environment variable ``PYROAE_DATA`` names, and the torchvision ones are downloaded where they are not there.
    Files: ``.npy``, ``.npz`` (arrays ``train``, ``test``, ``valid`` or a single one), ``.csv``, ``.parquet``. 8-bit
    integers are grey levels and become 0 to 1.

    Args:
        data: name, path, or the data themselves.
        binarize: grey levels to 0 or 1: ``"threshold"`` at a half; ``"static"``, drawn once; ``"dynamic"``, training
            data drawn afresh whenever they are used, the others once.
        domain: what values x takes, where a file or tensor leaves that open; otherwise found from the values.
        validation: share of the training data held out for validation, where the set has no such split of its own.
        test: share held out for testing, where the set has no such split of its own.

    Raises:
        ValueError: an unknown name, a missing or damaged file, values that do not fit the domain.

    >>> load("digits", binarize="dynamic")
    DataSet('digits': 1,437 train, 360 test; (64,) numbers each, binary)
    """
    for name, share in (("validation", validation), ("test", test)):
        if not 0.0 <= share < 1.0:
            raise ValueError(f"data: expected {name} as a share from 0 to less than 1, got {share!r}")
    found = _find(data, domain, test)
    if found.validation is None and validation:
        train, held_out = _parted(found.train, validation)
        found = replace(found, train=train, validation=held_out)
    return _binarized(found, binarize) if binarize else found


def _find(data, domain: Domain | None, test: float) -> DataSet:
    if isinstance(data, (Tensor, np.ndarray)):
        return _of_arrays("tensor", {"train": np.asarray(data)}, domain, test)
    name = os.fspath(data)
    if name in _NAMED:
        if domain is not None:
            raise ValueError(f"data: the domain of {name} is known; leave domain out")
        return _NAMED[name]()
    path = Path(name)
    if path.is_dir():
        return _of_images(path, test)
    if path.suffix in _READERS:
        if not path.is_file():
            raise ValueError(f"data: there is no file {name}")
        try:
            arrays = _READERS[path.suffix](path)
        except (OSError, ValueError, KeyError, EOFError) as error:
            raise ValueError(f"data: {name} cannot be read: {error}") from error
        return _of_arrays(path.stem, arrays, domain, test)
    if path.suffix or path.parent != Path("."):
        raise ValueError(f"data: expected a name, a folder of images or a file ending in {', '.join(_READERS)}, got {name}")
    raise ValueError(f"data: there is no data set {name!r}" + did_you_mean(name, _NAMED))


# --- the sets known by name ---


def _digits() -> DataSet:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    x, y = load_digits(return_X_y=True)
    parts = train_test_split(x / 16, y, test_size=360, random_state=0, stratify=y)
    train, test, *labels = (torch.as_tensor(part) for part in parts)
    return DataSet("digits", Split(train.float(), labels[0], "unit"), Split(test.float(), labels[1], "unit"), image_shape=(8, 8))


def _torchvision(name: str, kind: str) -> DataSet:
    folder = _data_home() / kind / "raw"
    if not any(folder.glob("train-images-idx3-ubyte*")):
        folder = _download(kind)

    def split(which: str) -> Split:
        images, labels = _idx(folder / f"{which}-images-idx3-ubyte"), _idx(folder / f"{which}-labels-idx1-ubyte")
        return Split(torch.from_numpy(images.reshape(len(images), -1)).float() / 255, torch.from_numpy(labels).long(), "unit")

    return DataSet(name, split("train"), split("t10k"), image_shape=(28, 28))


def _download(kind: str) -> Path:
    from torchvision import datasets

    cache = _cache()
    try:
        getattr(datasets, kind)(cache, download=True)
    except (OSError, RuntimeError) as error:
        raise ValueError(f"data: {kind} is not in {_data_home()} and cannot be downloaded ({error}); put its .gz files into {_data_home() / kind / 'raw'}") from error
    return cache / kind / "raw"


def _idx(path: Path) -> np.ndarray:
    """An array of bytes in LeCun's IDX format, packed or not."""
    packed = path.with_name(path.name + ".gz")
    try:
        content = gzip.decompress(packed.read_bytes()) if packed.exists() else path.read_bytes()
        depth = content[3]
        shape = np.frombuffer(content, ">i4", depth, offset=4)
        return np.frombuffer(bytearray(content), np.uint8, offset=4 + 4 * depth).reshape(shape)
    except (OSError, EOFError, ValueError, IndexError) as error:
        raise ValueError(f"data: {path} is missing or damaged ({error}); remove it and let it be downloaded again") from error


def _binarized_mnist() -> DataSet:
    folder = _data_home() / "binarized_mnist"
    arrays = None
    if (folder / "binarized_mnist.npz").exists():
        with np.load(folder / "binarized_mnist.npz", allow_pickle=False) as packed:
            arrays = {name: np.unpackbits(packed[name], axis=1)[:, :784] for name in ("train", "valid", "test")}
    elif (folder / "binarized_mnist_train.amat").exists():
        arrays = {name: _amat(folder / f"binarized_mnist_{name}.amat") for name in ("train", "valid", "test")}
    if arrays is None:
        raise ValueError(f"data: expected binarized_mnist.npz or binarized_mnist_train.amat, _valid.amat and _test.amat in {folder}, found neither; set PYROAE_DATA to the folder above them")
    splits = {name: Split(torch.from_numpy(rows).float(), None, "binary") for name, rows in arrays.items()}
    return DataSet("binarized-mnist", splits["train"], splits["test"], splits["valid"], (28, 28))


def _amat(path: Path) -> np.ndarray:
    """Larochelle's text: lines of 784 zeros and ones with blanks between."""
    if not path.is_file():
        raise ValueError(f"data: there is no file {path}")
    text = np.frombuffer(path.read_bytes(), np.uint8)
    bits = text[(text == ord("0")) | (text == ord("1"))] - ord("0")
    if len(bits) == 0 or len(bits) % 784 or not np.isin(text, list(b"01 \r\n")).all():
        raise ValueError(f"data: expected lines of 784 zeros and ones in {path}, got something else")
    return bits.reshape(-1, 784)


def _omniglot() -> DataSet:
    from scipy.io import loadmat

    places = [_data_home() / "chardata.mat", _data_home() / "omniglot" / "chardata.mat"]
    path = next((place for place in places if place.exists()), None)
    if path is None:
        raise ValueError(f"data: expected chardata.mat in {places[0].parent}, found none; set PYROAE_DATA to the folder that holds it")
    content = loadmat(path)

    def split(images: str, labels: str) -> Split:
        upright = content[images].T.reshape(-1, 28, 28).transpose(0, 2, 1).reshape(-1, 784)  # stored column by column
        classes = content[labels].argmax(0) if labels in content else None
        return Split(torch.from_numpy(upright.astype(np.float32)), None if classes is None else torch.from_numpy(classes), "unit")

    return DataSet("omniglot", split("data", "target"), split("testdata", "testtarget"), image_shape=(28, 28))


_NAMED: dict[str, Callable[[], DataSet]] = {
    "digits": _digits,
    "mnist": lambda: _torchvision("mnist", "MNIST"),
    "fashion-mnist": lambda: _torchvision("fashion-mnist", "FashionMNIST"),
    "binarized-mnist": _binarized_mnist,
    "omniglot": _omniglot,
}


def _data_home() -> Path:
    """The folder that PYROAE_DATA names, otherwise a cache of our own."""
    named = os.environ.get("PYROAE_DATA")
    if named and not Path(named).is_dir():
        raise ValueError(f"data: PYROAE_DATA names the folder {named}, which is not there; correct or unset it")
    return Path(named) if named else _cache()


def _cache() -> Path:
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pyroae"
    try:
        home.mkdir(parents=True, exist_ok=True)
        return home
    except OSError:  # a home that cannot be written
        return Path(tempfile.gettempdir()) / "pyroae"


# --- the user's own files ---


def _csv(path: Path) -> dict[str, np.ndarray]:
    with open(path, newline="") as file:
        rows = [row for row in csv.reader(file) if row]
    if rows and not all(_is_number(cell) for cell in rows[0]):
        rows = rows[1:]
    for number, row in enumerate(rows, 1):
        if len(row) != len(rows[0]) or not all(_is_number(cell) for cell in row):
            raise ValueError(f"expected {len(rows[0])} numbers in data row {number}, got {','.join(row)[:60]!r}")
    return {"train": np.array(rows, dtype=np.float32)}


def _is_number(cell: str) -> bool:
    try:
        float(cell)
        return True
    except ValueError:
        return False


def _npz(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as content:
        arrays = {name: content[name] for name in content.files}
    if "train" not in arrays and len(arrays) != 1:
        raise ValueError(f"expected an array named 'train', or a single one, got {sorted(arrays)}")
    return arrays if "train" in arrays else {"train": next(iter(arrays.values()))}


def _parquet(path: Path) -> dict[str, np.ndarray]:
    try:
        import pyarrow.parquet
    except ImportError:
        raise ValueError("Parquet files need pyarrow: install pyroae[parquet]") from None
    table = pyarrow.parquet.read_table(path)
    return {"train": np.stack([column.to_numpy() for column in table.columns], 1)}


_READERS: dict[str, Callable[[Path], dict[str, np.ndarray]]] = {
    ".npy": lambda path: {"train": np.load(path, allow_pickle=False)},
    ".npz": _npz,
    ".csv": _csv,
    ".parquet": _parquet,
}


def _of_images(folder: Path, test: float) -> DataSet:
    """All images below a folder, in grey levels or RGB as the first one is; folder names are the labels."""
    from PIL import Image

    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp"})
    if not paths:
        raise ValueError(f"data: expected images (.png, .jpg, ...) in the folder {folder}, found none")
    images = []
    for path in paths:
        try:
            with Image.open(path) as image:
                images.append(np.asarray(image.convert("L" if image.mode in ("1", "L", "I;16") else "RGB")))
        except OSError as error:
            raise ValueError(f"data: {path} cannot be read as an image: {error}") from error
        if images[-1].shape != images[0].shape:
            raise ValueError(f"data: expected images of one size, got {images[0].shape} in {paths[0].name} and {images[-1].shape} in {path.name}")
    whole = _of_arrays(folder.name, {"train": np.stack(images)}, "unit", 0.0)
    names = sorted({path.parent for path in paths})
    labels = torch.tensor([names.index(path.parent) for path in paths]) if len(names) > 1 else None
    return _with_test(replace(whole, train=replace(whole.train, labels=labels)), test)


def _of_arrays(name: str, arrays: dict[str, np.ndarray], domain: Domain | None, test: float) -> DataSet:
    shape = np.asarray(arrays["train"]).shape
    splits = {key: _split(name, array, domain) for key, array in arrays.items() if key in ("train", "valid", "validation", "test")}
    image_shape = shape[1:] if len(shape) == 3 or (len(shape) == 4 and shape[-1] == 3) else None
    held_out = splits.get("valid", splits.get("validation"))
    whole = DataSet(name, splits["train"], splits.get("test", splits["train"]), held_out, image_shape)
    return whole if "test" in splits else _with_test(whole, test)


def _with_test(whole: DataSet, test: float) -> DataSet:
    if not test:
        return whole
    train, held_out = _parted(whole.train, test)
    return replace(whole, train=train, test=held_out)


def _split(name: str, array: np.ndarray, domain: Domain | None) -> Split:
    array = np.asarray(array)
    if array.dtype.kind not in "biuf":
        raise ValueError(f"data: expected numbers in {name}, got entries of type {array.dtype}")
    if array.ndim < 2 or array.size == 0:
        raise ValueError(f"data: expected at least one row of at least one number in {name}, got the shape {array.shape}")
    x = torch.from_numpy(np.ascontiguousarray(array)).flatten(1)
    grey = x.dtype == torch.uint8 and domain in (None, "unit")
    x = x.float() / 255 if grey and x.max() > 1 else x.float()
    if not bool(torch.isfinite(x).all()):
        raise ValueError(f"data: expected finite numbers in {name}, got NaN or infinity in {int((~torch.isfinite(x)).any(1).sum())} of {len(x)} rows; drop or fill them")
    found = _domain(x)
    _check_domain(name, x, found, domain or found)
    return Split(x, None, domain or found)


def _domain(x: Tensor) -> Domain:
    whole = bool((x == x.round()).all())
    low, high = x.min().item(), x.max().item()
    if low < 0 or (high > 1 and not whole):
        return "real"
    if high > 1:
        return "counts"
    return "binary" if whole else "unit"


def _check_domain(name: str, x: Tensor, found: Domain, asked: Domain):
    allowed = {"binary": {"binary"}, "unit": {"binary", "unit"}, "counts": {"binary", "counts"}, "categories": {"binary", "counts"}}
    if asked != "real" and asked not in allowed:
        raise ValueError(f"data: expected domain as one of real, {', '.join(allowed)}, got {asked!r}")
    if asked in allowed and found not in allowed[asked]:
        raise ValueError(f"data: {name} was said to be {asked}, but its values from {x.min().item():.4g} to {x.max().item():.4g} are {found}; rescale them or say domain={found!r}")


def _parted(split: Split, share: float) -> tuple[Split, Split]:
    """A split in two, at random but always the same."""
    held_out = max(1, round(share * len(split)))
    if held_out >= len(split):
        raise ValueError(f"data: {len(split)} rows are too few to hold out a share of {share}")
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(0))
    take = lambda rows: replace(split, x=split.x[rows], labels=None if split.labels is None else split.labels[rows])  # noqa: E731
    return take(order[held_out:]), take(order[:held_out])


def _binarized(data: DataSet, how: Binarize) -> DataSet:
    if how not in ("threshold", "static", "dynamic"):
        raise ValueError(f"data: expected binarize as 'threshold', 'static' or 'dynamic', got {how!r}")
    if data.domain != "unit":
        raise ValueError(f"data: binarize={how!r} needs grey levels from 0 to 1, but {data.name} is {data.domain}; leave binarize out or rescale the data")
    generator = torch.Generator().manual_seed(0)

    def fixed(split: Split) -> Split:
        x = (split.x > 0.5).float() if how == "threshold" else torch.bernoulli(split.x, generator=generator)
        return replace(split, x=x, domain="binary")

    train = replace(data.train, domain="binary", dynamic=True) if how == "dynamic" else fixed(data.train)
    return replace(data, train=train, test=fixed(data.test), validation=data.validation and fixed(data.validation))
