"""Images that a model reconstructs, samples or decodes."""

import math
from typing import Any

import torch
from matplotlib.axes import Axes
from torch import Tensor

from ..data import inputs
from ..model import linear
from ..model.autoencoder import Autoencoder
from ..model.likelihoods import Product
from .drawing import Undrawable
from .grid import Limits, images, name_columns, name_rows, shape_of

_DRAWN = 20  # reconstructions
_SIDE = 8  # of a square that is taken for an image, at least


def reconstructions(
    ae: Autoencoder,
    x: Any,
    y: Tensor | None = None,
    image_shape: tuple[int, ...] | None = None,
    limits: Limits = (0.0, 1.0),
    *,
    ax: Axes | None = None,
) -> Axes:
    """Test examples above their reconstructions; of a denoising model, corrupted examples and their reconstructions.

    Args:
        ae: the model.
        x: test examples, ``(N, *event)``, of which the first 20 are drawn; a split or a tuple with labels and the encoder's inputs.
        y: their labels or covariates, for a conditional model.
        image_shape, limits: as in ``images``; by default the image shape of the model's data.
        ax: the Axes to draw on; by default new ones.

    >>> import pyroae as pa
    >>> digits = pa.data.load("digits")
    >>> reconstructions(pa.recipes.autoencoder(digits), digits.test.x[:12], None, (8, 8)).get_title()
    'Reconstructions of test examples'
    """
    image_shape = image_shape or _image_shape(ae)
    data = inputs.read(x, inputs.wanted_by(ae.model))
    labels = data.y if y is None and ae.condition is not None else y
    x, y = data.x[:_DRAWN], None if labels is None else labels[:_DRAWN]
    seen = x if ae.inputs is None or data.u is None else data.u[:_DRAWN]
    rows = {"x": x, "mean of p(x|z)": ae.reconstruct(seen, y)}
    if ae.corruption is not None:
        noisy = ae.corruption(seen.to(ae.device))
        rows = {"x": x, "corrupted x": noisy, "mean of p(x|z)": ae.reconstruct(noisy, y)}
        if ae.inputs is not None:
            del rows["corrupted x"]  # of another shape than x
    ax = images(torch.cat([row.cpu() for row in rows.values()]), image_shape, limits, columns=len(x), names=_columns(ae), ax=ax)
    name_rows(ax, list(rows), image_shape, len(x))
    ax.set_title("Reconstructions of test examples", wrap=True)
    return ax


def samples(
    ae: Autoencoder,
    n: int = 60,
    image_shape: tuple[int, ...] | None = None,
    limits: Limits = (0.0, 1.0),
    *,
    y: Tensor | None = None,
    columns: int = 10,
    ax: Axes | None = None,
) -> Axes:
    """Means of p(x|z) for ``n`` draws of z from the prior, or one for each row of ``y``.

    With the condition ``Labels`` there is a column for each class.

    Raises:
        ValueError: the prior is improper.

    >>> import pyroae as pa
    >>> digits = pa.data.load("digits")
    >>> samples(pa.recipes.vae(digits), 20, (8, 8)).get_title()
    'Samples: mean of p(x|z), z from the prior'
    """
    image_shape = image_shape or _image_shape(ae)
    title = "Samples: mean of p(x|z), z from the prior"
    if y is None and ae.condition is not None and not ae.condition.optional:
        y, columns = ae.condition.spread(n), ae.condition.size
        title = f"Samples: mean of p(x|z,y), z from the prior, y = 0 to {columns - 1} from left to right"
    with torch.no_grad():
        ax = images(
            ae.likelihood.mean_or_mode(ae.decode(ae.sample_prior(n, y), y)), image_shape, limits, columns=columns, names=_columns(ae), ax=ax
        )
    ax.set_title(title, wrap=True)
    return ax


def filters(
    ae: Autoencoder,
    image_shape: tuple[int, ...] | None = None,
    *,
    n: int = 60,
    decoder: bool = False,
    columns: int = 10,
    ax: Axes | None = None,
) -> Axes:
    """The weights between x and the units of the first layer, an image per unit; grey is 0, and each image has its own scale.

    Args:
        ae: a model whose encoder begins with a linear layer.
        image_shape: as in ``images``; by default that of the model's data.
        n: number of units; those with the largest norm.
        decoder: the decoder's last linear layer instead, such as the atoms of ``pa.nets.Dictionary``.
        columns, ax: as in ``images``.

    Raises:
        ValueError: there is no such layer, or its input is not x itself.

    >>> import pyroae as pa
    >>> digits = pa.data.load("digits")
    >>> filters(pa.recipes.autoencoder(digits), (8, 8)).get_title()
    "Encoder's weights from x, by unit"
    """
    image_shape = image_shape or _image_shape(ae)
    weights = _weights(ae, decoder)
    if image_shape is not None and weights.shape[1] != math.prod(image_shape):
        raise Undrawable(f"filters: expected a linear layer with {math.prod(image_shape)} weights per unit, got {weights.shape[1]}")
    weights = weights[weights.norm(dim=1).argsort(descending=True, stable=True)[:n]]
    ax = images(weights / weights.abs().amax(1, keepdim=True).clamp(min=1e-12), image_shape, (-1.0, 1.0), columns=columns, ax=ax)
    if image_shape is None:
        ax.set(ylabel="unit")
        names = _columns(ae)
        if names is not None and weights.shape[1] == len(names) and not isinstance(ae.likelihood, Product):  # a Product orders them anew
            name_columns(ax, names)
            ax.set(xlabel="")
    ax.set_title("Decoder's weights to x, by unit" if decoder else "Encoder's weights from x, by unit", wrap=True)
    return ax


def manifold(
    ae: Autoencoder,
    image_shape: tuple[int, ...] | None = None,
    limits: Limits = (0.0, 1.0),
    *,
    n: int = 20,
    span: float | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Means of p(x|z) on an n x n grid of a two-dimensional z: z1 from left to right, z2 from bottom to top.

    Args:
        ae: the model.
        image_shape, limits: as in ``images``; by default the image shape of the model's data.
        n: grid points per side.
        span: for a regular grid over [-span, span]; by default the grid is at quantiles of the prior, by its inverse CDF.
        ax: the Axes to draw on; by default new ones.

    Raises:
        ValueError: z is not two-dimensional, or the prior has no inverse CDF and no span is given.

    >>> import pyroae as pa
    >>> digits = pa.data.load("digits")
    >>> manifold(pa.recipes.vae(digits, latent_dim=2), (8, 8), n=5).get_title()
    'Mean of p(x|z), z at quantiles of the prior'
    """
    if tuple(ae.prior.code_shape) != (2,) or ae.condition is not None:
        raise Undrawable(f"manifold: expected a model of x alone with z of shape (2,), got {tuple(ae.prior.code_shape)}")
    image_shape = image_shape or _image_shape(ae)
    across = _quantiles(ae, n) if span is None else torch.linspace(-span, span, n).expand(2, n)
    z = torch.stack(torch.meshgrid(across[0], across[1].flip(0), indexing="xy"), -1).reshape(-1, 2)
    with torch.no_grad():
        ax = images(ae.likelihood.mean_or_mode(ae.decode(z)), image_shape, limits, columns=n, names=_columns(ae), ax=ax)
    ends = [f"{edge:.2g}" for edge in (across[0, 0], across[0, -1], across[1, 0], across[1, -1])]
    grid = "at quantiles of the prior" if span is None else "on a regular grid"
    ax.set(xlabel=f"$z_1$ from {ends[0]} to {ends[1]}", ylabel=f"$z_2$ from {ends[2]} to {ends[3]}", title=f"Mean of p(x|z), z {grid}")
    return ax


def traversal(
    ae: Autoencoder,
    x: Any,
    image_shape: tuple[int, ...] | None = None,
    limits: Limits = (0.0, 1.0),
    *,
    y: Tensor | None = None,
    n: int = 8,
    steps: int = 11,
    ax: Axes | None = None,
) -> Axes:
    """Traversal of latent dimensions: the first example's code with one dimension varied per row, the most active first.

    Each dimension varies over the central 98% of its values on these examples, in equal steps.

    Args:
        ae: the model.
        x: test examples, ``(N, *event)``; a hundred or more; a tuple has labels and the encoder's inputs.
        image_shape, limits: as in ``images``; by default the image shape of the model's data.
        y: labels or covariates of a conditional model.
        n: number of latent dimensions.
        steps: means of p(x|z) per row.
        ax: the Axes to draw on; by default new ones.

    >>> import pyroae as pa
    >>> digits = pa.data.load("digits")
    >>> len(traversal(pa.recipes.autoencoder(digits, latent_dim=3), digits.test.x, (8, 8)).get_yticks())
    3
    """
    image_shape = image_shape or _image_shape(ae)
    if y is None and isinstance(x, tuple):
        labels = inputs.read(x, inputs.wanted_by(ae.model)).y
        y = None if labels is None else labels[:]
    codes = ae.latent_mean(x, y).flatten(1)  # (N, D)
    if len(codes) < 2:
        raise Undrawable("traversal: expected at least 2 examples, whose codes determine the range, got 1")
    dims = codes.var(0).argsort(descending=True)[:n]
    low, high = torch.quantile(codes[:10_000, dims], torch.tensor([0.01, 0.99]).to(codes), dim=0)
    shares = torch.linspace(0, 1, steps).to(codes)[None, :]
    z = codes[:1].repeat(len(dims) * steps, 1).reshape(len(dims), steps, -1)
    z[torch.arange(len(dims)), :, dims] = low[:, None] * (1 - shares) + high[:, None] * shares
    z = z.reshape(-1, *ae.prior.code_shape)
    with torch.no_grad():
        rows = ae.likelihood.mean_or_mode(ae.decode(z, None if y is None or ae.condition is None else y[:1].expand(len(z), *y.shape[1:])))
    ax = images(rows, image_shape, limits, columns=steps, names=_columns(ae), ax=ax)
    name_rows(ax, [f"$z_{{{i + 1}}}$" for i in dims.tolist()], image_shape, steps)
    ax.set_title("Mean of p(x|z), one latent dimension varied per row", wrap=True)
    return ax


def interpolation(
    ae: Autoencoder,
    x: Any,
    image_shape: tuple[int, ...] | None = None,
    limits: Limits = (0.0, 1.0),
    *,
    steps: int = 10,
    ax: Axes | None = None,
) -> Axes:
    """Interpolation between codes, a row per pair: the first example, means of p(x|z) in equal steps of z, the second example.

    Args:
        ae: an unconditional model.
        x: pairs of examples, ``(2 N, *event)``.
        image_shape, limits: as in ``images``; by default the image shape of the model's data.
        steps: means of p(x|z) per row.
        ax: the Axes to draw on; by default new ones.

    >>> import pyroae as pa
    >>> digits = pa.data.load("digits")
    >>> interpolation(pa.recipes.autoencoder(digits), digits.test.x[:4], (8, 8)).get_title()
    'Interpolation between examples, in equal steps of z'
    """
    if ae.inputs is not None:
        raise Undrawable("interpolation: expected a model whose encoder sees x, got one with inputs")
    image_shape = image_shape or _image_shape(ae)
    x = inputs.read(x, inputs.wanted_by(ae.model)).x[:].to(ae.device)
    with torch.no_grad():
        first, last = ae.latent_mean(x).reshape(-1, 2, *ae.prior.code_shape).unbind(1)
        z = torch.stack([first.lerp(last, share) for share in torch.linspace(0, 1, steps).tolist()], 1)
        between = ae.likelihood.mean_or_mode(ae.decode(z.flatten(0, 1))).reshape(len(z), steps, *x.shape[1:])
    rows = torch.cat([x[0::2, None], between, x[1::2, None]], 1)
    ax = images(rows.flatten(0, 1), image_shape, limits, columns=steps + 2, names=_columns(ae), ax=ax)
    if image_shape is None:
        name_rows(ax, [f"pair {i + 1}" for i in range(len(rows))], None, steps + 2)
    ax.set_title("Interpolation between examples, in equal steps of z", wrap=True)
    return ax


def _image_shape(ae: Autoencoder) -> tuple[int, ...] | None:
    """The image shape of the model's data, or of its x ``(C, H, W)``; a square of 64 values from 0 to 1 or more is an image too."""
    known, event = ae.schema.image_shape if ae.schema is not None else None, ae.likelihood.event_shape
    if known is None and len(event) == 1 and _columns(ae) is None and ae.likelihood.bounded:
        side = math.isqrt(event[0])
        known = (side, side) if side >= _SIDE and side**2 == event[0] else None
    return shape_of(torch.empty(1, *ae.likelihood.event_shape, device="meta"), known)


def _columns(ae: Autoencoder) -> list[str] | None:
    """The names of the columns of the model's data."""
    return ae.schema.names if ae.schema is not None else None


def _weights(ae: Autoencoder, decoder: bool) -> Tensor:
    """``(units, D)``."""
    side = ae.decoder if decoder else ae.encoder
    try:
        ends = linear.layers(side)[-1 if decoder else 0]
    except ValueError as error:
        raise Undrawable(f"filters: {error}") from None
    last = next(layer for layer in ends if hasattr(layer, "in_features"))
    return linear.matrix(last).detach().cpu().T if decoder else linear.matrix(last).detach().cpu()


def _quantiles(ae: Autoencoder, n: int) -> Tensor:
    """Quantiles of the prior, ``(2, n)``."""
    shares = (torch.arange(n) + 0.5) / n
    try:
        return ae.prior().base_dist.icdf(shares.to(ae.device)[:, None].expand(n, 2)).detach().cpu().T
    except (NotImplementedError, AttributeError):
        raise Undrawable(
            f"manifold: the prior {type(ae.prior).__name__} has no inverse CDF; give span, such as span=2.0, for a regular grid"
        ) from None
