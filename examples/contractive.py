"""What makes a code robust? Five autoencoders with tied sigmoid units, side by side (Rifai et al. 2011).

uv run python examples/contractive.py                                     # digits, some minutes
PYROAE_DATA=... uv run python examples/contractive.py --data mnist --units 1000 --epochs 10 --labels 5 --few 5000
"""

import functools
import json
from dataclasses import replace
from pathlib import Path

import torch
from matplotlib.figure import Figure
from pyro import distributions as dist

import pyroae as pa
from pyroae.data import Split

KNOBS = {  # of each kind, from weak to strong
    "contractive": (0.03, 0.1, 0.3),  # weight of the penalty
    "denoising, Gaussian": (0.3, 0.5, 0.8),  # scale of the noise
    "weight decay": (0.3, 0.1, 0.05),  # scale of the Normal prior on the weights
    "denoising, binary": (0.1, 0.25, 0.5),  # share of the entries that are set to 0
    "plain": (0.0,),
}


def main(
    data: str = "digits",
    units: int = 100,
    epochs: int = 100,
    labels: int = 20,
    few: int = 1000,
    rows: int = 60_000,
    seed: int = 0,
    out: str = "contractive",
):
    """Train plain, weight-decayed, denoising (binary and Gaussian noise) and contractive; print the table, draw spectra and filters.

    Cross-entropy of data binarized at a half. A classifier is fine-tuned from each encoder. How strong each kind is, is chosen by
    the classifier's error on validation data after training on few rows; what is printed is of all training data, and of test data.

    Args:
        data: digits, mnist or fashion-mnist.
        units: sigmoid units of the code, each with a filter of its own, used by encoder and decoder.
        epochs: passes over the data; over the few, twice as many.
        labels: passes over the labelled data in fine-tuning, likewise.
        few: training data by which the strength is chosen; 0: the middle one.
        rows: training data, at the most.
        seed: of initial weights, noise and order.
        out: name of the picture (.png) and of the table (.json).
    """
    images = pa.data.load(data, binarize="threshold", validation=1 / 6)
    train, some = (replace(images.train, x=images.train.x[:n], labels=images.train.labels[:n]) for n in (rows, few))
    figure = Figure(figsize=(15, 6), layout="constrained")
    grid = figure.add_gridspec(2, len(KNOBS), height_ratios=(1, 1.2))
    spectra = figure.add_subplot(grid[1, :])
    table = []
    for i, (kind, knobs) in enumerate(KNOBS.items()):
        tried = {knob: learned(kind, knob, some, units, 2 * epochs, 2 * labels, seed)[1].error(images.validation) for knob in knobs if few}
        knob = min(tried, key=tried.get) if few else knobs[len(knobs) // 2]
        ae, classifier = learned(kind, knob, train, units, epochs, labels, seed)
        found = pa.jacobian(ae, images.test.x[:50])
        row = {"model": kind, "strength": knob, "|J|_F": found.norms.mean().item(), "saturated": found.saturated}
        row |= {"cross-entropy": -pa.elbo_terms(ae, images.test).reconstruction.mean().item(), "test error": classifier.error(images.test)}
        table.append(row | {"validation errors": tried})
        print("  ".join(f"{key} {value:.4g}" if isinstance(value, float) else f"{value:20}" for key, value in row.items()), flush=True)
        title = f"{kind}\n$|J|_F$ {row['|J|_F']:.3g}, test error {row['test error']:.2%}"
        pa.plots.filters(ae, images.image_shape, n=48, columns=8, ax=figure.add_subplot(grid[0, i])).set_title(title)
        spectra.semilogy(found.singular_values.mean(0), label=kind, linestyle=("-", "--", ":", "-.", (0, (5, 1)))[i])
    spectra.set(xlabel="direction", ylabel="mean singular value of the Jacobian", ylim=(1e-3, None))
    spectra.legend(frameon=False)
    figure.savefig(f"{out}.png", dpi=80)
    settings = {"data": data, "units": units, "epochs": epochs, "labels": labels, "few": few, "rows": len(train), "seed": seed}
    Path(f"{out}.json").write_text(json.dumps({"settings": settings, "rows": table}, indent=2))


def learned(kind: str, knob: float, train: Split, units: int, epochs: int, labels: int, seed: int) -> tuple[pa.Autoencoder, pa.Classifier]:
    """An autoencoder of a kind, trained, and the classifier that starts from it."""
    torch.manual_seed(seed)
    prior = pa.priors.Flat(units, support="unit_interval")
    ae = pa.recipes.autoencoder(train, units, []).replace(prior=prior, decoder=pa.nets.Tied(), corruption=corruption(kind, knob))
    fit = functools.partial(pa.fit, ae)
    if kind == "weight decay":
        model, guide = pa.with_weight_prior(ae, dist.Normal(0.0, knob), rows=len(train))
        fit = functools.partial(pa.fit, model, guide=guide)
    if kind == "contractive":
        fit = functools.partial(fit, elbo=pa.Penalised(pa.penalties.SigmoidContractive(ae.encoder[0], knob)))
    fit(train, epochs=epochs, seed=seed, progress=False)
    return ae, pa.fine_tune(ae, train, epochs=labels, seed=seed, progress=False)


def corruption(kind: str, knob: float) -> pa.corruption.Corruption | None:
    """Of the encoder's input while it learns."""
    kinds = {"denoising, Gaussian": pa.corruption.Gaussian, "denoising, binary": pa.corruption.Masking}
    return kinds[kind](knob) if kind in kinds else None


if __name__ == "__main__":
    from jsonargparse import auto_cli

    auto_cli(main)
