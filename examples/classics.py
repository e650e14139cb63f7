"""Every classical autoencoder on the same data, on one page.

uv run python examples/classics.py                       # digits, a few minutes
PYROAE_DATA=... uv run python examples/classics.py --data mnist --units 200 --hidden 200 --epochs 5 --rows 10000 --particles 50
"""

import base64
import io
import json
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from adversarial import Critic, adversarial_autoencoder, learn
from matplotlib.figure import Figure
from pyro import distributions as dist

import pyroae as pa
from pyroae.data import DataSet

NOTES = """Squared error: per pixel of held-out data. Noise removed: from data with Gaussian noise of scale .3. Active: numbers of the code
above a tenth of its largest. |J|_F: mean Frobenius norm of the encoder's Jacobian. Linear probe: accuracy of logistic regression on the
code of 10,000 data. log p(x): nats per example, where p(x) exists and can be estimated; of the conditional VAE, log p(x|y). Filters are the
encoder's, or where that does not start at x alone, and for a dictionary, the decoder's."""

STYLE = """
body {font-family: sans-serif}
td, th {padding: 0 .6em; text-align: right; vertical-align: middle}
td:first-child {text-align: left; white-space: nowrap}
img {display: block}
"""

Made = tuple[pa.Autoencoder, Callable[[int], object]]  # a model, and what trains it for so many epochs


def main(
    data: str = "digits",
    latent_dim: int = 10,
    units: int = 100,
    hidden: int = 100,
    epochs: int = 150,
    particles: int = 200,
    rows: int = 60_000,
    seed: int = 0,
    only: list[str] = [],
    out: str = "classics",
):
    """Train every system on grey levels and write a page: what it is, its scores on held-out data, its filters.

    Args:
        data: digits, mnist or fashion-mnist.
        latent_dim: the number of latent dimensions of a narrow model.
        units: how many a wide one has: of the single sigmoid layers and the sparse codes.
        hidden: width of hidden layers.
        epochs: passes over the data, for each system.
        particles: importance samples for each test example.
        rows: training data, at the most.
        seed: of initial weights, noise and order.
        only: names of the systems; by default all.
        out: name of the page (.html) and of the table (.json).
    """
    images = pa.data.load(data)
    images = replace(images, train=images.train[:rows])
    table, pictures = [], []
    for name, make in systems(images, latent_dim, units, hidden).items():
        if only and name not in only:
            continue
        torch.manual_seed(seed)
        ae, train = make()
        start = time.perf_counter()
        train(epochs)
        table.append({"system": name, **scores(ae, images, particles), "seconds": f"{time.perf_counter() - start:.0f}"})
        pictures.append(picture(ae, images))
        print(" | ".join(table[-1].values()), flush=True)
        settings = {
            "data": data,
            "latent_dim": latent_dim,
            "units": units,
            "hidden": hidden,
            "epochs": epochs,
            "particles": particles,
            "rows": len(images.train),
            "seed": seed,
        }
        Path(f"{out}.json").write_text(json.dumps({"settings": settings, "rows": table}, indent=2))
        Path(f"{out}.html").write_text(page(table, pictures, ", ".join(f"{name} {value}" for name, value in settings.items())))


def systems(images: DataSet, latent_dim: int, units: int, hidden: int) -> dict[str, Callable[[], Made]]:
    """What is compared: functions that make a model and what trains it."""
    recipes, noise = pa.recipes, pa.corruption
    train = images.train

    def plain(make: Callable[[], pa.Autoencoder], **parts) -> Callable[[], Made]:
        def made():
            ae = make().replace(**parts) if parts else make()
            return ae, lambda epochs: pa.fit(ae, train, epochs=epochs, progress=False)

        return made

    def pretrained() -> Made:
        ae = recipes.autoencoder(images, latent_dim, [hidden, hidden // 2])

        def train_it(epochs: int):  # in as many epochs as the others
            pa.pretrain(ae, train, epochs=max(1, epochs // 6), progress=False)
            pa.fit(ae, train, epochs=max(1, epochs - epochs // 2), progress=False)

        return ae, train_it

    def decayed() -> Made:
        ae = sigmoid()
        prior = dist.Normal(0.0, (500 / len(train)) ** 0.5)  # 1e-3 times the squared weights, for each example
        model, guide = pa.with_weight_prior(ae, prior, num_data=len(train))
        return ae, lambda epochs: pa.fit(model, train, guide=guide, epochs=epochs, progress=False)

    def contractive() -> Made:
        ae = sigmoid()
        objective = pa.Penalised(pa.penalties.SigmoidContractive(ae.encoder[0], 0.1))
        return ae, lambda epochs: pa.fit(ae, train, elbo=objective, epochs=epochs, progress=False)

    def adversarial() -> Made:
        critic = Critic(latent_dim, hidden)
        ae, *parts = adversarial_autoencoder(vae(), critic, 3.0)
        return ae, lambda epochs: learn(ae, parts[0], critic, parts[1], train.x, epochs)

    def sigmoid() -> pa.Autoencoder:
        """One layer of sigmoid units with tied weights, after Rifai et al. 2011."""
        prior = pa.priors.Flat(units, support="unit_interval")
        return recipes.autoencoder(images, units, []).replace(prior=prior, decoder=pa.nets.Tied())

    def variational(network: pa.nets.Network, posterior: pa.posteriors.Posterior) -> pa.Autoencoder:
        return pa.Autoencoder(
            pa.priors.Normal(latent_dim), pa.likelihoods.OptimalNormal(tuple(images.event_shape)), posterior, network, network
        )

    linear_vae = partial(variational, pa.nets.Linear(), pa.posteriors.Normal(scale="per_dimension"))
    vae = partial(variational, pa.nets.MLP(hidden), pa.posteriors.Normal())
    return {
        "linear: PCA": plain(partial(recipes.autoencoder, images, latent_dim, [])),
        "linear, overcomplete": plain(partial(recipes.autoencoder, images, images.event_shape.numel() + 16, [])),
        "one hidden layer": plain(partial(recipes.autoencoder, images, latent_dim, hidden)),
        "deep": plain(partial(recipes.autoencoder, images, latent_dim, [hidden, hidden // 2])),
        "deep, layer by layer": pretrained,
        "sigmoid units, tied": plain(sigmoid),
        "weight decay": decayed,
        "sparse, L1": plain(partial(recipes.sparse, images, units, hidden)),
        "sparse, KL": plain(sigmoid, objective=pa.Penalised(pa.penalties.KLSparsity())),
        "denoising, masking": plain(sigmoid, corruption=noise.Masking(0.25)),
        "denoising, Gaussian": plain(sigmoid, corruption=noise.Gaussian(0.3)),
        "denoising, salt and pepper": plain(sigmoid, corruption=noise.SaltPepper(0.2)),
        "contractive": contractive,
        "linear VAE: probabilistic PCA": plain(linear_vae),
        "VAE": plain(vae),
        "denoising VAE": plain(vae, corruption=noise.Gaussian(0.3)),
        "conditional VAE": plain(vae, condition=pa.conditions.Labels(10)),
        "adversarial autoencoder": adversarial,
    }


def scores(ae: pa.Autoencoder, images: DataSet, particles: int) -> dict[str, str]:
    """Of held-out data."""
    codes = pa.codes(ae, images.test).abs()
    active = (codes > codes.amax(1, keepdim=True) / 10).double().mean().item()
    some = images.test[:1000]
    return {
        "squared error": f"{pa.reconstruction_error(ae, images.test).mean().item():.4f}",
        "noise removed, dB": f"{pa.denoising_gain(ae, images.test, pa.corruption.Gaussian(0.3)):.2f}",
        "active": f"{active:.0%}",
        "|J|_F": f"{pa.jacobian(ae, some[:100]).norms.mean().item():.3g}",
        "linear probe": f"{pa.probe(ae, images.train[:10_000], images.test).linear:.1%}",
        "log p(x)": f"{pa.log_likelihood(ae, some, particles=particles, proposal='guide').mean:.2f}"
        if ae.prior.proper and drawn(ae)
        else "",
    }


def drawn(ae: pa.Autoencoder) -> bool:
    """Whether codes are drawn from a density, so that log p(x) can be estimated."""
    return not isinstance(ae.posterior, pa.posteriors.Delta)


def picture(ae: pa.Autoencoder, images: DataSet) -> str:
    """The filters, and some reconstructions, as an <img>."""
    figure = Figure(figsize=(6, 0.85), layout="constrained")
    left, right = figure.subplots(1, 2)
    backwards = ae.condition is not None or isinstance(ae.parts["decoder"], pa.nets.Dictionary)
    pa.plots.filters(ae, images.image_shape, n=36, columns=12, decoder=backwards, ax=left).set_title("")
    x, y = images.test.x[:18], None if ae.condition is None else images.test.labels[:18]
    pairs = torch.stack([x, ae.reconstruct(x, y).cpu()], 1).flatten(0, 1)
    pa.plots.images(pairs, images.image_shape, columns=12, ax=right)
    held = io.BytesIO()
    figure.savefig(held, dpi=90)
    return f'<img src="data:image/png;base64,{base64.b64encode(held.getvalue()).decode()}" width=540>'


def page(rows: list[dict], pictures: list[str], settings: str) -> str:
    """A table as HTML that needs no other file."""
    head = "".join(f"<th>{name}</th>" for name in [*rows[0], "filters; data and reconstructions, in turn"])
    body = "".join(
        "<tr>" + "".join(f"<td>{cell}</td>" for cell in [*row.values(), image]) + "</tr>\n" for row, image in zip(rows, pictures)
    )
    return f"<!doctype html><meta charset=utf-8><title>Classical autoencoders</title><style>{STYLE}</style>\n" + (
        f"<h1>Classical autoencoders</h1><p>{settings}</p><table><tr>{head}</tr>\n{body}</table><p>{NOTES}</p>\n"
    )


if __name__ == "__main__":
    from jsonargparse import auto_cli

    auto_cli(main)
