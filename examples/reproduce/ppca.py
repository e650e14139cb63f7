"""Tipping & Bishop 1999: the maximum of a linear VAE is probabilistic PCA, whose log p(x) is known. On MNIST, 784-10.

PYROAE_DATA=... uv run python examples/reproduce/ppca.py

scikit-learn's maximum-likelihood solution gives log p(x) exactly; importance weights and AIS score the trained autoencoder.
"""

import functools

import torch
from common import RESULTS, record, recorded, scored
from sklearn.decomposition import PCA

import pyroae as pa


def main(
    latent_dim: int = 10,
    epochs: int = 150,
    lr: float = 1e-2,
    annealed: int = 100,
    seed: int = 0,
    quick: bool = False,
    out: str = str(RESULTS),
):
    """Train a linear VAE and record its log p(x), by importance weights, beside the exact maximum.

    Args:
        latent_dim: the number of latent dimensions.
        epochs: passes over the data, in batches of 500, at a rate that falls to 0 along a cosine.
        lr: the rate at the start.
        annealed: data that AIS scores too.
        seed: of initial weights, noise and order.
        quick: digits and 2 passes, to see that it runs.
        out: folder of the record.
    """
    if quick:
        latent_dim, epochs, annealed = 3, 2, 5
    settings = {key: value for key, value in locals().items() if key != "out"}
    if recorded(out, "ppca", settings):
        return
    x = pa.data.load("digits" if quick else "mnist").train.x.flatten(1)
    x = x - x.mean(0)
    torch.manual_seed(seed)
    vae = pa.Autoencoder(
        prior=pa.priors.Normal(latent_dim),
        likelihood=pa.likelihoods.Normal(x.shape[1]),
        posterior=pa.posteriors.Normal(scale="per_dimension"),
        encoder=pa.nets.Linear(),
        decoder=pa.nets.Linear(),
    )
    schedule = functools.partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=epochs)
    history = pa.fit(vae, x, epochs=epochs, batch_size=500, lr=lr, scheduler=schedule, seed=seed)
    exact = PCA(latent_dim).fit(x.double().numpy())
    some = x[:annealed]
    by_weights, by_ais = pa.log_likelihood(vae, some, particles=5000, proposal="guide"), pa.ais(vae, some)
    row = {
        "published": exact.score(x.double().numpy()),
        **scored(vae, x, 100),
        "seconds": history["seconds"][-1],
        "note": f"on {annealed} data: importance weights {by_weights.mean:.3f}, AIS {by_ais.mean:.3f} ({by_ais.mc_se:.1g}), "
        f"closed form of the trained weights {marginal(vae).log_prob(some).mean():.3f}",
    }
    record(out, "ppca", row, settings)


def marginal(vae: pa.Autoencoder) -> torch.distributions.LowRankMultivariateNormal:
    """p(x) of a linear decoder: Normal(b, W W^T + s^2 I)."""
    size = vae.prior.event_shape.numel()
    found = vae.decode(torch.cat([torch.zeros(1, size), torch.eye(size)])).base_dist
    origin, scale = found.loc[0].double(), found.scale[0].double()
    return torch.distributions.LowRankMultivariateNormal(origin, (found.loc[1:].double() - origin).T, scale.square())


if __name__ == "__main__":
    from jsonargparse import auto_cli

    auto_cli(main)
