"""How long until something happens, and does memory stay flat? Imports, ``pyroae --help``, the first graphs, the memory of a long training.

uv run python examples/benchmarks/startup.py
"""

import functools
import os
import statistics
import subprocess
import sys
import tempfile
import time

from reporting import bars, markdown, panels, surroundings, write

PROGRAMS = {
    "import torch, pyro": ["-c", "import torch, pyro"],
    "pyroae --help": ["-m", "pyroae", "--help"],
}
AFTER = """
import time, torch, pyro
start = time.perf_counter()
import pyroae
pyroae.Autoencoder, pyroae.fit, pyroae.log_likelihood  # each is imported when it is asked for
print(time.perf_counter() - start)
"""
FIRST = """
import sys, time, torch, pyro, pyroae as pa
mode, level = sys.argv[1], int(sys.argv[2])
vae = pa.Autoencoder(pa.priors.Normal(40), pa.likelihoods.Bernoulli(784), pa.posteriors.Normal(), pa.nets.MLP(400), pa.nets.MLP(400))
x = (torch.rand(100, 784) < 0.2).float()
optimizer, _ = torch.optim.Adam(vae.parameters()), pa.SVI  # imported by now
start = time.perf_counter()
svi = pa.SVI(vae.model, vae.guide, optimizer, pyro.infer.TraceMeanField_ELBO(), compile=mode)
svi.step(x)
while svi.levels()["step"] and svi.levels()["step"][0][1] < level:
    svi.step(x)
print(time.perf_counter() - start)
"""


def seconds(arguments: list[str]) -> float:
    """How long a new Python takes."""
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def added() -> float:
    """How long pyroae takes to import where torch and Pyro are imported already."""
    return float(subprocess.run([sys.executable, "-c", AFTER], check=True, capture_output=True, text=True).stdout)


def first_steps() -> dict[str, float]:
    """Seconds from making an SVI of 784-400-40 to the end of its first step of each kind, each in a new process."""
    with tempfile.TemporaryDirectory() as graphs:

        def first(mode: str, level: int) -> float:
            command = [sys.executable, "-c", FIRST, mode, str(level)]
            there = os.environ | {"PYROAE_GRAPHS": graphs}
            return float(subprocess.run(command, check=True, capture_output=True, text=True, env=there).stdout)

        kinds = {
            "eager": ("eager", 0),
            "traced": ("traced", 1),
            "compiled": ("compiled", 2),
            "compiled, kept by a process before": ("compiled", 2),
        }
        return {name: first(*kind) for name, kind in kinds.items()}


def megabytes() -> float:
    """What this process holds."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def memory(epochs: int) -> list[float]:
    """Megabytes after each epoch of a traced training."""
    import torch

    import pyroae as pa

    vae = pa.Autoencoder(pa.priors.Normal(20), pa.likelihoods.Bernoulli(784), pa.posteriors.Normal(), pa.nets.MLP(400), pa.nets.MLP(400))
    held = []
    x = (torch.rand(1000, 784) < 0.2).float()
    pa.fit(vae, x, epochs=epochs, compile="traced", progress=False, callbacks=[lambda row: held.append(megabytes())])
    return held


def main(rounds: int = 7, epochs: int = 100, graphs: bool = True, out: str = "startup"):
    """Print, write and draw medians of interleaved rounds, and how much memory grew from the second quarter of the epochs on.

    Args:
        rounds: starts of each program.
        epochs: of training.
        graphs: whether to time the first step of each kind.
        out: where they go, without the suffix.
    """
    settings = {"rounds": rounds, "epochs": epochs} | surroundings()
    work = {name: functools.partial(seconds, arguments) for name, arguments in PROGRAMS.items()} | {"pyroae after that": added}
    times = {name: [] for name in work}
    for _ in range(rounds):
        for name, each in work.items():
            times[name].append(each())
    medians = {name: statistics.median(each) for name, each in times.items()}
    held = memory(epochs)
    grown = {"after the first quarter": held[epochs // 4], "at the end": held[-1]}
    tables = [markdown(["", "seconds"], [[name, f"{value:.2f}"] for name, value in medians.items()])]
    steps = first_steps() if graphs else {}
    tables += [markdown(["784-400-40, first step", "seconds"], [[name, f"{value:.2f}"] for name, value in steps.items()])] if graphs else []
    tables += [markdown(["784-400-20, traced", "MB"], [[name, f"{value:.0f}"] for name, value in grown.items()])]
    write(out, settings, {"seconds": times, "first step": steps, "MB": held}, tables)
    figure, (left, right) = panels(2)
    bars(left, medians, "from nothing", "seconds")
    right.plot(range(1, epochs + 1), held)
    right.set(title="memory", xlabel="epoch", ylabel="MB", ylim=(0, 1.2 * max(held)))
    figure.savefig(f"{out}.png", dpi=80)


if __name__ == "__main__":
    from jsonargparse import auto_cli

    auto_cli(main, as_positional=False)
