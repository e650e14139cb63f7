"""The Poincare ball of curvature -c: distances, the wrapped Normal, and its map from the real line."""

import math

import torch
from pyro import distributions as dist
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import biject_to, constraints, transform_to
from torch.distributions.transforms import Transform

_TINY = 1e-15


class Ball(constraints.Constraint):
    """Vectors with c |z|^2 < 1.

    Args:
        curvature: c.
    """

    event_dim = 1

    def __init__(self, curvature: float):
        self.curvature = curvature

    def check(self, value: Tensor) -> Tensor:
        """Whether each vector lies in the ball, ``(...,)``."""
        return self.curvature * value.square().sum(-1) < 1

    def __repr__(self) -> str:
        return f"a vector in the ball of radius {self.curvature**-0.5:.3g}"


class FromTangent(Transform):
    r"""From the tangent space at the origin: :math:`z = \tanh(\sqrt c |u| / 2)\, u / (\sqrt c |u|)`, at hyperbolic distance |u| from 0.

    Args:
        curvature: c.
    """

    domain, bijective = constraints.real_vector, True

    def __init__(self, curvature: float):
        super().__init__()
        self.curvature, self.codomain = curvature, Ball(curvature)

    def _call(self, u: Tensor) -> Tensor:
        root, r = math.sqrt(self.curvature), _norm(u)
        return inside(u * (root * r / 2).tanh() / (root * r), self.curvature)

    def _inverse(self, z: Tensor) -> Tensor:
        root, r = math.sqrt(self.curvature), _norm(z)
        return z * 2 * (root * r).atanh() / (root * r)

    def log_abs_det_jacobian(self, u: Tensor, z: Tensor) -> Tensor:
        """log |dz / du|."""
        return -_log_volume(_norm(u)[..., 0], z, self.curvature)


@biject_to.register(Ball)
@transform_to.register(Ball)
def _(constraint: Ball) -> FromTangent:
    return FromTangent(constraint.curvature)


class WrappedNormal(TorchDistribution):
    r"""A Normal in the tangent space at ``loc``, wrapped onto the ball by the exponential map (Mathieu et al. 2019, section 3.1).

    z = exp_loc(v / lambda_loc), v ~ N(0, scale^2): v is in units of hyperbolic distance. The density is with respect to z itself:
    :math:`\log N(v; 0, s^2) + (d - 1) \log\frac{\sqrt c\, r}{\sinh \sqrt c\, r} + d \log\frac{2}{1 - c |z|^2}`, r = |v| the distance of z
    from ``loc``. As c goes to 0 it is N(loc, scale^2 / 4), since distances there are twice the Euclidean ones.

    Args:
        loc: in the ball, ``(..., d)``.
        scale: ``(..., d)``.
        curvature: c.
    """

    arg_constraints = {}
    has_rsample = True
    mean_is_exact = False

    def __init__(self, loc: Tensor, scale: Tensor, curvature: float = 1.0):
        self.loc, self.scale = torch.broadcast_tensors(loc, scale)
        self.curvature = curvature
        super().__init__(self.loc.shape[:-1], self.loc.shape[-1:], validate_args=False)

    @property
    def support(self) -> Ball:
        """The ball."""
        return Ball(self.curvature)

    @property
    def mean(self) -> Tensor:
        """The centre, ``loc``."""
        return self.loc

    def expand(self, batch_shape, _instance=None):
        """The same for a larger batch."""
        shape = torch.Size(batch_shape) + self.event_shape
        return WrappedNormal(self.loc.expand(shape), self.scale.expand(shape), self.curvature)

    def rsample(self, sample_shape=torch.Size()) -> Tensor:
        """Draws ``(*sample_shape, ..., d)``."""
        v = self.scale * torch.randn(self._extended_shape(sample_shape), dtype=self.loc.dtype, device=self.loc.device)
        return inside(mobius_add(self.loc, FromTangent(self.curvature)(v), self.curvature), self.curvature)

    def log_prob(self, value: Tensor) -> Tensor:
        """The log-density."""
        away = inside(mobius_add(-self.loc, value, self.curvature), self.curvature)
        v = FromTangent(self.curvature).inv(away)
        normal = dist.Normal(torch.zeros_like(self.scale), self.scale).to_event(1).log_prob(v)
        return normal + _log_volume(_norm(v)[..., 0], value, self.curvature)


def mobius_add(a: Tensor, b: Tensor, curvature: float) -> Tensor:
    """The Moebius sum of vectors in the ball (Mathieu et al. 2019, section 2)."""
    c, ab, aa, bb = curvature, (a * b).sum(-1, keepdim=True), a.square().sum(-1, keepdim=True), b.square().sum(-1, keepdim=True)
    return ((1 + 2 * c * ab + c * bb) * a + (1 - c * aa) * b) / (1 + 2 * c * ab + c * c * aa * bb)


def distance(a: Tensor, b: Tensor, curvature: float = 1.0) -> Tensor:
    r"""Hyperbolic distance, :math:`\frac{2}{\sqrt c} \mathrm{artanh}(\sqrt c\, |(-a) \oplus b|)`, ``(...,)``."""
    return _norm(FromTangent(curvature).inv(inside(mobius_add(-a, b, curvature), curvature)))[..., 0]


def inside(z: Tensor, curvature: float) -> Tensor:
    """z moved into the ball where rounding has put it on or beyond its edge."""
    most = (1 - 10 * torch.finfo(z.dtype).eps) / math.sqrt(curvature)
    return z * (most / _norm(z)).clamp(max=1.0)


def _norm(z: Tensor) -> Tensor:
    """``(..., 1)``, positive, with a finite gradient at 0."""
    return (z.square().sum(-1, keepdim=True) + _TINY).sqrt()


def _log_volume(r: Tensor, z: Tensor, curvature: float) -> Tensor:
    """log |dv / dz| for v in the tangent space at distance r."""
    d, x = z.shape[-1], math.sqrt(curvature) * r
    log_sinh = torch.where(x < 1e-2, x.square() / 6, x + torch.log1p(-(-2 * x).exp()) - math.log(2) - x.log())
    factor = 2 / (1 - curvature * z.square().sum(-1)).clamp(min=torch.finfo(z.dtype).eps)
    return d * factor.log() - (d - 1) * log_sinh
