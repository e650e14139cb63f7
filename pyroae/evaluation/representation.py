"""How useful the latents are: for labels, factors, reconstruction, denoising."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import programs
from ..data import frames
from ..programs import Program
from ..training.batches import takes_inputs
from .codes import code_means, reconstructed
from .particles import prepared


def codes(model: Any, x: Any, guide: Program | None = None, *, seed: int | None = 0) -> Any:
    """E[z|x] of each example, ``(N, dimensions)``, float64; the mean of 64 draws where there is no closed form.

    Args:
        model: an Autoencoder, or any Pyro model of a batch.
        x: an array or tensor ``(N, *event)``, a tuple ``(x, y)``, a split of ``pa.data.load(...)``, or a DataFrame, for which a
            DataFrame with columns z1, z2, ... comes back.
        guide: the model's guide, where ``model`` is not an Autoencoder.
        seed: of the draws.

    >>> codes(vae, x).shape
    torch.Size([20, 2])
    """
    model, guide = programs.pair(model, guide)
    with programs.eval_mode(model, guide, seed=seed):
        return frames.of_codes(code_means(*prepared(x, model, guide)).cpu(), x)


@dataclass(frozen=True)
class Perplexity:
    """How evenly discrete codes are used."""

    perplexity: float  # exp of the entropy of the codes' frequencies over all positions
    used: int  # codes that occur
    codes: int  # that there are

    def __str__(self) -> str:
        return f"perplexity {self.perplexity:.1f} of {self.codes:,} codes, {self.used:,} of which occur"


def perplexity(ae: Any, x: Any) -> Perplexity:
    r"""The perplexity of discrete codes, :math:`\exp(-\sum_k f_k \log f_k)`, f_k the frequency of code k over examples and positions.

    Args:
        ae: an Autoencoder whose posterior is ``pa.posteriors.VectorQuantised`` or ``FiniteScalar``.
        x: as for ``codes``.

    Raises:
        ValueError: another posterior.

    >>> vq = vae.replace(prior=pa.priors.Codes((4, 2)), posterior=pa.posteriors.FiniteScalar(levels=[5, 4]))
    >>> 1 <= perplexity(vq, x).perplexity <= perplexity(vq, x).used <= 20
    True
    """
    posterior = getattr(ae, "posterior", None)
    if not hasattr(posterior, "indices"):
        raise ValueError(f"perplexity: expected a posterior of discrete codes such as VectorQuantised, got {type(posterior).__name__}")
    z = torch.tensor(np.asarray(codes(ae, x)))
    z = z.reshape(len(z), *ae.prior.event_shape).to(next(posterior.buffers()).device, torch.get_default_dtype())
    frequency = torch.bincount(posterior.indices(z).flatten(), minlength=posterior.alphabet).double() / z[..., 0].numel()
    return Perplexity(torch.special.entr(frequency).sum().exp().item(), int((frequency > 0).sum()), posterior.alphabet)


@dataclass(frozen=True)
class Probe:
    """Test accuracy of classifiers of the code."""

    linear: float  # logistic regression
    neighbours: float  # k nearest neighbours
    chance: float  # always the commonest class

    def __str__(self) -> str:
        return f"linear probe {self.linear:.1%}, nearest neighbours {self.neighbours:.1%}, chance {self.chance:.1%}"


def probe(model: Any, train: Any, test: Any, guide: Program | None = None, *, neighbours: int = 5) -> Probe:
    """Test accuracy of predicting labels from the standardised code E[z|x], by logistic regression and by nearest neighbours.

    Args:
        model: an Autoencoder, or any Pyro model of a batch.
        train, test: splits of ``pa.data.load(...)`` with labels.
        guide: the model's guide, where ``model`` is not an Autoencoder.
        neighbours: k.

    Raises:
        ValueError: data without labels.

    >>> import pyroae as pa
    >>> digits = pa.data.load("digits", binarize="threshold")
    >>> probe(pa.recipes.vae(digits), digits.train, digits.test).linear > 0.2  # untrained
    True
    """
    from sklearn.linear_model import LogisticRegression  # which takes a second to import
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    for split in (train, test):
        if getattr(split, "classes", None) is None:
            raise ValueError("probe: expected splits with labels, such as pa.data.load(FILE, labels='NAME').train (--labels NAME)")
    (z, y), (z_test, y_test) = ((codes(model, split, guide).numpy(), split.classes.cpu().numpy()) for split in (train, test))
    classifiers = LogisticRegression(max_iter=1000), KNeighborsClassifier(min(neighbours, len(y)))
    linear, nearest = (make_pipeline(StandardScaler(), each).fit(z, y).score(z_test, y_test) for each in classifiers)
    return Probe(linear, nearest, float((y_test == np.bincount(y).argmax()).mean()))


def mig(model: Any, x: Any, factors: Tensor, guide: Program | None = None, *, bins: int = 20) -> float:
    r"""Mutual information gap (Chen et al. 2018, eq. 6), from 0 to 1: how much each factor is concentrated in one latent dimension.

    :math:`\frac1F \sum_f \frac{I(z_{(1)}; v_f) - I(z_{(2)}; v_f)}{H(v_f)}`, the two dimensions with the most information on factor f;
    of the means E[z|x], cut into ``bins`` of equal width.

    Args:
        model: an Autoencoder, or any Pyro model of a batch.
        x: data, as for ``codes``.
        factors: ``(N, F)`` whole numbers, the factors of variation.
        guide: the model's guide, where ``model`` is not an Autoencoder.
        bins: per latent dimension.

    Raises:
        ValueError: factors of another shape, or a factor that does not vary.

    >>> import torch
    >>> 0 <= mig(vae, x, torch.arange(20)[:, None] % 4) <= 1
    True
    """
    from sklearn.metrics import mutual_info_score  # which takes a second to import

    z, v = codes(model, x, guide).numpy(), np.asarray(factors)
    if v.ndim != 2 or len(v) != len(z):
        raise ValueError(f"mig: expected factors of shape ({len(z)}, F), got {v.shape}")
    cut = np.stack([np.digitize(column, np.histogram_bin_edges(column, bins)[1:-1]) for column in z.T])
    gaps = []
    for factor in v.T:
        entropy = mutual_info_score(factor, factor)
        if entropy == 0:
            raise ValueError("mig: expected factors that vary, got a constant one; leave it out")
        *_, second, first = [0.0, *sorted(mutual_info_score(column, factor) for column in cut)]
        gaps.append((first - second) / entropy)
    return float(np.mean(gaps))


def reconstruction_error(model: Any, x: Any, guide: Program | None = None, *, seed: int | None = 0) -> Tensor:
    """Mean squared error per observed entry of x of the mean of p(x|z) at z = E[z|x], ``(N,)``.

    Args:
        model, x, guide, seed: as for ``codes``.

    >>> reconstruction_error(vae, x).shape
    torch.Size([20])
    """
    model, guide = programs.pair(model, guide)
    with programs.eval_mode(model, guide, seed=seed):
        model, guide, args = prepared(x, model, guide)
        return (reconstructed(model, guide, args) - args[0]).double().square().reshape(len(args[0]), -1).nanmean(1).cpu()


def denoising_gain(
    model: Any, x: Any, corruption: Callable[[Tensor], Tensor], guide: Program | None = None, *, seed: int | None = 0
) -> float:
    r""":math:`10 \log_{10} \frac{|\tilde x - x|^2}{|\hat x(\tilde x) - x|^2}` in dB: noise removed by reconstructing a noisy x.

    Args:
        model, guide: as for ``codes``.
        x: clean data.
        corruption: adds noise to them, such as ``pa.corruption.Gaussian(.3)``.
        seed: of the corruption.

    >>> import pyroae as pa
    >>> import torch
    >>> ae = pa.recipes.denoising(pa.data.load(torch.rand(20, 16)))
    >>> isinstance(denoising_gain(ae, torch.rand(20, 16), pa.corruption.Masking(0.25)), float)
    True
    """
    model, guide = programs.pair(model, guide)
    if takes_inputs(model):
        raise ValueError("denoising_gain: expected a guide of x, to which noise is added, but this model's encoder sees inputs")
    with programs.eval_mode(model, guide, seed=seed):
        model, guide, (clean, *rest) = prepared(x, model, guide)
        noisy = corruption(clean)
        left = (reconstructed(model, guide, (noisy, *rest)) - clean).double().square().sum().item()
        added = (noisy - clean).double().square().sum().item()
    if added == 0:
        raise ValueError("denoising_gain: the corruption changed nothing")
    return 10 * math.log10(added / left) if left else math.inf
