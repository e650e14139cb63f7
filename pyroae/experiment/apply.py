"""``pyroae sample``, ``encode``, ``impute`` and ``export``: a run's model on new rows, as tables in the data's units."""

import json
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from .. import programs
from ..checks import whole_number
from ..data import Column, Schema
from ..data.limits import LIMIT
from ..evaluation.imputation import impute as draw_missing
from ..files import atomic
from ..model.autoencoder import Autoencoder
from ..model.conditions import Covariates
from ..portable import Half
from ..portable import export as write_half
from ..training.batches import as_tensors
from .folder import open_model, read_inputs, read_rows, schema_of
from .output import CommandOutput

_SHOWN = 10  # rows that are printed


def sample(run: str, n: int = 100, seed: int = 0, data: str | None = None, out: str | None = None, limit: float = LIMIT) -> CommandOutput:
    """Draw new rows from a run's model: z from the prior, then x given z; a conditional model draws every class in turn.

    Args:
        run: the run folder.
        n: number of rows.
        seed: of the draws.
        data: a file with labels or covariates, for one draw per row.
        out: a CSV file for the rows.
        limit: bytes that the data and the model may take in memory, checked before they are read.

    Raises:
        ValueError: not a run folder, an improper prior, or missing covariates.
    """
    whole_number("sample", n=n)
    ae, settings = open_model(run, "sample", limit)
    y = None
    if ae.condition is not None and not ae.condition.optional:
        y = read_rows(data, ae, settings)[0].labels if data is not None else _spread(ae, n)
    with programs.eval_mode(ae, seed=seed):
        frame = schema_of(ae).frame(ae.sample(n, y))
    if y is not None and not y.is_floating_point():
        frame = frame.assign(**{schema_of(ae).label or "label": _named(y, schema_of(ae))})
    return _answer(run, frame, out)


def _spread(ae: Autoencoder, n: int) -> Tensor:
    if isinstance(ae.condition, Covariates):
        raise ValueError("sample: this model is given covariates; name a file that has them, --data FILE: a draw for each row")
    return ae.condition.spread(n)


def encode(run: str, *, data: str, out: str | None = None, limit: float = LIMIT) -> CommandOutput:
    """Encode rows by a run's model: the mean of q(z|x), with columns z1, z2, ... for the latent dimensions.

    Args:
        run: the run folder.
        data: a file with the columns of the training data, in any order, or a folder of images; of a model with inputs, the inputs.
        out: a CSV file for the codes, a row per row of the data.
        limit: bytes that the data and the model may take in memory, checked before they are read.

    Raises:
        ValueError: not a run folder, missing columns, or unknown categories.
    """
    ae, settings = open_model(run, "encode", limit)
    ae = ae.with_missing()
    if ae.inputs is not None and ae.condition is None:
        columns = (read_inputs(data, ae, settings).x,)
    else:
        columns = as_tensors(read_rows(data, ae, settings)[0], ae.model)
        columns = columns if ae.inputs is None else (columns[-1], columns[1])
    with programs.eval_mode(ae, seed=0):
        codes = ae.latent_mean(*(column[:] for column in columns)).flatten(1).cpu()
    return _answer(run, pd.DataFrame({f"z{i + 1}": column for i, column in enumerate(codes.numpy().T)}), out)


def impute(
    run: str,
    *,
    data: str,
    draws: int = 200,
    particles: int = 1000,
    interval: float = 0.9,
    seed: int = 0,
    out: str | None = None,
    limit: float = LIMIT,
) -> CommandOutput:
    """Impute missing values by a run's model, with intervals: draws from p(missing | observed), by importance resampling.

    A number becomes the mean of its draws, with columns ``NAME low`` and ``NAME high`` for the ends of the central interval; a category
    the most frequent one, with its relative frequency in ``NAME p``. Columns that the model does not know are not changed.

    Args:
        run: the run folder.
        data: a file with the columns of the training data, in any order; empty cells are missing.
        draws: imputations per row.
        particles: importance samples per row, from which the draws are chosen.
        interval: probability of an interval.
        seed: of the draws.
        out: a CSV file for the completed table.
        limit: bytes that the data and the model may take in memory, checked before they are read.

    Raises:
        ValueError: not a run folder, missing columns, unknown categories, or data without column names.
    """
    whole_number("impute", draws=draws, particles=particles)
    if not 0.0 < interval < 1.0:
        raise ValueError(f"impute: expected interval as a probability between 0 and 1, such as .9, got {interval!r}")
    ae, settings = open_model(run, "impute", limit)
    rows, frame = read_rows(data, ae, settings)
    columns = ae.schema.columns if ae.schema is not None else None
    if frame is None or columns is None:
        raise ValueError("impute: expected a table whose columns have names, such as a .csv file; for arrays there is pa.impute(model, x)")
    missing = int(rows.x[:].isnan().sum())
    filled = draw_missing(ae, rows, draws=draws, particles=particles, seed=seed).cpu()  # (draws, N, D)
    return _answer(run, _filled(frame, rows.x[:], filled, columns, interval), out, f"{missing:,} missing values filled in")


def export(run: str, part: Half = "encoder", out: str | None = None, limit: float = LIMIT) -> CommandOutput:
    """Write a run's encoder or decoder as a file for other programs: ONNX, or a .pt2 file for ``torch.export.load``.

    Args:
        run: the run folder.
        part: the encoder, x to the mean and standard deviation of q(z|x), or the decoder, z to the mean of p(x|z).
        out: the file, ending in .onnx or .pt2; by default RUN/PART.onnx.
        limit: bytes that the model may take in memory, checked before it is read.

    Raises:
        ValueError: not a run folder, or a model that cannot be exported.
    """
    ae, _ = open_model(run, "export", limit)
    path = Path(run) / f"{part}.onnx" if out is None else Path(out)
    outputs = write_half(ae, path, part)
    shape = ae.guide.event_shape if part == "encoder" else ae.prior.code_shape
    given = f"{'x' if part == 'encoder' else 'z'} (rows, {', '.join(map(str, shape))})"
    return CommandOutput(f"written        {path}: {given} -> {', '.join(outputs)}", {"run": run, "out": str(path), "outputs": outputs})


def _filled(frame: pd.DataFrame, x: Tensor, filled: Tensor, columns: Sequence[Column], interval: float) -> pd.DataFrame:
    """The table with missing values imputed, and columns for their uncertainty."""
    frame, beside = frame.copy(), {}
    tails = torch.tensor([(1 - interval) / 2, (1 + interval) / 2], dtype=torch.float64)
    for i, column in enumerate(columns):
        holes = x[:, i].isnan()
        if not holes.any():
            continue
        draws = filled[:, holes, i].double()  # (draws, holes)
        if column.values is None:
            best = draws.mean(0)
            for name, ends in zip(("low", "high"), draws.quantile(tails, 0)):
                beside[f"{column.name} {name}"] = _placed(column.decode(ends.numpy()), holes)
        else:
            best = draws.mode(0).values
            beside[f"{column.name} p"] = _placed((draws == best).double().mean(0).numpy(), holes)
        values = frame[column.name].astype(object)
        values[holes.numpy()] = column.decode(best.numpy())
        frame[column.name] = values.infer_objects()
    return frame.assign(**beside)


def _placed(values, holes: Tensor) -> pd.Series:
    """A column with values in the rows with missing values, and NaN in the others."""
    column = pd.Series(float("nan"), index=range(len(holes)), dtype=object)
    column[holes.numpy()] = values
    return column.infer_objects()


def _named(y: Tensor, schema: Schema) -> list:
    return [schema.classes[i] if schema.classes else i for i in y.tolist()]


def _answer(run: str, frame: pd.DataFrame, out: str | None, note: str = "") -> CommandOutput:
    """The first rows as text, all rows as data, and optionally a CSV file."""
    if out is not None:
        with atomic(out) as temporary:
            frame.to_csv(temporary, index=False)
    shown = frame.head(_SHOWN).to_string(index=False)
    size = f"{len(frame):,} rows of {frame.shape[1]} columns"
    end = f"written        {out}: {size}" if out is not None else f"{size}; --out FILE.csv writes all of them"
    records = json.loads(str(frame.to_json(orient="records", date_format="iso")))
    return CommandOutput(
        "\n".join([shown, *([note] if note else []), end]), {"run": run, "rows": records} if out is None else {"run": run, "out": out}
    )
