"""Checkpoints: what training was at a moment, as safetensors with a JSON header; nothing in a file is ever executed."""

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
    """The newest two checkpoints of a run, in ``checkpoints`` below its folder.

    A file has a checksum of all that is in it, is written beside the others and moved into its place: whenever a process
    dies, and on a full disk, the newest whole one stays.

    Args:
        run: the folder of the run.
    """

    def __init__(self, run: str | Path):
        self.run = Path(run)
        self.folder = self.run / "checkpoints"

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """No other process can train in this folder meanwhile; the lock of one that died holds nobody up.

        Raises:
            ValueError: another one does, or something in the folder is a link to somewhere outside it.
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
        """The files, the newest first."""
        return sorted((path for path in self.folder.glob("*.safetensors") if path.stem.isdigit()), reverse=True)

    def newest(self) -> dict[str, Any] | None:
        """What the newest good checkpoint holds, ``None`` where there is no file; the log names those that are damaged.

        Raises:
            ValueError: there are files, but none of them is good.
        """
        problems = []
        for path in self.paths():
            try:
                found = read(path)
            except ValueError as error:
                problems.append(str(error))
                _LOG.warning("%s; looking at the one before it", error)
            else:
                if problems:
                    _LOG.warning("going on from %s", path)
                return found
        if problems:
            raise ValueError(f"fit: no checkpoint in {self.folder} can be used: " + "; ".join(problems))
        return None

    def write(self, state: dict[str, Any]):
        """Write a state, named by its ``step``, and drop all but the newest two. On a full disk the older one makes room."""
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
    """Write nested dicts, lists and tuples of tensors and plain values to one file.

    Raises:
        ValueError: a value that is neither.
        OSError: such as a full disk.
    """
    tensors: dict[str, Tensor] = {}
    packed = _packed(state, "", tensors)
    write_tensors(path, {"format": _FORMAT, "state": packed, "sha256": _digest(packed, tensors)}, tensors)


def read(path: Path) -> dict[str, Any]:
    """What ``write`` was given, on the CPU.

    Raises:
        ValueError: a file of another kind, or one that is not as it was written.
    """
    try:
        content, tensors = read_tensors(path, _FORMAT)
    except ValueError as error:
        raise ValueError(f"expected a checkpoint: {error}") from error
    if content.keys() != {"format", "state", "sha256"} or content["sha256"] != _digest(content["state"], tensors):
        raise ValueError(f"{path}: its checksum is wrong; the file was damaged or edited")
    try:
        state = _unpacked(content["state"], {name: tensor.clone() for name, tensor in tensors.items()})
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path}: its header is no state of training ({error})") from error
    if not isinstance(state, dict) or not isinstance(state.get("step"), int):
        raise ValueError(f"{path}: its header is no state of training (it has no number of steps)")
    return state


def copied(state: Any, device: torch.device | None = None) -> Any:
    """The same with tensors of its own, on a device, by default where they are."""
    if isinstance(state, Tensor):
        return state.detach().to(device or state.device, copy=True)
    if isinstance(state, dict):
        return {key: copied(value, device) for key, value in state.items()}
    if isinstance(state, (list, tuple)):
        return (tuple if isinstance(state, tuple) else list)(copied(value, device) for value in state)
    return state


def _packed(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """A value as JSON; its tensors go into ``tensors`` by name."""
    if isinstance(value, Tensor):
        tensors[name] = value.detach().cpu().contiguous()
        return {"tensor": name}
    if isinstance(value, dict):
        return {"dict": [[key, _packed(item, f"{name}/{key}" if name else str(key), tensors)] for key, item in value.items()]}
    if isinstance(value, (list, tuple)):
        whole = all(type(item) is int for item in value)  # such as the hundreds of numbers of a generator's state
        items = list(value) if whole else [_packed(item, f"{name}/{i}", tensors) for i, item in enumerate(value)]
        return {"tuple" if isinstance(value, tuple) else "list": items}
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}  # which JSON does not know
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise ValueError(f"fit: a checkpoint cannot hold {name}, a {type(value).__name__}; expected tensors, numbers and text")


def _unpacked(value: Any, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "float":
        return {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}[content]
    if kind == "dict":
        return {key: _unpacked(item, tensors) for key, item in content}
    items = content if all(type(item) is int for item in content) else [_unpacked(item, tensors) for item in content]
    return {"list": list, "tuple": tuple}[kind](items)


def _digest(packed: Any, tensors: dict[str, Tensor]) -> str:
    found = hashlib.sha256(json.dumps(packed).encode())
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.detach().cpu().flatten().clone(memory_format=torch.contiguous_format).view(torch.uint8).numpy())
    return found.hexdigest()
