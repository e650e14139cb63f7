"""Rifai et al. 2011: what makes a code robust? Five autoencoders of 1,000 tied sigmoid units, and a classifier from each.

PYROAE_DATA=... uv run python examples/reproduce/contractive.py
uv run python examples/reproduce/contractive.py --data digits --units 100 --epochs 100 --few 500    # some minutes

Cross-entropy of grey levels, Adam at 1e-3; then all of it on labels, at 3e-3 falling to 0 along a cosine. The classifier's error on
validation data, after training on few rows, chooses the strength of each kind; what is recorded is of all training data, and of test
data. The paper's search is not known; its Jacobians are on another scale.
"""

import functools
import math
import time
from pathlib import Path

import torch
from classifier import Classifier, fine_tune
from common import RESULTS, CrossEntropy, error, going_on, record, recorded
from matplotlib.figure import Figure
from pyro import distributions as dist

import pyroae as pa
from pyroae.data import Split

KNOBS = {  # of each kind, from weak to strong
    "contractive": (0.1, 0.3, 1.0, 3.0, 10.0, 30.0),  # weight of the penalty
    "denoising, Gaussian": (0.3, 0.5, 0.8, 1.2, 1.8),  # scale of the noise
    "denoising, binary": (0.1, 0.25, 0.5, 0.7, 0.9),  # share of the entries that are set to 0
    "weight decay": (60.0, 20.0, 7.0, 3.0),  # scale of the Normal prior on the weights, times the root of the number of rows
    "plain": (0.0,),
}


def main(
    data: str = "mnist",
    units: int = 1000,
    epochs: int = 20,
    labels: int = 20,
    few: int = 10000,
    seed: int = 0,
    quick: bool = False,
    out: str = str(RESULTS),
    runs: str = "runs",
):
    """Train plain, weight-decayed, denoising (binary and Gaussian noise) and contractive; record them, draw spectra and filters.

    Args:
        data: digits, mnist or fashion-mnist.
        units: sigmoid units of the code, each with a filter of its own, used by encoder and decoder.
        epochs: passes over the data.
        labels: passes over the labelled data in fine-tuning.
        few: training data by which the strength is chosen.
        seed: of initial weights, noise and order.
        quick: digits and a few passes, to see that it runs.
        out: folder of the records and of the picture.
        runs: folder of the checkpoints.
    """
    if quick:
        data, units, epochs, labels, few = "digits", 8, 1, 1, 100
    settings = {key: value for key, value in locals().items() if key not in ("out", "runs")}
    images = pa.data.load(data, validation=1 / 6)
    folders = {kind: Path(runs) / f"contractive-{kind.replace(', ', '-').replace(' ', '-')}" for kind in KNOBS}
    for kind, folder in folders.items():
        if recorded(out, folder.name, settings):
            continue
        start = time.perf_counter()
        tried = chosen(kind, images, few, units, epochs, labels, seed)
        knob = min(tried, key=tried.get) if tried else KNOBS[kind][0]
        ae, classifier = learned(kind, knob, images.train, units, epochs, labels, seed, folder)
        pa.save(ae, folder / "model.safetensors")
        found = pa.jacobian(ae, images.test.x[::100])
        row = error(classifier, images.test) | {"|J|_F": found.norms.mean().item()}
        row |= {
            "seconds": time.perf_counter() - start,
            "saturated": found.saturated,
            "cross-entropy": -pa.elbo_terms(ae, images.test).reconstruction.mean().item(),
        }
        note = f"Jacobian {row['|J|_F']:.1f}; {epochs} passes"
        record(out, folder.name, row | {"note": note, "strength": knob, "validation errors": tried}, settings)
    likelihood = CrossEntropy(tuple(images.event_shape))
    if not all((folder / "model.safetensors").exists() for folder in folders.values()):
        return  # recorded elsewhere
    models = {kind: pa.load(folder / "model.safetensors", likelihood=likelihood) for kind, folder in folders.items()}
    picture(models, images).savefig(Path(out) / "contractive.png", dpi=80)


def chosen(kind: str, images: pa.data.DataSet, few: int, units: int, epochs: int, labels: int, seed: int) -> dict[float, float]:
    """The validation error of each strength, learned from few data."""
    knobs = KNOBS[kind] if len(KNOBS[kind]) > 1 else ()
    return {knob: learned(kind, knob, images.train[:few], units, epochs, labels, seed)[1].error(images.validation) for knob in knobs}


def learned(
    kind: str, knob: float, train: Split, units: int, epochs: int, labels: int, seed: int, folder: Path | None = None
) -> tuple[pa.Autoencoder, Classifier]:
    """An autoencoder of a kind, trained, and the classifier that starts from it; with a folder, each goes on where it was stopped."""
    torch.manual_seed(seed)
    prior = pa.priors.Flat(units, support="unit_interval")
    ae = pa.recipes.autoencoder(train, units, []).replace(
        prior=prior, likelihood=CrossEntropy(tuple(train.event_shape)), decoder=pa.nets.Tied(), corruption=corruption(kind, knob)
    )
    fit = functools.partial(pa.fit, ae)
    if kind == "weight decay":
        model, guide = pa.with_weight_prior(ae, dist.Normal(0.0, knob / math.sqrt(len(train))), num_data=len(train))
        fit = functools.partial(pa.fit, model, guide=guide)
    if kind == "contractive":
        fit = functools.partial(fit, elbo=pa.Penalised(pa.penalties.SigmoidContractive(ae.encoder[0], knob)))
    asked = {"strength": knob, "rows": len(train), "units": units, "epochs": epochs, "labels": labels, "seed": seed}
    first, second = (going_on(folder / part, asked) for part in ("code", "classifier")) if folder else ({}, {})
    fit(train, epochs=epochs, seed=seed, **first)
    fall = functools.partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=labels)
    return ae, fine_tune(ae, train, epochs=labels, batch_size=100, lr=3e-3, scheduler=fall, seed=seed, **second)


def corruption(kind: str, knob: float) -> pa.corruption.Corruption | None:
    """Of the encoder's input while it learns."""
    kinds = {"denoising, Gaussian": pa.corruption.Gaussian, "denoising, binary": pa.corruption.BernoulliMask}
    return kinds[kind](knob) if kind in kinds else None


def picture(models: dict[str, pa.Autoencoder], images: pa.data.DataSet) -> Figure:
    """Filters of each, and the mean singular values of their Jacobians."""
    figure = Figure(figsize=(15, 6), layout="constrained")
    grid = figure.add_gridspec(2, len(models), height_ratios=(1, 1.2))
    spectra = figure.add_subplot(grid[1, :])
    for i, (kind, ae) in enumerate(models.items()):
        found = pa.jacobian(ae, images.test.x[:50])
        title = f"{kind}\n$|J|_F$ {found.norms.mean():.3g}"
        pa.plots.filters(ae, images.image_shape, n=48, columns=8, ax=figure.add_subplot(grid[0, i])).set_title(title)
        spectra.semilogy(found.singular_values.mean(0), label=kind, linestyle=("-", "--", ":", "-.", (0, (5, 1)))[i])
    spectra.set(xlabel="direction", ylabel="mean singular value of the Jacobian", ylim=(1e-3, None))
    spectra.legend(frameon=False)
    return figure


if __name__ == "__main__":
    from jsonargparse import auto_cli

    auto_cli(main)
