"""Test log p(x) against training time, of every recorded run that was watched: the VAE, IWAE and DReG on the same network.

uv run python examples/reproduce/curves.py    # draws results/curves.png
"""

import json
from pathlib import Path

from common import RESULTS
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

LINES = ("-", "--", ":", "-.")


def main(out: str = str(RESULTS), runs: str = "runs"):
    """Draw the curves, error bars of one standard error of the test data, into ``curves.png``.

    Args:
        out: folder of the records and of the picture.
        runs: folder of the runs; one that still trains is drawn as far as it has come.
    """
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    ax = figure.subplots()
    for i, (name, rows) in enumerate(curves(Path(out), Path(runs)).items()):
        minutes, scores = [row["training seconds"] / 60 for row in rows], [row["ours"] for row in rows]
        ax.plot(minutes, scores, marker=".", linestyle=LINES[i % len(LINES)], label=name)
        ax.annotate(f"{rows[-1]['passes']:,} passes", (minutes[-1], scores[-1]), xytext=(4, 4), textcoords="offset points", fontsize=8)
    ax.set(xscale="log", xlabel="training time, minutes", ylabel="test log p(x), nats a digit", title="Static MNIST, 784-200-200-50")
    ax.xaxis.set_major_formatter(FuncFormatter(lambda minutes, _: f"{minutes:g}"))
    ax.margins(x=0.12)
    ax.grid(alpha=0.3)
    ax.legend(frameon=False, loc="lower right")
    figure.savefig(Path(out) / "curves.png", dpi=100)


def curves(out: Path, runs: Path) -> dict[str, list[dict[str, float]]]:
    """Each run's watched scores by its name, after the first epoch."""
    found = {path.parent.name: json.loads(path.read_text()) for path in sorted(runs.glob("*/curve.json"))}
    found |= {path.stem: row["curve"] for path in sorted(out.glob("*.json")) if "curve" in (row := json.loads(path.read_text()))}
    return dict(sorted(found.items()))


if __name__ == "__main__":
    from jsonargparse import auto_cli

    auto_cli(main)
