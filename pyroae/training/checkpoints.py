"""Checkpoints: the state of training as safetensors with a JSON header; no code in a file is executed."""

import contextlib
import hashlib
import json
import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor

from ..files import read_tensors, refuse_links, remove_temporaries, write_tensors

_FORMAT = "pyroae-checkpoint-2"
_KEPT = 2
_LOG = logging.getLogger("pyroae")


class Checkpoints:
    """The newest two checkpoints of a run, in the subfolder ``checkpoints``.

    A file has a checksum, and is written under a temporary name and renamed: after a crash or on a full disk, the newest
    complete file remains.

    Args:
        run: the folder of the run.
    """

    def __init__(self, run: str | Path):
        self.run = Path(run)
        self.folder = self.run / "checkpoints"

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the folder against other processes; the lock of a dead process has no effect.

        Raises:
            ValueError: the folder is locked, or contains a link to a path outside it.
        """
        refuse_links(self.run)
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            lock = FileLock(self.folder / ".lock", timeout=0).acquire()
        except Timeout:
            raise ValueError(f"fit: another process trains in {self.run}; wait for it, stop it, or name another folder") from None
        with lock:
            remove_temporaries(self.run)
            yield

    def paths(self) -> list[Path]:
        """Checkpoint files, newest first."""
        return sorted((path for path in self.folder.glob("*.safetensors") if path.stem.isdigit()), reverse=True)

    def newest(self) -> dict[str, Any] | None:
        """State in the newest valid checkpoint, ``None`` if there is no file; damaged files are logged.

        Raises:
            ValueError: there are files, but none is valid.
        """
        problems = []
        for path in self.paths():
            try:
                state = read(path)
            except ValueError as error:
                problems.append(str(error))
                _LOG.warning("%s; trying the previous one", error)
            else:
                if problems:
                    _LOG.warning("resuming from %s", path)
                return state
        if problems:
            raise ValueError(f"fit: no checkpoint in {self.folder} can be used: " + "; ".join(problems))
        return None

    def write(self, state: dict[str, Any]):
        """Write a state, named by its ``step``, and delete all but the newest two; on a full disk the older one is deleted first."""
        path = self.folder / f"{state['step']:010d}.safetensors"
        try:
            write(state, path)
        except OSError:
            older = [old for old in self.paths()[1:] if old != path]
            if not older:
                raise
            for old in older:
                old.unlink()
            write(state, path)
        for old in self.paths()[_KEPT:]:
            old.unlink()


def write(state: dict[str, Any], path: Path):
    """Write nested dicts, lists and tuples of tensors and plain values to a file.

    Raises:
        ValueError: a value of another type.
        OSError: for example a full disk.
    """
    tensors: dict[str, Tensor] = {}
    packed = _pack(state, "", tensors)
    write_tensors(path, {"format": _FORMAT, "state": packed, "sha256": _digest(packed, tensors)}, tensors)


def read(path: Path) -> dict[str, Any]:
    """The state passed to ``write``, on the CPU.

    Raises:
        ValueError: a file of another format, or a damaged one.
    """
    try:
        content, tensors = read_tensors(path, _FORMAT)
    except ValueError as error:
        raise ValueError(f"expected a checkpoint: {error}") from error
    if content.keys() != {"format", "state", "sha256"} or content["sha256"] != _digest(content["state"], tensors):
        raise ValueError(f"{path}: its checksum is wrong; the file was damaged or edited")
    try:
        state = _unpack(content["state"], {name: tensor.clone() for name, tensor in tensors.items()})
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path}: its header is not a training state ({error})") from error
    if not isinstance(state, dict) or not isinstance(state.get("step"), int):
        raise ValueError(f"{path}: its header is not a training state (the step count is missing)")
    return state


def copy_tensors(state: Any, device: torch.device | None = None) -> Any:
    """A nested state with its tensors copied, to ``device`` if given."""
    if isinstance(state, Tensor):
        return state.detach().to(device or state.device, copy=True)
    if isinstance(state, dict):
        return {key: copy_tensors(value, device) for key, value in state.items()}
    if isinstance(state, (list, tuple)):
        return (tuple if isinstance(state, tuple) else list)(copy_tensors(value, device) for value in state)
    return state


def _pack(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """A value as JSON; its tensors are added to ``tensors`` by name."""
    if isinstance(value, Tensor):
        tensors[name] = value.detach().cpu().contiguous()
        return {"tensor": name}
    if isinstance(value, dict):
        return {"dict": [[key, _pack(item, f"{name}/{key}" if name else str(key), tensors)] for key, item in value.items()]}
    if isinstance(value, (list, tuple)):
        all_ints = all(type(item) is int for item in value)  # such as a generator's state of hundreds of numbers
        items = list(value) if all_ints else [_pack(item, f"{name}/{i}", tensors) for i, item in enumerate(value)]
        return {"tuple" if isinstance(value, tuple) else "list": items}
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}  # not valid in JSON
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise ValueError(f"fit: a checkpoint cannot hold {name}, a {type(value).__name__}; expected tensors, numbers and text")


def _unpack(value: Any, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    ((tag, content),) = value.items()
    if tag == "tensor":
        return tensors[content]
    if tag == "float":
        return {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}[content]
    if tag == "dict":
        return {key: _unpack(item, tensors) for key, item in content}
    items = content if all(type(item) is int for item in content) else [_unpack(item, tensors) for item in content]
    return {"list": list, "tuple": tuple}[tag](items)


def _digest(packed: Any, tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256(json.dumps(packed).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().flatten().clone(memory_format=torch.contiguous_format).view(torch.uint8).numpy())
    return digest.hexdigest()
