"""How fast are steps of models that people run, beside the same loss written by hand, with and without torch.compile, and Pyro's SVI?

uv run python examples/benchmarks/lines.py
uv run python examples/benchmarks/lines.py --lines '["table", "counts"]' --clock processor
uv run --with scvi-tools python examples/benchmarks/lines.py --lines '["counts"]'
uv run --with sae-lens python examples/benchmarks/lines.py --lines '["dictionary"]'
uv run --extra benchmarks python examples/benchmarks/lines.py --rivals '["pyroae, compiled", "NumPyro, jitted steps"]'

Networks have the same layers everywhere, the optimizer is Adam, and all train on the same batches, in turn. Of a library that is
installed, its own module and loss take the steps, without its trainer.
"""

import copy
import itertools
import math
import os
import random
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import pyro
import torch
from pyro import distributions as dist
from pyro.infer import TraceMeanField_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.nn import AutoRegressiveNN
from reporting import bars, installed, markdown, panels, surroundings, write
from torch import Tensor, nn
from torch.nn import functional as F
from training import CLOCKS, WARM_UP, on_cores

import pyroae as pa

os.environ.setdefault("OMP_WAIT_POLICY", "passive")


@dataclass(frozen=True)
class Line:
    """A model: its data, an Autoencoder or a pair of Pyro programs, and a module whose output is the same loss by hand."""

    title: str
    data: Callable[[], Tensor]
    pyroae: Callable[[], tuple]  # model and guide
    by_hand: Callable[[], nn.Module]
    batch: int
    steps: int  # in a round
    library: tuple[str, Callable[[], tuple[nn.Module, Callable[[Tensor], Tensor]]]] | None = None  # its name; a module and its loss


def main(
    lines: tuple[str, ...] = (),
    rounds: int = 7,
    threads: int = 1,
    clock: Literal["wall", "processor"] = "wall",
    rivals: tuple[str, ...] = (),
    out: str = "lines",
):
    """Print the table of microseconds a step (and of the rival's over pyroae's); write it as JSON, Markdown and PNG.

    Args:
        lines: which, by name; by default all.
        rounds: of each rival; the median counts, and the ratios are medians of ratios within a round.
        threads: cores that all rivals may use.
        clock: ``processor`` counts the seconds that the process was at work: for one thread on a machine that is busy otherwise.
        rivals: only these, by name; the first is what the others are compared with.
        out: where the table is written, without the suffix.
    """
    settings, results = {"rounds": rounds, "threads": threads, "clock": clock} | surroundings(torch.device("cpu")), {}
    for name in lines or LINES:
        line = LINES[name]
        found = measure(line, rounds, threads, clock, rivals or tuple(RIVALS))
        results[line.title] = {rival: [each / line.steps for each in seconds] for rival, seconds in found.items()}
        write(out, settings, {"seconds a step": results}, [table(results)])
    picture(results, f"{out}.png")


def measure(line: Line, rounds: int, threads: int, clock: str, rivals: tuple[str, ...]) -> dict[str, list[float]]:
    """Seconds of each round's steps, by rival."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    x, now = line.data(), CLOCKS[clock]
    batches = [(x[i : i + line.batch],) for i in range(0, len(x), line.batch)]
    batches = (batches * line.steps)[: line.steps]
    with on_cores(threads), pyro.validation_enabled(False):
        runs = {name: run for name in rivals if (run := RIVALS[name](line))}
        for run in runs.values():
            for _ in range(WARM_UP):
                run(batches)
        seconds = {name: [] for name in runs}
        for turn in range(rounds):
            for name, run in random.Random(turn).sample(list(runs.items()), len(runs)):  # nobody always follows the same rival
                start = now()
                run(batches)
                seconds[name].append(now() - start)
    return seconds


# --- the rivals: each makes a function that takes a step with every batch ---


def pyroae_(mode: str):
    def make(line: Line):
        svi = pa.SVI(*line.pyroae(), pyro.optim.Adam({"lr": 1e-3}), TraceMeanField_ELBO(), compile=mode, sync=False)

        def run(batches):
            with svi.unchanged():
                for batch in batches:
                    svi.step(*batch)

        return run

    return make


def pyros(line: Line):
    model, guide = line.pyroae()
    svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), TraceMeanField_ELBO())

    def run(batches):
        for batch in batches:
            svi.step(*batch)

    return run


def by_hand(compiled: bool):
    def make(line: Line):
        module = line.by_hand()
        return steps_of(module, torch.compile(module) if compiled else module)

    return make


def libraries(line: Line):
    if line.library is None or not installed(line.library[0]):
        return None
    return steps_of(*line.library[1]())


def steps_of(module: nn.Module, loss_of: Callable[[Tensor], Tensor]):
    adam = torch.optim.Adam(module.parameters(), lr=1e-3, fused=True)

    def run(batches):
        for batch in batches:
            adam.zero_grad()
            loss_of(*batch).backward()
            adam.step()

    return run


def numpyros(line: Line):
    if not installed("numpyro"):
        return None
    from lines_numpyro import steps_of

    return steps_of(next(name for name, each in LINES.items() if each is line), signatures().numpy())


LIBRARIES = "scvi-tools, sae-lens"
RIVALS = {
    "pyroae, compiled": pyroae_("compiled"),
    "pyroae, traced": pyroae_("traced"),
    "by hand, torch.compile": by_hand(True),
    "by hand": by_hand(False),
    "pyro.infer.SVI": pyros,
    LIBRARIES: libraries,
    "NumPyro, jitted steps": numpyros,
}


# --- the models ---


def vae(prior, likelihood, encoder, decoder, posterior=None) -> tuple:
    ae = pa.Autoencoder(prior, likelihood, posterior or pa.posteriors.Normal(), encoder, decoder).train()
    return ae.model, ae.guide


def mlp(*sizes: int) -> nn.Sequential:
    layers = [layer for a, b in zip(sizes, sizes[1:]) for layer in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


class Gaussian(nn.Module):
    """A VAE by hand with a Normal prior and posterior; subclasses have another density of x."""

    def __init__(self, encoder: nn.Module, decoder: nn.Module):
        super().__init__()
        self.encoder, self.decoder, self.log_scale = encoder, decoder, nn.Parameter(torch.zeros(()))

    def forward(self, x):
        mu, log_sigma = self.encoder(x).chunk(2, -1)
        kl = 0.5 * (mu**2 + (2 * log_sigma).exp() - 1 - 2 * log_sigma).sum()
        return kl - self.log_density(x, self.decoder(mu + log_sigma.exp() * torch.randn_like(mu)))

    def log_density(self, x, out):
        return -(0.5 * ((x - out) / self.log_scale.exp()) ** 2 + self.log_scale + 0.5 * math.log(2 * math.pi)).sum()


class Counts(Gaussian):
    def log_density(self, x, out):
        r = self.log_scale.exp()
        constant = torch.lgamma(r + x) - torch.lgamma(1 + x) - torch.lgamma(r)
        return (constant + r * F.logsigmoid(-out) + x * F.logsigmoid(out)).sum()


class Pixels(Gaussian):
    def __init__(self, encoder, decoder):
        super().__init__(encoder, decoder)
        self.log_scale = None

    def log_density(self, x, out):
        return -F.binary_cross_entropy_with_logits(out.flatten(1), x.flatten(1), reduction="sum")


class Vamp(Pixels):
    def __init__(self, encoder, decoder, components):
        super().__init__(encoder, decoder)
        self.raw = nn.Parameter(torch.randn(components, 784) - 2)

    def forward(self, x):
        mu, log_sigma = self.encoder(x).chunk(2, -1)
        eps = torch.randn_like(mu)
        z = mu + log_sigma.exp() * eps
        m, log_s = self.encoder(self.raw.sigmoid()).chunk(2, -1)
        each = (-0.5 * ((z[:, None] - m) / log_s.exp()) ** 2 - log_s).sum(-1)
        log_p = each.logsumexp(-1).sum() - len(x) * math.log(len(m))
        return -0.5 * (eps**2).sum() - log_sigma.sum() - log_p - self.log_density(x, self.decoder(z))


class Iaf(Pixels):
    def __init__(self, encoder, decoder, code, layers=2):
        super().__init__(encoder, decoder)
        self.steps = nn.ModuleList(AutoRegressiveNN(code, [64]) for _ in range(layers))

    def forward(self, x):
        mu, log_sigma = self.encoder(x).chunk(2, -1)
        eps = torch.randn_like(mu)
        z, log_q = mu + log_sigma.exp() * eps, -0.5 * (eps**2).sum() - log_sigma.sum()
        for step in self.steps:
            mean, log_scale = step(z)
            log_scale = log_scale.clamp(-5.0, 3.0)
            z, log_q = (log_scale.exp() * z + mean).flip(-1), log_q - log_scale.sum()
        return log_q + 0.5 * (z**2).sum() - self.log_density(x, self.decoder(z))


class Dictionary(nn.Module):
    def __init__(self, d, atoms, k):
        super().__init__()
        self.encoder, self.atoms, self.k = nn.Linear(d, atoms), nn.Parameter(torch.randn(d, atoms)), k
        self.bias = nn.Parameter(torch.zeros(d))

    def forward(self, x):
        h = F.linear(x, self.encoder.weight, self.encoder.bias - self.encoder.weight @ self.bias)
        values, indices = h.topk(self.k, -1)
        z = torch.zeros_like(h).scatter(-1, indices, values.relu())
        out = F.linear(z, F.normalize(self.atoms, dim=0), self.bias)
        return 0.5 * ((x - out) ** 2 + math.log(2 * math.pi)).sum()


def scvi() -> tuple:
    """Its VAE without dropout and normalization: a dispersion for each gene, means that are shares of the sum of x."""
    from scvi.module import VAE

    module = VAE(2000, n_hidden=128, n_latent=10, dropout_rate=0.0, gene_likelihood="nb", use_batch_norm="none").train()
    zeros = torch.zeros(128, 1)
    return module, lambda x: module({"X": x, "batch": zeros, "labels": zeros})[2].loss


def sae_lens() -> tuple:
    from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.saes.sae import TrainStepInput

    sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=384, d_sae=4096, k=32))
    given = {"coefficients": {}, "dead_neuron_mask": None, "n_training_steps": 0, "is_logging_step": False}
    return sae, lambda x: sae.training_forward_pass(TrainStepInput(sae_in=x, **given)).loss


SPOTS, GENES, TYPES = 400, 1000, 15
_NUMBER = itertools.count()


def signatures() -> Tensor:
    return torch.rand(TYPES, GENES, generator=torch.Generator().manual_seed(0)) ** 4


def cells() -> tuple:
    """Counts of genes at spots: cell types in unknown numbers, with a hierarchy of Gamma priors, as cell2location has them."""
    g, ones = signatures(), torch.ones(())

    def model(x):
        total = pyro.sample("total", dist.Gamma(3 * ones, 1.0))
        rate = pyro.sample("rate", dist.Gamma(ones.expand(TYPES), 1.0).to_event(1))
        gene = pyro.sample("gene", dist.Gamma(10 * ones.expand(GENES), 10.0).to_event(1))
        inverse = pyro.sample("inverse", dist.Exponential(3 * ones.expand(GENES)).to_event(1))
        with pyro.plate("spots", len(x)):
            w = pyro.sample("w", dist.Gamma((total * rate).expand(len(x), TYPES) / TYPES + 0.1, 1.0).to_event(1))
            mean = (w @ g) * gene + 1e-3
            alpha = 1 / (inverse + 1e-2) ** 2
            pyro.sample("x", dist.NegativeBinomial(alpha, logits=(mean / alpha).log()).to_event(1), obs=x)

    guide = AutoNormal(model)
    guide._pyro_name = f"cells{next(_NUMBER)}"  # entries of its own in Pyro's store, where rivals would replace each other's
    return model, guide


class Cells(nn.Module):
    """The same by hand: a Normal posterior of every site's logarithm."""

    def __init__(self):
        super().__init__()
        self.g = signatures()
        shapes = {"total": (), "rate": (TYPES,), "gene": (GENES,), "inverse": (GENES,), "w": (SPOTS, TYPES)}
        self.loc = nn.ParameterDict({name: nn.Parameter(torch.zeros(shape)) for name, shape in shapes.items()})
        self.log_scale = nn.ParameterDict({name: nn.Parameter(torch.full(shape, math.log(0.1))) for name, shape in shapes.items()})

    def forward(self, x):
        drawn, log_q = {}, 0.0
        for name in self.loc:
            eps = torch.randn_like(self.loc[name])
            y = self.loc[name] + self.log_scale[name].exp() * eps
            drawn[name] = y.exp()
            log_q = log_q - (0.5 * eps**2 + self.log_scale[name] + 0.5 * math.log(2 * math.pi) + y).sum()
        total, rate, gene, inverse, w = (drawn[name] for name in ("total", "rate", "gene", "inverse", "w"))
        log_p = gamma(total, 3.0, 1.0) + gamma(rate, 1.0, 1.0) + gamma(gene, 10.0, 10.0) + gamma(inverse, 1.0, 3.0)
        log_p = log_p + gamma(w, total * rate / TYPES + 0.1, 1.0)
        mean, alpha = (w @ self.g) * gene + 1e-3, 1 / (inverse + 1e-2) ** 2
        logits = (mean / alpha).log()
        constant = torch.lgamma(alpha + x) - torch.lgamma(1 + x) - torch.lgamma(alpha)
        return log_q - log_p - (constant + alpha * F.logsigmoid(-logits) + x * F.logsigmoid(logits)).sum()


def gamma(value: Tensor, shape: Tensor | float, rate: float) -> Tensor:
    shape = torch.as_tensor(shape)
    return (shape * math.log(rate) + (shape - 1) * value.log() - rate * value - torch.lgamma(shape)).expand_as(value).sum()


def binary(rows: int) -> Callable[[], Tensor]:
    return lambda: (torch.rand(rows, 784) < 0.2).float()


def conv_by_hand() -> nn.Module:
    torch.manual_seed(0)
    model, guide = conv()
    return Pixels(copy.deepcopy(guide.encoder), copy.deepcopy(model.decoder))


def conv() -> tuple:
    return vae(pa.priors.Normal(20), pa.likelihoods.Bernoulli((1, 28, 28)), pa.nets.Conv(), pa.nets.Deconv())


MLP = pa.nets.MLP
LINES = {
    "table": Line(
        "table: 13 columns, 64-64-4, batch 128",
        lambda: torch.randn(6400, 13),
        lambda: vae(pa.priors.Normal(4), pa.likelihoods.Normal(13), MLP([64, 64]), MLP([64, 64])),
        lambda: Gaussian(mlp(13, 64, 64, 8), mlp(4, 64, 64, 13)),
        128,
        200,
    ),
    "counts": Line(
        "counts: 2,000 genes, 128-10, batch 128",
        lambda: torch.poisson(torch.rand(1280, 2000) * 3),
        lambda: vae(pa.priors.Normal(10), pa.likelihoods.NegativeBinomial(2000), MLP([128]), MLP([128])),
        lambda: Counts(mlp(2000, 128, 20), mlp(10, 128, 2000)),
        128,
        10,
        ("scvi-tools", scvi),
    ),
    "vamp": Line(
        "VampPrior of 500, 784-400-40, batch 100",
        binary(1000),
        lambda: vae(pa.priors.VampPrior(40, components=500), pa.likelihoods.Bernoulli(784), MLP([400]), MLP([400])),
        lambda: Vamp(mlp(784, 400, 80), mlp(40, 400, 784), 500),
        100,
        10,
    ),
    "flow": Line(
        "flow posterior (2 IAF), 784-400-20, batch 100",
        binary(2000),
        lambda: vae(pa.priors.Normal(20), pa.likelihoods.Bernoulli(784), MLP([400]), MLP([400]), pa.posteriors.Flow(layers=2)),
        lambda: Iaf(mlp(784, 400, 40), mlp(20, 400, 784), 20),
        100,
        20,
    ),
    "dictionary": Line(
        "TopK dictionary, 384 to 4,096, k = 32, batch 256",
        lambda: torch.randn(1280, 384),
        lambda: programs(pa.recipes.dictionary(torch.randn(100, 384), latent_dim=4096, k=32)),
        lambda: Dictionary(384, 4096, 32),
        256,
        5,
        ("sae-lens", sae_lens),
    ),
    "conv": Line("convolutions, 28x28, batch 100", lambda: binary(500)().view(-1, 1, 28, 28), conv, conv_by_hand, 100, 5),
    "cells": Line(
        f"cell types at {SPOTS} spots: {GENES:,} genes, Gamma priors, AutoNormal",
        lambda: torch.poisson(torch.rand(SPOTS, GENES) * 3),
        cells,
        Cells,
        SPOTS,
        5,
    ),
}


def programs(ae: pa.Autoencoder) -> tuple:
    return ae.model, ae.guide


def table(results: dict[str, dict[str, list[float]]]) -> str:
    """Markdown: microseconds a step, and how many times those of the first row."""
    rivals = list(dict.fromkeys(rival for seconds in results.values() for rival in seconds))
    rows = [[title, *(cell(seconds, rival) for rival in rivals)] for title, seconds in results.items()]
    return markdown(["microseconds a step (times the first)", *rivals], rows)


def cell(seconds: dict[str, list[float]], rival: str) -> str:
    if rival not in seconds:
        return ""
    first = next(iter(seconds.values()))
    ratio = statistics.median(theirs / ours for theirs, ours in zip(seconds[rival], first))
    return f"{1e6 * statistics.median(seconds[rival]):,.0f} ({ratio:.2f})"


def picture(results: dict[str, dict[str, list[float]]], path: str):
    """Bars of milliseconds a step, a panel for each model."""
    figure, axes = panels(2, -(-len(results) // 2))
    for axis in axes[len(results) :]:
        axis.remove()
    for axis, (title, seconds) in zip(axes, results.items()):
        bars(axis, {rival: 1e3 * statistics.median(each) for rival, each in seconds.items()}, title, "milliseconds a step")
    figure.savefig(path, dpi=80)


if __name__ == "__main__":
    from jsonargparse import auto_cli

    auto_cli(main, as_positional=False)
