"""How fast is log p(x)? Against pythae's ``get_nll`` with the same weights, and against the machine's own matrix product.

uv run --extra benchmarks python examples/benchmarks/likelihood.py
"""

import functools
import math
import statistics
import time
from collections.abc import Callable

import torch
from reporting import bars, markdown, panels, surroundings, write
from torch import Tensor, nn

import pyroae as pa
from pyroae.training.precision import matmul_precision

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


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """How long it takes."""
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def products(rows: int, device: torch.device) -> Callable[[], object]:
    """The decoder's two matrix products alone, for so many particles."""
    x, hidden, z = WIDTHS
    first, second, code, inner = (torch.randn(shape, device=device) for shape in ((z, hidden), (hidden, x), (rows, z), (rows, hidden)))
    between, out = torch.empty(rows, hidden, device=device), torch.empty(rows, x, device=device)
    return lambda: (torch.mm(code, first, out=between), torch.mm(inner, second, out=out))


def main(
    data: int = 1024,
    fewer: int = 4,
    particles: int = 5000,
    batch_sizes: list[int] = [100, 500, 1000, 5000],
    repeats: int = 3,
    rows: int = 1024,
    device: str = "cpu",
    out: str = "likelihood",
):
    """Time all on the same data, in turns; print, write and draw medians, of samples a second and of each turn's ratios.

    Args:
        data: how many data are scored, compiled; the time to compile counts.
        fewer: how many the slower ones score.
        particles: importance samples for each of them.
        batch_sizes: pythae's; none to leave it out.
        repeats: turns.
        rows: of the products that are timed by themselves, at once.
        device: cpu or cuda.
        out: where they go, without the suffix.
    """
    torch.manual_seed(0)
    place = torch.device(device)
    ae, x = ours().to(place), torch.rand(data, WIDTHS[0]).round().to(place)
    with torch.no_grad():
        product, flops = products(rows, place), 2 * (WIDTHS[0] * WIDTHS[1] + WIDTHS[1] * WIDTHS[2])
        turns = math.ceil(fewer * particles / rows)
        score = functools.partial(pa.log_likelihood, ae, particles=particles, proposal="guide")
        work = {
            "pyroae": (data, lambda: score(x, compile="compiled")),
            "pyroae, precision highest": (data, lambda: score(x, compile="compiled", precision="highest")),
            "pyroae, eager": (fewer, lambda: score(x[:fewer], compile="eager")),
            "matrix products": (turns * rows / particles, lambda: again(product, turns, "auto", ae)),
            "matrix products, precision highest": (turns * rows / particles, lambda: again(product, turns, "highest", ae)),
        }
        pythae = theirs(ae) if batch_sizes else None
        work |= {f"pythae, batch size {n}": (fewer, lambda n=n: pythae.get_nll(x[:fewer], particles, n)) for n in batch_sizes}
        rates = {name: [] for name in work}
        settings = {"particles": particles, "turns": repeats, "threads": torch.get_num_threads()} | surroundings(place)
        for _ in range(repeats):
            for name, (scored, each) in work.items():
                rates[name].append(scored * particles / seconds(each, place))
    times = {name: statistics.median(ours / rate for ours, rate in zip(rates["pyroae"], found)) for name, found in rates.items()}
    medians = {name: statistics.median(found) for name, found in rates.items()}
    lines = [[name, f"{rate:,.0f}", f"{flops * rate / 1e9:.0f}", f"{times[name]:.2f}"] for name, rate in medians.items()]
    head = ["784-400-40", "samples of log p(x) a second", "GFLOP/s in the decoder", "pyroae is so many times as fast"]
    write(out, settings, {"samples a second": rates, "pyroae is so many times as fast": times}, [markdown(head, lines)])
    figure, (axis,) = panels(1)
    bars(axis, medians, "log p(x), 784-400-40", "samples a second")
    figure.savefig(f"{out}.png", dpi=80)


def again(product: Callable[[], Tensor], times: int, precision: str, ae: pa.Autoencoder):
    """The products so many times at that precision."""
    with matmul_precision(precision, ae.parameters(), 1000):
        for _ in range(times):
            product()


if __name__ == "__main__":
    from jsonargparse import auto_cli

    auto_cli(main)
