"""Sparse codes: points most of whose entries are exactly 0, for dictionaries (``pa.recipes.dictionary``)."""

import math

import torch
from pyro import distributions as dist
from torch import Tensor, nn
from torch.distributions import constraints

from ...checks import whole_number
from ...registry import register
from ..conditional import Shape
from ..distributions import SparsePoint
from .base import Posterior

_MEMORY = 0.01  # the weight of a batch in the running mean of BatchTopK's threshold


class SparsePosterior(Posterior):
    """A point computed from the encoder's output by a sparse activation: no negative entries, most of them 0.

    ``idle`` counts, in training mode, the examples since each unit was last active.
    """

    def __init__(self, event_shape: Shape | None = None):
        super().__init__(dist.Delta, event_shape, limits={"v": constraints.real})
        if self.event_shape is not None:
            self.register_buffer("idle", torch.zeros(self.event_shape))

    def make(self, v):
        """The distribution of single entries."""
        z, active = self.activate(v)
        return SparsePoint(z, v, active, self.idle)

    def activate(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """The code, and 1 where a unit is active, of the encoder's output ``(..., *event)``."""
        raise NotImplementedError

    def draw(self, h, c=None, x=None):
        z = super().draw(h, c, x)
        if self.training:
            self._track(z.detach(), h.detach())
        return z

    @torch.no_grad()
    def _track(self, z: Tensor, h: Tensor):
        """Update running statistics from a batch, in training mode, as BatchNorm does."""
        rows = z.reshape(-1, *self.event_shape)
        self.idle.add_(len(rows)).mul_((rows == 0).all(0).to(self.idle.dtype))

    def _check_support(self, support):
        """Checked with draws."""


@register("posteriors")
class TopK(SparsePosterior):
    r"""The k largest numbers of the encoder's output, where they are positive (Gao et al. 2024, eq. 1-2).

    :math:`z = \mathrm{TopK}(W x + b)`. With the prior ``Flat`` it is the MAP code of an encoder under a prior that is uniform over
    supports of size k, improper and flat within a support: the loss is -log p(x|z), and exactly k units are active.

    Args:
        event_shape: shape of one z.
        k: number of active units.

    >>> TopK(4, k=2)(torch.tensor([[0.5, -1.0, 3.0, 2.0]])).mean
    tensor([[0., 0., 3., 2.]])
    """

    def __init__(self, event_shape: Shape | None = None, k: int = 32):
        super().__init__(event_shape)
        _check_k(self, k)
        self.k = k

    def activate(self, v):
        flat = v.flatten(-len(self.event_shape))
        largest = flat.topk(self.k, -1, sorted=False)
        z = torch.zeros_like(flat).scatter(-1, largest.indices, largest.values.relu()).view_as(v)
        return z, (z > 0).to(z.dtype)


@register("posteriors")
class BatchTopK(SparsePosterior):
    r"""The k B largest numbers of a batch of B examples, so that k units are active on average (Bussmann et al. 2024, section 2.2).

    In evaluation mode a unit is active where it exceeds a threshold, the running mean over the last hundred or so batches of the
    smallest active number; an example's code then does not depend on others. Of the prior, see ``TopK``.

    Args:
        event_shape: shape of one z.
        k: mean number of active units.

    >>> BatchTopK(3, k=1)(torch.tensor([[0.5, -1.0, 0.1], [0.2, 3.0, 2.0]])).mean
    tensor([[0., 0., 0.],
            [0., 3., 2.]])
    """

    def __init__(self, event_shape: Shape | None = None, k: int = 32):
        super().__init__(event_shape)
        _check_k(self, k)
        self.k = k
        self.register_buffer("threshold", torch.zeros(()))
        self.register_buffer("batches", torch.zeros(()))

    def activate(self, v):
        active = (v >= (self._smallest(v) if self.training else self.threshold)) & (v > 0)
        return torch.where(active, v, 0.0), active.to(v.dtype)

    def _smallest(self, v: Tensor) -> Tensor:
        """The k B-th largest number."""
        examples = v.numel() // self.event_shape.numel()
        return v.detach().flatten().topk(self.k * examples, sorted=False).values.min()

    @torch.no_grad()
    def _track(self, z, h):
        super()._track(z, h)
        share = self.batches.add_(1.0).reciprocal().clamp(min=_MEMORY)
        self.threshold.lerp_(self._smallest(h).clamp(min=0.0).to(self.threshold.dtype), share.to(self.threshold.dtype))


@register("posteriors")
class JumpReLU(SparsePosterior):
    r"""Units above a learned threshold, unchanged: :math:`z_j = a_j\, 1[a_j > \theta_j]` (Rajamanoharan et al. 2024b, eq. 3).

    With the penalty ``L0``, whose weight times the number of active units is, up to a constant, the negative log-prior of a spike at 0
    and a flat slab. The thresholds have no gradient; training uses a kernel of width eps around them (eq. 11 and 12):
    :math:`\partial z_j/\partial\theta_j = -\frac{\theta_j}{\epsilon} 1[|a_j - \theta_j| < \frac\epsilon2]`, and for the number of
    active units :math:`-\frac1\epsilon 1[\cdot]`.

    Args:
        event_shape: shape of one z.
        threshold: initial value of the thresholds; near the scale of the encoder's outputs, from which few units are active, more variance
            is explained in the end than from a lower one.
        bandwidth: eps; the paper has .001 for x of mean squared norm 1, which is .02 for 400 standardised columns.

    >>> JumpReLU(3, threshold=0.5)(torch.tensor([[0.4, 0.6, -1.0]])).mean
    tensor([[0.0000, 0.6000, 0.0000]], grad_fn=<SubBackward0>)
    """

    def __init__(self, event_shape: Shape | None = None, threshold: float = 0.1, bandwidth: float = 0.1):
        super().__init__(event_shape)
        if not (threshold > 0 and bandwidth > 0):
            raise ValueError(f"JumpReLU: expected a positive threshold and bandwidth, got {threshold!r} and {bandwidth!r}")
        self.bandwidth = bandwidth
        if self.event_shape is not None:
            self.log_threshold = nn.Parameter(torch.full(self.event_shape, math.log(threshold)))

    def activate(self, v):
        theta = self.log_threshold.exp()
        above = v > theta
        kernel = ((v - theta).abs() < self.bandwidth / 2).to(v.dtype).detach() / self.bandwidth
        moved = kernel * (theta - theta.detach())  # 0, with the kernel as its gradient
        return torch.where(above, v, 0.0) - theta.detach() * moved, above.to(v.dtype) - moved


@register("posteriors")
class Gated(SparsePosterior):
    r"""Units whose gate is open, with a magnitude of their own: :math:`z = 1[a > 0]\, \mathrm{ReLU}(e^r a + b)`.

    a is the encoder's output; gate and magnitude share its weights up to the scale r and the bias b, which are learned
    (Rajamanoharan et al. 2024a, eq. 6 and 7). For the penalty ``GatedSparsity``, from which the gates have their gradient.

    Args:
        event_shape: shape of one z.

    >>> Gated(3)(torch.tensor([[0.4, 0.6, -1.0]])).mean
    tensor([[0.4000, 0.6000, 0.0000]], grad_fn=<MulBackward0>)
    """

    def __init__(self, event_shape: Shape | None = None):
        super().__init__(event_shape)
        if self.event_shape is not None:
            self.log_scale, self.bias = (nn.Parameter(torch.zeros(self.event_shape)) for _ in range(2))

    def activate(self, v):
        magnitude = (self.log_scale.exp() * v + self.bias).relu()
        z = magnitude * (v > 0).to(v.dtype)
        return z, (z > 0).to(v.dtype)


def _check_k(part: SparsePosterior, k: int):
    whole_number(type(part).__name__, k=k)
    if part.event_shape is not None and k > part.event_shape.numel():
        raise ValueError(f"{type(part).__name__}: expected k of at most the {part.event_shape.numel()} latent dimensions, got {k}")
