"""How fast is log p(x)? Against pythae's ``get_nll`` with the same weights, and against the machine's own matrix product.

uv run --extra benchmarks python examples/benchmarks/likelihood.py
"""

import json
import math
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

import pyroae as pa

WIDTHS = 784, 400, 40


def ours() -> pa.Autoencoder:
    """A 784-400-40 VAE."""
    x, hidden, z = WIDTHS
    networks = pa.nets.MLP(hidden), pa.nets.MLP(hidden)
    return pa.Autoencoder(pa.priors.Normal(z), pa.likelihoods.Bernoulli(x), pa.posteriors.Normal(), *networks)


def theirs(ae: pa.Autoencoder):
    """pythae's VAE with the same weights; its decoder gives probabilities, its encoder log-variances (here a constant beside ours)."""
    from pythae.models import VAE, VAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder

    class Encoder(BaseEncoder):
        def __init__(self):
            super().__init__()
            self.network = ae.encoder

        def forward(self, x):
            loc, raw = self.network(x).chunk(2, -1)
            return ModelOutput(embedding=loc, log_covariance=2 * raw)  # ours is exp(raw)

    class Decoder(BaseDecoder):
        def __init__(self):
            super().__init__()
            self.network = nn.Sequential(ae.decoder, nn.Sigmoid())

        def forward(self, z):
            return ModelOutput(reconstruction=self.network(z))

    config = VAEConfig(input_dim=(WIDTHS[0],), latent_dim=WIDTHS[2], reconstruction_loss="bce")
    return VAE(config, encoder=Encoder(), decoder=Decoder()).eval()


def seconds(work: Callable[[], object]) -> float:
    """How long it takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def products(rows: int) -> Callable[[], Tensor]:
    """The decoder's two matrix products alone, for so many particles."""
    x, hidden, z = WIDTHS
    first, second = torch.randn(z, hidden), torch.randn(hidden, x)
    code, inner, out, between = torch.randn(rows, z), torch.randn(rows, hidden), torch.empty(rows, x), torch.empty(rows, hidden)
    return lambda: (torch.mm(code, first, out=between), torch.mm(inner, second, out=out))


def main(
    data: int = 1024,
    fewer: int = 4,
    particles: int = 5000,
    batch_sizes: list[int] = [100, 500, 1000, 5000],
    repeats: int = 3,
    out: str = "likelihood.json",
):
    """Time all on the same data, in turns; print and write medians, of samples a second and of each turn's ratios.

    Args:
        data: how many data are scored, compiled; the time to compile counts.
        fewer: how many the slower ones score.
        particles: importance samples for each of them.
        batch_sizes: pythae's; none to leave it out.
        repeats: turns.
        out: where the numbers go.
    """
    torch.manual_seed(0)
    ae, x = ours(), torch.rand(data, WIDTHS[0]).round()
    rows = 1024
    with torch.no_grad():
        product, flops = products(rows), 2 * (WIDTHS[0] * WIDTHS[1] + WIDTHS[1] * WIDTHS[2])
        turns = math.ceil(fewer * particles / rows)
        work = {"pyroae": (data, lambda: pa.log_likelihood(ae, x, particles=particles, compile="compiled"))}
        work |= {"pyroae, eager": (fewer, lambda: pa.log_likelihood(ae, x[:fewer], particles=particles, compile="eager"))}
        work |= {"matrix products": (turns * rows / particles, lambda: [product() for _ in range(turns)])}
        pythae = theirs(ae) if batch_sizes else None
        work |= {f"pythae, batch size {n}": (fewer, lambda n=n: pythae.get_nll(x[:fewer], particles, n)) for n in batch_sizes}
        rates = {name: [] for name in work}
        for _ in range(repeats):
            for name, (scored, each) in work.items():
                rates[name].append(scored * particles / seconds(each))
    per_turn = {name: [ours / theirs for ours, theirs in zip(rates["pyroae"], found)] for name, found in rates.items()}
    ratio = {name: statistics.median(ratios) for name, ratios in per_turn.items()}
    found = {
        "samples a second": {name: round(statistics.median(found)) for name, found in rates.items()},
        "pyroae, decoder GFLOP/s": flops * statistics.median(rates["pyroae"]) / 1e9,
        "times faster than": {name: each for name, each in ratio.items() if name not in ("pyroae", "matrix products")},
        "share of the matrix-product rate": ratio["matrix products"],
        "threads": torch.get_num_threads(),
    }
    print(json.dumps(found, indent=2))
    with open(out, "w") as file:
        json.dump(found, file, indent=2)


if __name__ == "__main__":
    from jsonargparse import auto_cli

    auto_cli(main)
