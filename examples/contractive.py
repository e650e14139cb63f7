"""What makes a code robust? Five autoencoders with tied sigmoid units, side by side (Rifai et al. 2011).

uv run python examples/contractive.py                                     # digits, a minute or two
PYROAE_DATA=... uv run python examples/contractive.py --data mnist --units 1000 --epochs 50 --weight .1
"""

import functools
import json
from pathlib import Path

import torch
from matplotlib.figure import Figure
from pyro import distributions as dist

import pyroae as pa


def main(
    data: str = "digits",
    units: int = 100,
    epochs: int = 100,
    weight: float = 0.5,
    fraction: float = 0.25,
    noise: float = 0.3,
    decay: float = 0.3,
    labels: int = 20,
    seed: int = 0,
    out: str = "contractive",
):
    """Train plain, weight-decayed, denoising (binary and Gaussian noise) and contractive; print the table, draw spectra and filters.

    Cross-entropy of data binarized at a half. The test error is of a classifier fine-tuned from each encoder.

    Args:
        data: digits, mnist or fashion-mnist.
        units: sigmoid units of the code, each with a filter of its own, used by encoder and decoder.
        epochs: passes over the data.
        weight: of the contractive penalty.
        fraction: of the entries that binary noise sets to 0.
        noise: scale of the Gaussian noise.
        decay: scale of the Normal prior on the weights; the smaller the stronger.
        labels: passes over the labelled data in fine-tuning.
        seed: of initial weights, noise and order.
        out: name of the picture (.png) and of the table (.json).
    """
    images = pa.data.load(data, binarize="threshold")
    kinds = {
        "contractive": {"objective": pa.Penalised(pa.penalties.Contractive(weight))},
        "denoising, Gaussian": {"corruption": pa.corruption.Gaussian(noise)},
        "denoising, binary": {"corruption": pa.corruption.Masking(fraction)},
        "weight decay": {},
        "plain": {},
    }
    figure = Figure(figsize=(15, 6), layout="constrained")
    grid = figure.add_gridspec(2, len(kinds), height_ratios=(1, 1.2))
    spectra = figure.add_subplot(grid[1, :])
    rows = []
    for i, (name, parts) in enumerate(kinds.items()):
        torch.manual_seed(seed)
        ae = pa.recipes.autoencoder(images, units, []).replace(
            prior=pa.priors.Flat(units, support="unit_interval"), decoder=pa.nets.Tied(), **parts
        )
        train = functools.partial(pa.fit, ae)
        if name == "weight decay":
            model, guide = pa.with_weight_prior(ae, dist.Normal(0.0, decay), rows=len(images.train))
            train = functools.partial(pa.fit, model, guide=guide)
        train(images.train, epochs=epochs, seed=seed, progress=False)
        found = pa.jacobian(ae, images.test.x[:500])
        classifier = pa.fine_tune(ae, images.train, epochs=labels, seed=seed, progress=False)
        row = {"model": name, "|J|_F": found.norms.mean().item(), "saturated": found.saturated, "test error": classifier.error(images.test)}
        rows.append(row | {"cross-entropy": -pa.elbo_terms(ae, images.test).reconstruction.mean().item()})
        print("  ".join(f"{key} {value:.4g}" if isinstance(value, float) else f"{value:20}" for key, value in rows[-1].items()), flush=True)
        pa.plots.filters(ae, images.image_shape, n=48, columns=8, ax=figure.add_subplot(grid[0, i])).set_title(name)
        spectra.semilogy(found.singular_values.mean(0), label=name, linestyle=("-", "--", ":", "-.", (0, (5, 1)))[i])
    spectra.set(xlabel="direction", ylabel="mean singular value of the Jacobian", ylim=(1e-3, None))
    spectra.legend(frameon=False)
    figure.savefig(f"{out}.png", dpi=90)
    settings = {"data": data, "units": units, "epochs": epochs, "weight": weight, "fraction": fraction, "noise": noise, "decay": decay}
    Path(f"{out}.json").write_text(json.dumps({"settings": settings | {"labels": labels, "seed": seed}, "rows": rows}, indent=2))


if __name__ == "__main__":
    from jsonargparse import auto_cli

    auto_cli(main)
