"""Charts of training, codes and scores."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.ticker import MaxNLocator
from pyro import poutine
from torch import Tensor

from .. import programs
from ..data import inputs
from ..data.splits import Split
from ..evaluation.checking import Check, Ranks
from ..evaluation.decomposition import Units
from ..evaluation.importance import UNRELIABLE, Estimate
from ..evaluation.representation import codes
from ..model.autoencoder import Autoencoder
from ..training.fit import History
from .drawing import COLOURS, Undrawable, axes

_LEGEND = 10  # curves that have names
_STYLES = "-", "--", ":", "-."


def training(history: History, columns: Sequence[str] | None = None, *, ax: Axes | None = None) -> Axes:
    """Loss by epoch: a line for every column of nats per example.

    With the callback ``pa.callbacks.ELBOTerms`` the two terms of the ELBO are included: loss = -reconstruction + KL.
    The y axis is cut off above if the first epochs are far above the rest.

    Args:
        history: of ``fit``, including columns that callbacks added.
        columns: by default all except the learning rate and the time. ``reconstruction`` is drawn with opposite sign.
        ax: the Axes to draw on; by default new ones.

    >>> training(History("Trace_ELBO", [{"epoch": e, "loss": 90.0 / e} for e in (1, 2, 3)])).get_ylabel()
    'nats per example'
    """
    if not history.rows:
        raise Undrawable("training: expected a history with at least one epoch, got none")
    columns = columns or [name for name in history.rows[0] if name not in ("epoch", "lr", "seconds")]
    lines = {name: np.array(history[name]) for name in columns}
    if "reconstruction" in lines:
        lines = {f"-{name}" if name == "reconstruction" else name: -y if name == "reconstruction" else y for name, y in lines.items()}
    ax = axes(ax)
    for i, (name, y) in enumerate(lines.items()):
        label = {"-reconstruction": "-reconstruction, -E log p(x|z)", "kl": "KL(q(z|x) || p(z))"}.get(name, name.replace("_", " "))
        marker = "o" if len(y) == 1 else None
        epochs, y = np.array(history["epoch"])[np.isfinite(y)], y[np.isfinite(y)]
        ax.plot(epochs, y, label=label, color=COLOURS[i % 10], linestyle=_STYLES[i % 4], marker=marker)
    values = np.concatenate([y[np.isfinite(y)] for y in lines.values()])
    low, high = values.min(), max(np.nanquantile(y, 0.97) for y in lines.values())
    if values.max() - low > 1.5 * (high - low) > 0:
        ax.set_ylim(low - 0.05 * (high - low), high + 0.1 * (high - low))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    ax.set(xlabel="epoch", ylabel="nats per example", title=f"Training, {history.objective}")
    ax.legend(frameon=False)
    return ax


def latent(
    ae: Autoencoder,
    x: Any,
    labels: Tensor | None = None,
    y: Tensor | None = None,
    *,
    method: Literal["pca", "tsne", "umap"] = "pca",
    ax: Axes | None = None,
) -> Axes:
    """Means of q(z|x) of test examples, coloured by label, in the latent space or a two-dimensional projection of it.

    Args:
        ae: the model.
        x: test examples, ``(N, *event)``, or a split; some thousands.
        labels: integers, ``(N,)``, by default those of the split; up to ten classes have distinct colours, also for the colour-blind,
            and are annotated.
        y: labels or covariates of a conditional model.
        method: the projection, for more than two latent dimensions: principal components, t-SNE, or UMAP
            (``pip install pyroae[umap]``). The latter two preserve neighbours but not distances.
        ax: the Axes to draw on; by default new ones.

    Raises:
        ValueError: UMAP is not installed, or an unknown method.

    >>> import pyroae as pa
    >>> digits = pa.data.load("digits")
    >>> latent(pa.recipes.autoencoder(digits, latent_dim=2), digits.test.x, digits.test.labels).get_xlabel()
    '$z_1$'
    """
    z = torch.tensor(np.asarray(codes(ae, x if y is None else (x, y))))
    names = ["$z_1$", "$z_2$"]
    if z.shape[1] == 1:
        z, names = torch.cat([z, torch.zeros_like(z)], 1), ["$z_1$", ""]
    if z.shape[1] > 2:
        z, names = _projected(z, method)
    ax = axes(ax)
    labels = x.classes if labels is None and isinstance(x, Split) else labels
    values = None if labels is None else np.asarray(labels.cpu() if isinstance(labels, Tensor) else labels)
    _scatter(ax, z.numpy(), values, ae.schema.classes if ae.schema is not None else None)
    ax.set(xlabel=names[0], ylabel=names[1], title=f"Codes of {len(z):,} examples")
    return ax


def units(active: Units, *, ax: Axes | None = None) -> Axes:
    """How much each latent dimension depends on x, as bars, the most active first; grey below the threshold.

    Args:
        active: of ``pa.active_units``.
        ax: the Axes to draw on; by default new ones.

    >>> units(Units(torch.tensor([0.9, 0.001]), 0.01)).get_title()
    '1 of 2 units are active'
    """
    ax = axes(ax)
    order = active.variance.argsort(descending=True)
    heights = active.variance[order].clamp(min=active.threshold / 100).numpy()
    ax.bar(range(len(order)), heights, color=[COLOURS[0] if is_active else COLOURS[3] for is_active in active.active[order]])
    ax.axhline(active.threshold, color=COLOURS[2], linestyle="--", label=f"threshold {active.threshold:g}")
    if len(order) <= 40:
        ax.set_xticks(range(len(order)), [f"{unit + 1}" for unit in order.tolist()], rotation=90 if len(order) > 20 else 0)
    ax.set(yscale="log", xlabel="latent dimension, the most active first", ylabel="Var E[z|x] over the data (log scale)")
    ax.set_title(f"{int(active.active.sum())} of {len(order)} units are active", wrap=True)
    ax.set_ylim(top=3.0 * heights.max())  # room for the legend
    ax.legend(frameon=False, loc="upper right")
    return ax


def aggregate(ae: Autoencoder, x: Any, y: Tensor | None = None, *, units: int = 20, ax: Axes | None = None) -> Axes:
    """The aggregate posterior q(z) and the prior: median, 50% and 90% intervals for each latent dimension.

    Where the two differ, the prior has mass where no example is encoded, or the other way round.

    Args:
        ae: a model with a proper prior.
        x: test examples, ``(N, *event)``; some thousands.
        y: labels or covariates of a conditional model.
        units: at most so many latent dimensions, the first ones.
        ax: the Axes to draw on; by default new ones.

    Raises:
        ValueError: the prior is improper.

    >>> import pyroae as pa
    >>> digits = pa.data.load("digits")
    >>> len(aggregate(pa.recipes.vae(digits, latent_dim=3), digits.test.x.round()).get_xticks())
    3
    """
    if not ae.prior.proper:
        raise Undrawable(f"aggregate: the prior {type(ae.prior).__name__} is improper, so there is nothing to compare with")
    batch = inputs.read(x if y is None else (x, y), inputs.wanted_by(ae.model))
    y = None if batch.y is None or ae.condition is None else batch.y[:].to(ae.device)
    u = None if batch.u is None or ae.inputs is None else batch.u[:].to(ae.device)
    with programs.eval_mode(ae, seed=0):
        guide = poutine.trace(ae.guide).get_trace(batch.x[:].to(ae.device), y, u)
        runs = guide, poutine.trace(ae.model).get_trace(None, y, n=len(batch.x))
        posterior, prior = (torch.as_tensor(run.nodes["z"]["value"]) for run in runs)
    ax = axes(ax)
    for z, name, colour, shift in ((posterior, "aggregate posterior q(z)", COLOURS[0], -0.17), (prior, "prior p(z)", COLOURS[1], 0.17)):
        low, lower, median, upper, high = np.quantile(z.flatten(1)[:, :units].double().cpu().numpy(), (0.05, 0.25, 0.5, 0.75, 0.95), axis=0)
        at = np.arange(len(median)) + 1 + shift
        ax.vlines(at, low, high, color=colour, linewidth=1.5)
        ax.vlines(at, lower, upper, color=colour, linewidth=6, label=name)
        ax.plot(at, median, "o", color="black", markersize=3)
    ax.set_xticks(range(1, len(median) + 1))
    ax.set(xlabel="latent dimension", ylabel="z: median, 50% and 90% intervals", title="Aggregate posterior and prior")
    ax.set_ylim(top=ax.get_ylim()[1] + 0.12 * np.ptp(ax.get_ylim()))  # room for the legend
    ax.legend(frameon=False, loc="upper right", ncols=2)
    return ax


def weights(estimate: Estimate, *, ax: Axes | None = None) -> Axes:
    """Reliability of importance weights: effective sample size against Pareto k-hat, a dot per example.

    Args:
        estimate: of ``pa.log_likelihood`` with at least 25 particles.
        ax: the Axes to draw on; by default new ones.

    Raises:
        ValueError: too few particles for a k-hat.

    >>> import pyroae as pa
    >>> digits = pa.data.load("digits", binarize="threshold")
    >>> weights(pa.log_likelihood(pa.recipes.vae(digits), digits.test.x[:9], particles=50)).get_xlabel()
    'Pareto k-hat'
    """
    if estimate.khat.isnan().all():
        raise Undrawable(f"weights: expected an estimate of at least 25 particles, which have a k-hat, got {estimate.particles}")
    ax = axes(ax)
    good = estimate.khat <= UNRELIABLE
    size = 4 if len(good) > 1000 else 12
    for mask, colour, marker, name in ((good, COLOURS[0], "o", "reliable"), (~good, COLOURS[2], "^", "unreliable")):
        label = f"{name}, {mask.sum():,}"
        ax.scatter(estimate.khat[mask], estimate.ess[mask], s=size, color=colour, marker=marker, linewidths=0, label=label)
    ax.axvline(UNRELIABLE, color="black", linestyle="--", linewidth=1)
    ax.set(yscale="log", xlabel="Pareto k-hat", ylabel=f"effective sample size, of {estimate.particles:,}")
    ax.set_title(f"Importance weights of {len(good):,} examples: {estimate.unreliable:.1%} have k-hat above {UNRELIABLE:g}", wrap=True)
    ax.legend(frameon=False, markerscale=2)
    return ax


def calibration(check: Check | Ranks, *, ax: Axes | None = None) -> Axes:
    """Calibration of intervals: the fraction of values inside the central interval of each level, against the level.

    The curve of a calibrated guide is the diagonal; below it intervals are too narrow, above it too wide. For a predictive
    check the reference is the second curve, of data simulated from the model; the legend has the check's verdict, since both depend
    on draws of p(z|x). More than ten dimensions have no legend.

    Args:
        check: of ``pa.predictive_check``: all entries of x, in intervals of p(x|z); or of ``pa.sbc``: a curve for each
            latent dimension, in intervals of q(z|x).
        ax: the Axes to draw on; by default new ones.

    >>> calibration(Ranks(torch.randint(100, (500, 2)), 99)).get_ylabel()
    'inside, %'
    """
    if isinstance(check, Ranks):
        shares, values = (check.ranks.double().T + 0.5) / (check.draws + 1), "z in intervals of q(z|x), simulated data"
        names = [f"z{i + 1}" for i in range(len(shares))]
    else:
        shares, values = torch.stack([check.pit.flatten(), check.reference.flatten()]).double(), "entries of x in intervals of p(x|z)"
        names = [f"data{check.verdict.mark}", f"simulated{check.verdict.mark}"]
    levels = np.linspace(0, 1, 101)
    ax = axes(ax)
    ax.plot([0, 100], [0, 100], color="black", linewidth=1, linestyle="--", label="calibrated")
    for i, centred in enumerate((2 * shares - 1).abs().numpy()):
        inside = np.searchsorted(np.sort(centred), levels) / len(centred)
        ax.plot(100 * levels, 100 * inside, color=COLOURS[i % 10], linestyle=_STYLES[i // 10 % 4], label=names[i])
    ax.set(xlabel="level of the interval, %", ylabel="inside, %", title=f"Calibration:\n{values}", aspect="equal")
    if len(shares) <= _LEGEND:
        ax.legend(frameon=False, loc="lower right", fontsize="small")
    return ax


def principal(z: Tensor) -> tuple[Tensor, Tensor, list[float]]:
    """The mean of codes ``(N, D)``, their first two principal directions ``(2, D)`` and the fractions of variance explained.

    The sign of a direction is such that its largest entry is positive.
    """
    mean = z.mean(0)
    _, values, vectors = torch.linalg.svd(z - mean, full_matrices=False)
    largest = vectors[:2].gather(1, vectors[:2].abs().argmax(1, keepdim=True))
    return mean, vectors[:2] * largest.sign(), (values[:2].square() / values.square().sum()).tolist()


def _projected(z: Tensor, method: str) -> tuple[Tensor, list[str]]:
    """Codes ``(N, D)`` projected to ``(N, 2)``, and the names of the two axes."""
    if method == "pca":
        mean, directions, shares = principal(z)
        return (z - mean) @ directions.T, [f"component {i + 1} ({share:.0%})" for i, share in enumerate(shares)]
    if method == "tsne":
        from sklearn.manifold import TSNE

        embedding = TSNE(perplexity=min(30, (len(z) - 1) / 3), random_state=0).fit_transform(z.numpy())
        return torch.as_tensor(embedding), ["t-SNE 1", "t-SNE 2"]
    if method != "umap":
        raise ValueError(f"latent: expected method as 'pca', 'tsne' or 'umap', got {method!r}")
    try:
        from umap import UMAP
    except ImportError as error:
        raise ValueError("latent: UMAP is not installed; pip install 'pyroae[umap]', or use method='tsne'") from error
    return torch.as_tensor(UMAP(random_state=0, n_jobs=1).fit_transform(z.numpy())), ["UMAP 1", "UMAP 2"]


def _scatter(ax: Axes, z: np.ndarray, labels: np.ndarray | None, names: Sequence[str] | None = None):
    size = 4 if len(z) > 1000 else 12
    if labels is None:
        ax.scatter(*z.T, s=size, color=COLOURS[0], linewidths=0)
        return
    classes = np.unique(labels)
    few = len(classes) <= len(COLOURS)
    colours = ListedColormap(COLOURS[: len(classes)]) if few else "viridis"
    colour = np.searchsorted(classes, labels) if few else labels
    norm = Normalize(-0.5, len(classes) - 0.5) if few else None
    dots = ax.scatter(*z.T, c=colour, s=size, linewidths=0, cmap=colours, norm=norm)
    bar = ax.figure.colorbar(dots, ax=ax, label="label")
    if few:
        texts = [str(names[int(label)]) if names else str(label) for label in classes]
        bar.set_ticks(range(len(classes)), labels=texts)
        box = {"boxstyle": "round,pad=.15", "fc": "white", "alpha": 0.8, "lw": 0}
        for label, text in zip(classes, texts):
            median = np.median(z[labels == label], axis=0)
            ax.annotate(text, median, ha="center", va="center", fontweight="bold", bbox=box)
