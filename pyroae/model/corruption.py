"""Corruptions C(x~|x): what a denoising autoencoder does to its encoder's input while training (Vincent et al. 2010)."""

from typing import Self

import torch
from torch import Tensor, nn

from ..nested import copied
from ..registry import Part, register, register_base
from .building import Context

__all__ = ["BernoulliMask", "Corruption", "Gaussian", "Masking", "Modalities", "SaltPepper"]


def __dir__() -> list[str]:
    return __all__


@register_base("corruption")
class Corruption(Part, nn.Module):
    """Maps ``x`` of shape ``(B, *event)`` to a noisy copy; draws fresh noise on every call, on x's device.

    >>> import pyroae as pa
    >>> isinstance(pa.corruption.Masking(), Corruption)
    True
    """

    def __init__(self):
        super().__init__()

    def build(self, context: Context) -> Self:
        """A copy for one model."""
        return copied(self)


def _share(fraction: float, owner: str) -> float:
    if not 0.0 <= fraction <= 1.0:
        raise ValueError(f"{owner}: expected fraction from 0 to 1, got {fraction!r}")
    return fraction


@register("corruption")
class Masking(Corruption):
    """Sets exactly ``floor(fraction * D)`` entries of each example, chosen at random, to 0.

    >>> (Masking(0.25)(torch.ones(3, 10)) == 0).sum(1)
    tensor([2, 2, 2])
    """

    def __init__(self, fraction: float = 0.25):
        super().__init__()
        self.fraction = _share(fraction, "Masking")

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        masked = int(self.fraction * flat.shape[1] + 1e-9)  # .29 * 100 is 28.999...
        chosen = torch.rand_like(flat).topk(masked, dim=1).indices
        return flat.scatter(1, chosen, 0.0).view_as(x)


@register("corruption")
class Modalities(Corruption):
    """Takes away whole parts of the likelihood ``Product``, each with probability ``fraction``: their entries become NaN.

    For ``pa.posteriors.ProductOfExperts`` and ``MixtureOfExperts``, which thereby learn from every subset of the modalities
    (Wu & Goodman 2018, section 2.3). The target stays whole: the loss bounds -log p of all that an example has.

    Args:
        fraction: probability.

    >>> import pyroae as pa
    >>> both = pa.likelihoods.Product({"x": pa.likelihoods.Normal(2), "label": pa.likelihoods.Categorical(1, 4)})
    >>> parts = {"encoder": pa.nets.Identity(), "posterior": pa.posteriors.ProductOfExperts(hidden=8), "corruption": Modalities(0.5)}
    >>> vae.replace(likelihood=both, **parts).corruption(torch.ones(4, 3)).isnan()[:, :2].sum(1) % 2
    tensor([0, 0, 0, 0])
    """

    def __init__(self, fraction: float = 0.5):
        super().__init__()
        self.fraction = _share(fraction, "Modalities")

    def build(self, context):
        if not getattr(context.likelihood, "allows_missing", False) or not hasattr(context.likelihood, "owners"):
            raise ValueError(
                "Modalities: expected the likelihood Product with parts that may be missing, such as with the posterior ProductOfExperts, "
                f"got {type(context.likelihood).__name__}"
            )
        built = copied(self)
        built.parts = len(context.likelihood.columns)
        built.register_buffer("owners", context.likelihood.owners, persistent=False)
        return built

    def forward(self, x: Tensor) -> Tensor:
        missing = torch.rand(*x.shape[:-1], self.parts, device=x.device) < self.fraction
        return x.masked_fill(missing.index_select(-1, self.owners), torch.nan)


@register("corruption")
class BernoulliMask(Corruption):
    """Sets each entry to 0 with probability ``fraction``, independently.

    >>> BernoulliMask(0.25)(torch.ones(3, 10)).unique()
    tensor([0., 1.])
    """

    def __init__(self, fraction: float = 0.25):
        super().__init__()
        self.fraction = _share(fraction, "BernoulliMask")

    def forward(self, x: Tensor) -> Tensor:
        return x * (torch.rand_like(x) >= self.fraction)


@register("corruption")
class Gaussian(Corruption):
    """Adds Normal noise: N(x, scale^2).

    >>> Gaussian(0.1)(torch.ones(3, 10)).shape
    torch.Size([3, 10])
    """

    def __init__(self, scale: float = 0.3):
        super().__init__()
        if not scale >= 0.0:
            raise ValueError(f"Gaussian: expected scale of at least 0, got {scale!r}")
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale * torch.randn_like(x)


@register("corruption")
class SaltPepper(Corruption):
    """Sets each entry, with probability ``fraction``, to the lowest or highest value, each half of the time.

    Args:
        fraction: share of entries changed.
        low, high: the two values; the batch's own extremes where ``None``, so the result stays in the data's range.

    >>> (SaltPepper(0.3)(torch.full((3, 10), 0.5)) != 0.5).sum(1)
    tensor([0, 0, 0])
    """

    def __init__(self, fraction: float = 0.25, low: float | None = None, high: float | None = None):
        super().__init__()
        self.fraction, self.low, self.high = _share(fraction, "SaltPepper"), low, high
        if low is not None and high is not None and not low < high:
            raise ValueError(f"SaltPepper: expected low < high, got low={low!r} and high={high!r}")

    def forward(self, x: Tensor) -> Tensor:
        low = x.amin() if self.low is None else self.low
        high = x.amax() if self.high is None else self.high
        u = torch.rand_like(x)
        return torch.where(u < self.fraction / 2, low, torch.where(u < self.fraction, high, x))
