"""Penalties on p(x|z): on the decoder's Jacobian and matrices, on the reconstruction or a part of it, and a codebook's terms."""

from math import isqrt, log2, prod

import torch
from torch import Tensor, nn

from ..registry import register
from .penalty import Penalty


@register("penalties")
class Commitment(Penalty):
    r"""The terms of a codebook: :math:`w \|h - \mathrm{sg}[e]\|^2 + \|\mathrm{sg}[h] - e\|^2` (van den Oord et al. 2017, eq. 3).

    h is the encoder's output and e the codes nearest to it; the second term only where the codebook is a parameter
    (``VectorQuantised(decay=0)``). For the posterior ``pa.posteriors.VectorQuantised``.

    Args:
        weight: w, beta in the paper.

    >>> vq = vae.replace(prior=pa.priors.Codes((4, 2)), posterior=pa.posteriors.VectorQuantised(codes=8))
    >>> pa.fit(vq, x, elbo=pa.Penalised(Commitment()), epochs=1, progress=False).objective
    'Penalised'
    """

    def __init__(self, weight: float = 0.25):
        super().__init__(weight)

    def __call__(self, x, z, q):
        if not hasattr(q, "encoded"):
            raise ValueError(f"Commitment: expected the posterior pa.posteriors.VectorQuantised(), got a {type(q).__name__}")
        penalty = self.weight * (q.encoded - q.codes.detach()).square().sum((-1, -2))
        return penalty + (q.encoded.detach() - q.codes).square().sum((-1, -2)) if q.codes.requires_grad else penalty


@register("penalties")
class DecoderJacobian(Penalty):
    r"""Squared Frobenius norm of the decoder's Jacobian (Ghosh et al. 2020, eq. 10, RAE-GP).

    :math:`w \|\partial g(z) / \partial z\|_F^2`, g(z) the mean of p(x|z). By default an unbiased estimate (Hutchinson 1989):
    :math:`\|v^T \partial g / \partial z\|^2` for Normal v.

    Args:
        weight: w.
        probes: number of random probes, one backward pass each; ``None`` for the exact norm, one pass for each entry of x.

    >>> elbo = pa.Penalised(DecoderJacobian(0.1))
    >>> pa.fit(vae, x, elbo=elbo, epochs=1, progress=False).objective
    'Penalised'
    """

    needs = ("likelihood",)
    needs_input_grad = True  # also where no weight has a gradient

    def __init__(self, weight: float = 1e-3, probes: int | None = 1):
        super().__init__(weight)
        if probes is not None and probes < 1:
            raise ValueError(f"DecoderJacobian: expected probes of at least 1, or None for the exact norm, got {probes!r}")
        self.probes = probes

    def __call__(self, x, z, q, p=None):
        g = p.mean.reshape(*z.shape[: z.dim() - len(q.event_shape)], -1)
        if self.probes is None:
            directions = torch.eye(g.shape[-1], dtype=g.dtype, device=g.device)
            directions = directions.reshape(len(directions), *[1] * (g.dim() - 1), -1).expand(-1, *g.shape)
        else:
            directions = torch.randn(self.probes, *g.shape, dtype=g.dtype, device=g.device)
        (jacobian,) = torch.autograd.grad(g, z, directions, is_grads_batched=True, create_graph=True)
        return self.weight * jacobian.square().sum() / (g.shape[:-1].numel() * (self.probes or 1))


@register("penalties")
class DecoderL2(Penalty):
    r"""Squared norm of the matrices of p(x, z): :math:`w \sum_l \|W_l\|_F^2` (Ghosh et al. 2020, eq. 8, RAE-L2).

    Of every parameter of the generative program with two or more dimensions. In nats per example: for N examples, a Normal prior on the
    weights of variance 1 / (2 N w).

    Args:
        weight: w.

    >>> elbo = pa.Penalised(DecoderL2(0.1))
    >>> pa.fit(vae, x, elbo=elbo, epochs=1, progress=False).objective
    'Penalised'
    """

    needs = ("weights",)

    def __init__(self, weight: float = 1e-3):
        super().__init__(weight)

    def __call__(self, x, z, q, weights=()):
        return self.weight * sum((w.square().sum() for w in weights), z.new_zeros(()))


@register("penalties")
class Emphasis(Penalty):
    r"""Counts a part of the likelihood ``Product`` 1 + w times: :math:`-w \log p(x_m|z)` (Wu & Goodman 2018, section 2.3, their lambda).

    For a modality of few entries, such as a label beside an image, which is otherwise learned late: its log-likelihood is a few nats of
    hundreds. What is learned has a log p(x) as before; scores of p(x, z) leave the penalty out.

    Args:
        part: name of the part.
        weight: w.

    >>> both = pa.likelihoods.Product({"x": pa.likelihoods.Normal(15), "label": pa.likelihoods.Categorical(1, 4)})
    >>> ae = vae.replace(likelihood=both, objective=pa.Penalised(Emphasis("label", 9.0)))
    >>> pa.fit(ae, x.round(), epochs=1, progress=False).objective
    'Penalised'
    """

    needs = ("likelihood",)

    def __init__(self, part: str, weight: float = 9.0):
        super().__init__(weight)
        self.part = part

    def __call__(self, x, z, q, p=None):
        names = getattr(p, "names", None) or []
        if self.part not in names:
            known = f"with parts {', '.join(names)}" if names else f"got {type(p).__name__}"
            raise ValueError(f"Emphasis: expected a likelihood Product with a part {self.part!r}, {known}")
        part, value = p.pieces(x)[names.index(self.part)]
        return -self.weight * part.log_prob(value)


@register("penalties")
class MultiScaleSSIM(Penalty):
    r"""1 - MS-SSIM between x and the mean of p(x|z), images from 0 to 1 (Wang et al. 2003, eq. 7; Snell et al. 2017).

    .. math:: 1 - l_M^{w_M} \prod_{j=1}^M cs_j^{w_j}, \quad l = \frac{2 \mu_x \mu_y + C_1}{\mu_x^2 + \mu_y^2 + C_1},
        \quad cs = \frac{2 \sigma_{xy} + C_2}{\sigma_x^2 + \sigma_y^2 + C_2},

    means over windows of 11 x 11 Gaussian weights of scale 1.5, :math:`C_1 = 0.01^2`, :math:`C_2 = 0.03^2`; each of the M scales halves the
    images. There are as many of the paper's five scales as windows fit in, with their weights divided by their sum; images of less than
    11 pixels have a smaller window. It has no unit: the weight converts it to nats. What it makes of the loss is not -log of a density
    of x, so that what is learned has no log p(x): scores of p(x, z) leave the penalty out.

    Args:
        weight: w.
        image: channels, height and width of one x; by default that of x itself, or one square channel.

    >>> images = torch.rand(20, 1, 12, 12)
    >>> ae = pa.recipes.autoencoder(images)
    >>> pa.fit(ae, images, elbo=pa.Penalised(MultiScaleSSIM(100.0)), epochs=1, progress=False).objective
    'Penalised'
    """

    needs = ("likelihood",)

    def __init__(self, weight: float = 100.0, image: list[int] | None = None):
        super().__init__(weight)
        self.image = image

    def __call__(self, x, z, q, p=None):
        y = p.mean
        size = self.image or (list(x.shape[1:]) if x.dim() == 4 else [1, *[isqrt(x[0].numel())] * 2])
        if len(size) != 3 or prod(size) != x[0].numel():
            raise ValueError(
                f"MultiScaleSSIM: expected x as images; set image=[channels, height, width] for {x[0].numel()} numbers, got {size}"
            )
        similarity = ms_ssim(x.expand_as(y).reshape(-1, *size), y.reshape(-1, *size))
        return self.weight * (1 - similarity).mean()


def ms_ssim(x: Tensor, y: Tensor) -> Tensor:
    """Multi-scale structural similarity of images from 0 to 1, ``(B, C, H, W)`` each, as ``(B,)``."""
    width = min(_WINDOW, *(side - 1 + side % 2 for side in x.shape[-2:]))
    scales = 1 + max(0, min(int(log2(min(x.shape[-2:]) / width)), len(_SCALES) - 1))
    weights = [each / sum(_SCALES[:scales]) for each in _SCALES[:scales]]
    away = torch.arange(width, dtype=x.dtype, device=x.device) - (width - 1) / 2
    window = (-away.square() / (2 * 1.5**2)).exp()
    kernel = torch.outer(window, window) / window.sum() ** 2
    result = x.new_ones(len(x))
    for j, weight in enumerate(weights):
        if j:
            x, y = nn.functional.avg_pool2d(x, 2), nn.functional.avg_pool2d(y, 2)
        luminance, structure = _similarities(x, y, kernel)
        parts = structure if j < scales - 1 else luminance * structure
        result = result * parts.mean((-1, -2)).mean(-1).clamp(min=1e-6) ** weight  # a negative one has no power
    return result


def _similarities(x: Tensor, y: Tensor, kernel: Tensor) -> tuple[Tensor, Tensor]:
    """l and cs in every window, ``(B, C, H', W')`` each."""
    channels = x.shape[1]
    weights = kernel.expand(channels, 1, *kernel.shape)
    mean = lambda image: nn.functional.conv2d(image, weights, groups=channels)  # noqa: E731
    mx, my = mean(x), mean(y)
    vx, vy, xy = mean(x * x) - mx * mx, mean(y * y) - my * my, mean(x * y) - mx * my
    return (2 * mx * my + _C1) / (mx * mx + my * my + _C1), (2 * xy + _C2) / (vx + vy + _C2)


_SCALES = 0.0448, 0.2856, 0.3001, 0.2363, 0.1333  # the paper's weights
_WINDOW = 11
_C1, _C2 = 0.01**2, 0.03**2
