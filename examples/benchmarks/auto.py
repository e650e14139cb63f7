"""Does ``compile="auto"`` choose well? Runs of many lengths, by each mode and by "auto", and what "auto" loses to the best of them.

uv run python examples/benchmarks/auto.py
uv run python examples/benchmarks/auto.py --lengths '[600]' --slow false --out auto-600

Each run is a new process, timed from making the SVI to its last step. "Kept" code was compiled by a process before; otherwise
Inductor's own cache is empty too. In the columns "unknown", "auto" is not told how many steps will come.
"""

import json
import os
import random
import statistics
import subprocess
import sys
import tempfile

from reporting import markdown, surroundings, write

RUN = """
import json, sys, time, torch, pyro, pyroae as pa
mode, steps, known, width, hidden, code = json.loads(sys.argv[1])
torch.set_num_threads(1)
networks = pa.nets.MLP(hidden), pa.nets.MLP(hidden)
vae = pa.Autoencoder(pa.priors.Normal(code), pa.likelihoods.Bernoulli(width), pa.posteriors.Normal(), *networks)
batches = [(x,) for x in (torch.rand(50, 100, width) < 0.2).float()]
adam, elbo = pyro.optim.Adam({"lr": 1e-3}), pyro.infer.TraceMeanField_ELBO()
pa.SVI, torch.optim.Adam(vae.parameters())  # imported by now, with what an optimizer imports
pyro.enable_validation(False)
start = time.perf_counter()
if mode == "pyro":
    svi = pyro.infer.SVI(vae.model, vae.guide, adam, elbo)
    for step in range(steps):
        svi.step(*batches[step % 50])
else:
    svi = pa.SVI(vae.model, vae.guide, adam, elbo, compile=mode, sync=False, steps=steps if known else None)
    for start_of_block in range(0, steps, 50):
        with svi.unchanged():
            for batch in batches[: steps - start_of_block]:
                svi.step(*batch)
print(time.perf_counter() - start)
"""


def main(
    lengths: tuple[float, ...] = (0.1, 1, 10, 60),
    network: tuple[int, int, int] = (784, 400, 20),
    repeats: int = 3,
    slow: bool = True,
    out: str = "auto",
):
    """Print the table of seconds; write it as JSON and Markdown.

    Args:
        lengths: of the runs, in seconds that ``pyro.infer.SVI`` takes.
        network: numbers in x, hidden units and numbers in z.
        repeats: of runs that take below 20 seconds; medians count.
        slow: also ``pyro.infer.SVI``, eager and traced, of which a long run shows nothing new.
        out: where the table is written, without the suffix.
    """
    settings, rows = {"network": "-".join(map(str, network))} | surroundings(), []
    with tempfile.TemporaryDirectory() as kept:
        seconds("compiled", 10, True, network, kept)
        pace = (seconds("pyro", 400, True, network, kept) - seconds("pyro", 100, True, network, kept)) / 300
        for length in lengths:
            steps = max(5, round(length / pace))
            rows.append({"steps": steps, "seconds": measure(steps, network, kept, repeats if length < 20 else 1, slow)})
            write(out, settings, {"runs": rows}, [table(rows)])


def measure(steps: int, network: tuple[int, int, int], kept: str, repeats: int, slow: bool) -> dict[str, list[float]]:
    """Seconds of runs of so many steps, by mode: one run of each in turn, in an order that changes."""
    modes = {"pyro.infer.SVI": ("pyro", True, True), "eager": ("eager", True, True), "traced": ("traced", True, True)} if slow else {}
    for state, keeps in (("kept", True), ("cold", False)):
        modes[f"compiled, {state}"] = "compiled", True, keeps
        modes[f"auto, {state}"] = "auto", True, keeps
        modes[f"auto, {state}, unknown"] = "auto", False, keeps
    found = {name: [] for name in modes}
    for turn in range(repeats):
        for name in random.Random(turn).sample(list(modes), len(modes)):
            mode, known, keeps = modes[name]
            with tempfile.TemporaryDirectory() as empty:
                found[name].append(seconds(mode, steps, known, network, kept if keeps else empty))
    return found


def seconds(mode: str, steps: int, known: bool, network: tuple[int, int, int], graphs: str) -> float:
    """Seconds of a run in a new process, with the folder of kept graphs."""
    there = os.environ | {"PYROAE_GRAPHS": graphs, "TORCHINDUCTOR_CACHE_DIR": os.path.join(graphs, "inductor")}
    command = [sys.executable, "-c", RUN, json.dumps([mode, steps, known, *network])]
    os.chmod(graphs, 0o700)
    return float(subprocess.run(command, check=True, capture_output=True, text=True, env=there).stdout)


def table(rows: list[dict]) -> str:
    """Markdown: medians of seconds, and for "auto" the median of a turn's ratios to the best fixed mode."""
    names = list(dict.fromkeys(name for row in rows for name in row["seconds"]))
    return markdown(["steps", *names], [[f"{row['steps']:,}", *(cell(row["seconds"], name) for name in names)] for row in rows])


def cell(seconds: dict[str, list[float]], name: str) -> str:
    if name not in seconds:
        return ""
    text = f"{statistics.median(seconds[name]):.2f}"
    if not name.startswith("auto"):
        return text
    fixed = [mode for mode in ("eager", "traced", f"compiled, {'kept' if 'kept' in name else 'cold'}") if mode in seconds]
    best = min(fixed, key=lambda mode: statistics.median(seconds[mode]))
    return f"{text} ({statistics.median(ours / theirs for ours, theirs in zip(seconds[name], seconds[best])):.2f})"


if __name__ == "__main__":
    from jsonargparse import auto_cli

    auto_cli(main, as_positional=False)
