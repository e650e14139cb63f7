"""How fast does a VAE train? pyroae and its rivals, one epoch of each in turn, in one process.

uv run --extra benchmarks python examples/benchmarks/training.py
uv run --extra benchmarks python examples/benchmarks/training.py --shapes 784-400-20 --batch_size 1024 --threads 2

Every rival trains the same network, a Bernoulli VAE with one hidden layer on either side, by Adam, on the same binary rows in
a new order each epoch. The torch ones start from the same weights; NumPyro, which compiles the whole epoch, from its own.
"""

import contextlib
import copy
import importlib.metadata
import json
import logging
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
PACKAGES = "torch", "pyro-ppl", "pythae", "jax", "numpyro"


def main(
    shapes: tuple[str, ...] = ("16-16-2", "784-400-20", "784-400-40"),
    batch_size: int = 100,
    rows: int = 10000,
    rounds: int = 9,
    threads: int = 1,
    particles: int = 1,
    device: str = "auto",
    rivals: tuple[str, ...] = (),
    out: str = "training",
):
    """Print a table, rivals by shapes, of rows a second (and of pyroae's speed over the rival's); write it as JSON and PNG.

    Args:
        shapes: networks, as numbers in x, hidden units and numbers in z.
        batch_size: rows in a step.
        rows: in an epoch.
        rounds: epochs of each rival; the median counts, and the ratios are medians of ratios within a round.
        threads: cores that all rivals may use.
        particles: more than 1: the importance-weighted bound of so many, for the rivals that have it.
        device: of the torch rivals.
        rivals: only these, by name; the first is what the others are compared with.
        out: where the table is written, without its suffix.
    """
    from pyroae.infer.batches import resolve_device

    place = resolve_device(device)
    with on_cores(threads):
        results = {shape: measure(shape, batch_size, rows, rounds, particles, place, rivals or tuple(RIVALS)) for shape in shapes}
    settings = {"batch": batch_size, "rows": rows, "rounds": rounds, "threads": threads, "particles": particles, "machine": machine(place)}
    settings["versions"] = {name: importlib.metadata.version(name) for name in PACKAGES if installed(name)}
    print(table(results) + "\n\n" + "; ".join(f"{name} {value}" for name, value in settings.items()))
    Path(f"{out}.json").write_text(json.dumps({"settings": settings, "seconds": results}, indent=2))
    picture(results, rows, f"{out}.png")


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


def measure(shape: str, batch_size: int, rows: int, rounds: int, particles: int, place, wanted) -> dict[str, list[float]]:
    """Seconds of each round's epoch, by rival."""
    import pyro

    pyro.enable_validation(False)
    d, hidden, code = map(int, shape.split("-"))
    torch.manual_seed(0)
    x = (torch.rand(rows, d) < 0.2).float().to(place)
    epochs = {name: RIVALS[name](x, d, hidden, code, batch_size, particles) for name in wanted}
    epochs = {name: epoch for name, epoch in epochs.items() if epoch}
    for epoch in epochs.values():  # compile, warm up
        epoch()
        epoch()
    seconds = {name: [] for name in epochs}
    for _ in range(rounds):
        for name, epoch in epochs.items():
            start = time.perf_counter()
            epoch()
            if place.type == "cuda":
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - start)
    return seconds


# --- the rivals: each makes a function that trains for one epoch, or None where it cannot take part ---


def autoencoder(x, d, hidden, code):
    import pyroae as pa

    torch.manual_seed(0)
    parts = pa.priors.Normal(code), pa.likelihoods.Bernoulli(d), pa.posteriors.Normal(), pa.nets.MLP(hidden), pa.nets.MLP(hidden)
    return pa.Autoencoder(*parts).to(x.device).train()


def objective(particles):
    import pyro

    import pyroae as pa

    return pyro.infer.TraceMeanField_ELBO() if particles == 1 else pa.objectives.IWAE(particles)


def pyroae_(compile, precision="highest"):
    def make(x, d, hidden, code, batch_size, particles):
        import pyroae as pa
        from pyroae.infer.batches import Batches
        from pyroae.infer.precision import multiplying

        ae = autoencoder(x, d, hidden, code)
        adam = torch.optim.Adam(ae.parameters(), lr=1e-3, fused=True, capturable=x.is_cuda)
        svi = pa.SVI(ae.model, ae.guide, adam, objective(particles), compile)
        batches = Batches(x, batch_size, x.device, shuffle=True)

        def epoch():
            total = torch.zeros((), dtype=torch.float64, device=x.device)
            with multiplying(precision, ae.parameters(), batch_size):
                for batch in batches:
                    total += svi.step(*batch)
            return total.item()

        return epoch

    return make


def pyros(validation):
    def make(x, d, hidden, code, batch_size, particles):
        import pyro

        ae = autoencoder(x, d, hidden, code)
        svi = pyro.infer.SVI(ae.model, ae.guide, pyro.optim.Adam({"lr": 1e-3}), objective(particles))

        def epoch():
            with pyro.validation_enabled(validation):
                return sum(svi.step(batch) for batch in shuffled(x, batch_size))

        return epoch

    return make


class ByHand(nn.Module):
    """The same loss as one writes it without a library, on the same networks."""

    def __init__(self, ae, particles):
        super().__init__()
        self.encoder, self.decoder, self.particles = copy.deepcopy(ae.encoder), copy.deepcopy(ae.decoder), particles

    def forward(self, x):
        mu, log_sigma = self.encoder(x).chunk(2, -1)
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
    def make(x, d, hidden, code, batch_size, particles):
        from pyroae.infer.precision import multiplying

        module = ByHand(autoencoder(x, d, hidden, code), particles)
        adam = torch.optim.Adam(module.parameters(), lr=1e-3, fused=True)
        loss_of = torch.compile(module) if compiled else module

        def epoch():
            total = torch.zeros((), device=x.device)
            with multiplying(precision, module.parameters(), batch_size):
                for batch in shuffled(x, batch_size):
                    adam.zero_grad()
                    loss = loss_of(batch)
                    loss.backward()
                    adam.step()
                    total += loss.detach()
            return total.item()

        return epoch

    return make


def pythaes(x, d, hidden, code, batch_size, particles):
    """Its trainer's epoch, progress bar off, with our networks' weights; its IWAE is another objective."""
    if particles > 1 or not installed("pythae"):
        return None
    logging.getLogger("pythae").setLevel(logging.WARNING)
    from pythae.data.datasets import BaseDataset
    from pythae.models import VAE, VAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder
    from pythae.trainers import BaseTrainer, BaseTrainerConfig
    from pythae.trainers.training_callbacks import CallbackHandler, TrainingCallback

    ae = autoencoder(x, d, hidden, code)

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

    model = VAE(VAEConfig(input_dim=(d,), latent_dim=code, reconstruction_loss="bce"), Encoder(), Decoder())
    config = BaseTrainerConfig(
        output_dir=tempfile.mkdtemp(), num_epochs=1, learning_rate=1e-3, per_device_train_batch_size=batch_size, no_cuda=not x.is_cuda
    )
    trainer = BaseTrainer(model=model, train_dataset=BaseDataset(x, torch.zeros(len(x))), training_config=config)
    trainer.prepare_training()
    trainer.callback_handler = CallbackHandler([TrainingCallback()], trainer.model)
    return lambda: trainer.train_step(1)


def numpyros(x, d, hidden, code, batch_size, particles):
    """Its VAE as in its own example: stax networks, the epoch one jitted loop."""
    if particles > 1 or not installed("numpyro"):
        return None
    import jax
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist
    from jax.example_libraries import stax

    encoder = stax.serial(
        stax.Dense(hidden), stax.Relu, stax.FanOut(2), stax.parallel(stax.Dense(code), stax.serial(stax.Dense(code), stax.Exp))
    )
    decoder = stax.serial(stax.Dense(hidden), stax.Relu, stax.Dense(d))

    def model(batch):
        decode = numpyro.module("decoder", decoder, (batch_size, code))
        with numpyro.plate("batch", batch_size):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0).expand([code]).to_event(1))
            numpyro.sample("x", dist.Bernoulli(logits=decode(z)).to_event(1), obs=batch)

    def guide(batch):
        encode = numpyro.module("encoder", encoder, (batch_size, d))
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


def shuffled(x, batch_size):
    """The quickest way in torch: shuffle once, then contiguous slices."""
    return x[torch.randperm(len(x), device=x.device)].split(batch_size)


RIVALS = {
    "pyroae, compiled": pyroae_("compiled"),
    "pyroae, compiled, precision auto": pyroae_("compiled", "auto"),
    "pyroae, traced": pyroae_("traced"),
    "pyroae, eager": pyroae_("eager"),
    "by hand": by_hand(False),
    "by hand, torch.compile": by_hand(True),
    "by hand, torch.compile, precision auto": by_hand(True, "auto"),
    "pyro.infer.SVI, validation off": pyros(False),
    "pyro.infer.SVI, validation on": pyros(True),
    "pythae": pythaes,
    "NumPyro, jitted epoch": numpyros,
}


def installed(name: str) -> bool:
    """Whether a package is there."""
    try:
        return bool(importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return False


def machine(place) -> str:
    """What it ran on."""
    if place.type == "cuda":
        return torch.cuda.get_device_name(place)
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor())
    return f"{name}, {os.cpu_count()} cores"


def table(results: dict[str, dict[str, list[float]]]) -> str:
    """Markdown: milliseconds an epoch, and how many times those of the first row."""
    names = list(next(iter(results.values())))
    lines = ["| milliseconds an epoch (times the first) | " + " | ".join(results) + " |", "|---" * (1 + len(results)) + "|"]
    for name in names:
        cells = []
        for seconds in results.values():
            ratio = statistics.median(theirs / ours for theirs, ours in zip(seconds[name], seconds[names[0]]))
            cells.append(f"{1e3 * statistics.median(seconds[name]):.0f} ({ratio:.2f})")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def picture(results: dict[str, dict[str, list[float]]], rows: int, path: str):
    """Rows a second, a panel for each shape."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(results), figsize=(4 * len(results) + 2, 4), squeeze=False, sharey=True, layout="constrained")
    for axis, (shape, seconds) in zip(axes[0], results.items()):
        names = list(seconds)[::-1]
        colours = ["tab:orange" if name.startswith("pyroae") else "tab:gray" for name in names]
        axis.barh(names, [rows / statistics.median(seconds[name]) for name in names], color=colours)
        axis.set(title=shape, xlabel="rows a second")
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    from jsonargparse import auto_cli

    auto_cli(main, as_positional=False)
