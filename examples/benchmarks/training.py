"""How fast does a VAE train? pyroae and its rivals, one epoch of each in turn, in an order that changes, in one process.

uv run --extra benchmarks python examples/benchmarks/training.py
uv run --extra benchmarks python examples/benchmarks/training.py --tables all
uv run --extra benchmarks python examples/benchmarks/training.py --shapes 784-400-20 --batch_size 1024 --threads 2

Every rival trains the same Bernoulli VAE, by Adam, on the same binary rows in a new order each epoch. The torch ones start
from the same weights; NumPyro, which compiles the whole epoch, from its own.
"""

import contextlib
import copy
import logging
import math
import os
import random
import statistics
import tempfile
import time
from dataclasses import dataclass, replace
from typing import Literal

import torch
from reporting import bars, installed, markdown, panels, surroundings, write
from torch import nn
from torch.nn import functional as F

os.environ.setdefault("OMP_WAIT_POLICY", "passive")


@dataclass(frozen=True)
class Work:
    """What is trained: numbers in x, hidden units of each layer and numbers in z; ``conv`` in the middle for a convolutional network."""

    shape: str = "784-400-20"
    batch: int = 100
    rows: int = 10000
    threads: int = 1
    particles: int = 1  # more than 1: the importance-weighted bound of so many, for the rivals that have it

    @property
    def hidden(self) -> list[int]:
        return [int(width) for width in self.shape.split("-")[1:-1] if width != "conv"]

    @property
    def event(self) -> tuple[int, ...]:
        d = int(self.shape.split("-")[0])
        return (1, math.isqrt(d), math.isqrt(d)) if "conv" in self.shape else (d,)

    @property
    def code(self) -> int:
        return int(self.shape.split("-")[-1])


TABLES = {  # what changes, and the values it takes
    "networks": [{"shape": "16-16-2", "rows": 20000}, {"shape": "784-400-20"}, {"shape": "784-400-40"}]
    + [{"shape": "784-200-200-50", "particles": 50, "rows": 1000}, {"shape": "784-conv-20", "rows": 500}],
    "batch": [{"batch": batch} for batch in (32, 128, 512, 1024, 4096)],
    "threads": [{"threads": threads} for threads in (1, 2)],
    "rows": [{"rows": rows} for rows in (2500, 5000, 10000, 20000)],
    "code": [{"shape": f"784-400-{code}"} for code in (10, 50, 100, 200)],
    "particles": [{"particles": particles, "rows": 1000} for particles in (2, 10, 20, 50)],
}
WARM_UP = 9  # epochs in which rivals compile, and pyroae proves its graphs at calls 2, 4 and 8 of every size of a batch
CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}
FEW = "pyroae, compiled", "by hand, torch.compile, precision auto", "pyro.infer.SVI, validation off"  # rivals of the tables after the first


def main(
    tables: tuple[str, ...] = ("networks",),
    shapes: tuple[str, ...] = (),
    batch_size: int = 100,
    rows: int = 10000,
    rounds: int = 9,
    threads: int = 1,
    particles: int = 1,
    device: str = "auto",
    clock: Literal["wall", "processor"] = "wall",
    rivals: tuple[str, ...] = (),
    out: str = "training",
):
    """Print tables, rivals by workloads, of milliseconds an epoch (and of the rival's over pyroae's); write them as JSON, Markdown and PNG.

    Args:
        tables: which, by name, or ``all``.
        shapes: networks instead of tables: numbers in x, hidden units, numbers in z.
        batch_size: rows in a step, where the table does not say.
        rows: in an epoch, likewise.
        rounds: epochs of each rival; the median counts, and the ratios are medians of ratios within a round.
        threads: cores that all rivals may use, likewise.
        particles: of the bound, likewise.
        device: of the torch rivals.
        clock: ``processor`` counts the seconds that the process was at work: for one thread on a machine that is busy otherwise.
        rivals: only these, by name; the first is what the others are compared with.
        out: where the tables are written, without the suffix.
    """
    from pyroae.training.devices import resolve_device

    place, usual = resolve_device(device), Work(batch=batch_size, rows=rows, threads=threads, particles=particles)
    chosen = TABLES if "all" in tables else {name: TABLES[name] for name in tables}
    chosen = {"networks": [{"shape": shape} for shape in shapes]} if shapes else chosen
    settings = {"usual": vars(usual), "rounds": rounds, "clock": clock} | surroundings(place)
    results = {}
    for name, changes in chosen.items():
        wanted = rivals or (tuple(RIVALS) if name == "networks" else FEW)
        for change in changes:
            found = measure(replace(usual, **change), rounds, place, wanted, CLOCKS[clock])
            results.setdefault(name, {})[label(change)] = found
            write(out, settings, {"seconds": results}, [table(*item) for item in results.items()])
    picture(results, f"{out}.png")


def label(change: dict) -> str:
    """A workload's column: the network's shape as it is, other settings by name."""
    return ", ".join(str(value) if key == "shape" else f"{key} {value}" for key, value in change.items())


@contextlib.contextmanager
def on_cores(threads: int):
    """So many cores for all, JAX's threads included."""
    before = torch.get_num_threads(), os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before[1])[:threads])
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        os.sched_setaffinity(0, before[1])


def measure(work: Work, rounds: int, place, wanted, now) -> dict[str, list[float]]:
    """Seconds of each round's epoch, by rival."""
    import pyro

    torch._dynamo.reset()  # it would give up on the rival's code after 8 networks
    torch.manual_seed(0)
    x = (torch.rand(work.rows, *work.event) < 0.2).float().to(place)
    with on_cores(work.threads), pyro.validation_enabled(False):
        epochs = {name: RIVALS[name](x, work) for name in wanted}
        epochs = {name: epoch for name, epoch in epochs.items() if epoch}
        for epoch in epochs.values():
            for _ in range(WARM_UP):
                epoch()
        seconds = {name: [] for name in epochs}
        for turn in range(rounds):
            for name, epoch in random.Random(turn).sample(list(epochs.items()), len(epochs)):  # nobody always follows the same rival
                start = now()
                epoch()
                if place.type == "cuda":
                    torch.cuda.synchronize()
                seconds[name].append(now() - start)
    return seconds


# --- the rivals: each makes a function that trains for one epoch, or None where it cannot take part ---


def autoencoder(x, work):
    import pyroae as pa

    torch.manual_seed(0)
    conv = "conv" in work.shape
    networks = (pa.nets.Conv(), pa.nets.Deconv()) if conv else (pa.nets.MLP(work.hidden), pa.nets.MLP(work.hidden[::-1]))
    parts = pa.priors.Normal(work.code), pa.likelihoods.Bernoulli(work.event), pa.posteriors.Normal()
    return pa.Autoencoder(*parts, *networks).to(x.device).train()


def objective(particles):
    import pyro

    import pyroae as pa

    return pyro.infer.TraceMeanField_ELBO() if particles == 1 else pa.objectives.IWAE(particles)


def pyroae_(compile, precision="highest"):
    def make(x, work):
        import pyroae as pa
        from pyroae.training.batches import Batches
        from pyroae.training.precision import matmul_precision

        ae = autoencoder(x, work)
        adam = torch.optim.Adam(ae.parameters(), lr=1e-3, fused=True)
        svi = pa.SVI(ae.model, ae.guide, adam, objective(work.particles), compile=pa.Step(compile, precision=None), sync=False)
        batches = Batches(x, work.batch, x.device, shuffle=True)

        def epoch():
            total = torch.zeros((), dtype=torch.float64, device=x.device)
            with matmul_precision(precision, ae.parameters(), work.batch):
                for block in batches.blocks():  # as ``fit`` does
                    with svi.unchanged():
                        for batch in block:
                            total += svi.step(*batch)
            return total.item()

        return epoch

    return make


def pyros(validation):
    def make(x, work):
        import pyro

        ae = autoencoder(x, work)
        svi = pyro.infer.SVI(ae.model, ae.guide, pyro.optim.Adam({"lr": 1e-3}), objective(work.particles))

        def epoch():
            with pyro.validation_enabled(validation):
                return sum(svi.step(batch) for batch in shuffled(x, work.batch))

        return epoch

    return make


class ByHand(nn.Module):
    """The same loss as one writes it without a library, on the same networks."""

    def __init__(self, ae, particles):
        super().__init__()
        self.encoder, self.decoder, self.particles = copy.deepcopy(ae.encoder), copy.deepcopy(ae.decoder), particles

    def forward(self, x):
        mu, log_sigma = self.encoder(x).chunk(2, -1)
        x = x.flatten(1)
        if self.particles == 1:
            logits = self.decoder(mu + log_sigma.exp() * torch.randn_like(mu))
            kl = 0.5 * (mu**2 + (2 * log_sigma).exp() - 1 - 2 * log_sigma).sum()
            return F.binary_cross_entropy_with_logits(logits, x, reduction="sum") + kl
        eps = torch.randn(self.particles, *mu.shape, device=mu.device)
        z = mu + log_sigma.exp() * eps
        logits = self.decoder(z)
        log_p = (x * logits - F.softplus(logits)).sum(-1) - 0.5 * z.square().sum(-1)
        return -(log_p + 0.5 * eps.square().sum(-1) + log_sigma.sum(-1)).logsumexp(0).sum()


def by_hand(compiled, precision="highest"):
    def make(x, work):
        from pyroae.training.precision import matmul_precision

        module = ByHand(autoencoder(x, work), work.particles)
        adam = torch.optim.Adam(module.parameters(), lr=1e-3, fused=True)
        loss_of = torch.compile(module) if compiled else module

        def epoch():
            total = torch.zeros((), device=x.device)
            with matmul_precision(precision, module.parameters(), work.batch):
                for batch in shuffled(x, work.batch):
                    adam.zero_grad()
                    loss = loss_of(batch)
                    loss.backward()
                    adam.step()
                    total += loss.detach()
            return total.item()

        return epoch

    return make


def pythaes(x, work):
    """Its trainer's epoch, progress bar off, with our networks' weights; its IWAE is another objective."""
    if work.particles > 1 or not installed("pythae"):
        return None
    logging.getLogger("pythae").setLevel(logging.WARNING)
    from pythae.data.datasets import BaseDataset
    from pythae.models import VAE, VAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder
    from pythae.trainers import BaseTrainer, BaseTrainerConfig
    from pythae.trainers.training_callbacks import CallbackHandler, TrainingCallback

    ae = autoencoder(x, work)

    class Encoder(BaseEncoder):
        def __init__(self):
            super().__init__()
            self.net = copy.deepcopy(ae.encoder)

        def forward(self, x):
            mu, log_sigma = self.net(x).chunk(2, -1)
            return ModelOutput(embedding=mu, log_covariance=2 * log_sigma)

    class Decoder(BaseDecoder):
        def __init__(self):
            super().__init__()
            self.net = copy.deepcopy(ae.decoder)

        def forward(self, z):
            return ModelOutput(reconstruction=self.net(z).sigmoid())

    model = VAE(VAEConfig(input_dim=work.event, latent_dim=work.code, reconstruction_loss="bce"), Encoder(), Decoder())
    config = BaseTrainerConfig(
        output_dir=tempfile.mkdtemp(), num_epochs=1, learning_rate=1e-3, per_device_train_batch_size=work.batch, no_cuda=not x.is_cuda
    )
    trainer = BaseTrainer(model=model, train_dataset=BaseDataset(x, torch.zeros(len(x))), training_config=config)
    trainer.prepare_training()
    trainer.callback_handler = CallbackHandler([TrainingCallback()], trainer.model)
    return lambda: trainer.train_step(1)


def numpyros(x, work):
    """Its VAE as in its own example: stax networks, the epoch one jitted loop."""
    if work.particles > 1 or "conv" in work.shape or not installed("numpyro"):
        return None
    import jax
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist
    from jax.example_libraries import stax

    code, batch_size, inside = work.code, work.batch, [layer for width in work.hidden for layer in (stax.Dense(width), stax.Relu)]
    outside = [layer for width in work.hidden[::-1] for layer in (stax.Dense(width), stax.Relu)]
    encoder = stax.serial(*inside, stax.FanOut(2), stax.parallel(stax.Dense(code), stax.serial(stax.Dense(code), stax.Exp)))
    decoder = stax.serial(*outside, stax.Dense(*work.event))

    def model(batch):
        decode = numpyro.module("decoder", decoder, (batch_size, code))
        with numpyro.plate("batch", batch_size):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0).expand([code]).to_event(1))
            numpyro.sample("x", dist.Bernoulli(logits=decode(z)).to_event(1), obs=batch)

    def guide(batch):
        encode = numpyro.module("encoder", encoder, (batch_size, *work.event))
        mu, sigma = encode(batch)
        with numpyro.plate("batch", batch_size):
            numpyro.sample("z", dist.Normal(mu, sigma).to_event(1))

    data = jnp.asarray(x.cpu().numpy())
    svi = numpyro.infer.SVI(model, guide, numpyro.optim.Adam(1e-3), numpyro.infer.TraceMeanField_ELBO())
    whole = len(data) // batch_size

    @jax.jit
    def train(state, key):
        order = jax.random.permutation(key, len(data))[: whole * batch_size].reshape(whole, batch_size)

        def body(i, carry):
            total, state = carry
            state, loss = svi.update(state, data[order[i]])
            return total + loss, state

        return jax.lax.fori_loop(0, whole, body, (0.0, state))

    held = {"state": svi.init(jax.random.PRNGKey(0), data[:batch_size]), "key": jax.random.PRNGKey(1)}

    def epoch():
        held["key"], key = jax.random.split(held["key"])
        total, held["state"] = train(held["state"], key)
        return float(total)

    return epoch


def on_gpus(make):
    """The rival only where TF32 is a precision of its own."""
    return lambda x, work: make(x, work) if x.is_cuda else None


def shuffled(x, batch_size):
    """The quickest way in torch: shuffle once, then contiguous slices."""
    return x[torch.randperm(len(x), device=x.device)].split(batch_size)


RIVALS = {
    "pyroae, compiled": pyroae_("compiled", "auto"),
    "pyroae, compiled, precision highest": pyroae_("compiled"),
    "pyroae, compiled, TF32": on_gpus(pyroae_("compiled", "high")),
    "pyroae, traced": pyroae_("traced", "auto"),
    "pyroae, eager": pyroae_("eager", "auto"),
    "by hand, torch.compile, precision auto": by_hand(True, "auto"),
    "by hand, torch.compile": by_hand(True),
    "by hand, torch.compile, TF32": on_gpus(by_hand(True, "high")),
    "by hand": by_hand(False),
    "pyro.infer.SVI, validation off": pyros(False),
    "pyro.infer.SVI, validation on": pyros(True),
    "pythae": pythaes,
    "NumPyro, jitted epoch": numpyros,
}


def table(name: str, results: dict[str, dict[str, list[float]]]) -> str:
    """Markdown: milliseconds an epoch, and how many times those of the first row."""
    names = list(dict.fromkeys(rival for seconds in results.values() for rival in seconds))
    rows = [[rival, *(cell(seconds, rival, names[0]) for seconds in results.values())] for rival in names]
    return markdown([f"{name}: milliseconds an epoch (times the first)", *results], rows)


def cell(seconds: dict[str, list[float]], rival: str, first: str) -> str:
    """A median and the median of the ratios within a round; nothing for a rival that cannot take part."""
    if rival not in seconds:
        return ""
    ratio = statistics.median(theirs / ours for theirs, ours in zip(seconds[rival], seconds[first]))
    return f"{1e3 * statistics.median(seconds[rival]):.0f} ({ratio:.2f})"


def picture(results: dict[str, dict[str, dict[str, list[float]]]], path: str):
    """Milliseconds an epoch: bars for networks, a line for each rival against anything that is a number."""
    wanted = [(name, column) for name, columns in results.items() for column in (columns if name == "networks" else [None])]
    across = min(len(wanted), 3)
    figure, axes = panels(across, -(-len(wanted) // across))
    for axis in axes[len(wanted) :]:
        axis.remove()
    for axis, (name, column) in zip(axes, wanted):
        if column:
            bars(
                axis,
                {rival: 1e3 * statistics.median(each) for rival, each in results[name][column].items()},
                column,
                "milliseconds an epoch",
            )
        else:
            lines(axis, name, results[name])
    figure.savefig(path, dpi=80)


def lines(axis, name: str, results: dict[str, dict[str, list[float]]]):
    where = [float(column.split(",")[0].replace("-", " ").split()[-1]) for column in results]
    for rival in next(iter(results.values())):
        axis.plot(where, [1e3 * statistics.median(seconds[rival]) for seconds in results.values()], "o-", label=rival)
    axis.set(title=f"against {name}", xlabel=name, ylabel="milliseconds an epoch", ylim=(0, None))
    axis.set_xscale("log" if name == "batch" else "linear")
    axis.set_xticks(where, [f"{value:.0f}" for value in where], rotation=45)
    axis.minorticks_off()
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.25), frameon=False, fontsize="small")


if __name__ == "__main__":
    from jsonargparse import auto_cli

    auto_cli(main, as_positional=False)
