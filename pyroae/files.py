"""Files: atomic writes, tensors with plain data in the header, and no access outside the folder of a run."""

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from . import sizes
from .checks import short

_TEMPORARY = ".tmp"


@contextlib.contextmanager
def atomic(path: str | os.PathLike) -> Iterator[Path]:
    """A temporary path next to ``path``, renamed to it after the block has succeeded and the content is on the disk.

    A symbolic link is followed: its target is replaced.

    Raises:
        ValueError: ``path`` is a folder, a pipe or a device.
    """
    if Path(path).exists() and not Path(path).is_file():
        raise ValueError(f"{path} is a folder, a pipe or a device; name a file to write to")
    path = target_of(path)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=f"{_TEMPORARY}{path.suffix}", dir=path.parent)
    os.close(handle)
    try:
        yield Path(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def target_of(path: str | os.PathLike) -> Path:
    """The absolute path with all links resolved, as far as possible for circular links."""
    return Path(os.path.realpath(path))


def remove_temporaries(folder: Path):
    """Delete temporary files of ``atomic`` in a folder and its subfolders, left by processes that were killed."""
    for path in folder.rglob(f".*{_TEMPORARY}.*"):
        path.unlink(missing_ok=True)


def refuse_links(folder: Path):
    """``ValueError`` if anything below ``folder`` is a symbolic link to somewhere outside it."""
    root = target_of(folder)
    for parent, folders, names in os.walk(folder):
        for name in [*folders, *names]:
            path = Path(parent, name)
            if path.is_symlink() and not target_of(path).is_relative_to(root):
                raise ValueError(f"{path} is a link to {target_of(path)}, outside the folder of the run; replace it by the file itself")


def write_tensors(path: str | os.PathLike, content: dict[str, Any], tensors: dict[str, Tensor]):
    """Write tensors, and plain data as JSON in the header, to one safetensors file, reproducibly.

    Raises:
        ValueError: two tensors share memory.
        OSError: such as a full disk.
    """
    header = {"pyroae": json.dumps(content)}  # one entry: the order of several would differ between processes
    with atomic(path) as temporary:
        try:
            save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, temporary, header)
        except SafetensorError as error:
            raise OSError(f"{path}: {error}") from error
        except RuntimeError as error:
            raise ValueError(f"two tensors share memory ({error})") from error


def read_tensors(path: str | os.PathLike, expected: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read a file of ``write_tensors``: plain data, whose ``format`` is checked, and tensors on the CPU.

    Raises:
        ValueError: no such file, another type of file, a damaged file, a header of more than 32 MB, or another format.
    """
    if not Path(path).is_file():
        raise ValueError(f"{path}: there is no such file")
    try:
        _check_header(path)
        with safe_open(path, framework="pt") as file:
            text, names = (file.metadata() or {}).get("pyroae"), list(file.keys())
            if len(names) > sizes.TENSORS:
                raise ValueError(f"expected at most {sizes.TENSORS:,} tensors, got {len(names):,}")
            tensors = {name: file.get_tensor(name) for name in names} if text is not None else {}
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(f"{path}: a truncated file or another format ({error})") from error
    try:
        content = json.loads(text or "null", parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: its header is not JSON ({error}); the file is damaged") from error
    if not isinstance(content, dict) or content.get("format") != expected:
        got = content.get("format") if isinstance(content, dict) else None
        raise ValueError(f"{path}: expected the format {expected!r}, got {short(got)}; it was not written by this version of pyroae")
    return content, tensors


def _check_header(path: str | os.PathLike):
    """``ValueError`` if the header of a file of tensors is too long."""
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
    if size > sizes.HEADER_BYTES:
        raise ValueError(f"expected a header of at most {sizes.HEADER_BYTES:,} bytes, got {size:,}")


def read_json(path: Path) -> dict[str, Any]:
    """Read a small JSON file with a mapping.

    Raises:
        ValueError: a file of more than 16 MB, or other content.
    """
    with open(path, "rb") as file:
        content = file.read(sizes.JSON_BYTES + 1)
    if len(content) > sizes.JSON_BYTES:
        raise ValueError(f"expected at most {sizes.JSON_BYTES:,} bytes")
    return dict(json.loads(content))


def _refuse_constant(name: str):
    raise ValueError(f"{name} is not a number in JSON")
