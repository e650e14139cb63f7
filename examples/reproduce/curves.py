"""Test log p(x) against training time, of the recorded runs of one network and data: the VAE, IWAE and DReG.

uv run python examples/reproduce/curves.py    # draws results/curves.png
"""

import json
from pathlib import Path

from common import RESULTS
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

LINES = ("-", "--", ":", "-.")


def main(out: str = str(RESULTS)):
    """Draw the curves of the recorded runs into ``curves.png``: passes times the median time of one, compilation apart.

    Args:
        out: folder of the records and of the picture.
    """
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    ax = figure.subplots()
    records = {path.stem: json.loads(path.read_text()) for path in sorted(Path(out).glob("*.json"))}
    watched = [row for name, row in records.items() if "-1-layer-static" in name]
    for i, row in enumerate(watched):
        rows, pace = row["curve"], row["seconds a pass"] / 60
        minutes, scores = [each["passes"] * pace for each in rows], [each["ours"] for each in rows]
        what = row["result"].partition(", 1 stochastic")[0].replace("IWAE, k = 1", "VAE")
        ax.plot(minutes, scores, marker=".", linestyle=LINES[i % len(LINES)], label=f"{what}, {rows[-1]['passes']:,} passes")
    ax.set(xscale="log", xlabel="training time, minutes", ylabel="test log p(x), nats a digit", title="Static MNIST, 784-200-200-50")
    ax.xaxis.set_major_formatter(FuncFormatter(lambda minutes, _: f"{minutes:g}"))
    ax.grid(alpha=0.3)
    ax.legend(frameon=False, loc="lower right")
    figure.savefig(Path(out) / "curves.png", dpi=100)


if __name__ == "__main__":
    from jsonargparse import auto_cli

    auto_cli(main)
