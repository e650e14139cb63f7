"""Which prior? The same networks and budget under several priors, scored on held-out data.

uv run python examples/priors.py                       # digits, a minute or two
PYROAE_DATA=... uv run python examples/priors.py --data mnist --latent_dim 40 --hidden 300 --epochs 30 --components 200
"""

import json
import time
from pathlib import Path

import torch

import pyroae as pa


def main(
    data: str = "digits",
    latent_dim: int = 8,
    hidden: int = 64,
    epochs: int = 100,
    components: int = 50,
    particles: int = 500,
    seed: int = 0,
    out: str = "priors.json",
):
    """Train one VAE for each prior and print a table of test log p(x).

    Args:
        data: digits, mnist or fashion-mnist, binarized dynamically.
        latent_dim: the number of latent dimensions.
        hidden: width of the two gated hidden layers.
        epochs: passes over the data, for each prior.
        components: of the mixtures.
        particles: importance samples for each test example.
        seed: of initial weights, noise and order.
        out: the same table as JSON.
    """
    images = pa.data.load(data, binarize="dynamic")
    rows = []
    for name, prior in priors(latent_dim, components).items():
        torch.manual_seed(seed)
        vae = pa.Autoencoder(
            prior=prior,
            likelihood=pa.likelihoods.Bernoulli(tuple(images.event_shape)),
            posterior=pa.posteriors.Hierarchical(hidden=hidden) if name == "two levels" else pa.posteriors.Normal(),
            encoder=pa.nets.GatedMLP([hidden, hidden]),
            decoder=pa.nets.GatedMLP([hidden, hidden]),
        )
        vae.prior.measure(images.train.draw(images.train.x))
        start = time.perf_counter()
        pa.fit(vae, images.train, epochs=epochs, seed=seed)
        seconds = time.perf_counter() - start
        score, terms = (
            pa.log_likelihood(vae, images.test, particles=particles, progress=True, proposal="guide"),
            pa.elbo_terms(vae, images.test),
        )
        unreliable = (score.khat > 0.7).double().mean().item()
        columns = {"log p(x)": score.mean, "Monte-Carlo s.e.": score.mc_se, "sampling s.e.": score.data_se, "k-hat > .7": unreliable}
        rows.append({"prior": name, **columns, "ELBO": terms.elbo.mean().item(), "KL": terms.kl.mean().item(), "seconds": seconds})
        settings = {"latent_dim": latent_dim, "hidden": hidden, "epochs": epochs, "components": components, "particles": particles}
        Path(out).write_text(json.dumps({"settings": {"data": data, "seed": seed} | settings, "rows": rows}, indent=2))
    print(table(rows))


def priors(latent_dim: int, components: int) -> dict[str, pa.priors.Prior]:
    """The priors compared."""
    return {
        "Normal": pa.priors.Normal(latent_dim),
        "GaussianMixture": pa.priors.GaussianMixture(latent_dim, components=components),
        "VampPrior": pa.priors.VampPrior(latent_dim, components=components),
        "Flow": pa.priors.Flow(latent_dim),
        "two levels": pa.priors.Hierarchical(latent_dim, top=latent_dim),
    }


def table(rows: list[dict]) -> str:
    """Rows as a Markdown table."""
    cells = [
        [value if isinstance(value, str) else f"{value:.2f}" if abs(value) > 1 else f"{value:.2g}" for value in row.values()]
        for row in rows
    ]
    lines = [list(rows[0]), ["---"] * len(rows[0]), *cells]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    from jsonargparse import auto_cli

    auto_cli(main)
