"""Gradient and generalised Gauss-Newton curvature of log p(x, u), of any Pyro program."""

import contextlib
import functools
import warnings
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.func import grad, jvp, vmap

from .. import programs
from ..programs import Program
from .density import Density

_PROBE = 3  # particles that show how outputs are laid out
_NUMBERS = 2_000_000  # in the directional derivatives that are held at once: what caches like


class Curvature:
    r"""Gradient and curvature of log p(x, u) at codes u ``(particles, B, size)``.

    With :math:`h(u)` the outputs of the networks that the model calls and :math:`\ell(u, h)` the log-density as a function
    of codes and outputs, the curvature is :math:`-J^\top \nabla^2 \ell J`, :math:`J = \partial (u, h) / \partial u`: the
    generalised Gauss-Newton matrix (Schraudolph 2002), which leaves out only the curvature of the networks themselves. J takes
    ``size`` evaluations of the model, in forward mode. A model whose networks are no modules gets its exact Hessian.

    Args:
        density: the latents and the data.
        width: a unit of length for every entry of u, ``(B, size)``.
        least: eigenvalues of the curvature, in those units, are not below this.
    """

    def __init__(self, density: Density, width: Tensor, least: float = 0.6):
        self.density, self.width, self.least = density, width, least
        self.networks = _Networks(density.model)
        _import_forward_mode()

    def __call__(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient of log p(x, u), and its negative curvature, their means over particles: ``(B, size)``, ``(B, size, size)``, float64.

        Where an entry of the gradient is not finite it is 0.
        """
        outputs = self.networks.outputs(self.density, u[:1])
        numbers = sum(output.numel() for output in outputs) + u[0].numel()
        at_once = max(1, _NUMBERS // (self.density.size * numbers))
        slope, curvature = 0.0, 0.0
        with warnings.catch_warnings():  # operations that vmap runs one by one, such as GLU's: as right, only slower
            warnings.filterwarnings("ignore", "There is a performance drop")
            for part in u.split(at_once):
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
        along = vmap(lambda e: jvp(lambda v: (v, *networks.outputs(density, v)), (u,), (e.expand_as(u),))[1])(basis)
        at = (u, *networks.outputs(density, u))

        def total(u: Tensor, *outputs: Tensor) -> Tensor:
            with networks.replaced(outputs):
                return density.log_joint(u).sum()

        gradient = grad(total, argnums=tuple(range(len(at))))
        slopes, turned = vmap(lambda *t: jvp(gradient, at, t), out_dims=(None, 0))(*along)
        slope, curvature = 0.0, 0.0
        for t, h, g in zip(along, turned, slopes):
            t, h, g = (self._rows(node, len(u), left) for node, left in ((t, 1), (h, 1), (g, 0)))
            slope = slope + torch.einsum("ikne,kne->ni", t, g)
            curvature = curvature - torch.einsum("ikne,jkne->nij", t, h)
        return slope.double(), curvature.double()

    def _rows(self, node: Tensor, particles: int, left: int) -> Tensor:
        """``(*left, particles, *inner plates, B, ...)`` as ``(*left, particles, B, numbers)``."""
        if _apart(node[(0,) * left], particles, self.density):
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


@functools.cache
def _import_forward_mode():
    """Forward mode's first use imports a module of torch that warns of its own deprecated parts."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        jvp(torch.sin, (torch.zeros(1),), (torch.ones(1),))


class _Networks:
    """The outermost calls of modules in a program that give a tensor, other than the program's own: read, or replaced."""

    def __init__(self, program: Program):
        self.own = programs.modules(program)
        self.kept: list[int] | None = None  # which calls, counted in the order in which they end

    def outputs(self, density: Density, u: Tensor) -> list[Tensor]:
        """What those that depend on u give; none where one of them does not keep particles and examples apart."""
        if self.kept is None:
            self.kept = self._chosen(density, u[:1].repeat(_PROBE, 1, 1))
        calls = self._calls(density, u)
        return [calls[i] for i in self.kept]

    def _chosen(self, density: Density, u: Tensor) -> list[int]:
        at: list[int] = []

        def outputs(u: Tensor) -> tuple[Tensor, ...]:
            calls = self._calls(density, u)
            at[:] = [i for i, output in enumerate(calls) if output is not None and output.is_floating_point()]
            return (u.clone(), *(calls[i].clone() for i in at))

        _, (_, *moved) = jvp(outputs, (u,), (torch.rand_like(u),))
        found = {i: tangent for i, tangent in zip(at, moved) if bool(tangent.any())}
        sound = all(_apart(tangent, len(u), density) or len(tangent) == len(u) * density.n for tangent in found.values())
        return list(found) if sound else []

    def _calls(self, density: Density, u: Tensor) -> list[Tensor | None]:
        """The outputs of all calls, in the order in which they end; ``None`` for those that are none of these."""
        calls: list[Tensor | None] = []
        begun: list[int] = []

        def begin(module: nn.Module, _):
            begun.append(len(calls))

        def end(module: nn.Module, _, output):
            start = begun.pop()
            calls.append(None)
            if isinstance(output, Tensor) and not any(module is each for each in self.own):
                calls[start:-1] = [None] * (len(calls) - 1 - start)
                calls[-1] = output

        with _hooked(begin, end):
            density.run(u)
        return calls

    @contextlib.contextmanager
    def replaced(self, outputs: tuple[Tensor, ...]) -> Iterator[None]:
        """Inside, the calls give these instead."""
        left, count = dict(zip(self.kept, outputs)), iter(range(10**9))
        with _hooked(None, lambda *_: left.get(next(count))):
            yield


def _apart(output: Tensor, particles: int, density: Density) -> bool:
    """Whether particles and examples have dimensions of their own, rather than one together."""
    return output.dim() > density.nesting and output.shape[0] == particles and output.shape[density.nesting] == density.n


@contextlib.contextmanager
def _hooked(before, after) -> Iterator[None]:
    """Hooks on every module's forward."""
    hooks = [nn.modules.module.register_module_forward_hook(after)]
    if before is not None:
        hooks.append(nn.modules.module.register_module_forward_pre_hook(before))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
