"""Likelihoods p(x|z): conditionals that know which data they are for."""

import torch
from pyro import distributions as dist
from torch import Tensor

from ..part import Part
from . import distributions
from .conditional import Conditional, Shape, in_words, pyro_family


class Likelihood(Conditional, Part):
    """A distribution over one x given the decoder's output; refuses data outside its support."""

    remedy = "choose a likelihood whose support holds these data"

    def check_shape(self, x: Tensor):
        """``ValueError`` unless ``x`` is a floating-point tensor of shape ``(B, *event_shape)``. Looks at no value."""
        owner, shape = type(self).__name__, ", ".join(map(str, self.event_shape))
        if not isinstance(x, Tensor):
            raise ValueError(f"{owner}: expected x as a torch.Tensor of shape (B, {shape}), got {type(x).__name__}; use torch.as_tensor(x)")
        if not x.is_floating_point():
            raise ValueError(f"{owner}: expected x in floating point, got {x.dtype}; use x.float(), or x.float() / 255 for 8-bit images")
        if x.shape[1:] != self.event_shape or x.dim() == 0:
            same = x.dim() > 0 and x.shape[1:].numel() == self.event_shape.numel()
            hint = f"x.reshape(-1, {shape})" if same else f"a likelihood and a decoder for events of shape {tuple(x.shape[1:])}"
            raise ValueError(f"{owner}: expected x of shape (B, {shape}), got {tuple(x.shape)}; use {hint}")

    def check(self, x: Tensor):
        """``ValueError`` unless ``x`` has the right shape, at least one row, no NaN, and every entry is in the support."""
        self.check_shape(x)
        owner = type(self).__name__
        if len(x) == 0:
            raise ValueError(f"{owner}: expected at least one datum, got x of shape {tuple(x.shape)}")
        if not bool(torch.isfinite(x).all()):
            bad = int((~torch.isfinite(x)).flatten(1).any(1).sum())
            raise ValueError(f"{owner}: expected finite numbers, got NaN or infinity in {bad} of {len(x)} rows; drop or fill them")
        support = self(torch.zeros(self.size, device=x.device)).support
        inside = support.check(x)
        if not bool(inside.all()):
            outside = 1 - inside.double().mean().item()
            raise ValueError(
                f"{owner}: expected every entry of x to be {in_words(support)}, "
                f"got entries from {x.min().item():.4g} to {x.max().item():.4g}, "
                f"{outside:.1%} of the data outside; {self.remedy}"
            )


class Bernoulli(Likelihood):
    r"""Binary x: cross-entropy from logits; nothing is clamped.

    :math:`\log p(x|z) = \sum_d x_d l_d - \log(1 + e^{l_d})` for the decoder's numbers ``l``.

    >>> Bernoulli(2)(torch.tensor([40.0, 0.0])).log_prob(torch.tensor([0.0, 1.0]))
    tensor(-40.6931)
    """

    remedy = "binarize the data (binarize='threshold', 'static' or 'dynamic') or use ContinuousBernoulli for grey levels"

    def __init__(self, event_shape: Shape | None = None):
        super().__init__(dist.Bernoulli, event_shape)


class ContinuousBernoulli(Likelihood):
    """x between 0 and 1: cross-entropy plus the normaliser that makes it a density.

    Loaiza-Ganem & Cunningham 2019, eq. 5.
    """

    remedy = "rescale the data to the range 0 to 1 or use Normal"

    def __init__(self, event_shape: Shape | None = None):
        super().__init__(distributions.ContinuousBernoulli, event_shape)


class Normal(Likelihood):
    r"""Real x: squared error, with a scale that is fixed, learned or the decoder's.

    :math:`\log p(x|z) = -\sum_d \frac{(x_d - \mu_d)^2}{2 s_d^2} + \log s_d + \tfrac12 \log 2\pi`.
    ``scale`` is a number (1.0: squared error), ``"learned"`` (one for all), ``"per_dimension"`` (learned, one for each)
    or ``None`` (from the decoder, for each datum and dimension).
    """

    def __init__(self, event_shape: Shape | None = None, scale: float | str | None = "learned"):
        super().__init__(dist.Normal, event_shape, scale=scale)


class FromPyro(Likelihood):
    """Any Pyro distribution by name; what is not given as a keyword comes from the decoder.

    >>> FromPyro("StudentT", 64, df=3.0).size
    128
    """

    def __init__(self, family: str | type, event_shape: Shape | None = None, **parameters):
        super().__init__(pyro_family(family, "FromPyro"), event_shape, **parameters)


BY_DOMAIN = {"binary": Bernoulli, "unit": ContinuousBernoulli, "real": Normal, "counts": lambda: FromPyro("Poisson")}
