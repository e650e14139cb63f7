"""Every classical autoencoder on the same data, on one page.

uv run python examples/classics.py                       # digits, a few minutes
PYROAE_DATA=... uv run python examples/classics.py --data mnist --epochs 10 --particles 100

Finished rows are kept in a folder and not computed again.
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

NOTES = """Squared error: per pixel of held-out data. Noise removed: from data with Gaussian noise of scale .3. Active: latent dimensions
above a tenth of the largest. |J|_F: mean Frobenius norm of the encoder's Jacobian. Linear probe: accuracy of logistic regression on the
codes of 10,000 examples. log p(x): nats per example of 100 held-out examples, with the standard error of their mean; of the conditional
VAE, log p(x|y). A deterministic autoencoder gets a prior fitted to its codes, a mixture of 10 Normals with full covariances (one Normal
where there are more than 20 latent dimensions), and Normal noise whose scale is its root mean squared error on the training data.
Filters are the encoder's; the decoder's for a dictionary, and where the encoder's first layer has more inputs than x."""

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
    table, kept = [], Path(f"{out}.rows")
    kept.mkdir(exist_ok=True)
    for name, make in systems(images, latent_dim, units, hidden).items():
        if only and name not in only:
            continue
        file = kept / f"{name}.json"
        known = json.loads(file.read_text()) if file.exists() else {}
        if known.get("settings") != settings:
            known = {"settings": settings, **trained_and_scored(name, make, images, epochs, particles, seed)}
            file.write_text(json.dumps(known))
        table.append(known)
        print(" | ".join(known["row"].values()), flush=True)
        written = {"settings": settings, "rows": [known["row"] for known in table]}
        Path(f"{out}.json").write_text(json.dumps(written, indent=2))
        Path(f"{out}.html").write_text(page(table, ", ".join(f"{name} {value}" for name, value in settings.items())))


def trained_and_scored(name: str, make: Callable[[], Made], images: DataSet, epochs: int, particles: int, seed: int) -> dict:
    """The row of one system, and its picture."""
    torch.manual_seed(seed)
    ae, train = make()
    start = time.perf_counter()
    train(epochs)
    seconds = time.perf_counter() - start
    row = scores(ae, images)
    ae = generative(ae, images) if is_point(ae) and name != "adversarial autoencoder" else ae
    return {
        "row": {"system": name, **row, "log p(x)": log_p(ae, images, particles), "seconds": f"{seconds:.0f}"},
        "picture": picture(ae, images),
    }


def systems(images: DataSet, latent_dim: int, units: int, hidden: int) -> dict[str, Callable[[], Made]]:
    """What is compared: functions that make a model and what trains it."""
    recipes, noise = pa.recipes, pa.corruption
    train = images.train

    def plain(make: Callable[[], pa.Autoencoder], **parts) -> Callable[[], Made]:
        def made():
            ae = make().replace(**parts) if parts else make()
            return ae, lambda epochs: fit(ae, epochs)

        return made

    def fit(model, epochs: int, **options):
        """With a learning rate that falls to 0: every row ends at a plateau."""
        scheduler = partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=epochs)
        pa.fit(model, train, epochs=epochs, lr=2e-3, scheduler=scheduler, progress=False, **options)

    def pretrained() -> Made:
        ae = recipes.autoencoder(images, latent_dim, [hidden, hidden // 2])

        def train_it(epochs: int):  # in as many epochs as the others
            pa.pretrain(ae, train, epochs=max(1, epochs // 6), progress=False)
            fit(ae, max(1, epochs - epochs // 2))

        return ae, train_it

    def decayed() -> Made:
        ae = sigmoid()
        prior = dist.Normal(0.0, (500 / len(train)) ** 0.5)  # 1e-3 times the squared weights, for each example
        model, guide = pa.with_weight_prior(ae, prior, num_data=len(train))
        return ae, lambda epochs: fit(model, epochs, guide=guide)

    def contractive() -> Made:
        ae = sigmoid()
        objective = pa.Penalised(pa.penalties.SigmoidContractive(ae.encoder[0], 0.1))
        return ae, lambda epochs: fit(ae, epochs, elbo=objective)

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
        "regularised, L2": plain(partial(recipes.rae, images, latent_dim, hidden)),
        "regularised, gradient": plain(
            partial(recipes.rae, images, latent_dim, hidden), objective=pa.Penalised(pa.penalties.DecoderJacobian(1e-3))
        ),
        "regularised, spectral norm": plain(
            partial(recipes.rae, images, latent_dim, hidden, weight=0.0), decoder=pa.nets.SpectralNorm(pa.nets.MLP(hidden))
        ),
        "linear VAE: probabilistic PCA": plain(linear_vae),
        "VAE": plain(vae),
        "denoising VAE": plain(vae, corruption=noise.Gaussian(0.3)),
        "conditional VAE": plain(vae, condition=pa.conditions.Labels(10)),
        "adversarial autoencoder": adversarial,
    }


def scores(ae: pa.Autoencoder, images: DataSet) -> dict[str, str]:
    """Of held-out data."""
    codes = pa.codes(ae, images.test).abs()
    active = (codes > codes.amax(1, keepdim=True) / 10).double().mean().item()
    return {
        "squared error": f"{pa.reconstruction_error(ae, images.test).mean().item():.4f}",
        "noise removed, dB": f"{pa.denoising_gain(ae, images.test, pa.corruption.Gaussian(0.3)):.2f}",
        "active": f"{active:.0%}",
        "|J|_F": f"{pa.jacobian(ae, images.test[:100]).norms.mean().item():.3g}",
        "linear probe": f"{pa.probe(ae, images.train[:10_000], images.test).linear:.1%}",
    }


def is_point(ae: pa.Autoencoder) -> bool:
    """Whether q(z|x) is a point."""
    return isinstance(ae.posterior, pa.posteriors.Delta)


def generative(ae: pa.Autoencoder, images: DataSet) -> pa.Autoencoder:
    """The autoencoder with maximum-likelihood Normal noise and a prior fitted to its codes."""
    some = images.train[:10_000]
    noise = pa.reconstruction_error(ae, some).mean().sqrt().item()
    mixture = pa.priors.GaussianMixture(components=10, full=True)
    prior = mixture if ae.prior.event_shape.numel() <= 20 else pa.priors.FullNormal()
    return pa.fit_prior(ae.replace(likelihood=pa.likelihoods.Normal(tuple(images.event_shape), scale=noise)), some, prior)


def log_p(ae: pa.Autoencoder, images: DataSet, particles: int) -> str:
    """log p(x) of held-out data: by the adaptive proposal, or Laplace's where there are many latent dimensions."""
    proposal = "auto" if ae.prior.event_shape.numel() <= 20 else pa.proposals.Laplace(steps=100)
    estimate = pa.log_likelihood(ae, images.test[:100], particles=particles, proposal=proposal)
    return f"{estimate.mean:.1f} ± {estimate.data_se:.1f}"


def picture(ae: pa.Autoencoder, images: DataSet) -> str:
    """The filters, some reconstructions and some samples, as an <img>."""
    figure = Figure(figsize=(9, 0.85), layout="constrained")
    left, right, end = figure.subplots(1, 3)
    backwards = ae.condition is not None or isinstance(ae.parts["decoder"], pa.nets.Dictionary)
    pa.plots.filters(ae, images.image_shape, n=36, columns=12, decoder=backwards, ax=left).set_title("")
    x, y = images.test.x[:18], None if ae.condition is None else images.test.labels[:18]
    pairs = torch.stack([x, ae.reconstruct(x, y).cpu()], 1).flatten(0, 1)
    pa.plots.images(pairs, images.image_shape, columns=12, ax=right)
    labels = None if ae.condition is None else torch.arange(36) % 10
    with torch.no_grad(), torch.random.fork_rng():
        drawn = ae.decode(ae.sample_prior(36, labels), labels).mean.cpu()
    pa.plots.images(drawn, images.image_shape, columns=12, ax=end)
    held = io.BytesIO()
    figure.savefig(held, dpi=90)
    return f'<img src="data:image/png;base64,{base64.b64encode(held.getvalue()).decode()}" width=810>'


def page(table: list[dict], settings: str) -> str:
    """A table as HTML that needs no other file."""
    head = "".join(f"<th>{name}</th>" for name in [*table[0]["row"], "filters; data and reconstructions, in turn; samples"])
    body = "".join(
        "<tr>" + "".join(f"<td>{cell}</td>" for cell in [*known["row"].values(), known["picture"]]) + "</tr>\n" for known in table
    )
    return f"<!doctype html><meta charset=utf-8><title>Classical autoencoders</title><style>{STYLE}</style>\n" + (
        f"<h1>Classical autoencoders</h1><p>{settings}</p><table><tr>{head}</tr>\n{body}</table><p>{NOTES}</p>\n"
    )


if __name__ == "__main__":
    from jsonargparse import auto_cli

    auto_cli(main)
