"""Missing values of three tables of scikit-learn: a VAE's imputations beside mean, mode, IterativeImputer and KNNImputer.

A share of the entries is made missing completely at random, in training and test rows alike. Every method learns from the training rows
with their holes and fills in the test rows. Error: root mean square over the missing entries, in standard deviations of their columns
(of the training rows); of a binary or categorical column, the share of wrong values.

uv run python examples/tables/imputation.py

With a clone of https://github.com/probabilistic-learning/HI-VAE, the authors' repository of HI-VAE (Nazabal et al. 2020), also their table
of wines under their protocol: their masks of 20% missing entries, their types of the columns, all rows filled in that were trained on,
and their error: the mean over the columns of the root mean squared error over the range (of a category: the share of wrong values).

uv run python examples/tables/imputation.py --hi_vae HI-VAE
"""

import json
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn import datasets
from sklearn.exceptions import ConvergenceWarning
from sklearn.experimental import enable_iterative_imputer  # noqa: F401 (makes IterativeImputer importable)
from sklearn.impute import IterativeImputer, KNNImputer, SimpleImputer

import pyroae as pa

TABLES = {
    "breast cancer": lambda: datasets.load_breast_cancer(as_frame=True).data,
    "wine": lambda: datasets.load_wine(as_frame=True).data,
    "diabetes": lambda: datasets.load_diabetes(as_frame=True, scaled=False).data,
}


def main(
    missing: float = 0.2,
    seeds: int = 5,
    epochs: int = 1500,
    draws: int = 100,
    only: list[str] | None = None,
    hi_vae: str | None = None,
    out: str = "imputation.json",
):
    """Fill in the tables by every method.

    Args:
        missing: share of the entries that are made missing.
        seeds: how often, with other holes and another split.
        epochs: passes over the training rows at most; validation rows say when to stop.
        draws: imputations of each row, whose mean (of categories, the most frequent) is taken.
        only: the tables.
        hi_vae: a clone of the authors' repository of HI-VAE, for their table of wines.
        out: the results; seeds that are in it are not computed again.
    """
    path = Path(out)
    errors = json.loads(path.read_text())["errors"] if path.exists() else {}
    runs = {name: lambda seed, name=name: compared(TABLES[name](), missing, seed, epochs, draws) for name in only or TABLES}
    if hi_vae is not None:
        runs["HI-VAE's wine"] = lambda seed: by_their_protocol(Path(hi_vae), missing, seed, epochs, draws)
    for name, run in runs.items():
        done = errors.setdefault(name, {})
        for seed in range(len(done.get("VAE", ())), seeds):
            for method, error in run(seed).items():
                done.setdefault(method, []).append(error)
            path.write_text(json.dumps({"missing": missing, "errors": errors}, indent=1))
            print(name, seed, {method: f"{each[-1]:.3f}" for method, each in done.items()}, flush=True)


def compared(table: pd.DataFrame, missing: float, seed: int, epochs: int, draws: int) -> dict[str, float]:
    """Each method's error on held-out rows."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(table))
    table = table.iloc[order].reset_index(drop=True)
    holes = rng.random(table.shape) < missing
    holed, n = table.astype(float).mask(holes), len(table) // 5
    test, train = holed[:n], holed[n:]
    scale = train.std()
    filled = {"VAE": by_vae(train, test, {}, seed, epochs, draws)} | by_others(train, test, scale, seed)
    few = [column for column in table if table[column].nunique() <= 10]
    return {name: error(each, table[:n], holes[:n], scale, few) for name, each in filled.items()}


def by_their_protocol(folder: Path, missing: float, seed: int, epochs: int, draws: int) -> dict[str, float]:
    """Each method's error on the missing entries of HI-VAE's table of wines, from the rows that it was trained on."""
    types = pd.read_csv(folder / "Wine/data_types.csv")["type"]
    table = pd.read_csv(folder / "Wine/data.csv", header=None, names=[f"{kind} {i}" for i, kind in enumerate(types)]).astype(float)
    places = pd.read_csv(folder / f"Wine/Missing{round(100 * missing)}_{seed + 1}.csv", header=None).to_numpy() - 1  # rows, columns
    holes = np.zeros(table.shape, bool)
    holes[tuple(places.T)] = True
    holed = table.mask(holes)
    kinds = dict(zip(table.columns, types.map({"pos": "positive", "real": "real", "count": "count", "cat": "category"})))
    filled = {"VAE": by_vae(holed, holed, kinds, seed, epochs, draws)} | by_others(holed, holed, holed.std(), seed)
    return {name: their_error(each, table, holes, kinds) for name, each in filled.items()}


def their_error(filled: pd.DataFrame, truth: pd.DataFrame, holes: np.ndarray, kinds: dict[str, str]) -> float:
    """The mean over the columns of the root mean squared error over the range, or of the share of wrong categories."""
    errors = []
    for i, (column, kind) in enumerate(kinds.items()):
        true, ours = truth[column][holes[:, i]].to_numpy(float), filled[column][holes[:, i]].to_numpy(float)
        if kind == "category":
            known = truth[column].unique()
            errors.append(np.mean(known[np.abs(ours[:, None] - known).argmin(1)] != true))
        else:
            errors.append(np.sqrt(np.mean((ours - true) ** 2)) / np.ptp(truth[column]))
    return float(np.mean(errors))


def by_others(train: pd.DataFrame, test: pd.DataFrame, scale: pd.Series, seed: int) -> dict[str, pd.DataFrame]:
    """The methods of scikit-learn, on columns in units of their standard deviations."""
    imputers = {
        "mean": SimpleImputer(),
        "mode": SimpleImputer(strategy="most_frequent"),
        "IterativeImputer": IterativeImputer(random_state=seed, max_iter=30),
        "KNNImputer": KNNImputer(),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        filled = {name: imputer.fit(train / scale).transform(test / scale) for name, imputer in imputers.items()}
    return {name: pd.DataFrame(each, columns=train.columns) * scale for name, each in filled.items()}


def by_vae(train: pd.DataFrame, test: pd.DataFrame, kinds: dict[str, str], seed: int, epochs: int, draws: int) -> pd.DataFrame:
    """The VAE that the table asks for, with all else at its defaults but early stopping."""
    torch.manual_seed(seed)
    schema = pa.data.load(train if train is test else pd.concat([train, test]), kinds=kinds).schema
    data = pa.data.load(train, schema=schema, validation=0.1, test=0.1)
    vae = pa.recipes.vae(data)
    pa.fit(vae, data.train, validation=pa.Validation(data.validation, patience=100), epochs=epochs, seed=seed, progress=False)
    by_row = pa.impute(vae, test, draws=draws, seed=seed).groupby(level="row")
    best = {
        column.name: by_row[column.name].agg("mean" if column.values is None else lambda drawn: drawn.mode()[0])
        for column in vae.schema.columns
    }
    return pd.DataFrame(best)[list(train)]


def error(filled: pd.DataFrame, truth: pd.DataFrame, holes: np.ndarray, scale: pd.Series, few: list[str]) -> float:
    """The root of the mean of squared errors in standard deviations, and of wrong values of the columns with few values."""
    squares = ((filled - truth) / scale) ** 2
    for column in few:
        known = np.sort(truth[column].unique())
        nearest = known[np.abs(filled[column].to_numpy()[:, None] - known).argmin(1)]
        squares[column] = nearest != truth[column]
    return float(np.sqrt(squares.to_numpy()[holes].mean()))


def table(content: dict) -> str:
    """The results as Markdown."""
    methods = list(next(iter(content["errors"].values())))
    lines = ["| table | " + " | ".join(methods) + " |", "|---" * (len(methods) + 1) + "|"]
    for name, errors in content["errors"].items():
        cells = [f"{np.mean(errors[m]):.3f} ± {np.std(errors[m], ddof=1) / len(errors[m]) ** 0.5:.3f}" for m in methods]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    from jsonargparse import auto_cli

    auto_cli(main)
