"""Can log p(x) be trusted? Proposals on four models against converged annealing, their stated errors against those over seeds.

uv run python examples/benchmarks/trust.py
"""

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from reporting import markdown, surroundings, write
from torch import Tensor, nn

import pyroae as pa
from pyroae.evaluation.importance import Estimate

PROPOSALS = {
    "guide": "guide",
    "Laplace": pa.proposals.Laplace(),
    "Optimised": pa.proposals.Optimised(),
    "auto": "auto",
}
HEAD = [
    "model",
    "proposal",
    "k-hat < .7",
    "less AIS",
    "paired s.e.",
    "sd over seeds / stated s.e.",
    "decoder evaluations",
    "processor seconds",
]


@dataclasses.dataclass
class Case:
    """A trained model and held-out data."""

    ae: pa.Autoencoder
    x: Tensor


def vae(
    data: pa.data.DataSet, likelihood, latent_dim: int, hidden: int | list[int], epochs: int, activation: str = "ReLU"
) -> pa.Autoencoder:
    """A trained VAE of a Normal prior and posterior."""
    torch.manual_seed(0)
    networks = (pa.nets.MLP(hidden, activation=activation) for _ in range(2))
    ae = pa.Autoencoder(pa.priors.Normal(latent_dim), likelihood, pa.posteriors.Normal(), *networks)
    pa.fit(ae, data.train, epochs=epochs, batch_size=128, seed=0, progress=False)
    return ae


def digits(n: int, epochs: int) -> Case:
    """8x8 digits, z = 8."""
    data = pa.data.load("digits", binarize="threshold")
    return Case(vae(data, pa.likelihoods.Bernoulli(64), 8, 128, 10 * epochs), data.test.x[:n])


def mnist(n: int, epochs: int, latent_dim: int, hidden: int | list[int], activation: str) -> Case:
    """MNIST, binarized afresh in training."""
    data = pa.data.load("mnist", binarize="dynamic")
    torch.manual_seed(1)
    x = data.test.draw(data.test.x[:n])
    return Case(vae(data, pa.likelihoods.Bernoulli(784), latent_dim, hidden, epochs, activation), x)


def table(n: int, epochs: int) -> Case:
    """A made-up table of real, count, binary and categorical columns that depend on two numbers, a fifth of its entries missing."""
    torch.manual_seed(0)
    z = torch.randn(2000 + n, 2)
    real = torch.stack([z[:, 0] * z[:, 1], z[:, 0] ** 2], 1) + 0.3 * torch.randn(len(z), 2)
    count = torch.poisson((0.5 + z).exp())
    rest = [torch.bernoulli((2 * z[:, :1]).sigmoid()), torch.bucketize(z[:, 1:], torch.tensor([-0.5, 0.5])).float()]
    x = torch.cat([real, count, *rest], 1)
    x[:, :4] = x[:, :4].masked_fill(torch.rand(len(x), 4) < 0.2, math.nan)
    columns = {
        "real": pa.likelihoods.Missing(pa.likelihoods.Normal(2)),
        "count": pa.likelihoods.Missing(pa.likelihoods.Poisson(2)),
        "binary": pa.likelihoods.Bernoulli(1),
        "category": pa.likelihoods.Categorical(1, categories=3),
    }
    ae = pa.Autoencoder(pa.priors.Normal(4), pa.likelihoods.Product(columns), pa.posteriors.Normal(), pa.nets.MLP(64), pa.nets.MLP(64))
    pa.fit(ae, x[:2000], epochs=10 * epochs, batch_size=128, seed=0, progress=False)
    return Case(ae, x[2000:])


CASES: dict[str, Callable[[int, int], Case]] = {
    "digits": digits,
    "MNIST, 784-400-20": lambda n, epochs: mnist(n, epochs, 20, 400, "ReLU"),
    "MNIST, 784-200-200-50": lambda n, epochs: mnist(n, epochs, 50, [200, 200], "Tanh"),
    "table with holes": table,
}


@contextmanager
def counted(decoder: nn.Module, n: int) -> Iterator[list[float]]:
    """Inside, how often the decoder is evaluated for each of n examples; each tangent and each gradient of it counts as one."""
    total = [0.0]

    def count(module, given, output):
        wrapped, tangents = output, 1
        while torch._C._functorch.is_functorch_wrapped_tensor(wrapped):
            if torch._C._functorch.is_batchedtensor(wrapped):
                tangents = torch._C._functorch.get_unwrapped(wrapped).shape[torch._C._functorch.maybe_get_bdim(wrapped)]
            wrapped = torch._C._functorch.get_unwrapped(wrapped)
        total[0] += output.numel() / output.shape[-1] / n * (1 + (tangents if tangents > 1 else 2 * output.requires_grad))

    hook = decoder.register_forward_hook(count)
    try:
        yield total
    finally:
        hook.remove()


def spread(judge: Callable[..., Estimate], seeds: int) -> float:
    """The standard deviation over seeds of each example's value, root mean square, over the stated error; NaN for fewer than two."""
    if seeds < 2:
        return math.nan
    scores = [judge(seed=seed) for seed in range(1, seeds + 1)]
    values, errors = (torch.stack([getattr(score, name) for score in scores]) for name in ("values", "errors"))
    return (values.var(0).mean() / errors.square().mean()).sqrt().item()


def measured(name: str, case: Case, particles: int, seeds: int, annealing: dict) -> list[list[str]]:
    """A row for each proposal."""
    reference = pa.ais(case.ae, case.x, proposal=pa.proposals.Adaptive(), **annealing)
    score = functools.partial(pa.log_likelihood, case.ae, case.x, particles=particles, compile="eager")
    judges = {each: functools.partial(score, proposal=proposal) for each, proposal in PROPOSALS.items()}
    judges["AIS"] = functools.partial(pa.ais, case.ae, case.x, chains=16, temperatures=200, leapfrog=3)
    rows = []
    for each, judge in judges.items():
        start = time.process_time()
        with counted(case.ae.decoder, len(case.x)) as evaluations:
            found = judge()
        seconds, gap = time.process_time() - start, pa.compare(found, reference)
        sound = "" if math.isnan(found.unreliable) else f"{1 - found.unreliable:.1%}"
        ratio = f"{spread(judge, seeds if each != 'AIS' else 0):.2f}"
        rows.append([name, each, sound, f"{gap.difference:+.3f}", f"{gap.se:.3f}", ratio, f"{evaluations[0]:,.0f}", f"{seconds:.1f}"])
        print(*rows[-1], flush=True)
    return rows


def main(
    data: int = 200,
    epochs: int = 10,
    particles: int = 5000,
    seeds: int = 5,
    chains: int = 16,
    temperatures: int = 500,
    cases: list[str] = list(CASES),
    out: str = "trust",
):
    """Train, score and compare; print and write the table.

    Args:
        data: how many held-out examples are scored.
        epochs: of training on MNIST; ten times as many on the small data.
        particles: importance samples for each of them.
        seeds: scores of every proposal, for the spread.
        chains, temperatures: of the reference, annealing from the adaptive proposal.
        cases: the models.
        out: where the table goes, without the suffix.
    """
    settings = dict(data=data, particles=particles, seeds=seeds, chains=chains, temperatures=temperatures) | surroundings()
    annealing = {"chains": chains, "temperatures": temperatures, "leapfrog": 3}
    rows = [row for name in cases for row in measured(name, CASES[name](data, epochs), particles, seeds, annealing)]
    write(out, settings, {"rows": [dict(zip(HEAD, row)) for row in rows]}, [markdown(HEAD, rows)])


if __name__ == "__main__":
    from jsonargparse import auto_cli

    auto_cli(main)
