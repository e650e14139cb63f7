"""Which runs there are, how good each is, and in what settings they differ."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .. import schema
from .output import CommandOutput
from .run_files import read_scores
from .settings import read_run

_OF_THEIR_OWN = "recipe", "data"  # settings with a column


def list_runs(folders: Sequence[str] = ()) -> CommandOutput:
    """List runs, the best of each data set first, with their scores and the settings in which they differ.

    Args:
        folders: folders that hold runs; by default ``runs``.

    Raises:
        ValueError: a folder that is not there.
    """
    found = [path.parent for folder in folders or ("runs",) for path in sorted(_there(folder).glob("*/settings.json"))]
    known, unreadable = {}, []
    for run in found:
        try:
            known[str(run)] = read_run(run), read_scores(run / "results.json")
        except ValueError as error:
            unreadable.append(f"{run}: {error}")
    if not known:
        return CommandOutput("\n".join(["no runs; pyroae train makes one", *unreadable]), {"runs": []})
    differs = differences({run: settings for run, (settings, _) in known.items()}, but=_OF_THEIR_OWN)
    rows = []
    for run, (settings, scores) in known.items():
        row = {"run": run, **{name: settings.get(name) for name in _OF_THEIR_OWN}}
        rows.append(row | {name: scores.get(name) for name in ("elbo", "log_likelihood", "data_se")} | {"differs": differs[run]})
    rows.sort(key=_best_first)
    return CommandOutput("\n".join([_table(rows), *unreadable]), {"runs": rows})


def _best_first(row: dict[str, Any]) -> tuple:
    scores = [row["log_likelihood"], row["elbo"]]
    return str(row["data"]), *((score is None, -score if score is not None else 0.0) for score in scores)


def _there(folder: str) -> Path:
    if not Path(folder).is_dir():
        raise ValueError(f"list: there is no folder {folder}; name one that holds runs")
    return Path(folder)


def _table(rows: list[dict[str, Any]]) -> str:
    head = ["run", "recipe", "data", "log p(x)", "s.e.", "ELBO", "differs by"]
    cells = [head]
    for row in rows:
        scores = [number(row["log_likelihood"]), number(row["data_se"], 2, "g"), number(row["elbo"])]
        if row["elbo"] is None:
            scores[0] = "stopped"
        cells.append([row["run"], str(row["recipe"]), Path(str(row["data"])).name, *scores, in_words(row["differs"])])
    widths = [max(len(line[i]) for line in cells) for i in range(len(head))]
    lines = (
        "  ".join(f"{text:>{width}}" if 3 <= i < 6 else f"{text:{width}}" for i, (text, width) in enumerate(zip(line, widths)))
        for line in cells
    )
    return "\n".join(line.rstrip() for line in lines)


def number(value: float | None, digits: int = 2, kind: str = "f") -> str:
    """A number for a table, ``-`` where there is none.

    >>> number(-22.714), number(None), number(float("nan"), 1, "%")
    ('-22.71', '-', '-')
    """
    return "-" if value is None or value != value else f"{value:.{digits}{kind}}"


def differences(settings: dict[str, dict[str, Any]], but: Sequence[str] = ()) -> dict[str, dict[str, str]]:
    """The settings in which runs differ, for each of them, in a few words."""
    names = {name: None for each in settings.values() for name in each if name not in but}
    differ = [name for name in names if len({repr(each.get(name)) for each in settings.values()}) > 1]
    return {run: {name: _in_short(each.get(name)) for name in differ} for run, each in settings.items()}


def in_words(differs: dict[str, str]) -> str:
    """Differing settings on one line.

    >>> in_words({"epochs": "20", "prior": "VampPrior(components=3)"})
    'epochs 20, prior VampPrior(components=3)'
    """
    return ", ".join(f"{name} {value}" for name, value in differs.items())


def _in_short(value: object) -> str:
    """A setting in a few words: of a part its name and what it was made with."""
    if isinstance(value, schema.Spec):
        given = ", ".join(f"{name}={_in_short(each)}" for name, each in value.arguments.items())
        return f"{value.cls.__name__}({given})" if given else value.cls.__name__
    return "default" if value is None else str(value)
