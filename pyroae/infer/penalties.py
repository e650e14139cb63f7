"""Penalties on the code, for ``Penalised``: functions of (x, z, q) in nats a datum, averaged over the batch."""

from typing import Any

import torch
from torch import Tensor

from ..part import Part


class Penalty(Part):
    """``penalty(x, z, q)``: x of shape ``(B, *event)``, the code z drawn for it, and the distribution q it came from."""

    differentiates = False  # whether it takes derivatives with respect to x

    def __init__(self, weight: float):
        if not weight >= 0.0:
            raise ValueError(f"{type(self).__name__}: expected a weight of at least 0, got {weight!r}")
        self.weight = weight

    def __call__(self, x: Tensor, z: Tensor, q: Any) -> Tensor:
        """The penalty, its weight included."""
        raise NotImplementedError


def code(x: Tensor, q: Any) -> Tensor:
    """The mean of q as a matrix ``(B, size)``, whatever the particles in front."""
    return q.mean.flatten(-len(q.event_shape)).reshape(-1, len(x), q.event_shape.numel())[0]


class L2(Penalty):
    """Squared length of the code: weight * sum_j z_j^2.

    With a flat prior and a ``Delta`` posterior it is a Normal prior of variance 1 / (2 weight) on the code.
    """

    def __init__(self, weight: float = 0.01):
        super().__init__(weight)

    def __call__(self, x, z, q):
        return self.weight * z.square().flatten(-len(q.event_shape)).sum(-1).mean()


class KLSparsity(Penalty):
    r"""Distance of the units' mean activations from a target, as a KL.

    :math:`w \sum_j \rho \log\frac{\rho}{\hat\rho_j} + (1 - \rho) \log\frac{1 - \rho}{1 - \hat\rho_j}`.

    :math:`\hat\rho_j` is unit j's mean activation over the batch; the code must lie in (0, 1), as it does under the
    prior ``Flat(size, support="unit_interval")`` (Ng 2011, lecture notes on sparse autoencoders).

    Args:
        weight: w.
        target: the mean activation asked for, rho.
    """

    def __init__(self, weight: float = 0.2, target: float = 0.1):
        super().__init__(weight)
        if not 0.0 < target < 1.0:
            raise ValueError(f"KLSparsity: expected target between 0 and 1, got {target!r}")
        self.target = target

    def __call__(self, x, z, q):
        rho, active = self.target, code(x, q).mean(0)
        return self.weight * (rho * (rho / active).log() + (1 - rho) * ((1 - rho) / (1 - active)).log()).sum()


class Classification(Penalty):
    r"""Cross-entropy of the classes that are told, :math:`-w \log q(y|x)`, nothing for the others (Kingma et al. 2014, eq. 9).

    For a guide whose first site is a category with ``guess``, q(y|x), and ``told``, one-hot or 0: ``pa.posteriors.Clusters``
    under the condition ``PartialLabels``.

    Args:
        weight: w, for each labelled datum; in the paper 0.1 times the data for each labelled one.
    """

    def __init__(self, weight: float = 1.0):
        super().__init__(weight)

    def __call__(self, x, z, q):
        if not hasattr(q, "told"):
            raise ValueError(
                "Classification: expected a guide that draws a class which may be told, such as pa.posteriors.Clusters under "
                f"pa.conditions.PartialLabels, got {type(q).__name__}"
            )
        return -self.weight * (q.told * q.guess.logits).sum(-1)


class Contractive(Penalty):
    r"""Squared Frobenius norm of the encoder's Jacobian, for any encoder (Rifai et al. 2011, eq. 2).

    :math:`w \|\partial h(x) / \partial x\|_F^2`, h the mean of q(z|x). The code of a datum must depend on that datum
    alone: no batch normalisation in training mode.

    Args:
        weight: w.
        probes: ``None`` for the exact Jacobian, a backward pass for each code unit; or how many random probes
            estimate its norm without bias (Hutchinson), each one backward pass.
    """

    differentiates = True

    def __init__(self, weight: float = 0.1, probes: int | None = None):
        super().__init__(weight)
        if probes is not None and probes < 1:
            raise ValueError(f"Contractive: expected probes of at least 1, or None for the exact Jacobian, got {probes!r}")
        self.probes = probes

    def __call__(self, x, z, q):
        h = code(x, q)  # (B, J)
        if self.probes is None:
            directions = torch.eye(h.shape[1], dtype=h.dtype, device=h.device).unsqueeze(1).expand(-1, *h.shape)
        else:
            directions = torch.randn(self.probes, *h.shape, dtype=h.dtype, device=h.device)
        (jacobian,) = torch.autograd.grad(h, x, directions, is_grads_batched=True, create_graph=True)  # (directions, B, *event)
        return self.weight * jacobian.square().sum() / (len(x) * (self.probes or 1))
