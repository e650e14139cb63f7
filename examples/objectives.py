"""Which objective? One architecture and budget under several bounds, scored on held-out data (Burda et al. 2016, table 1, one layer).

uv run python examples/objectives.py --data digits --epochs 50 --particles 500    # a few minutes
PYROAE_DATA=... uv run python examples/objectives.py                              # binarized MNIST, 100 epochs: hours on a CPU

A row is written as soon as it is done; the same command goes on where it was interrupted.
"""

import functools
import json
import time
from pathlib import Path

import torch
from pyro.infer import ELBO, TraceMeanField_ELBO
from torch import Tensor, nn

import pyroae as pa

IWAE = pa.objectives.IWAE


def objectives() -> dict[str, ELBO]:
    """The objectives compared."""
    return {
        "VAE": TraceMeanField_ELBO(),
        "IWAE 5": IWAE(5),
        "IWAE 50": IWAE(50),
        "DReG 50": IWAE(50, gradient="dreg"),
        "MIWAE 8x8": IWAE(8, groups=8),
        "CIWAE 50": pa.objectives.CIWAE(50, beta=0.05),
    }


def main(
    data: str = "binarized-mnist",
    only: list[str] = [],
    latent_dim: int = 50,
    hidden: int = 200,
    epochs: int = 100,
    batch_size: int = 100,
    particles: int = 5000,
    test_rows: int | None = None,
    seed: int = 0,
    out: str = "objectives.json",
):
    """Train one autoencoder for each objective and print a table of test log p(x).

    Args:
        data: binarized-mnist, or digits, mnist or fashion-mnist, which are binarized once.
        only: names of the objectives, all by default.
        latent_dim: the number of latent dimensions.
        hidden: width of the two tanh layers on either side.
        epochs: passes over the data, for each objective; the learning rate falls from 1e-3 to 0 along a cosine.
        batch_size: data in a step.
        particles: importance samples for each test example.
        test_rows: score so many of the test data only.
        seed: of initial weights, noise and order.
        out: the same table as JSON.
    """
    settings = {name: value for name, value in locals().items() if name not in ("only", "out")}
    rows = written(Path(out), settings)
    images = pa.data.load(data) if data == "binarized-mnist" else pa.data.load(data, binarize="static")
    for name, elbo in objectives().items():
        if name in rows or (only and name not in only):
            continue
        torch.manual_seed(seed)
        vae = network(images.train.x, latent_dim, hidden)
        schedule = functools.partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=epochs)
        adam = functools.partial(torch.optim.Adam, lr=1e-3, eps=1e-4, fused=True)
        history = pa.fit(vae, images.train, elbo=elbo, epochs=epochs, batch_size=batch_size, optimizer=adam, scheduler=schedule, seed=seed)
        rows[name] = scored(vae, images.test.x[:test_rows], particles) | {"seconds": history["seconds"][-1]}
        Path(out).write_text(json.dumps({"settings": settings, "rows": rows}, indent=2))
    print(table(rows))


def network(x: Tensor, latent_dim: int, hidden: int) -> pa.Autoencoder:
    """Two tanh layers on either side, Glorot's initial weights, and the pixels' mean in the last bias."""
    vae = pa.Autoencoder(
        prior=pa.priors.Normal(latent_dim),
        likelihood=pa.likelihoods.Bernoulli(tuple(x.shape[1:])),
        posterior=pa.posteriors.Normal(),
        encoder=pa.nets.MLP([hidden, hidden], activation="Tanh"),
        decoder=pa.nets.MLP([hidden, hidden], activation="Tanh"),
    )
    for layer in vae.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
    last = [layer for layer in vae.decoder.modules() if isinstance(layer, nn.Linear)][-1]
    with torch.no_grad():
        last.bias.copy_(x.mean(0).flatten().clamp(0.001, 0.999).logit())
    return vae


def scored(vae: pa.Autoencoder, x: Tensor, particles: int) -> dict[str, float]:
    """Test log p(x) with its errors, the ELBO and its KL, nats per example."""
    start = time.perf_counter()
    score, terms = pa.log_likelihood(vae, x, particles=particles, progress=True, proposal="guide"), pa.elbo_terms(vae, x)
    columns = {"log p(x)": score.mean, "Monte-Carlo s.e.": score.mc_se, "sampling s.e.": score.data_se}
    columns |= {"k-hat > .7": (score.khat > 0.7).double().mean().item(), "ELBO": terms.elbo.mean().item(), "KL": terms.kl.mean().item()}
    return columns | {"scoring seconds": time.perf_counter() - start}


def written(path: Path, settings: dict) -> dict[str, dict]:
    """The rows that an earlier run with these settings has written."""
    if not path.exists():
        return {}
    found = json.loads(path.read_text())
    if found["settings"] != settings:
        raise ValueError(f"{path} is of other settings, {found['settings']}; name another file with --out")
    return found["rows"]


def table(rows: dict[str, dict]) -> str:
    """Rows as a Markdown table."""
    columns = list(next(iter(rows.values())))
    lines = [["objective", *columns], ["---"] * (len(columns) + 1)]
    lines += [[name, *(f"{value:.2f}" if abs(value) > 1 else f"{value:.2g}" for value in row.values())] for name, row in rows.items()]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    from jsonargparse import auto_cli

    auto_cli(main)
