"""Folders of images: a folder per class, and per split if called train, val and test; x is (C, H, W) from 0 to 1."""

import functools
import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..checks import InputError
from .limits import LIMIT, is_regular
from .readers import MEMORY
from .rows import Rows

_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".pgm", ".ppm"}
_SPLITS = {"train": "train", "training": "train", "test": "test", "testing": "test"} | dict.fromkeys(
    ("val", "valid", "validation"), "valid"
)
_MODES = {"1": "L", "L": "L", "I;16": "I;16", "I;16B": "I;16", "I": "I;16", "RGB": "RGB", "RGBA": "RGBA"}  # mode -> mode to decode as
_PIXELS = 89_478_485  # of an image under the default limit of memory, as in Pillow
_WHAT = {"L": "grey", "I;16": "16-bit grey", "RGB": "colour", "RGBA": "colour with transparency"}

Images = dict[str, tuple[np.ndarray | Rows, Tensor | None]]


def read(folder: Path, limit: float) -> tuple[Images, list[str] | None]:
    """Images and labels of each split in a folder, and the names of the classes if there are several.

    Images that do not fit into memory are decoded when needed, in worker processes. Hidden files and folders, pipes and other
    kinds of files are ignored.

    Raises:
        ValueError: no images, images of different sizes or modes, or an unreadable image.
    """
    paths = sorted(
        path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES and not _hidden(path, folder) and is_regular(path)
    )
    if not paths:
        raise InputError(f"data: expected images ({', '.join(sorted(_SUFFIXES))}) in the folder {folder}, got none")
    splits = _by_split(paths, folder)
    first = paths[0]
    mode = _mode(first, limit)
    for path in paths:
        if (other := _mode(path, limit)) != mode:
            raise InputError(
                f"data: expected images of one kind, got {_WHAT[mode]} in {first} and {_WHAT[other]} in {path}; convert some of them"
            )
    shape = _pixels(first, mode).shape
    large = 4 * len(paths) * np.prod(shape) > MEMORY
    classes = sorted({name for labelled in splits.values() for name in labelled.values()})
    data = {name: (_read_split([*labelled], shape, mode, large), _labels(labelled, classes)) for name, labelled in splits.items()}
    return data, classes if len(classes) > 1 else None


def _hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith((".", "__MACOSX")) for part in path.relative_to(folder).parts)


def _by_split(paths: list[Path], folder: Path) -> dict[str, dict[Path, str]]:
    """The images of each split with their classes, which are the names of their folders."""
    tops = {path.relative_to(folder).parts[0] for path in paths}
    named = {top: _SPLITS[top.lower()] for top in sorted(tops) if top.lower() in _SPLITS}
    if not named:
        return {"train": {path: path.parent.relative_to(folder).as_posix() for path in paths}}
    if others := sorted(tops - named.keys()):
        raise InputError(f"data: expected the splits of {folder} alone, got {others[0]} beside {', '.join(named)}; move it elsewhere")
    if "train" not in named.values():
        raise InputError(f"data: expected a folder train in {folder}, got {', '.join(named)} alone; name the folder of one of them instead")
    splits: dict[str, dict[Path, str]] = {}
    for path in paths:
        top, *_ = path.relative_to(folder).parts
        splits.setdefault(named[top], {})[path] = path.parent.relative_to(folder / top).as_posix()
    return splits


def _read_split(paths: list[Path], shape: tuple[int, ...], mode: str, large: bool) -> np.ndarray | Rows:
    decode = functools.partial(_images, paths, shape, mode)
    if large:
        return Rows(decode, torch.Size([len(paths), *shape]), workers=min(8, os.cpu_count() or 1))
    return decode(np.arange(len(paths)))


def _labels(labelled: dict[Path, str], classes: list[str]) -> Tensor | None:
    numbers = {name: number for number, name in enumerate(classes)}
    return torch.tensor([numbers[name] for name in labelled.values()]) if len(classes) > 1 else None


def _images(paths: list[Path], shape: tuple[int, ...], mode: str, rows: np.ndarray) -> np.ndarray:
    """The images with the given row numbers, which must have the same shape."""
    images = [_pixels(paths[row], mode) for row in rows]
    for row, image in zip(rows, images):
        if image.shape != shape:
            sizes = [f"{size[2]} x {size[1]}" for size in (shape, image.shape)]
            raise InputError(f"data: expected images of one size, got {sizes[0]} in {paths[0]} and {sizes[1]} in {paths[row]}")
    return np.stack(images)


def _image(path: Path):
    """Open an image, reading its header only; ``ValueError`` for a file that is not an image."""
    from PIL import Image

    usual, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None  # replaced by our own limit
    try:
        return Image.open(path)
    except Exception as error:  # decoders of damaged files raise anything
        raise InputError(f"data: {path} cannot be read as an image: {error}") from error
    finally:
        Image.MAX_IMAGE_PIXELS = usual


def _mode(path: Path, limit: float) -> str:
    """The mode to decode an image as, from its header.

    Raises:
        ValueError: an unsupported mode, or more pixels than ``limit`` allows.
    """
    with _image(path) as image:
        pixels, most = image.width * image.height, int(_PIXELS * limit / LIMIT)
        if pixels > most:
            remedy = f"raise it by limit={1.1 * LIMIT * pixels / _PIXELS:.1e} (--limit)"
            raise InputError(f"data: {path} has {pixels:,} pixels, more than the limit of {most:,}; {remedy}")
        if getattr(image, "is_animated", False):
            raise InputError(f"data: {path} holds several images, expected one; save them in separate files")
        if image.mode == "P":  # a palette
            return "RGBA" if "transparency" in image.info else "RGB"
        if image.mode not in _MODES:
            raise InputError(f"data: {path} is an image of mode {image.mode}, which is not supported; convert it to grey, RGB or RGBA")
        return _MODES[image.mode]


def _pixels(path: Path, mode: str) -> np.ndarray:
    """An image, rotated by its EXIF data, ``(C, H, W)``: bytes, or float32 from 0 to 1 for 16-bit grey levels."""
    from PIL import ImageOps

    try:
        with _image(path) as image:
            upright = ImageOps.exif_transpose(image)
            if mode == "I;16":
                return (np.asarray(upright).astype(np.float32) / 65535)[None]
            pixels = np.asarray(upright.convert(mode))
    except Exception as error:
        raise InputError(f"data: {path} cannot be read as an image: {error}") from error
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))
