"""Missing values of three tables of scikit-learn: a VAE's imputations beside the mean, IterativeImputer and KNNImputer.

A share of the entries is made missing completely at random, in training and test rows alike. Every method learns from the training rows
with their holes and fills in the test rows. Error: root mean square over the missing entries, in standard deviations of their columns
(of the training rows); of a binary or categorical column, the share of wrong values.

uv run python examples/tables/imputation.py
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
    missing: float = 0.2, seeds: int = 5, epochs: int = 1500, draws: int = 100, only: list[str] | None = None, out: str = "imputation.json"
):
    """Fill in the tables by every method.

    Args:
        missing: share of the entries that are made missing.
        seeds: how often, with other holes and another split.
        epochs: passes over the training rows at most; validation rows say when to stop.
        draws: imputations of each row, whose mean (of categories, the most frequent) is taken.
        only: the tables.
        out: the results.
    """
    errors: dict[str, dict[str, list[float]]] = {}
    for name in only or TABLES:
        for seed in range(seeds):
            for method, error in compared(TABLES[name](), missing, seed, epochs, draws).items():
                errors.setdefault(name, {}).setdefault(method, []).append(error)
        print(name, {method: f"{np.mean(each):.3f}" for method, each in errors[name].items()}, flush=True)
    content = {"missing": missing, "seeds": seeds, "errors": errors}
    Path(out).write_text(json.dumps(content, indent=1))


def compared(table: pd.DataFrame, missing: float, seed: int, epochs: int, draws: int) -> dict[str, float]:
    """Each method's error on held-out rows."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(table))
    table = table.iloc[order].reset_index(drop=True)
    holes = rng.random(table.shape) < missing
    holed, n = table.astype(float).mask(holes), len(table) // 5
    test, train = holed[:n], holed[n:]
    filled = {"VAE": by_vae(train, test, table, seed, epochs, draws)}
    scale = train.std()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        for name, imputer in others(seed).items():
            imputer.fit(train / scale)
            filled[name] = pd.DataFrame(imputer.transform(test / scale), columns=table.columns) * scale
    few = [column for column in table if table[column].nunique() <= 10]
    return {name: error(each, table[:n], holes[:n], scale, few) for name, each in filled.items()}


def others(seed: int) -> dict:
    """The methods of scikit-learn, on columns in units of their standard deviations."""
    return {
        "mean": SimpleImputer(),
        "most frequent": SimpleImputer(strategy="most_frequent"),
        "IterativeImputer": IterativeImputer(random_state=seed, max_iter=30),
        "KNNImputer": KNNImputer(),
    }


def by_vae(train: pd.DataFrame, test: pd.DataFrame, table: pd.DataFrame, seed: int, epochs: int, draws: int) -> pd.DataFrame:
    """The VAE that the table asks for, with all else at its defaults but early stopping."""
    torch.manual_seed(seed)
    schema = pa.data.load(pd.concat([train, test])).schema
    data = pa.data.load(train, schema=schema, validation=0.1, test=0.1)
    vae = pa.recipes.vae(data)
    pa.fit(vae, data.train, validation=data.validation, epochs=epochs, patience=100, seed=seed, progress=False)
    by_row = pa.impute(vae, test, draws=draws, seed=seed).groupby(level="row")
    best = {
        column.name: by_row[column.name].agg("mean" if column.values is None else lambda drawn: drawn.mode()[0])
        for column in vae.schema.columns
    }
    return pd.DataFrame(best)[list(table)]


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
