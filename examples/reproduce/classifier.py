"""A classifier on top of a trained encoder, which is fine-tuned with it: p(y|x) as a Pyro program without latent variables."""

import copy
import itertools
from typing import Any

import pyro
import torch
from pyro import distributions as dist
from pyro.nn import PyroModule
from torch import Tensor, nn

import pyroae as pa

_ROWS = 1024  # per batch of ``error``
_number = itertools.count()  # each classifier has its own names in Pyro's parameter store


def fine_tune(ae: pa.Autoencoder, data: pa.data.Split, classes: int | None = None, seed: int | None = None, **training) -> "Classifier":
    """A classifier that starts from a copy of a model's encoder, trained by ``pa.fit`` on examples with labels.

    Args:
        ae: the model; it is not changed.
        data: examples with labels.
        classes: their number; by default that of the labels.
        seed: of the initial weights and of training.
        training: further arguments of ``pa.fit``.
    """
    classes = int(data.labels.max()) + 1 if classes is None else classes
    with torch.random.fork_rng(enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        classifier = Classifier(ae, classes)
    pa.fit(classifier, data, guide=no_latents, seed=seed, **training)
    return classifier


class Classifier(PyroModule):
    """p(y|x) = softmax(W h(x) + b), where h is the mean of q(z|x).

    The only site is ``y``, in the plate ``data``; with the guide ``no_latents`` the loss of any ELBO is the cross-entropy.

    Args:
        ae: an unconditional model, whose encoder is copied.
        classes: number of classes.
    """

    takes_labels = True  # so that pa.fit passes the labels of a split

    def __init__(self, ae: pa.Autoencoder, classes: int):
        super().__init__(f"classifier_{next(_number)}")
        if ae.condition is not None:
            raise ValueError("Classifier: expected a model of x alone, got one with a condition, whose encoder depends on y")
        self.encoder = copy.deepcopy(ae.guide)
        self.head = nn.Linear(ae.prior.event_shape.numel(), classes).to(ae.device)

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Observe the labels ``y`` of shape ``(B,)``, or sample them if they are ``None``."""
        with pyro.plate("data", len(x)):
            return pyro.sample("y", dist.Categorical(logits=self.logits(x)), obs=y)

    def logits(self, x: Tensor) -> Tensor:
        """Of p(y|x), ``(B, classes)``."""
        return self.head(self.encoder.conditional(x).mean.flatten(1))

    @torch.no_grad()
    def error(self, data: pa.data.Split) -> float:
        """The fraction of examples whose most probable class is wrong."""
        self.eval()
        batches = zip(data.x[:].split(_ROWS), data.labels.split(_ROWS))
        wrong = [self.logits(x.to(self.head.weight.device)).argmax(1).cpu() != y for x, y in batches]
        return torch.cat(wrong).double().mean().item()


def no_latents(x: Any, y: Any = None):
    """The guide of a program without latent variables."""
