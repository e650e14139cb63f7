"""Can log p(x) be trusted? Proposals on four models against converged annealing, their stated errors against those over seeds.

uv run python examples/benchmarks/trust.py

The reference is annealing from the guide; its row with half as many temperatures shows how far it has converged. Rows are
written as they are measured: the same command goes on where it was stopped.
"""

import dataclasses
import functools
import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from reporting import markdown, surroundings, write
from torch import Tensor, nn

import pyroae as pa
from pyroae.evaluation.importance import Estimate

PROPOSALS = {
    "auto": "auto",
    "guide": "guide",
    "Laplace": pa.proposals.Laplace(),
    "Optimised": pa.proposals.Optimised(),
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
    steps: int = 1  # times as many temperatures as elsewhere, for annealing to converge


def vae(
    data: pa.data.DataSet, likelihood, latent_dim: int, hidden: int | list[int], epochs: int, activation: str = "ReLU"
) -> pa.Autoencoder:
    """A trained VAE of a Normal prior and posterior."""
    torch.manual_seed(0)
    networks = (pa.nets.MLP(hidden, activation=activation) for _ in range(2))
    ae = pa.Autoencoder(pa.priors.Normal(latent_dim), likelihood, pa.posteriors.Normal(), *networks)
    pa.fit(ae, data.train, epochs=epochs, batch_size=128, seed=0, progress=False, compile="eager")  # every time the same weights
    return ae


def digits(n: int, epochs: int) -> Case:
    """8x8 digits, z = 8."""
    data = pa.data.load("digits", binarize="threshold")
    return Case(vae(data, pa.likelihoods.Bernoulli(64), 8, 128, 10 * epochs), data.test.x[:n])


def mnist(n: int, epochs: int, latent_dim: int, hidden: int | list[int], activation: str, steps: int = 1) -> Case:
    """MNIST, binarized afresh in training."""
    data = pa.data.load("mnist", binarize="dynamic")
    torch.manual_seed(1)
    x = data.test.draw(data.test.x[:n])
    return Case(vae(data, pa.likelihoods.Bernoulli(784), latent_dim, hidden, epochs, activation), x, steps)


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
    pa.fit(ae, x[:2000], epochs=10 * epochs, batch_size=128, seed=0, progress=False, compile="eager")
    return Case(ae, x[2000:])


CASES: dict[str, Callable[[int, int], Case]] = {
    "digits": digits,
    "MNIST, 784-400-20": lambda n, epochs: mnist(n, epochs, 20, 400, "ReLU"),
    "MNIST, 784-200-200-50": lambda n, epochs: mnist(n, epochs, 50, [200, 200], "Tanh", steps=2),
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


def spread(judge: Callable[..., Estimate], seeds: int, scores: list[dict], save: Callable[[], None]) -> tuple[float, float]:
    """The standard deviation over seeds of each example's value, root mean square, over the stated error; and processor seconds a score.

    ``scores`` holds those that an earlier run has written; each new one is added and saved.
    """
    while len(scores) < seeds:
        start = time.process_time()
        score = judge(seed=len(scores) + 1, compile="auto")
        seconds = time.process_time() - start
        scores.append({"values": score.values.tolist(), "errors": score.errors.tolist(), "seconds": seconds})
        save()
    values, errors = (torch.tensor([score[name] for score in scores], dtype=torch.float64) for name in ("values", "errors"))
    seconds = sum(score["seconds"] for score in scores) / len(scores)
    return (values.var(0).mean() / errors.square().mean()).sqrt().item(), seconds


def judges(case: Case, particles: int, chains: int, temperatures: int) -> dict[str, Callable[..., Estimate]]:
    """What scores the data, by name; each takes a seed."""
    score = functools.partial(pa.log_likelihood, case.ae, case.x, particles=particles, compile="eager")  # graphs would hide evaluations
    annealing = functools.partial(pa.ais, case.ae, case.x, chains=chains, leapfrog=3)
    return {
        **{name: functools.partial(score, proposal=proposal) for name, proposal in PROPOSALS.items()},
        f"AIS, {temperatures // 2} temperatures": functools.partial(annealing, temperatures=temperatures // 2),
        f"AIS, {temperatures} temperatures": functools.partial(annealing, temperatures=temperatures),
    }


def row(
    case: Case, judge: Callable[..., Estimate], seeds: int, reference: dict | None, scores: list[dict], save: Callable[[], None]
) -> dict:
    """Everything about one way of scoring, numbers as text; ``values`` and ``errors`` are those of the examples."""
    start = time.process_time()
    with counted(case.ae.decoder, len(case.x)) as evaluations:
        estimate = judge()
    seconds = time.process_time() - start
    cells = ["" if math.isnan(estimate.unreliable) else f"{1 - estimate.unreliable:.1%}", "", ""]
    if reference is not None:
        gaps = estimate.values - torch.tensor(reference["values"], dtype=torch.float64)
        cells[1:] = f"{gaps.mean():+.3f}", f"{gaps.std() / len(gaps) ** 0.5:.3f}"
    ratio = math.nan
    if seeds > 1:
        ratio, seconds = spread(judge, seeds, scores, save)
    cells += [f"{ratio:.2f}" if seeds > 1 else "", f"{evaluations[0]:,.0f}", f"{seconds:.1f}"]
    return dict(zip(HEAD[2:], cells)) | {"values": estimate.values.tolist(), "errors": estimate.errors.tolist()}


def main(
    data: int = 200,
    epochs: int = 10,
    particles: int = 5000,
    seeds: int = 20,
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
        seeds: scores of every proposal, for the spread; a quarter as many of Laplace and Optimised.
        chains, temperatures: of the reference, annealing from the guide; twice the temperatures for 784-200-200-50.
        cases: the models.
        out: where the table goes, without the suffix.
    """
    settings = dict(data=data, epochs=epochs, particles=particles, seeds=seeds, chains=chains, temperatures=temperatures)
    done, scores = _earlier(out, settings)
    settings |= surroundings()

    def save():
        table = [[one[column] for column in HEAD] for each in CASES for one in done.values() if one["model"] == each]
        write(out, settings, {"rows": done} | ({"scores": scores} if scores else {}), [markdown(HEAD, table)])

    for name in cases:
        case = CASES[name](data, epochs)
        ways = judges(case, particles, chains, case.steps * temperatures)
        converged = list(ways)[-1]
        for way in (converged, *ways):
            key = f"{name}/{way}"
            if key in done:
                continue
            many = 0 if way.startswith("AIS") else seeds if way in ("auto", "guide") else seeds // 4
            measured = row(case, ways[way], many, done.get(f"{name}/{converged}"), scores.setdefault(key, []), save)
            if way != converged:  # the values of the reference are what others are compared with
                measured = {column: measured[column] for column in HEAD[2:]}
            del scores[key]
            done[key] = dict(zip(HEAD[:2], (name, way))) | measured
            save()


def _earlier(out: str, settings: dict) -> tuple[dict[str, dict], dict[str, list[dict]]]:
    """The rows that an earlier run with these settings has written, and the scores of one that it had not finished."""
    path = Path(f"{out}.json")
    if not path.exists():
        return {}, {}
    written = json.loads(path.read_text())
    if any(written["settings"].get(name) != value for name, value in settings.items()):
        return {}, {}
    return written["rows"], written.get("scores", {})


if __name__ == "__main__":
    from jsonargparse import auto_cli

    auto_cli(main)
