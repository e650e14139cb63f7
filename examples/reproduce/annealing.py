"""How far is an importance-weighted score from log p(x)? Against AIS, and BDMC's bracket (Wu et al. 2017; Cremer et al. 2018).

PYROAE_DATA=... uv run python examples/reproduce/annealing.py runs/iwae-k1-1-layer-static/model.safetensors

IWAE with 5,000 particles and AIS on the same real test data; BDMC on as many simulated ones says how far AIS can be off.
"""

import hashlib
import json
import time
from pathlib import Path

from common import RESULTS, record, recorded

import pyroae as pa


def main(
    model: str,
    data: int = 200,
    particles: int = 5000,
    chains: int = 16,
    temperatures: int = 500,
    leapfrog: int = 10,
    quick: bool = False,
    out: str = str(RESULTS),
):
    """Score one trained model of static MNIST in three ways and record the gaps.

    Args:
        model: a file that ``save`` has written.
        data: how many of the test data.
        particles: of the importance-weighted score.
        chains: of AIS, for each example.
        temperatures: of AIS.
        leapfrog: steps of each HMC move.
        quick: digits and a short annealing, to see that it runs.
        out: folder of the record.
    """
    if quick:
        data, particles, chains, temperatures, leapfrog = 10, 50, 4, 10, 2
    settings = {key: value for key, value in locals().items() if key != "out"}
    settings["sha256"] = hashlib.sha256(Path(model).read_bytes()).hexdigest()
    if recorded(out, "annealing", settings):
        return
    vae = pa.load(model)
    x = (pa.data.load("digits", binarize="static") if quick else pa.data.load("binarized-mnist")).test.x
    x = x[:: -(-len(x) // data)]
    anneal = {"chains": chains, "temperatures": temperatures, "leapfrog": leapfrog, "progress": True}
    curve = Path(model).with_name("curve.json")
    passes = json.loads(curve.read_text())[-1]["passes"] if curve.exists() else None
    start = time.perf_counter()
    weighted, annealed, bracket = (
        pa.log_likelihood(vae, x, particles=particles, proposal="guide"),
        pa.ais(vae, x, **anneal),
        pa.bdmc(vae, x, **anneal),
    )
    gap = pa.compare(annealed, weighted)
    how = f"{len(x)} test data, {chains} chains, {temperatures} temperatures" + (f", the model after {passes:,} passes" if passes else "")
    row = {
        "ours": gap.difference,
        "Monte-Carlo s.e.": gap.mc_se,
        "sampling s.e.": gap.se,
        "seconds": time.perf_counter() - start,
        "note": f"{how}: AIS {annealed.mean:.2f}, IWAE {weighted.mean:.2f}; BDMC: {bracket}",
    }
    record(out, "annealing", row, settings)


if __name__ == "__main__":
    from jsonargparse import auto_cli

    auto_cli(main)
