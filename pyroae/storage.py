"""Saving and loading models: weights as safetensors, with the structure as JSON; loading executes no code."""

import json
import os
from pathlib import Path

import torch

from . import schema, structure
from .bounded import build, file_numbers, in_memory
from .checks import did_you_mean, short
from .files import read_tensors, write_tensors
from .model.autoencoder import Autoencoder
from .programs import seeded
from .threads import alone

_FORMAT = "pyroae-2"


def save(ae: Autoencoder, path: str | os.PathLike):
    """Write an Autoencoder to one ``.safetensors`` file: weights, with the structure as JSON in the header.

    Raises:
        ValueError: a part that cannot be described as JSON, or a folder that does not exist.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(vae, f"{folder}/vae.safetensors")
    ...     load(f"{folder}/vae.safetensors").sample(3).shape
    torch.Size([3, 16])
    """
    if not isinstance(ae, Autoencoder):
        raise ValueError(f"save: expected an Autoencoder, got {type(ae).__name__}; a network alone is for safetensors.torch.save_model")
    description = {name: structure.describe(part) for name, part in ae.parts.items()}
    for name in description.keys() - {"encoder", "decoder"}:
        if '"module"' in json.dumps(description[name]):
            raise ValueError(f"save: the {name} holds a module that cannot be written as JSON; use a part of pyroae such as pa.priors.Flow")
    if Path(path).is_dir():
        raise ValueError(f"save: {path} is a folder; name a file in it, such as {Path(path) / 'model.safetensors'}")
    if not Path(path).parent.is_dir():
        raise ValueError(f"save: the folder {Path(path).parent} does not exist; create it first")
    try:
        write_tensors(path, {"format": _FORMAT, "structure": description}, ae.state_dict())
    except ValueError as error:
        raise ValueError(f"save: tie a decoder with pa.nets.Tied: {error}") from error


@alone
def load(path: str | os.PathLike, *, limit: float | None = None, **parts) -> Autoencoder:
    """Read an Autoencoder that ``save`` wrote, on the CPU. No code in the file is executed and no module is imported.

    Args:
        path: the file.
        limit: bytes of memory that the model may take; by default 64 MB plus 16 times its weights in float32, since a structure
            can ask for far more than its file holds.
        parts: parts that replace those in the file, such as ``encoder=my_module`` for a network of your own.

    Raises:
        ValueError: no such file, another format, a damaged file, weights that do not match the structure, or a structure that
            needs more memory than the limit, before it is allocated.

    >>> import pyroae as pa
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(vae, f"{folder}/vae.safetensors")
    ...     load(f"{folder}/vae.safetensors", posterior=pa.posteriors.Normal(2)).sample(3).shape
    torch.Size([3, 16])
    """
    try:
        content, weights = read_tensors(path, _FORMAT)
    except ValueError as error:
        raise ValueError(f"load: expected a file written by pa.save: {error}") from error
    try:
        description = content.get("structure")
        if isinstance(description, dict):
            description = {name: value for name, value in description.items() if name not in parts}
        for name in parts:
            if name not in structure.FIELDS:
                raise ValueError(f"load: there is no part {name!r}" + did_you_mean(name, structure.FIELDS))
        specs = structure.check(description, set(parts))
        numbers = file_numbers(weights.values()) if limit is None else in_memory(limit)
        why = f"which is the limit; if the file is to be trusted, raise it: pa.load(..., limit={40.0 * numbers:.0e})"
        with seeded(0, torch.device("cpu")):  # initial weights are drawn, then replaced
            ae = build(lambda: Autoencoder(**schema.made(specs) | parts), numbers, why)
        _fill(ae, weights)
    except Exception as error:  # constructors may raise anything for wrong arguments
        raise ValueError(f"{path}: the model in it cannot be rebuilt: {str(error) or type(error).__name__}") from error
    return ae.eval()


def _fill(ae: Autoencoder, weights: dict[str, torch.Tensor]):
    """Load weights into a model, as float64 if the file has such weights and as float32 otherwise.

    Raises:
        ValueError: names, shapes or types that differ from the model's, or values that are not finite.
    """
    double = any(weight.dtype == torch.float64 for weight in weights.values())
    state = ae.to(torch.float64 if double else torch.float32).state_dict()
    if state.keys() != weights.keys():
        raise ValueError(f"its weights do not match its structure, such as {short(min(state.keys() ^ weights.keys()))}")
    learned = {name for name, _ in ae.named_parameters()}
    for name, weight in weights.items():
        expected = state[name]
        if weight.shape != expected.shape:
            raise ValueError(
                f"the weight {short(name)} has the shape {tuple(weight.shape)}, where the structure has {tuple(expected.shape)}"
            )
        if weight.dtype != expected.dtype and not (weight.is_floating_point() and expected.is_floating_point()):
            raise ValueError(f"the weight {short(name)} is {weight.dtype}, where the structure has {expected.dtype}")
        values = weights[name] = weight.to(expected.dtype)
        if bool(values.isnan().any()) or (name in learned and not bool(values.isfinite().all())):
            raise ValueError(f"the weight {short(name)} is not finite")
    ae.load_state_dict(weights)
