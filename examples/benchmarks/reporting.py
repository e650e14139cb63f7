"""What every benchmark leaves: numbers and where they come from, as JSON, as a table and as a picture."""

import importlib.metadata
import json
import os
import platform
from pathlib import Path
from typing import Any

PACKAGES = "torch", "pyro-ppl", "pythae", "jax", "numpyro"


def installed(name: str) -> bool:
    """Whether a package is there."""
    try:
        return bool(importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return False


def surroundings(device=None) -> dict[str, Any]:
    """The machine, how busy it is, and versions."""
    import torch

    where = torch.cuda.get_device_name(device) if device is not None and device.type == "cuda" else _processor()
    versions = {name: importlib.metadata.version(name) for name in PACKAGES if installed(name)}
    return {"machine": where, "load before": round(os.getloadavg()[0], 1), "versions": versions}


def _processor() -> str:
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor())
    return f"{name}, {os.cpu_count()} cores"


def write(out: str, settings: dict[str, Any], found: dict[str, Any], tables: list[str]):
    """``out.json`` and ``out.md``; the tables are printed too."""
    Path(f"{out}.json").write_text(json.dumps({"settings": settings} | found, indent=1))
    text = "\n\n".join(tables) + "\n\n" + "; ".join(f"{key} {value}" for key, value in settings.items()) + "\n"
    Path(f"{out}.md").write_text(text)
    print(text)


def markdown(head: list[str], rows: list[list[str]]) -> str:
    """A table, its first column the names."""
    return "\n".join(["| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), *rows)])


def panels(across: int, down: int = 1):
    """A figure and its axes, flat."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(down, across, figsize=(5 * across + 1, 4 * down), squeeze=False, layout="constrained")
    return figure, list(axes.flat)


def bars(axis, values: dict[str, float], title: str, unit: str):
    """One bar for each name, from the top; pyroae's stand out."""
    names = list(values)[::-1]
    colours = ["tab:orange" if name.startswith("pyroae") else "tab:gray" for name in names]
    drawn = axis.barh(names, [values[name] for name in names], color=colours)
    axis.bar_label(drawn, [f" {values[name]:,.3g}" if values[name] < 1000 else f" {values[name]:,.0f}" for name in names])
    axis.set(title=title, xlabel=unit, xlim=(0, 1.4 * max(values.values())))
