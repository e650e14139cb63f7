"""Greedy layer-wise training of a stack, and what it was invented for: a classifier on top of a trained encoder."""

import copy
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import pyro
import torch
from pyro import distributions as dist
from pyro.nn import PyroModule
from torch import Tensor, nn

from . import programs
from .model import nets
from .model.autoencoder import Autoencoder
from .model.corruption import Corruption
from .model.likelihoods import Normal
from .model.posteriors import Delta
from .model.priors import Flat
from .objectives import Penalised
from .training.batches import Batches, as_tensors
from .training.devices import resolve_device
from .training.fit import History, fit
from .training.options import Validation

_ROWS = 1024  # encoded at once
_serial = itertools.count()  # every Classifier has a name of its own in Pyro's parameter store


def pretrain(
    ae: Autoencoder,
    data: Any,
    *,
    corruption: Corruption | Sequence[Corruption | None] | None = None,
    penalty: Callable | Sequence[Callable | None] | None = None,
    **training,
) -> list[History]:
    r"""Train a stack greedily, in place: each layer as a shallow autoencoder of the codes below it (Bengio et al. 2007).

    Layer l has codes :math:`h_l = f_l(h_{l-1})` with :math:`h_0 = x`, and with the layers below it fixed learns to give
    :math:`h_{l-1}` back through the decoder's layer that mirrors it. The first is judged by the model's own likelihood,
    those above by squared error; the top has the model's own prior and posterior. Since it is the model's own layers that
    are trained, the stack is unrolled already: ``fit(ae, data)`` then fine-tunes the whole.

    Args:
        ae: a model whose encoder and decoder are fully connected and mirror each other, or whose decoder is ``pa.nets.Tied``.
        data: as for ``fit``.
        corruption: of each layer's input while that layer learns: a stacked denoising autoencoder (Vincent et al. 2010). One
            for all, or a list with one or ``None`` for each layer, the lowest first.
        penalty: on each layer's code, such as ``pa.penalties.Contractive(.1)`` or, for an encoder of Sigmoid units,
            ``pa.penalties.KLSparsity()``; likewise.
        training: options of ``fit``, for each layer.

    Returns:
        The history of each layer, the lowest first.

    Raises:
        ValueError: networks that are no stacks or no mirrors of each other, a condition, a prior of several levels.

    >>> import pyroae as pa
    >>> digits = pa.data.load("digits")
    >>> deep = pa.recipes.autoencoder(digits, latent_dim=8, hidden=[32, 16])
    >>> [len(layer.rows) for layer in pretrain(deep, digits.train, epochs=2, progress=False)]
    [2, 2, 2]
    >>> history = pa.fit(deep, digits.train, epochs=2, progress=False)  # the whole
    """
    if "run" in training:
        raise ValueError("pretrain: its layers have no checkpoints; give run to the fit of the whole model")
    pairs = _pairs(ae)
    place = resolve_device(training.get("device", "auto"))
    ae.to(place)
    kinds = zip(_for_each(corruption, len(pairs), "corruption"), _for_each(penalty, len(pairs), "penalty"))
    histories, below, validation = [], data, Validation.of(training.pop("validation", None))
    held_out = validation.data
    for i, ((up, down), (noise, pull)) in enumerate(zip(pairs, kinds)):
        bottom, top = i == 0, i == len(pairs) - 1
        shallow = Autoencoder(
            prior=ae.prior if top else Flat(down[0].in_features),
            likelihood=ae.likelihood if bottom else Normal(below.shape[1], scale=1.0),
            posterior=ae.posterior if top else Delta(),
            encoder=up,
            decoder=down,
            corruption=noise,
            objective=None if pull is None else Penalised(pull),
        )
        histories.append(fit(shallow, below, validation=Validation(held_out, validation.patience), **training))
        below, held_out = (
            None if rows is None else _codes(shallow, Batches(rows, _ROWS, place, shuffle=False, model=shallow.model))
            for rows in (below, held_out)
        )
        for role, own in {"likelihood": bottom, "prior": top, "posterior": top}.items():
            if own:  # it was copied, with what it learns
                getattr(ae, role).load_state_dict(getattr(shallow, role).state_dict())
    ae.eval()
    return histories


def fine_tune(ae: Autoencoder, data: Any, classes: int | None = None, **training) -> "Classifier":
    """A classifier that starts from a trained encoder, all of it trained on labels: ``Classifier`` and ``fit``.

    Args:
        ae: whose encoder to start from; it stays as it is.
        data: a split with labels, or a tuple ``(x, y)``.
        classes: how many there are; by default, as many as the labels say.
        training: options of ``fit``.

    >>> import pyroae as pa
    >>> digits = pa.data.load("digits")
    >>> ae = pa.recipes.autoencoder(digits)
    >>> fine_tune(ae, digits.train, epochs=20, progress=False).error(digits.test) < 0.2
    True
    """
    classes = int(as_tensors(data, Classifier)[-1].max()) + 1 if classes is None else classes
    with programs.seeded(training.get("seed"), ae.device):
        classifier = Classifier(ae, classes)
    fit(classifier, data, guide=no_latents, **training)
    return classifier


class Classifier(PyroModule):
    r"""p(y|x) = softmax(W h(x) + b), h the mean of an autoencoder's q(z|x): a Pyro program with the site ``y`` in the plate ``data``.

    It has no latent site, so its guide is ``no_latents``, and the loss of any ELBO is the cross-entropy -log p(y|x).

    Args:
        ae: whose encoder is copied.
        classes: how many.

    >>> import pyroae as pa
    >>> digits = pa.data.load("digits")
    >>> encoded = pa.recipes.autoencoder(digits, latent_dim=4, hidden=[8])
    >>> isinstance(fine_tune(encoded, digits.train, epochs=1, progress=False), Classifier)
    True
    """

    takes_labels = True

    def __init__(self, ae: Autoencoder, classes: int):
        super().__init__(f"classifier_{next(_serial)}")
        if ae.condition is not None:
            raise ValueError("Classifier: expected a model of x alone, got one with a condition, whose encoder is told y")
        self.encoder, self.check = copy.deepcopy(ae.guide), ae.likelihood.check
        self.head = nn.Linear(ae.prior.event_shape.numel(), classes).to(ae.device)

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Observe the labels ``y`` of shape ``(B,)``, or draw them where they are ``None``."""
        with pyro.plate("data", len(x)):
            return pyro.sample("y", self.conditional(x), obs=y)

    def conditional(self, x: Tensor) -> dist.Categorical:
        """p(y|x) for ``x`` of shape ``(B, *event)``."""
        return dist.Categorical(logits=self.head(self.encoder.conditional(x).mean.flatten(1)))

    def error(self, data: Any) -> float:
        """Share of the data, a split with labels or a tuple ``(x, y)``, whose likeliest class is not theirs."""
        wrong, rows, batches = 0, 0, Batches(data, _ROWS, self.head.weight.device, shuffle=False, model=self)
        with programs.eval_mode(self, seed=None):
            for x, y in batches:
                wrong += (self.conditional(x).logits.argmax(-1) != y).sum().item()
                rows += len(x)
        return wrong / rows

    def check_data(self, x: Tensor, y: Tensor | None = None):
        """``ValueError`` unless ``x`` are data of the autoencoder's, and ``y`` one of the classes each."""
        if y is None:
            raise ValueError("Classifier: expected data with labels, a tuple (x, y) or a split such as pa.data.load('digits').train")
        self.check(x)
        classes = self.head.out_features
        if y.shape != x.shape[:1] or not bool(((y >= 0) & (y < classes)).all()):
            raise ValueError(f"Classifier: expected labels of shape ({len(x)},) from 0 to {classes - 1}, got shape {tuple(y.shape)}")


def no_latents(x: Tensor, y: Tensor | None = None):
    """The guide of a program without latent sites."""


def _pairs(ae: Autoencoder) -> list[tuple[nn.Module, nn.Module]]:
    """Each layer of the encoder, the lowest first, with the decoder's layer that mirrors it."""
    if ae.condition is not None or len(ae.prior.sites) > 1:
        raise ValueError("pretrain: expected a model without a condition and with one latent site")
    try:
        up, down = nets.layers(ae.encoder), nets.layers(ae.decoder)
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
