"""What does the adaptive proposal cost? Scores by it and by as many samples of the guide, of models with published results.

PYROAE_DATA=... uv run python examples/benchmarks/adaptive.py

The weights are those of `examples/reproduce`. Calls alternate, by wall clock; graphs that an earlier process has compiled are not used.
"""

import os
import statistics
import tempfile
import time
from pathlib import Path

import torch
from reporting import markdown, surroundings, write

import pyroae as pa

WEIGHTS = Path(__file__).parents[1] / "reproduce/weights"
MODELS = {"784-400-40": "vae", "784-200-200-50": "iwae-k1-1-layer-static"}
HEAD = ["model", "compile", "guide, seconds", "auto, seconds", "times", "times, first call", "k-hat < .7"]


def main(
    models: list[str] = list(MODELS),
    modes: list[str] = ["auto", "compiled"],
    data: int = 200,
    particles: int = 5000,
    repeats: int = 5,
    out: str = "adaptive",
):
    """Print the table; write it as JSON and Markdown.

    Args:
        models: which.
        modes: values of ``compile``.
        data: how many digits of the test set are scored.
        particles: for each of them.
        repeats: calls of each, after a first one; medians count.
        out: where the table is written, without the suffix.
    """
    x = pa.data.load("mnist", binarize="static").test.x[:data]
    settings = {"data": data, "particles": particles, "repeats": repeats, "threads": torch.get_num_threads()} | surroundings()
    rows = []
    with tempfile.TemporaryDirectory() as graphs:
        os.environ["PYROAE_GRAPHS"] = graphs
        for mode in modes:
            for model in models:
                ae = pa.load(WEIGHTS / f"{MODELS[model]}.safetensors")
                rows.append({"model": model, "compile": mode} | measure(ae, x, mode, particles, repeats))
                write(out, settings, {"rows": rows}, [table(rows)])


def measure(ae: pa.Autoencoder, x: torch.Tensor, mode: str, particles: int, repeats: int) -> dict:
    """Seconds of every call by each proposal, and the share of reliable scores."""
    seconds, reliable = {"guide": [], "auto": []}, 0.0
    for _ in range(repeats + 1):
        for proposal, found in seconds.items():
            start = time.perf_counter()
            estimate = pa.log_likelihood(ae, x, particles=particles, proposal=proposal, compile=mode, progress=False)
            found.append(time.perf_counter() - start)
        reliable = 1 - estimate.unreliable
    return {"seconds": seconds, "reliable": reliable}


def table(rows: list[dict]) -> str:
    """Markdown: medians of the calls after the first, the median of their ratios, and that of the first."""
    lines = []
    for row in rows:
        guide, auto = row["seconds"]["guide"], row["seconds"]["auto"]
        ratios = [a / g for a, g in zip(auto, guide)]
        medians = (statistics.median(each[1:]) for each in (guide, auto, ratios))
        lines.append([row["model"], row["compile"], *(f"{each:.2f}" for each in (*medians, ratios[0])), f"{row['reliable']:.1%}"])
    return markdown(HEAD, lines)


if __name__ == "__main__":
    from jsonargparse import auto_cli

    auto_cli(main, as_positional=False)
