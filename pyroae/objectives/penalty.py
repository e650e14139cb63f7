"""``Penalty``, the base class of penalties, and what they share."""

from typing import Any

from torch import Tensor

from ..registry import Part, register_base


@register_base("penalties")
class Penalty(Part):
    """``penalty(x, z, q)``: x of shape ``(B, *event)``, latents z drawn from the posterior q.

    >>> import pyroae as pa
    >>> isinstance(pa.penalties.L1(), Penalty)
    True
    """

    needs_input_grad = False  # whether it differentiates with respect to x
    needs: tuple[str, ...] = ()  # further arguments: "prior" p(z), "likelihood" p(x|z), "weights" of the generative program, "decoder"

    def __init__(self, weight: float):
        if not weight >= 0.0:
            raise ValueError(f"{type(self).__name__}: expected a weight of at least 0, got {weight!r}")
        self.weight = weight

    def __call__(self, x: Tensor, z: Tensor, q: Any) -> Tensor:
        """The weighted penalty."""
        raise NotImplementedError(f"{type(self).__name__} must implement __call__(x, z, q)")


def latent_mean(x: Tensor, q: Any) -> Tensor:
    """The mean of q, ``(B, latent_dim)``; of several particles the first."""
    return q.mean.flatten(-len(q.event_shape)).reshape(-1, len(x), q.event_shape.numel())[0]


def flat_latent(z: Tensor, q: Any) -> Tensor:
    """z with its event dimensions flattened, ``(..., latent_dim)``."""
    return z.reshape(*z.shape[: z.dim() - len(q.event_shape)], -1)
