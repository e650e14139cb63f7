"""Everyday tables by ``pyroae train --data FILE``, nothing said about them: those of scikit-learn, statsmodels and vega_datasets.

uv run --with statsmodels --with vega_datasets python examples/tables/everyday.py
"""

import contextlib
import importlib.util
import io
import json
import math
import tempfile
import time
from collections import Counter
from pathlib import Path

import pyroae as pa
from pyroae.cli import main as pyroae

VEGA = "airports barley burtin cars crimea driving iris iowa-electricity la-riots ohlc seattle-weather stocks us-employment wheat"


def files() -> dict[str, Path]:
    """The tables that are installed, by package and name."""
    folders = {
        "scikit-learn": ("sklearn", "datasets/data"),
        "statsmodels": ("statsmodels", "datasets"),
        "vega_datasets": ("vega_datasets", "_data"),
    }
    found = {}
    for package, (module, below) in folders.items():
        spec = importlib.util.find_spec(module)
        if spec is None or spec.origin is None:
            continue
        paths = sorted(path for path in (Path(spec.origin).parent / below).rglob("*") if path.is_file() and "src" not in path.parts)
        names = VEGA.split() if package == "vega_datasets" else None
        tables = [path for path in paths if {".csv", ".json"} & set(path.suffixes) and (names is None or path.stem in names)]
        found |= {f"{package}: {path.name}": path for path in tables if "geo" not in path.name}
    return found


def trained(path: Path, options: list[str], folder: str) -> dict:
    """What the command makes of one file."""
    out, said, start = io.StringIO(), io.StringIO(), time.perf_counter()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(said):
        code = pyroae(["train", "--data", str(path), "--out", folder, "--json", *options])
    if code:
        return {"refused": said.getvalue().strip().splitlines()[-1].removeprefix("pyroae: ")}
    results, data = json.loads(out.getvalue()), pa.data.load(path)
    kinds = Counter(column.kind for column in data.schema.columns or ())
    return {
        "rows": sum(map(len, data.splits.values())),
        "columns": ", ".join(f"{count} {kind}" for kind, count in kinds.items()),
        "left out": data.table.count("  left out  "),
        "missing": int(sum(split.x.isnan().sum() for split in data.splits.values())),
        "log p(x)": results["log_likelihood"],
        "independent": results.get("independent"),
        "s.e.": results["data_se"],
        "k-hat > .7": results["unreliable"],
        "seconds": time.perf_counter() - start,
    }


def main(options: list[str] = [], only: list[str] | None = None, out: str = "everyday.json"):
    """Train on every table and write what each was taken for and its score.

    Args:
        options: of ``pyroae train``, for all.
        only: names that a table's name must hold.
        out: the results; tables that are in it are not trained again.
    """
    rows = json.loads(Path(out).read_text()) if Path(out).exists() else {}
    for name, path in files().items():
        if name in rows or (only is not None and not any(each in name for each in only)):
            continue
        with tempfile.TemporaryDirectory() as folder:
            rows[name] = trained(path, options, f"{folder}/run")
        print(name, rows[name], flush=True)
        Path(out).write_text(json.dumps(rows, indent=1))


def table(rows: dict) -> str:
    """The results as Markdown."""
    columns = ["rows", "columns", "left out", "missing", "log p(x)", "independent", "s.e.", "k-hat > .7"]
    lines = ["| table | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name, row in rows.items():
        cells = [row.get("refused", "")] if "refused" in row else [_cell(row.get(column), column) for column in columns]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(value, column: str) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if column == "k-hat > .7":
        return f"{value:.0%}"
    return f"{value:.2f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else value


if __name__ == "__main__":
    from jsonargparse import auto_cli

    auto_cli(main)
