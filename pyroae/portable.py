"""Export of encoders and decoders to ``torch.export`` and ONNX files."""

import copy
import importlib.util
import os
import warnings
from pathlib import Path
from typing import Literal

import pyro
import torch
from torch import Tensor, nn

from .files import atomic
from .model.autoencoder import Autoencoder

Half = Literal["encoder", "decoder"]
_ROWS = 3  # of the example input


def export(ae: Autoencoder, path: str | os.PathLike, part: Half = "encoder") -> list[str]:
    """Write the encoder or the decoder to a file that runs without pyroae.

    The encoder maps x ``(B, *event)`` to the mean of q(z|x), named ``z``, and its standard deviation, named ``z_std``, if that has
    a closed form. The decoder maps ``z`` to the mean of p(x|z) (the mode of categories), named ``x``. Preprocessing of x, such as
    standardisation, is part of the file. The batch size B is dynamic.

    Args:
        ae: the model.
        path: a file ending in ``.onnx`` (ONNX) or ``.pt2`` (for ``torch.export.load``).
        part: ``"encoder"`` or ``"decoder"``.

    Returns:
        The names of the outputs.

    Raises:
        ValueError: an unknown ending or part, a model with a condition, an operation that cannot be exported, or packages of
            ONNX that are not installed.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     outputs = export(vae, f"{folder}/encoder.pt2")
    ...     mean, std = torch.export.load(f"{folder}/encoder.pt2").module()(torch.zeros(5, 16))
    >>> outputs, mean.shape
    (['z', 'z_std'], torch.Size([5, 2]))
    """
    suffix = Path(path).suffix
    if suffix not in (".onnx", ".pt2"):
        raise ValueError(f"export: expected a file ending in .onnx or .pt2, got {path}")
    if part not in _HALVES:
        raise ValueError(f"export: expected part as 'encoder' or 'decoder', got {part!r}")
    if ae.condition is not None:
        raise ValueError("export: expected a model without a condition; its networks take labels or covariates beside x or z")
    if suffix == ".onnx" and (missing := [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]):
        raise ValueError(
            f"export: ONNX needs {' and '.join(missing)}, not installed here; pip install 'pyroae[onnx]', or write a .pt2 file"
        )
    half = _HALVES[part](copy.deepcopy(ae).cpu().eval()).requires_grad_(False)
    x = torch.zeros(_ROWS, *half.shape, dtype=next((p.dtype for p in ae.parameters()), None))
    with torch.no_grad(), pyro.validation_enabled(False), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's exporters warn about their own code
        outputs = half.outputs[: len(half(x))]
        rows = {"x": {0: torch.export.Dim("rows")}}
        try:
            program = torch.export.export(half, (x,), dynamic_shapes=rows)
            with atomic(path) as temporary:
                if suffix == ".pt2":
                    torch.export.save(program, temporary)
                else:
                    exported = torch.onnx.export(program, (x,), input_names=[half.input], output_names=outputs, dynamo=True, verbose=False)
                    assert exported is not None  # it is, without a path
                    exported.save(temporary)
        except OSError:
            raise
        except Exception as error:  # exporters raise errors of many kinds
            reason = str(error).strip().partition("\n")[0][:200]
            raise ValueError(f"export: the {part} cannot be written as {suffix}: {type(error).__name__}: {reason}") from error
    return outputs


class _Encoder(nn.Module):
    input, outputs = "x", ["z", "z_std"]

    def __init__(self, ae: Autoencoder):
        super().__init__()
        self.ae, self.shape = ae, ae.guide.event_shape

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        h = self.ae.guide.params(x)
        z = self.ae.prior.code(*self.ae.posterior.latent_mean(h))
        try:
            std = self.ae.posterior(h).stddev
        except (NotImplementedError, AttributeError):
            return (z,)
        return (z, std) if std.shape == z.shape else (z,)


class _Decoder(nn.Module):
    input, outputs = "z", ["x"]

    def __init__(self, ae: Autoencoder):
        super().__init__()
        self.ae, self.shape = ae, ae.prior.code_shape

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (self.ae.likelihood.mean_or_mode(self.ae.model.conditional(x)),)


_HALVES: dict[str, type] = {"encoder": _Encoder, "decoder": _Decoder}
