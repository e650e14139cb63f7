"""``pyroae list``: the runs in a folder, their scores and the settings in which they differ."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .. import schema
from .output import CommandOutput
from .run_files import read_scores
from .settings import read_file, read_run

_COLUMNS = "recipe", "data"  # settings that are columns of the table


def list_runs(folders: Sequence[str] = ()) -> CommandOutput:
    """List runs, the best of each data set first, with their scores and the settings in which they differ.

    Args:
        folders: folders that hold runs; by default ``runs``.

    Raises:
        ValueError: a folder does not exist.
    """
    runs = [path.parent for folder in folders or ("runs",) for path in sorted(_existing(folder).glob("*/settings.json"))]
    readable, unreadable = {}, []
    for run in runs:
        try:
            readable[str(run)] = _settings(run), read_scores(run / "results.json")
        except ValueError as error:
            unreadable.append(f"{run}: {error}")
    if not readable:
        return CommandOutput("\n".join(["no runs; pyroae train makes one", *unreadable]), {"runs": []})
    differs = differences({run: settings for run, (settings, _) in readable.items()}, but=_COLUMNS)
    rows = []
    for run, (settings, scores) in readable.items():
        row = {"run": run, **{name: settings.get(name) for name in _COLUMNS}}
        rows.append(row | {name: scores.get(name) for name in ("elbo", "log_likelihood", "data_se")} | {"differs": differs[run]})
    rows.sort(key=_best_first)
    return CommandOutput("\n".join([_table(rows), *unreadable]), {"runs": rows})


def _settings(run: Path) -> dict[str, Any]:
    """The settings of a run; as they were written if they name a class that is not known here."""
    try:
        return read_run(run)
    except ValueError:
        written = read_file(run / "settings.json")
        if not {*_COLUMNS} <= written.keys():
            raise
        return written


def _best_first(row: dict[str, Any]) -> tuple:
    scores = [row["log_likelihood"], row["elbo"]]
    return str(row["data"]), *((score is None, -score if score is not None else 0.0) for score in scores)


def _existing(folder: str) -> Path:
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
    """A number in a table, ``-`` for a missing one.

    >>> number(-22.714), number(None), number(float("nan"), 1, "%")
    ('-22.71', '-', '-')
    """
    return "-" if value is None or value != value else f"{value:.{digits}{kind}}"


def differences(settings: dict[str, dict[str, Any]], but: Sequence[str] = ()) -> dict[str, dict[str, str]]:
    """The settings in which runs differ, by run, as short text."""
    names = {name: None for values in settings.values() for name in values if name not in but}
    differing = [name for name in names if len({repr(values.get(name)) for values in settings.values()}) > 1]
    return {run: {name: _short(values.get(name)) for name in differing} for run, values in settings.items()}


def in_words(differs: dict[str, str]) -> str:
    """Differing settings on one line.

    >>> in_words({"epochs": "20", "prior": "VampPrior(components=3)"})
    'epochs 20, prior VampPrior(components=3)'
    """
    return ", ".join(f"{name} {value}" for name, value in differs.items())


def _short(value: object) -> str:
    """A setting as short text; a part is written as its class and arguments."""
    if isinstance(value, schema.Spec):
        value = {"class": value.cls.__name__, **value.arguments}
    if isinstance(value, dict) and "class" in value:
        arguments = ", ".join(f"{name}={_short(argument)}" for name, argument in value.items() if name != "class")
        return f"{value['class']}({arguments})" if arguments else str(value["class"])
    return "default" if value is None else str(value)
