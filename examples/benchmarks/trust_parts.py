"""The adaptive score under many likelihoods and priors on digits: the share of test examples with k-hat < .7, by the guide and by "auto".

uv run python examples/benchmarks/trust_parts.py
"""

import functools
import json
import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from reporting import markdown, surroundings, write
from torch import Tensor

import pyroae as pa

HEAD = [
    "parts",
    "guide: k-hat < .7",
    "auto: k-hat < .7",
    "auto less guide, nats/example",
    "guide, processor seconds",
    "auto, processor seconds",
]


def binary(x: Tensor) -> Tensor:
    """Ink or none."""
    return (x > 0.5).float()


def counts(x: Tensor) -> Tensor:
    """Whole numbers from 0 to 16."""
    return (16 * x).round()


def mixed(x: Tensor) -> Tensor:
    """The upper half as counts, the lower one as ink or none."""
    return torch.cat([counts(x[:, :32]), binary(x[:, 32:])], 1)


def holed(x: Tensor) -> Tensor:
    """A fifth of the entries missing."""
    return x.masked_fill(torch.rand(x.shape, generator=torch.Generator().manual_seed(0)) < 0.2, math.nan)


def _mixed_likelihood():
    return pa.likelihoods.Product({"upper": pa.likelihoods.NegativeBinomial(32), "lower": pa.likelihoods.Bernoulli(32)})


LIKELIHOODS: dict[str, tuple[Callable[[Tensor], Tensor], Callable]] = {
    "Normal, learned scale": (lambda x: x, lambda: pa.likelihoods.Normal(64)),
    "Poisson": (counts, lambda: pa.likelihoods.Poisson(64)),
    "NegativeBinomial": (counts, lambda: pa.likelihoods.NegativeBinomial(64)),
    "GreyLevels": (lambda x: x, lambda: pa.likelihoods.GreyLevels(64, levels=17)),
    "DiscretizedLogistic": (lambda x: x, lambda: pa.likelihoods.DiscretizedLogistic(64, levels=17)),
    "NegativeBinomial and Bernoulli": (mixed, _mixed_likelihood),
    "Normal with holes": (holed, lambda: pa.likelihoods.Missing(pa.likelihoods.Normal(64))),
}
PRIORS = {
    "Normal": pa.priors.Normal,
    "Laplace": pa.priors.Laplace,
    "GaussianMixture": functools.partial(pa.priors.GaussianMixture, components=10),
    "VampPrior": functools.partial(pa.priors.VampPrior, components=50),
    "Flow": pa.priors.Flow,
    "two levels": functools.partial(pa.priors.Hierarchical, top=4),
}


def measured(ae: pa.Autoencoder, train: Tensor, test: Tensor, epochs: int, particles: int) -> list[str]:
    """The cells of a row, after training."""
    ae.prior.measure(train)
    pa.fit(ae, train, epochs=epochs, batch_size=128, seed=0, progress=False)
    scores, seconds = {}, {}
    for proposal in ("guide", "auto"):
        start = time.process_time()
        scores[proposal] = pa.log_likelihood(ae, test, particles=particles, proposal=proposal, compile="eager")
        seconds[proposal] = f"{time.process_time() - start:.1f}"
    gap = pa.compare(scores["auto"], scores["guide"])
    shares = [f"{1 - score.unreliable:.1%}" for score in scores.values()]
    return [*shares, f"{gap.difference:+.3f} ({gap.mc_se:.2g})", *seconds.values()]


def main(
    data: int = 200,
    epochs: int = 100,
    particles: int = 5000,
    latent_dim: int = 8,
    hidden: int = 128,
    only: list[str] | None = None,
    out: str = "trust_parts",
):
    """Train a VAE for each likelihood and each prior and score held-out digits; write the table as it grows.

    Args:
        data: how many held-out examples are scored.
        epochs: of training.
        particles: importance samples for each example.
        latent_dim: of z.
        hidden: units.
        only: these likelihoods and priors; all by default.
        out: where the table goes, without the suffix.
    """
    digits = pa.data.load("digits")
    settings = dict(data=data, epochs=epochs, particles=particles, latent_dim=latent_dim, hidden=hidden)
    path = Path(f"{out}.json")
    written = json.loads(path.read_text()) if path.exists() else {"settings": {}}
    rows = written["rows"] if all(written["settings"].get(name) == value for name, value in settings.items()) else {}
    cases = {f"{name} likelihood": (seen, make(), PRIORS["Normal"]) for name, (seen, make) in LIKELIHOODS.items()}
    cases |= {f"{name} prior": (binary, pa.likelihoods.Bernoulli(64), prior) for name, prior in PRIORS.items()}
    for name, (seen, likelihood, prior) in cases.items():
        if name in rows or (only is not None and name not in only):
            continue
        torch.manual_seed(0)
        posterior = pa.posteriors.Hierarchical() if name == "two levels prior" else pa.posteriors.Normal()
        ae = pa.Autoencoder(prior(latent_dim), likelihood, posterior, pa.nets.MLP(hidden), pa.nets.MLP(hidden))
        rows[name] = measured(ae, seen(digits.train.x.flatten(1)), seen(digits.test.x.flatten(1)[:data]), epochs, particles)
        write(out, settings | surroundings(), {"rows": rows}, [markdown(HEAD, [[name, *cells] for name, cells in rows.items()])])


if __name__ == "__main__":
    from jsonargparse import auto_cli

    auto_cli(main)
