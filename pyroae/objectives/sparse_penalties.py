"""Penalties for sparse dictionaries, whose posteriors are ``TopK``, ``BatchTopK``, ``JumpReLU`` and ``Gated``."""

from typing import Any

import torch

from ..checks import whole_number
from ..registry import register
from .penalty import Penalty


class _OfSparsePoint(Penalty):
    """A penalty on a sparse code."""

    def _point(self, q: Any) -> Any:
        """The ``SparsePoint`` of single entries."""
        point = getattr(q, "base_dist", q)
        if not hasattr(point, "units"):
            raise ValueError(
                f"{type(self).__name__}: expected a sparse posterior such as pa.posteriors.JumpReLU or TopK, got {type(q).__name__}"
            )
        return point


@register("penalties")
class L0(_OfSparsePoint):
    r"""The number of active units: :math:`w \|z\|_0` (Rajamanoharan et al. 2024b, eq. 9), for the posterior ``JumpReLU``.

    Up to a constant it is the negative log-prior of a spike at 0 and a flat slab. The thresholds get their gradient from the posterior's
    kernel; the posteriors ``TopK``, ``BatchTopK`` and ``Gated`` have none.

    Args:
        weight: w, nats per active unit.

    >>> import pyroae as pa
    >>> jump = pa.recipes.dictionary(torch.randn(64, 16), latent_dim=32).replace(posterior=pa.posteriors.JumpReLU())
    >>> pa.fit(jump, torch.randn(64, 16), elbo=pa.Penalised(L0(0.1)), epochs=1, progress=False).objective
    'Penalised'
    """

    def __init__(self, weight: float = 1.0):
        super().__init__(weight)

    def __call__(self, x, z, q):
        return self.weight * self._point(q).active.flatten(-len(q.event_shape)).sum(-1).mean()


@register("penalties")
class GatedSparsity(_OfSparsePoint):
    r"""The loss of the gates of the posterior ``Gated`` (Rajamanoharan et al. 2024a, eq. 8).

    :math:`w \sum_j \mathrm{ReLU}(a_j) - \log p(x|\mathrm{ReLU}(a))`, with the decoder and the likelihood fixed in the second term.

    Args:
        weight: w, nats per unit of ReLU(a).

    >>> import pyroae as pa
    >>> gated = pa.recipes.dictionary(torch.randn(64, 16), latent_dim=32).replace(posterior=pa.posteriors.Gated())
    >>> pa.fit(gated, torch.randn(64, 16), elbo=pa.Penalised(GatedSparsity(0.1)), epochs=1, progress=False).objective
    'Penalised'
    """

    needs = ("decoder",)

    def __init__(self, weight: float = 1.0):
        super().__init__(weight)

    def __call__(self, x, z, q, decode):
        open_gates = self._point(q).units.relu()
        fixed = open_gates.detach().requires_grad_()
        with torch.enable_grad():
            error = -decode(fixed).log_prob(x)
            (slope,) = torch.autograd.grad(error.sum(), fixed)
        sparsity = open_gates.flatten(-len(q.event_shape)).sum(-1)
        reached = (slope * (open_gates - open_gates.detach())).flatten(-len(q.event_shape)).sum(-1)  # 0, with the gates' gradient
        return (self.weight * sparsity + error.detach() + reached).mean()


@register("penalties")
class DeadUnits(_OfSparsePoint):
    r"""The auxiliary loss for units that are never active (Gao et al. 2024, section A.2).

    :math:`w \sum_d (e_d - \hat e_d)^2 / 2 s_d^2`: e is the error of the reconstruction, :math:`\hat e` what the k likeliest dead units
    (those with the largest numbers before the activation) decode to, s the scale of p(x|z); 0 while no unit is dead.

    Args:
        weight: w; in the paper 1/32.
        k: number of dead units per example; in the paper half the size of x.
        after: number of training examples without activity after which a unit is dead.

    >>> import pyroae as pa
    >>> topk = pa.recipes.dictionary(torch.randn(64, 16), latent_dim=32, k=2)
    >>> pa.fit(topk, torch.randn(64, 16), elbo=pa.Penalised(DeadUnits(k=4, after=100)), epochs=2, progress=False).objective
    'Penalised'
    """

    needs = ("likelihood", "decoder")

    def __init__(self, weight: float = 1 / 32, k: int = 32, after: int = 100_000):
        super().__init__(weight)
        whole_number("DeadUnits", k=k, after=after)
        self.k, self.after = k, after

    def __call__(self, x, z, q, p, decode):
        point = self._point(q)
        dead = point.idle >= self.after
        candidates = torch.where(dead, point.units, -torch.inf).flatten(-len(q.event_shape))
        likeliest = candidates.topk(min(self.k, candidates.shape[-1]), -1, sorted=False)
        revived = torch.zeros_like(candidates).scatter(-1, likeliest.indices, likeliest.values.relu()).view_as(z)
        error, nothing = (x - p.mean).detach(), decode(torch.zeros_like(z)).mean.detach()
        left = (error - (decode(revived).mean - nothing)) / p.stddev.detach()
        return self.weight * dead.any() * left.square().flatten(-len(p.event_shape)).sum(-1).mean() / 2
