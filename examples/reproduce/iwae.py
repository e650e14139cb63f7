"""Burda, Grosse & Salakhutdinov 2016, table 1: VAE and IWAE with one stochastic layer, 784-200-200-50, or two.

PYROAE_DATA=... uv run python examples/reproduce/iwae.py --k 5                       # static MNIST
PYROAE_DATA=... uv run python examples/reproduce/iwae.py --k 50 --gradient dreg --binarize dynamic --stages 6

Batches of 20; 3^i passes at a rate of 1e-3 * 10^(-i/7), i = 0..7: 3,280 passes. A shorter run stops after fewer of these stages and
says so. Test log p(x) after every stage is the curve against passes and time; the same command goes on where it was interrupted.
"""

import functools
import json
from pathlib import Path

import numpy as np
import torch
from common import RESULTS, adaptive, binarized, glorot, going_on, record, recorded, scored

import pyroae as pa


def main(
    k: int = 1,
    objective: str = "iwae",
    gradient: str = "plain",
    layers: int = 1,
    binarize: str = "static",
    stages: int = 8,
    particles: int = 5000,
    watched: int = 1000,
    seed: int = 0,
    quick: bool = False,
    out: str = str(RESULTS),
    runs: str = "runs",
):
    """Train one of the paper's models and record its test log p(x) beside the published one.

    Args:
        k: draws for each example.
        objective: iwae, the bound of k draws, or vae, the mean of k bounds of one.
        gradient: plain, as in the paper, dreg or stl.
        layers: stochastic layers, 1 or 2.
        binarize: static (Larochelle's) or dynamic.
        stages: of the paper's 8.
        particles: importance samples of the score.
        watched: test data, from all over the set, scored after every stage, with a fifth of the particles.
        seed: of initial weights, noise and order.
        quick: digits and 2 short stages, to see that it runs.
        out: folder of the record.
        runs: folder of the checkpoints.
    """
    if quick:
        stages, particles, watched = 2, 30, 20
    settings = {key: value for key, value in locals().items() if key not in ("out", "runs")}
    name = "-".join(map(str, [objective, f"k{k}", f"{layers}-layer", binarize, *([gradient] if gradient != "plain" else [])]))
    if recorded(out, name, settings):
        return
    images = pa.data.load("digits", binarize=binarize) if quick else binarized("static" if binarize == "static" else "mnist")
    torch.manual_seed(seed)
    vae = glorot(network(images, layers), images.train.draw(images.train.x))
    ends = [sum(3**i for i in range(n + 1)) for n in range(stages)]
    schedule = functools.partial(
        torch.optim.lr_scheduler.LambdaLR, lr_lambda=lambda passes: 10 ** (-sum(passes >= end for end in ends) / 7)
    )
    adam = functools.partial(torch.optim.Adam, lr=1e-3, eps=1e-4, fused=True)
    bound = pa.objectives.IWAE(k, gradient=gradient) if objective == "iwae" else pa.objectives.IWAE(1, groups=k, gradient=gradient)
    folder = Path(runs) / name
    curve = folder / "curve.json"

    def watch(row):
        if row["epoch"] in ends:
            rows = json.loads(curve.read_text()) if curve.exists() else []
            rows = [each for each in rows if each["passes"] < row["epoch"]]  # the last epoch before a stop may come twice
            rows.append({"passes": row["epoch"]} | scored(vae, images.test.x[:: -(-len(images.test) // watched)], max(1, particles // 5)))
            curve.write_text(json.dumps(rows, indent=2))

    history = pa.fit(
        vae,
        images.train,
        elbo=bound,
        epochs=ends[-1],
        batch_size=20,
        optimizer=adam,
        scheduler=schedule,
        seed=seed,
        callbacks=[watch],
        **going_on(folder, {key: value for key, value in settings.items() if key not in ("stages", "particles")}),
    )
    pa.save(vae, folder / "model.safetensors")
    if len(history.rows) > ends[-1]:
        raise ValueError(f"{folder} has gone through {len(history.rows):,} passes already: more stages, or --runs with another folder")
    pace = np.median(np.diff(history["seconds"], prepend=0))  # not what some took longer: to compile, to score, to wait for others
    units = int(pa.active_units(vae, images.test.x).active.sum())
    row = {
        **scored(vae, images.test, particles),
        **adaptive(vae, images.test, particles),
        "active units": units,
        "passes": ends[-1],
        "seconds a pass": pace,
        "seconds": pace * ends[-1],
        "note": f"{ends[-1]:,} of 3,280 passes; {units} active units",
    }
    record(out, name, row | {"curve": json.loads(curve.read_text())}, settings)


def network(images: pa.data.DataSet, layers: int) -> pa.Autoencoder:
    """The paper's figure 2: two tanh layers of 200 about 50 numbers, or about 100 with two of 100 about 50 on top."""
    two = layers == 2
    return pa.Autoencoder(
        prior=pa.priors.Hierarchical(100, top=50, hidden=[100, 100]) if two else pa.priors.Normal(50),
        likelihood=pa.likelihoods.Bernoulli(tuple(images.event_shape)),
        posterior=pa.posteriors.Hierarchical(hidden=[100, 100]) if two else pa.posteriors.Normal(),
        encoder=pa.nets.MLP([200, 200], activation="Tanh"),
        decoder=pa.nets.MLP([200, 200], activation="Tanh"),
    )


if __name__ == "__main__":
    from jsonargparse import auto_cli

    auto_cli(main)
