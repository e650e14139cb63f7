"""Greedy layer-wise pretraining of a stack."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .model import linear
from .model.autoencoder import Autoencoder
from .model.corruption import Corruption
from .model.likelihoods import Normal
from .model.posteriors import Delta
from .model.priors import Flat
from .objectives import Penalised
from .training.batches import Batches
from .training.devices import resolve_device
from .training.fit import History, fit
from .training.options import Validation

_ROWS = 1024  # encoded at once


def pretrain(
    ae: Autoencoder,
    data: Any,
    *,
    corruption: Corruption | Sequence[Corruption | None] | None = None,
    penalty: Callable | Sequence[Callable | None] | None = None,
    **training,
) -> list[History]:
    r"""Greedy layer-wise pretraining, in place: each layer is trained as a shallow autoencoder of the codes below (Bengio et al. 2007).

    With the layers below it fixed, layer l with codes :math:`h_l = f_l(h_{l-1})`, :math:`h_0 = x`, learns to reconstruct
    :math:`h_{l-1}` through the corresponding layer of the decoder. The first layer has the model's likelihood, the others
    squared error; the top layer has the model's prior and posterior. ``fit(ae, data)`` then fine-tunes the whole model.

    Args:
        ae: a model with fully connected networks, the decoder with as many layers as the encoder or ``pa.nets.Tied``.
        data: as for ``fit``.
        corruption: of each layer's input during its training, for a stacked denoising autoencoder (Vincent et al. 2010). One
            for all layers, or a list with one or ``None`` per layer, from the bottom.
        penalty: on each layer's code, such as ``pa.penalties.Contractive(.1)`` or, for an encoder of Sigmoid units,
            ``pa.penalties.KLSparsity()``; likewise.
        training: options of ``fit``, for each layer.

    Returns:
        The history of each layer, from the bottom.

    Raises:
        ValueError: networks that are not such stacks, a conditional model, or a prior with several levels.

    >>> import pyroae as pa
    >>> digits = pa.data.load("digits")
    >>> deep = pa.recipes.autoencoder(digits, latent_dim=8, hidden=[32, 16])
    >>> [len(layer.rows) for layer in pretrain(deep, digits.train, epochs=2, progress=False)]
    [2, 2, 2]
    >>> history = pa.fit(deep, digits.train, epochs=2, progress=False)  # the whole
    """
    if "run" in training:
        raise ValueError("pretrain: layers have no checkpoints; pass run to the fit of the whole model")
    pairs = _pairs(ae)
    place = resolve_device(training.get("device", "auto"))
    ae.to(place)
    kinds = zip(_for_each(corruption, len(pairs), "corruption"), _for_each(penalty, len(pairs), "penalty"))
    histories, below, validation = [], data, Validation.of(training.pop("validation", None))
    held_out = validation.data
    for i, ((up, down), (noise, layer_penalty)) in enumerate(zip(pairs, kinds)):
        bottom, top = i == 0, i == len(pairs) - 1
        shallow = Autoencoder(
            prior=ae.prior if top else Flat(down[0].in_features),
            likelihood=ae.likelihood if bottom else Normal(below.shape[1], scale=1.0),
            posterior=ae.posterior if top else Delta(),
            encoder=up,
            decoder=down,
            corruption=noise,
            objective=None if layer_penalty is None else Penalised(layer_penalty),
        )
        histories.append(fit(shallow, below, validation=Validation(held_out, validation.patience), **training))
        below, held_out = (
            None if rows is None else _codes(shallow, Batches(rows, _ROWS, place, shuffle=False, model=shallow.model))
            for rows in (below, held_out)
        )
        for role, is_copied in {"likelihood": bottom, "prior": top, "posterior": top}.items():
            if is_copied:  # into the shallow model, with its parameters
                getattr(ae, role).load_state_dict(getattr(shallow, role).state_dict())
    ae.eval()
    return histories


def _pairs(ae: Autoencoder) -> list[tuple[nn.Module, nn.Module]]:
    """The layers of the encoder from the bottom, each with the corresponding layer of the decoder."""
    if ae.condition is not None or ae.inputs is not None or len(ae.prior.sites) > 1:
        raise ValueError("pretrain: expected a model without a condition or inputs, and with one latent site")
    try:
        up, down = linear.layers(ae.encoder), linear.layers(ae.decoder)
    except ValueError as error:
        raise ValueError(f"pretrain: {error}") from None
    if len(up) != len(down):
        raise ValueError(f"pretrain: expected a decoder that mirrors the encoder, got {len(up)} layers up and {len(down)} down")
    return list(zip(up, down[::-1]))


def _for_each(kind: Any, layers: int, what: str) -> list:
    kinds = list(kind) if isinstance(kind, (list, tuple)) else [kind] * layers
    if len(kinds) != layers:
        raise ValueError(f"pretrain: expected one {what} for each of the {layers} layers, got {len(kinds)}")
    return kinds


@torch.no_grad()
def _codes(ae: Autoencoder, batches: Batches) -> Tensor:
    return torch.cat([ae.encode(*batch).mean for batch in batches])
