"""Data sets with their domain, shape and splits: real ones by name, files, folders of images, tensors."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ..checks import did_you_mean
from .files import READERS, of_arrays, of_images
from .named import NAMED
from .splits import Binarize, DataSet, Domain, Split, binarized, parted

__all__ = ["DataSet", "Split", "load"]


def load(
    data: str | os.PathLike | Tensor | np.ndarray = "digits",
    *,
    binarize: Binarize | None = None,
    domain: Domain | None = None,
    validation: float = 0.0,
    test: float | None = None,
    missing: bool = False,
) -> DataSet:
    """A data set by name, from a file or folder, or from a tensor; each x is a vector of floats.

    Names: ``digits`` (8x8, inside scikit-learn), ``mnist``, ``fashion-mnist``, ``binarized-mnist`` (Larochelle's, as
    ``.npz`` or ``.amat``), ``omniglot`` (Burda's ``chardata.mat``); they are looked for in the folder that the
    environment variable ``PYROAE_DATA`` names, and the torchvision ones are downloaded where they are not there.
    Files: ``.npy``, ``.npz`` (arrays ``train``, ``test``, ``valid`` or a single one), ``.csv``, ``.parquet``, ``.arrow``.
    8-bit integers are grey levels and become 0 to 1. An ``.npy`` file, an Arrow or Parquet file or a folder of images of
    more than 1 GB (as floats) stays on disk: rows are read as they are needed, the domain is told by 10,000 of them, and
    at most 10,000 or 100 MB are held out for testing unless ``test`` says more. No file is ever unpickled.

    Args:
        data: name, path, or the data themselves.
        binarize: grey levels to 0 or 1: ``"threshold"`` at a half; ``"static"``, drawn once; ``"dynamic"``, training
            data drawn afresh whenever they are used, the others once.
        domain: what values x takes, where a file or tensor leaves that open; otherwise found from the values.
        validation: share of the training data held out for validation, where the set has no such split of its own.
        test: share held out for testing, where the set has no such split of its own; by default 0.2.
        missing: NaN stands for an entry that was not seen, for ``pa.likelihoods.Missing``; otherwise it is refused.

    Raises:
        ValueError: an unknown name, a missing or damaged file, values that do not fit the domain.

    >>> load("digits", binarize="dynamic")
    DataSet('digits': 1,437 train, 360 test; (64,) numbers each, binary)
    """
    if not isinstance(data, (str, os.PathLike, Tensor, np.ndarray)):
        raise ValueError(f"data: expected a name, a path, an array or a tensor, got {type(data).__name__}")
    if not (isinstance(validation, (int, float)) and 0.0 <= validation < 1.0):
        raise ValueError(f"data: expected validation as a share from 0 to less than 1, got {validation!r}")
    if test is not None and not (isinstance(test, (int, float)) and 0.0 < test < 1.0):
        raise ValueError(f"data: expected test as a share greater than 0 and less than 1, got {test!r}")
    found = _find(data, domain, test, missing)
    if found.validation is None and validation:
        train, held_out = parted(found.train, validation)
        found = replace(found, train=train, validation=held_out)
    return binarized(found, binarize) if binarize else found


def _find(data, domain: Domain | None, test: float | None, missing: bool) -> DataSet:
    if isinstance(data, (Tensor, np.ndarray)):
        return of_arrays("tensor", {"train": np.asarray(data)}, domain, test, missing)
    name = os.fspath(data)
    if name in NAMED:
        if domain is not None or test is not None:
            raise ValueError(f"data: {name} has a domain and a test split of its own; leave {'test' if domain is None else 'domain'} out")
        return _read(name, NAMED[name])
    path = Path(name)
    if path.is_dir():
        return of_images(path, test)
    if path.suffix in READERS:
        if not path.is_file():
            raise ValueError(f"data: there is no file {name}")
        arrays = _read(name, lambda: READERS[path.suffix](path))
        return of_arrays(path.stem, arrays, domain, test, missing)
    if path.suffix or path.parent != Path("."):
        raise ValueError(f"data: expected a name, a folder of images or a file ending in {', '.join(READERS)}, got {name}")
    raise ValueError(f"data: there is no data set {name!r}" + did_you_mean(name, NAMED))


def _read(name: str, reader: Callable[[], Any]) -> Any:
    """What a reader reads; ``ValueError`` for whatever it raises, which for a damaged file may be anything."""
    try:
        return reader()
    except Exception as error:
        if isinstance(error, ValueError) and str(error).startswith("data: "):
            raise
        raise ValueError(f"data: {name} cannot be read: {str(error) or type(error).__name__}") from error
