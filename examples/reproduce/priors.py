"""Tomczak & Welling 2018 and pythae's table: Normal against GaussianMixture and VampPrior, gated 300-300, z 40, static MNIST.
Norouzi et al. 2020: Normal against VampPrior on dynamic MNIST and Fashion-MNIST.

PYROAE_DATA=... uv run python examples/reproduce/priors.py --prior VampPrior          # one prior; Normal, GaussianMixture, VampPrior
PYROAE_DATA=... uv run python examples/reproduce/priors.py --data fashion-mnist --epochs 2000

The papers train for 2,000 passes with a warm-up of 100. Here all priors have one stated budget, with a twentieth of it as warm-up:
what should come again is the order and the size of the gain. Unlike theirs, pseudo-inputs start on data here, and the optimizer is
Adam. The mixture's means start as draws from N(0, 1).
"""

import functools
from pathlib import Path

import torch
from common import RESULTS, adaptive, binarized, going_on, record, recorded, scored

import pyroae as pa


def main(
    prior: str = "Normal",
    data: str = "static",
    components: int = 500,
    epochs: int = 40,
    particles: int = 5000,
    seed: int = 0,
    quick: bool = False,
    out: str = str(RESULTS),
    runs: str = "runs",
):
    """Train a VAE under one prior and record its test log p(x).

    Args:
        prior: Normal, GaussianMixture or VampPrior.
        data: static (Larochelle's MNIST), or mnist or fashion-mnist, binarized whenever used.
        components: of the mixtures.
        epochs: passes over the data, in batches of 100, at a rate that falls from 5e-4 to 0 along a cosine.
        particles: importance samples of the score.
        seed: of initial weights, noise and order.
        quick: digits and 2 passes, to see that it runs.
        out: folder of the record.
        runs: folder of the checkpoints.
    """
    if quick:
        components, epochs, particles = 5, 2, 30
    settings = {key: value for key, value in locals().items() if key not in ("out", "runs")}
    name = f"priors-{prior}" + (f"-{data}" if data != "static" else "")
    if recorded(out, name, settings):
        return
    images = pa.data.load("digits", binarize="static") if quick else binarized(data)
    torch.manual_seed(seed)
    vae = pa.Autoencoder(
        prior=getattr(pa.priors, prior)(40, **({} if prior == "Normal" else {"components": components})),
        likelihood=pa.likelihoods.Bernoulli(tuple(images.event_shape)),
        posterior=pa.posteriors.Normal(),
        encoder=pa.nets.GatedMLP([300, 300]),
        decoder=pa.nets.GatedMLP([300, 300]),
    )
    vae.prior.measure(images.train.draw(images.train.x))
    steps = epochs * len(images.train) // 100
    history = pa.fit(
        vae,
        images.train,
        elbo=pa.objectives.Tempered(pa.schedules.Linear(max(1, steps // 20))),
        epochs=epochs,
        batch_size=100,
        lr=5e-4,
        scheduler=functools.partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=epochs),
        seed=seed,
        **going_on(Path(runs) / name, settings),
    )
    pa.save(vae, Path(runs) / name / "model.safetensors")
    row = {
        **scored(vae, images.test, particles),
        **adaptive(vae, images.test, particles),
        "seconds": history["seconds"][-1],
        "note": f"{epochs} of 2,000 passes",
    }
    record(out, name, row, settings)


if __name__ == "__main__":
    from jsonargparse import auto_cli

    auto_cli(main)
