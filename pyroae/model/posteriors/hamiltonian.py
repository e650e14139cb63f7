"""A posterior that moves its draws towards p(z|x) by Hamiltonian dynamics."""

import math

import pyro
import torch
from pyro import distributions as dist
from torch import Tensor, nn

from ...checks import whole_number
from ...registry import register
from ..building import Context
from ..conditional import Shape
from .base import Posterior
from .plain import Normal


@register("posteriors")
class Hamiltonian(Posterior):
    r"""K leapfrog steps on :math:`-\log p(x, z) + \frac12 |\rho|^2` from a draw of ``base``: the Hamiltonian VAE (Caterini et al. 2018).

    :math:`z_0 \sim q(z|x)`, :math:`\gamma \sim N(0, I)`, :math:`\rho_0 = \gamma / \sqrt{\beta_0}`; after each step the momentum is
    multiplied by :math:`\sqrt{\beta_{k-1} / \beta_k}`, with :math:`\beta_k` rising to 1 (section 4.2, quadratic tempering). A leapfrog step
    preserves volume, the tempering changes it by :math:`\beta_0^{d/2}`, so that (eq. 10)

    .. math:: \log w = \log p(x, z_K) + \log N(\rho_K; 0, I) - \log q(z_0|x) - \log N(\gamma; 0, I), \qquad E\, w = p(x).

    :math:`z_0` and :math:`\gamma` are auxiliary sites of the guide. ``encode(x)`` is the start q(z_0|x). Step sizes and
    :math:`\beta_0` are learned.

    Args:
        event_shape: shape of one z, a vector of real numbers.
        base: q(z_0|x); by default Normal.
        steps: K.
        step_size: the first step sizes.

    >>> hvae = vae.replace(posterior=Hamiltonian(steps=2))
    >>> pa.log_likelihood(hvae, x, particles=30, proposal="guide").values.shape
    torch.Size([20])
    """

    needs_x = True

    def __init__(self, event_shape: Shape | None = None, base: Posterior | None = None, steps: int = 3, step_size: float = 0.05):
        base = base or Normal()
        super().__init__(event_shape=base.event_shape if event_shape is None else event_shape)
        whole_number("Hamiltonian", steps=steps)
        if not step_size > 0.0:
            raise ValueError(f"Hamiltonian: expected a positive step_size, got {step_size!r}")
        self.family, self.steps = base.family, steps
        if self.event_shape is None:
            return
        if len(self.event_shape) != 1:
            raise ValueError(f"Hamiltonian: expected z as a vector, got the shape {tuple(self.event_shape)}")
        self.base = base.build(Context(self.event_shape))
        self.param_sizes, self.size = self.base.param_sizes, self.base.size
        self.log_step = nn.Parameter(torch.full(self.event_shape, math.log(step_size)))
        self.raw_beta = nn.Parameter(torch.tensor(1.0))  # beta_0 = sigmoid(raw_beta)

    def attach(self, model: nn.Module):
        self._model = (model,)  # no submodule: its parameters are the model's

    def forward(self, h: Tensor) -> dist.Distribution:
        """q(z_0|x)."""
        return self.base(h)

    def draw(self, h: Tensor, c: Tensor | None = None, x: Tensor | None = None) -> Tensor:
        z = pyro.sample("_z0", self(h), infer={"is_auxiliary": True})
        standard = dist.Normal(torch.zeros_like(z), 1.0).to_event(1)
        momentum = pyro.sample("_momentum", standard, infer={"is_auxiliary": True})
        z, momentum = self._moved(z, momentum, x, c)
        return pyro.sample("z", dist.Delta(z, -standard.log_prob(momentum), event_dim=1))

    def _moved(self, z: Tensor, momentum: Tensor, x: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor]:
        """z and momentum after all steps."""
        step, root = self.log_step.exp(), self._roots()
        momentum = momentum / root[0]
        for k in range(self.steps):
            momentum = momentum + 0.5 * step * self._slope(z, x, c)
            z = z + step * momentum
            momentum = momentum + 0.5 * step * self._slope(z, x, c)
            momentum = momentum * root[k] / root[k + 1]
        return z, momentum

    def _roots(self) -> Tensor:
        """sqrt(beta_k) for k = 0 to K (Caterini et al. 2018, section 4.2)."""
        first = 1 / self.raw_beta.sigmoid().sqrt()
        k = torch.arange(self.steps + 1, device=first.device) / self.steps
        return 1 / ((1 - first) * k**2 + first)

    def _slope(self, z: Tensor, x: Tensor, c: Tensor | None) -> Tensor:
        """The gradient of log p(x, z) with respect to z, differentiable itself."""
        (model,), keeps = self._model, torch.is_grad_enabled()
        with torch.enable_grad():
            at = z if z.requires_grad else z.detach().requires_grad_()
            joint = model.prior.conditional(c).log_prob(at) + model.conditional(at, c).log_prob(x)
            (slope,) = torch.autograd.grad(joint.sum(), at, create_graph=keeps)
        return slope
