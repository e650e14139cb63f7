"""Gradient and generalised Gauss-Newton curvature of log p(x, u), of any Pyro program."""

import functools
import warnings

import torch
from torch import Tensor
from torch.func import grad, jvp, vmap

from .density import Density
from .networks import Networks, apart

_LEAST = 1e-10  # eigenvalue of a precision with diagonal entries of 1
_NUMBERS = 24_000_000  # in the directional derivatives that are held at once


class Curvature:
    r"""Gradient and curvature of log p(x, u) at codes u ``(particles, B, size)``.

    With :math:`h(u)` the outputs of the networks that the model calls and :math:`\ell(u, h)` the log-density as a function
    of codes and outputs, the curvature is :math:`-J^\top \nabla^2 \ell J`, :math:`J = \partial (u, h) / \partial u`: the
    generalised Gauss-Newton matrix (Schraudolph 2002), which leaves out only the curvature of the networks themselves. J takes
    ``size`` evaluations of the model, in forward mode. A model whose networks are no modules gets its exact Hessian.

    Args:
        density: the latents and the data.
        width: a unit of length for every entry of u, ``(B, size)``.
        networks: of the model.
        least: eigenvalues of the curvature, in those units, are not below this.
    """

    def __init__(self, density: Density, width: Tensor, networks: Networks, least: float = 0.3):
        self.density, self.width, self.networks, self.least = density, width, networks, least
        self.numbers: int | None = None  # in the directional derivatives of one particle of each example
        _import_forward_mode()

    def __call__(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient of log p(x, u), and its negative curvature, their means over particles: ``(B, size)``, ``(B, size, size)``, float64.

        Where an entry of the gradient is not finite it is 0.
        """
        if self.numbers is None:
            outputs = self.networks.outputs(self.density, u[:1])
            self.numbers = self.density.size * (sum(output.numel() for output in outputs) + u[0].numel())
        slope, curvature = 0.0, 0.0
        with warnings.catch_warnings():  # operations that vmap runs one by one, such as GLU's: as right, only slower
            warnings.filterwarnings("ignore", "There is a performance drop")
            for part in u.split(max(1, _NUMBERS // self.numbers)):
                more = self._checked_sums(part)
                slope, curvature = slope + more[0], curvature + more[1]
        return (slope / len(u)).nan_to_num(0.0, 0.0, 0.0), self._bounded(curvature / len(u))

    def _checked_sums(self, u: Tensor) -> tuple[Tensor, Tensor]:
        try:
            return self._sums(u)
        except RuntimeError as error:
            if "random operation" not in str(error):
                raise
            raise ValueError(
                "the model draws random numbers outside its sample statements, so its density is another at every call; "
                "draw them by pyro.sample, or use proposal='guide'"
            ) from None

    def _sums(self, u: Tensor) -> tuple[Tensor, Tensor]:
        density, networks = self.density, self.networks
        basis = torch.eye(density.size, dtype=u.dtype, device=u.device)

        def along(e: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
            return jvp(lambda v: (v, *networks.outputs(density, v)), (u,), (e.expand_as(u),))

        (_, *outputs), (_, *tangents) = vmap(along, out_dims=(None, 0))(basis)
        at = (u, *outputs)

        def total(u: Tensor, *outputs: Tensor) -> Tensor:
            with networks.replaced(outputs):
                return density.log_joint(u).sum()

        gradient = grad(total, argnums=tuple(range(len(at))))
        (direct, *slopes), diagonal, of_outputs = _diagonal(gradient, at)
        jacobians = [self._rows(tangent, len(u), 1).movedim(0, 2) for tangent in tangents]  # each (particles, B, size, numbers)
        slope = direct.double().sum(0)
        for jacobian, g in zip(jacobians, slopes):
            slope = slope + sum((j @ s).double() for j, s in zip(jacobian, self._rows(g, len(u), 0)[..., None]))[..., 0]
        if of_outputs is None:
            return slope, self._coupled(gradient, at, basis, tangents)
        if diagonal is None:
            curvature = self._coupled(lambda v: gradient(v, *outputs)[:1], (u,), basis, ())
        else:
            curvature = -diagonal.double().sum(0).diag_embed()
        for jacobian, weight in zip(jacobians, of_outputs):
            curvature = curvature - sum((j * w @ j.mT).double() for j, w in zip(jacobian, self._rows(weight, len(u), 0)[..., None, :]))
        return slope, curvature

    def _coupled(self, gradient, at: tuple[Tensor, ...], basis: Tensor, tangents: tuple[Tensor, ...]) -> Tensor:
        """The curvature by a product with the Hessian along every direction."""
        u = at[0]
        products = vmap(lambda e, *t: jvp(gradient, at, (e.expand_as(u), *t))[1])(basis, *tangents)
        curvature = 0.0
        for tangent, product in zip((basis[:, None, None].expand(-1, *u.shape), *tangents), products):
            t, h = self._rows(tangent, len(u), 1), self._rows(product, len(u), 1)
            curvature = curvature - torch.einsum("ikne,jkne->nij", t, h)
        return curvature.double()

    def _rows(self, node: Tensor, particles: int, left: int) -> Tensor:
        """``(*left, particles, *inner plates, B, ...)`` as ``(*left, particles, B, numbers)``."""
        if apart(node[(0,) * left], particles, self.density):
            node = node.movedim(left + self.density.nesting, left + 1)
        return node.reshape(*node.shape[:left], particles, self.density.n, -1)

    def _bounded(self, curvature: Tensor) -> Tensor:
        """Curvature ``(B, size, size)`` made positive definite."""
        width = self.width.double()
        scaled = width[:, :, None] * (curvature + curvature.mT) / 2 * width[:, None, :]
        scaled = scaled.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
        floor = self.least * torch.eye(scaled.shape[-1], dtype=scaled.dtype, device=scaled.device)
        failed = torch.linalg.cholesky_ex(scaled - floor).info > 0
        if failed.any():
            values, vectors = torch.linalg.eigh(scaled[failed])
            scaled[failed] = (vectors * values.clamp(min=self.least)[:, None, :]) @ vectors.mT
        return scaled / (width[:, :, None] * width[:, None, :])


def inverse_factor(precision: Tensor) -> Tensor:
    """L lower triangular with L L' the inverse of a precision, of which eigenvalues that rounding has made 0 or negative are raised."""
    scale = precision.diagonal(dim1=-2, dim2=-1).rsqrt()
    scaled = scale[..., :, None] * precision * scale[..., None, :]
    upper, failed = torch.linalg.cholesky_ex(scaled.flip(-2, -1))  # scaled = U U' with U upper triangular, once it is flipped back
    if failed.any():
        values, vectors = torch.linalg.eigh(scaled[failed > 0])
        raised = (vectors * values.clamp(min=_LEAST)[:, None, :]) @ vectors.mT
        upper[failed > 0] = torch.linalg.cholesky(raised.flip(-2, -1))
    eye = torch.eye(scaled.shape[-1], dtype=scaled.dtype, device=scaled.device)
    return scale[..., :, None] * torch.linalg.solve_triangular(upper.flip(-2, -1).mT, eye, upper=False)


@functools.cache
def _import_forward_mode():
    """Forward mode's first use imports a module of torch that warns of its own deprecated parts."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        jvp(torch.sin, (torch.zeros(1),), (torch.ones(1),))


def _diagonal(gradient, at: tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], Tensor | None, list[Tensor] | None]:
    """The gradient at ``(u, *outputs)``, and the diagonal of its Hessian in u and in the outputs; ``None`` where it is not diagonal.

    Products with vectors show it, as of a diagonal Hessian the product with unlike entries is that with ones, entry by entry: independent
    entries of x with one parameter each have such a one. Outputs that are coupled with u are counted as coupled with each other.
    """
    probes = []
    for i, node in enumerate(at):
        ones, unlike, zeros = torch.ones_like(node), _unlike(node), torch.zeros_like(node)
        probes.append(torch.stack([zeros, zeros, ones, unlike] if i else [ones, unlike, zeros, zeros]))
    first, (direct, *products) = vmap(lambda *t: jvp(gradient, at, t), out_dims=(None, 0))(*probes)
    separate = not direct[2:].any()
    of_u = direct[0] if _is_diagonal(direct[0], direct[1]) else None
    of_outputs = [product[2] for product in products]
    return first, of_u, of_outputs if separate and all(_is_diagonal(*product[2:]) for product in products) else None


def _is_diagonal(by_ones: Tensor, by_unlike: Tensor) -> bool:
    return torch.allclose(by_unlike, by_ones * _unlike(by_ones), rtol=1e-4, equal_nan=True)


def _unlike(h: Tensor) -> Tensor:
    """Numbers between 0.5 and 1.5, no two near entries alike."""
    return (0.5 + (torch.arange(h.numel(), device=h.device) * 0.6180339887498949) % 1).to(h.dtype).reshape(h.shape)
