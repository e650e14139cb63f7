"""Models as safetensors with their structure as JSON; loading executes no code."""

import json
import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch.overrides import TorchFunctionMode

from .atomic import atomic
from .autoencoder import Autoencoder
from .objectives import penalties  # noqa: F401 (a file may name any part, so all must be defined)
from .part import describe, did_you_mean, rebuild
from .programs import seeded

_FORMAT = "pyroae-1"
_TIMES, _SPARE, _EACH = 16, 1_000_000, 1000  # building may take 16 times the file's numbers and a million; a tensor counts a thousand
_MAKERS = dict.fromkeys("empty zeros ones full rand randn randperm arange linspace expand repeat".split(), 1)
_MAKERS |= {f"new_{name}": 1 for name in ("empty", "zeros", "ones", "full")} | {"eye": 2}  # what makes a tensor of n, or n to that power


def save(ae: Autoencoder, path: str | os.PathLike):
    """Write an Autoencoder to one ``.safetensors`` file: weights, with the structure as JSON in the header.

    Raises:
        ValueError: a part that JSON cannot hold, or a folder that is not there.

    >>> import pyroae as pa
    >>> import tempfile
    >>> vae = pa.recipes.vae(pa.data.load(torch.rand(20, 16).round()), latent_dim=2, hidden=8)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(vae, f"{folder}/vae.safetensors")
    ...     load(f"{folder}/vae.safetensors").sample(3).shape
    torch.Size([3, 16])
    """
    if not isinstance(ae, Autoencoder):
        raise ValueError(f"save: expected an Autoencoder, got {type(ae).__name__}; a network alone is for safetensors.torch.save_model")
    structure = {name: describe(part) for name, part in ae.parts.items()}
    for name in structure.keys() - {"encoder", "decoder"}:
        if '"module"' in json.dumps(structure[name]):
            raise ValueError(f"save: the {name} holds a module that JSON cannot; use a part of pyroae's such as pa.priors.Flow")
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in ae.state_dict().items()}
    if Path(path).is_dir():
        raise ValueError(f"save: {path} is a folder; name a file in it, such as {Path(path) / 'model.safetensors'}")
    if not Path(path).parent.is_dir():
        raise ValueError(f"save: the folder {Path(path).parent} is not there; make it first")
    try:
        content = to_bytes(weights, {"format": _FORMAT, "structure": json.dumps(structure)})
    except RuntimeError as error:
        raise ValueError(f"save: two weights share memory; tie a decoder with pa.nets.Tied ({error})") from error
    with atomic(path) as temporary:
        temporary.write_bytes(content)


def load(path: str | os.PathLike, **parts) -> Autoencoder:
    """Read an Autoencoder that ``save`` wrote, on the CPU. No code in the file is executed and no module is imported.

    Args:
        path: the file.
        parts: parts to use instead of those written down, such as ``encoder=my_module`` for a network of your own.

    Raises:
        ValueError: no such file, not such a file, a damaged one, weights that do not fit the structure, or a structure far
            larger than its weights, before memory is taken for it.

    >>> import pyroae as pa
    >>> import tempfile
    >>> vae = pa.recipes.vae(pa.data.load(torch.rand(20, 16).round()), latent_dim=2, hidden=8)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(vae, f"{folder}/vae.safetensors")
    ...     load(f"{folder}/vae.safetensors", posterior=pa.posteriors.Normal(2)).sample(3).shape
    torch.Size([3, 16])
    """
    structure, weights = _read(Path(path))
    for name in parts:
        if name not in structure:
            raise ValueError(f"load: there is no part {name!r}" + did_you_mean(name, structure))
    try:
        with seeded(0, torch.device("cpu")), _NoLarger(weights.values()):  # the first weights are drawn, and replaced
            ae = Autoencoder(**{name: parts[name] if name in parts else rebuild(value) for name, value in structure.items()})
        ae.to(next((w.dtype for w in weights.values() if w.is_floating_point()), torch.float32)).load_state_dict(weights)
    except Exception as error:  # parts that are told nonsense may raise anything
        raise ValueError(f"{path}: the model in it cannot be rebuilt: {str(error) or type(error).__name__}") from error
    return ae.eval()


class _NoLarger(TorchFunctionMode):
    """Inside, ``ValueError`` before a tensor is made with which all that were made hold far more numbers than a file."""

    def __init__(self, weights: Iterable[torch.Tensor]):
        super().__init__()
        self.left = self.allowed = _TIMES * sum((weight.numel() + _EACH for weight in weights), _SPARE)

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if (power := _MAKERS.get(getattr(function, "__name__", ""))) is not None:
            self.left -= max(_EACH, math.prod(_sizes([*args, *kwargs.values()])) ** power)
            if self.left < 0:
                raise ValueError(f"its parts take more than {self.allowed:,} numbers, far more than the file has weights")
        return function(*args, **kwargs)


def _sizes(values: Iterable) -> Iterator[int]:
    for value in values:
        if isinstance(value, (tuple, list)):
            yield from _sizes(value)
        elif isinstance(value, int):
            yield max(1, value)


def _read(path: Path) -> tuple[dict, dict[str, torch.Tensor]]:
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file; expected one written by pa.save")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(f"{path}: expected a file written by pa.save, got a truncated file or another format ({error})") from error
    if header.get("format") != _FORMAT:
        raise ValueError(
            f"{path}: expected a model of format {_FORMAT!r}, got {header.get('format')!r}; it was not written by this version of pyroae"
        )
    try:
        structure = json.loads(header["structure"])
    except (KeyError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: its structure is not JSON ({error}); the file is damaged") from error
    if not isinstance(structure, dict):
        raise ValueError(f"{path}: expected its structure to be a JSON object, got {type(structure).__name__}; the file is damaged")
    return structure, weights
