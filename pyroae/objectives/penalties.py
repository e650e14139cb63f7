"""Penalties on the latents, for ``Penalised``: functions of (x, z, q) in nats per example, averaged over the batch."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from ..checks import whole_number
from ..programs.terms import factorises
from ..registry import register
from .generative_penalties import Commitment, DecoderJacobian, DecoderL2, Emphasis, MultiScaleSSIM
from .penalty import Penalty, flat_latent, latent_mean
from .sparse_penalties import L0, DeadUnits, GatedSparsity

__all__ = [
    "DeadUnits",
    "GatedSparsity",
    "L0",
    "Classification",
    "Commitment",
    "Contractive",
    "DecoderJacobian",
    "DecoderL2",
    "KLSparsity",
    "L1",
    "L2",
    "MMD",
    "Emphasis",
    "MultiScaleSSIM",
    "Penalty",
    "SigmoidContractive",
    "TotalCorrelation",
]


def __dir__() -> list[str]:
    return __all__


@register("penalties")
class L2(Penalty):
    """Squared norm of the latents: weight * sum_j z_j^2.

    With a flat prior and a ``Delta`` posterior it is a Normal prior of variance 1 / (2 weight).

    >>> import pyroae as pa
    >>> elbo = pa.objectives.Penalised(L2(0.1))
    >>> pa.fit(vae, torch.rand(64, 16).round(), elbo=elbo, epochs=1, progress=False).objective
    'Penalised'
    """

    def __init__(self, weight: float = 0.01):
        super().__init__(weight)

    def __call__(self, x, z, q):
        return self.weight * flat_latent(z, q).square().sum(-1).mean()


@register("penalties")
class L1(Penalty):
    """L1 norm of the latents: weight * sum_j |z_j|.

    With a flat prior and a ``Delta`` posterior it is a Laplace prior of scale 1 / weight.

    >>> import pyroae as pa
    >>> elbo = pa.objectives.Penalised(L1(0.1))
    >>> pa.fit(vae, torch.rand(64, 16).round(), elbo=elbo, epochs=1, progress=False).objective
    'Penalised'
    """

    def __init__(self, weight: float = 0.01):
        super().__init__(weight)

    def __call__(self, x, z, q):
        return self.weight * flat_latent(z, q).abs().sum(-1).mean()


@register("penalties")
class KLSparsity(Penalty):
    r"""KL of a target activation from the units' mean activations.

    :math:`w \sum_j \rho \log\frac{\rho}{\hat\rho_j} + (1 - \rho) \log\frac{1 - \rho}{1 - \hat\rho_j}`.

    :math:`\hat\rho_j` is unit j's mean activation over the batch; latents must lie in (0, 1), as with the prior
    ``Flat(size, support="unit_interval")`` (Ng 2011, lecture notes on sparse autoencoders).

    Args:
        weight: w.
        target: target mean activation, rho.

    >>> import pyroae as pa
    >>> digits = pa.data.load("digits")
    >>> sigmoid = pa.recipes.autoencoder(digits, latent_dim=2).replace(prior=pa.priors.Flat(2, support="unit_interval"))
    >>> sigmoid.replace(objective=pa.objectives.Penalised(KLSparsity(0.2, 0.1))).objective.penalty.target
    0.1
    """

    def __init__(self, weight: float = 0.2, target: float = 0.1):
        super().__init__(weight)
        if not 0.0 < target < 1.0:
            raise ValueError(f"KLSparsity: expected target between 0 and 1, got {target!r}")
        self.target = target

    def __call__(self, x, z, q):
        rho, mean = self.target, latent_mean(x, q).mean(0)
        return self.weight * (rho * (rho / mean).log() + (1 - rho) * ((1 - rho) / (1 - mean)).log()).sum()


@register("penalties")
class Classification(Penalty):
    r"""Cross-entropy of the known labels, :math:`-w \log q(y|x)`, zero for unlabelled examples (Kingma et al. 2014, eq. 9).

    For a guide whose first site is a categorical with ``predicted``, q(y|x), and ``labels``, one-hot or 0:
    ``pa.posteriors.Clusters`` under the condition ``PartialLabels``.

    Args:
        weight: w, per labelled example; in the paper 0.1 times the number of examples per labelled one.

    >>> Classification(weight=2.0).weight
    2.0
    """

    def __init__(self, weight: float = 1.0):
        super().__init__(weight)

    def __call__(self, x, z, q):
        if not hasattr(q, "labels"):
            raise ValueError(
                "Classification: expected a guide whose first site is a class with labels, such as pa.posteriors.Clusters under "
                f"pa.conditions.PartialLabels, got {type(q).__name__}"
            )
        return -self.weight * (q.labels * q.predicted.logits).sum(-1)


@register("penalties")
class Contractive(Penalty):
    r"""Squared Frobenius norm of the encoder's Jacobian, for any encoder (Rifai et al. 2011, eq. 2).

    :math:`w \|\partial h(x) / \partial x\|_F^2`, h the mean of q(z|x), which must depend on its own example only: no
    batch normalisation in training mode.

    Args:
        weight: w.
        probes: ``None`` for the exact Jacobian, one backward pass per latent dimension; or the number of random probes
            of an unbiased estimate (Hutchinson), one backward pass each.

    >>> import pyroae as pa
    >>> elbo = pa.objectives.Penalised(Contractive(0.1))
    >>> pa.fit(vae, torch.rand(64, 16).round(), elbo=elbo, epochs=1, progress=False).objective
    'Penalised'
    """

    needs_input_grad = True

    def __init__(self, weight: float = 0.1, probes: int | None = None):
        super().__init__(weight)
        if probes is not None and probes < 1:
            raise ValueError(f"Contractive: expected probes of at least 1, or None for the exact Jacobian, got {probes!r}")
        self.probes = probes

    def __call__(self, x, z, q):
        h = latent_mean(x, q)  # (B, J)
        if self.probes is None:
            directions = torch.eye(h.shape[1], dtype=h.dtype, device=h.device).unsqueeze(1).expand(-1, *h.shape)
        else:
            directions = torch.randn(self.probes, *h.shape, dtype=h.dtype, device=h.device)
        (jacobian,) = torch.autograd.grad(h, x, directions, is_grads_batched=True, create_graph=True)  # (directions, B, *event)
        return self.weight * jacobian.square().sum() / (len(x) * (self.probes or 1))


@register("penalties")
class SigmoidContractive(Penalty):
    r"""``Contractive`` in closed form, for an encoder of one sigmoid layer: :math:`w \sum_j (h_j (1 - h_j))^2 \|W_j\|^2`.

    h is the mean of q(z|x), with the prior ``Flat(size, support="unit_interval")`` and a ``Delta`` posterior (Rifai et al.
    2011, eq. 5). It needs no derivatives.

    Args:
        layer: the encoder's linear layer that is trained; so pass this penalty to ``fit``, not to an Autoencoder.
        weight: w.

    >>> SigmoidContractive(nn.Linear(16, 3), weight=0.1).weight
    0.1
    """

    def __init__(self, layer: nn.Linear, weight: float = 0.1):
        super().__init__(weight)
        if not isinstance(layer, nn.Linear):
            raise ValueError(f"SigmoidContractive: expected the encoder's only layer, a torch.nn.Linear, got {type(layer).__name__}")
        self.layer = layer

    def __call__(self, x, z, q):
        h = latent_mean(x, q)
        if h.shape[1] != self.layer.out_features:
            raise ValueError(f"SigmoidContractive: the layer has {self.layer.out_features} units but latent_dim is {h.shape[1]}")
        return self.weight * ((h * (1 - h)).square() @ self.layer.weight.square().sum(1)).mean()


@register("penalties")
class TotalCorrelation(Penalty):
    r"""Total correlation of the aggregate posterior: :math:`w\, KL(q(z) \,\|\, \prod_j q(z_j))`.

    Around an ELBO with a weight of :math:`\beta - 1` this is beta-TCVAE (Chen et al. 2018, eq. 4). q(z), the mean of
    q(z|x) over the data set, is estimated from the batch: an example's own posterior has weight 1 / num_data, the others
    share the rest (stratified sampling, appendix C.2, with equal weights). The densities are unbiased, their logarithms
    are biased, less so for larger batches; exact if the batch is the data set. Cost: B^2 densities of z.

    Args:
        num_data: number of examples in the training set.
        weight: w.

    >>> import pyroae as pa
    >>> elbo = pa.objectives.Penalised(TotalCorrelation(num_data=64))
    >>> pa.fit(vae, torch.rand(64, 16).round(), elbo=elbo, epochs=1, progress=False).objective
    'Penalised'
    """

    def __init__(self, num_data: int, weight: float = 5.0):
        super().__init__(weight)
        whole_number("TotalCorrelation", num_data=num_data)
        self.num_data = num_data

    def __call__(self, x, z, q):
        if not factorises(q):
            raise ValueError(
                f"TotalCorrelation: expected a posterior that is a product over dimensions, such as a Normal, got {type(q).__name__}"
            )
        event_dim = len(q.event_shape)
        draws = z.movedim(-1 - event_dim, 0).unsqueeze(-1 - event_dim)  # (B, particles..., 1, *event)
        log_q = q.base_dist.log_prob(draws).flatten(-event_dim)  # (B, particles..., B, J): every draw under every posterior
        log_weights = self._log_weights(len(x), z).reshape(len(x), *[1] * (log_q.dim() - 3), len(x))
        joint, product = (log_q.sum(-1) + log_weights).logsumexp(-1), (log_q + log_weights.unsqueeze(-1)).logsumexp(-2).sum(-1)
        return self.weight * (joint - product).mean()

    def _log_weights(self, n: int, like: Tensor) -> Tensor:
        """Log-weight of each posterior at each draw, ``(draws, posteriors)``."""
        if n > self.num_data:
            raise ValueError(f"TotalCorrelation: expected num_data as the size of the training set, got {self.num_data} and a batch of {n}")
        if n == 1:
            return like.new_zeros(1, 1)
        others = like.new_full((n, n), math.log1p(-1 / self.num_data) - math.log(n - 1))
        return others + torch.eye(n, dtype=like.dtype, device=like.device) * (-math.log(self.num_data) - others)


@register("penalties")
class MMD(Penalty):
    r"""Maximum mean discrepancy between aggregate posterior and prior: :math:`w\, MMD^2(q(z), p(z))`.

    Around ``Tempered(0)`` this is the Wasserstein autoencoder (Tolstikhin et al. 2018, algorithm 2), around ``Tempered(b)``
    InfoVAE (Zhao et al. 2019, eq. 6). :math:`MMD^2` is estimated without bias from the batch's latents and as many draws
    from the prior, with the kernel :math:`\sum_s sC / (sC + |z - z'|^2)`, s from .1 to 10 and C the mean squared distance
    of two draws from the prior. :math:`MMD^2` has no unit: w converts it to nats.

    Args:
        weight: w.

    >>> import pyroae as pa
    >>> elbo = pa.objectives.Penalised(MMD(10.0))
    >>> pa.fit(vae, torch.rand(64, 16).round(), elbo=elbo, epochs=1, progress=False).objective
    'Penalised'
    """

    needs = ("prior",)

    def __init__(self, weight: float = 10.0):
        super().__init__(weight)

    def __call__(self, x, z, q, p):
        latents = flat_latent(z, q).flatten(0, -2)
        draws = _sample(p).expand_as(z).reshape(latents.shape)
        if len(latents) < 2:
            return 0.0 * latents.sum()
        width = _mean_of_pairs(_squared_distances(draws, draws)).detach()
        within = sum(_mean_of_pairs(_kernel(_squared_distances(a, a), width)) for a in (latents, draws))
        return self.weight * (within - 2 * _kernel(_squared_distances(latents, draws), width).mean())


def _sample(p: Any) -> Tensor:

    try:
        return p.rsample() if p.has_rsample else p.sample()
    except NotImplementedError as error:
        raise ValueError(f"MMD: the prior, a {type(p).__name__}, cannot be sampled; use one such as pa.priors.Normal") from error


def _squared_distances(a: Tensor, b: Tensor) -> Tensor:
    return (a.square().sum(1, keepdim=True) + b.square().sum(1) - 2 * a @ b.T).clamp(min=0)


def _mean_of_pairs(k: Tensor) -> Tensor:
    """Mean of the off-diagonal flat_latent of a square matrix."""
    return (k.sum() - k.diagonal().sum()) / (len(k) * (len(k) - 1))


def _kernel(squared: Tensor, width: Tensor) -> Tensor:
    return sum(s * width / (s * width + squared) for s in (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0))
