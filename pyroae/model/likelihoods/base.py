"""``Likelihood``, the base class of likelihoods: checks of data, the encoder's input, a mean or mode to show."""

import itertools

import torch
from pyro import distributions as dist
from torch import Tensor
from torch.distributions import constraints

from ...registry import register_base
from .. import distributions
from ..building import DistributionPart
from ..conditional import Conditional, describe, entry_constraint


@register_base("likelihoods")
class Likelihood(Conditional, DistributionPart):
    """A distribution over one x given the decoder's output; data outside its support are refused.

    >>> import pyroae as pa
    >>> isinstance(pa.likelihoods.Gamma(64), Likelihood)
    True
    """

    remedy = "choose a likelihood whose support has these data"
    allows_missing = False  # whether NaN in x is a missing entry
    mask = False  # whether the mask of observed entries is an input of the encoder

    def support(self, like: Tensor) -> constraints.Constraint:
        """The constraint on x, for tensors of the dtype and device of ``like``."""
        return self(torch.zeros(self.size, dtype=like.dtype, device=like.device)).support

    def _on_device(self, x: Tensor) -> Tensor:
        """``x`` on the device of this part."""
        own = next(itertools.chain(self.parameters(), self.buffers()), x)
        return x.to(own.device)

    @property
    def bounded(self) -> bool:
        """Whether x lies between 0 and 1."""
        limit = entry_constraint(self.support(torch.zeros(())))
        return limit in (constraints.boolean, constraints.unit_interval) or isinstance(limit, distributions.InUnitInterval)

    def mean_or_mode(self, p: dist.Distribution) -> Tensor:
        """The mean of p(x|z), or its mode where it has no mean; shown in pictures."""
        mean = p.mean
        try:
            return torch.where(mean.isfinite(), mean, p.mode)
        except (NotImplementedError, AttributeError):
            return mean

    @property
    def input_shape(self) -> torch.Size:
        """The shape of the encoder's input of one x."""
        return self.event_shape

    def preprocess(self, x: Tensor) -> Tensor:
        """The encoder's input, ``(..., *input_shape)``: x, or x standardised, log1p of counts, one-hot categories; NaN may stay."""
        return x

    def track(self, x: Tensor, p: dist.Distribution):
        """Update running statistics from a batch and its p(x|z), in training mode, as BatchNorm does in its forward."""

    def measure(self, x: Tensor):
        """Set location and scale from training data ``(N, *event)``, if this likelihood has any (``Standardised``)."""

    @property
    def measured(self) -> bool:
        """Whether ``measure`` was called, or is not needed."""
        return True

    def check_shape(self, x: Tensor):
        """``ValueError`` unless ``x`` is a floating-point tensor of shape ``(B, *event_shape)``; values are not checked."""
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
        x, owner = self._on_device(x), type(self).__name__
        if len(x) == 0:
            raise ValueError(f"{owner}: expected at least one example, got x of shape {tuple(x.shape)}")
        if not bool(torch.isfinite(x).all()):
            bad = int((~torch.isfinite(x)).flatten(1).any(1).sum())
            holes = f", or say that values may be missing: Missing({owner}(...)) (--likelihood Missing --likelihood.of {owner})"
            remedy = "drop these rows" + holes * (not bool(x.isinf().any()))
            raise ValueError(f"{owner}: expected finite numbers, got NaN or infinity in {bad} of {len(x)} rows; {remedy}")
        support = self.support(x)
        inside = support.check(x)
        if not bool(inside.all()):
            outside = 1 - inside.double().mean().item()
            raise ValueError(
                f"{owner}: expected every entry of x to be {describe(support)}, "
                f"got entries from {x.min().item():.4g} to {x.max().item():.4g}, "
                f"{outside:.1%} of the data outside; {self.remedy}"
            )
