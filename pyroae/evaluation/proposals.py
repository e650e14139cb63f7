"""Proposals for importance sampling other than the guide: a proposal makes a guide for one block of examples.

``proposal(model, guide, *args)`` returns a Pyro guide for ``args``. Pass it to ``pa.log_likelihood(..., proposal=...)``
or to ``pa.ais``. Any function with that signature will do.
"""

import math

import torch
from pyro import distributions as dist
from torch import Tensor

from ..checks import whole_number
from ..programs import Program
from .adaptive import Adaptive
from .density import Density, FlatGuide, PriorGuide
from .modes import minimised

__all__ = ["Adaptive", "Laplace", "Optimised", "prior"]


def __dir__() -> list[str]:
    return __all__


_DRAWS = 256  # from the guide or the prior, for their location and width


def prior(model: Program, guide: Program, *args: Tensor) -> Program:
    """p(z), whatever the guide. For latents of few dimensions, and as the base of AIS.

    >>> import pyroae as pa
    >>> pa.log_likelihood(vae, x, particles=30, proposal=prior).values.shape
    torch.Size([20])
    """
    return PriorGuide(model)


class Laplace:
    r"""A Normal at the mode of p(z|x), with the curvature there: :math:`N(\hat z, [-\nabla^2 \log p(x, \hat z)]^{-1})`.

    The mode is located by Adam from the guide's mean and then Newton steps, for all examples at once; the curvature is bounded
    below by half that of the prior, so that the proposal is never much wider than the prior. This also scores deterministic
    autoencoders with a proper prior. z in a constrained space is mapped to the real line first.

    Args:
        steps: of Adam.
        newton: steps of Newton's method after them, each taken only where it increases the density.
        lr: Adam's first learning rate, in units of z's prior standard deviation.

    >>> import pyroae as pa
    >>> pa.log_likelihood(vae, x, particles=30, proposal=Laplace(steps=5)).values.shape
    torch.Size([20])
    """

    def __init__(self, steps: int = 200, newton: int = 3, lr: float = 0.1):
        whole_number("Laplace", steps=steps)
        self.steps, self.newton, self.lr = steps, newton, lr

    def __call__(self, model: Program, guide: Program, *args: Tensor) -> Program:
        density = Density(model, guide, args)
        width = Density(model, PriorGuide(model), args).draw(_DRAWS).std(0)  # (B, size)
        u = _climbed(density, density.draw(_DRAWS).mean(0), width, self.steps, self.lr)
        for _ in range(self.newton):
            u = _newton_step(density, u, width)
        _, precision = _curvature(density, u, width)
        return FlatGuide(density, dist.MultivariateNormal(u, precision_matrix=precision))


class Optimised:
    r"""For each example the Normal with the largest ELBO, :math:`\arg\max_q E_q[\log p(x, z) - \log q(z)]`, starting at the guide.

    By Adam on draws with the path derivative alone (Roeder et al. 2017), whose noise vanishes where q is exact. Where the
    guide is a diagonal Normal, the gain over the guide is the amortization gap (Cremer et al. 2018, eq. 5).

    Args:
        steps: of Adam, its learning rate falling to 0.
        draws: for each step and example.
        full: a full covariance instead of independent entries.
        lr: the first learning rate, in units of the guide's standard deviation.

    >>> import pyroae as pa
    >>> pa.log_likelihood(vae, x, particles=30, proposal=Optimised(steps=5)).values.shape
    torch.Size([20])
    """

    def __init__(self, steps: int = 300, draws: int = 8, full: bool = False, lr: float = 0.05):
        whole_number("Optimised", steps=steps, draws=draws)
        self.steps, self.draws, self.full, self.lr = steps, draws, full, lr

    def __call__(self, model: Program, guide: Program, *args: Tensor) -> Program:
        density = Density(model, guide, args)
        start = density.draw(_DRAWS)
        loc, width = start.mean(0), start.std(0)
        width = torch.where(width > 1e-6, width, 0.1)  # a point posterior has none
        parameters = [torch.zeros_like(loc), torch.zeros_like(loc)]
        if self.full:
            parameters.append(loc.new_zeros(*loc.shape, density.size))

        def q(shift: Tensor, log_scale: Tensor, below: Tensor | None = None) -> dist.Distribution:
            scale = width * log_scale.exp()
            if below is None:
                return dist.Normal(loc + width * shift, scale).to_event(1)
            return dist.MultivariateNormal(loc + width * shift, scale_tril=scale.diag_embed() + width[..., None] * below.tril(-1))

        def loss(*parameters: Tensor) -> Tensor:
            u = q(*parameters).rsample((self.draws,))
            fixed = q(*[parameter.detach() for parameter in parameters])
            return -(density.log_joint(u) - fixed.log_prob(u)).mean(0).sum()

        return FlatGuide(density, q(*minimised(loss, parameters, self.steps, self.lr)))


def _climbed(density: Density, u: Tensor, width: Tensor, steps: int, lr: float) -> Tensor:
    """A mode of p(u|x) near ``u`` ``(B, size)``."""
    (shift,) = minimised(lambda shift: -density.log_joint((u + width * shift)[None]).sum(), [torch.zeros_like(u)], steps, lr)
    return u + width * shift


def _curvature(density: Density, u: Tensor, width: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient ``(B, size)`` of log p(x, u) and its negative Hessian ``(B, size, size)``, bounded below by half the prior's precision."""
    with torch.enable_grad():
        u = u.detach().requires_grad_()
        (slope,) = torch.autograd.grad(density.log_joint(u[None]).sum(), u, create_graph=True)
        columns = [_row(slope[:, i].sum(), u) for i in range(density.size)]
    hessian = -torch.stack(columns, -1)
    scaled = width[:, :, None] * (hessian + hessian.mT) / 2 * width[:, None, :]
    values, vectors = torch.linalg.eigh(scaled.double())
    bounded = (vectors * values.clamp(min=0.5)[:, None, :]) @ vectors.mT
    return slope.detach(), (bounded / (width[:, :, None] * width[:, None, :])).to(u.dtype)


def _row(slope: Tensor, u: Tensor) -> Tensor:
    if not slope.requires_grad:  # constant: a Laplace prior beside a decoder of ReLUs
        return torch.zeros_like(u)
    return torch.autograd.grad(slope, u, retain_graph=True, materialize_grads=True)[0]


def _newton_step(density: Density, u: Tensor, width: Tensor) -> Tensor:
    """A Newton step, shortened where the full step does not increase the density."""
    slope, precision = _curvature(density, u, width)
    step = torch.linalg.solve(precision.double(), slope.double()).to(u.dtype)
    lengths = torch.tensor([0.0, 1.0, 0.5, 0.25, 0.1], dtype=u.dtype, device=u.device)
    tried = u + lengths[:, None, None] * step  # (lengths, B, size)
    best = density.log_joint(tried).nan_to_num(nan=-math.inf).argmax(0)
    return tried[best, torch.arange(len(u), device=u.device)]
