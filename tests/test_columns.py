"""Columns of any dtype: each is modelled, left out by name, or refused in one sentence."""

import decimal

import numpy as np
import pandas as pd
import pytest
import torch

import pyroae as pa
from pyroae.cli import main

N = 60
B = np.random.default_rng(0).normal(size=N)
DATES = pd.date_range("2020-03-01", periods=N)
TYPES = {  # name -> column, what it is taken for
    "nullable whole numbers": (pd.array([1, None, 3] * 20, dtype="Int64"), "binary"),
    "nullable numbers": (pd.array([1.5, None, 3, 4.5] * 15, dtype="Float64"), "real"),
    "nullable booleans": (pd.array([True, None, False] * 20, dtype="boolean"), "binary"),
    "booleans as objects": (np.array([True, None, False] * 20, dtype=object), "binary"),
    "numbers as objects": (B.astype(object), "real"),
    "decimals": ([decimal.Decimal(f"{b:.3f}") for b in B], "real"),
    "pandas' text": (pd.array(["x", None, "y"] * 20, dtype="string"), "binary"),
    "categories": (pd.Categorical(["x", "y", "z"] * 20, categories=["z", "y", "x", "w"]), "category"),
    "intervals": (pd.cut(B, 4), "category"),
    "numbers and text": ([1.5, "a", 2.5] * 20, "category"),
    "sparse": (pd.arrays.SparseArray(np.resize([0.0, 0.0, 1.5, 2.5, 7.0, 3.1], N)), "real"),
    "time stamps": (DATES.tz_localize("Asia/Tokyo"), "dates"),
    "durations": (pd.to_timedelta(np.arange(N), unit="h"), "dates"),
    "periods": (pd.period_range("2020-01", periods=N, freq="M"), "dates"),
    "dates as objects": (list(DATES.date), "dates"),
    "lists": ([[1, 2]] * N, "mixed: neither numbers nor text"),
    "complex numbers": (B + 1j, "complex: neither numbers nor text"),
    "bytes": ([b"x", b"y"] * 30, "bytes: neither numbers nor text"),
}


@pytest.mark.parametrize("name", TYPES)
def test_a_column_of_any_type_is_modelled_or_left_out_by_name(name, tmp_path):
    values, expected = TYPES[name]
    frame = pd.DataFrame({"a": values, "b": B})
    found = pa.data.load(frame)
    kinds = {column.name: column.kind for column in found.schema.columns}
    if expected not in pa.data.schema.KINDS:
        (line,) = (line for line in found.table.splitlines() if line.startswith("a "))
        assert list(kinds) == ["b"] and line.split(maxsplit=3) == ["a", "left", "out", expected]
        return
    assert kinds == {"a": expected, "b": "real"}
    vae = pa.recipes.vae(found, latent_dim=2, hidden=4)
    pa.save(vae, tmp_path / "vae.safetensors")  # its categories are plain data
    rows = pa.data.inputs.read(frame, pa.data.inputs.wanted_by(vae.model)).x
    assert rows[:, 0].isnan().sum() == frame["a"].isna().sum() and pa.log_likelihood(vae, frame, particles=2).values.isfinite().all()


NAMES = {
    "levels": (pd.MultiIndex.from_product([["a", "b"], [1, 2]]), ["a_1", "a_2", "b_1", "b_2"]),
    "numbers": (range(4), ["0", "1", "2", "3"]),
    "dates": (pd.date_range("2020", periods=4), [f"2020-01-0{i} 00:00:00" for i in (1, 2, 3, 4)]),
    "tuples": ([("a", 1), ("a", 2), "c", 4], ["a_1", "a_2", "c", "4"]),
}


@pytest.mark.parametrize("name", NAMES)
def test_columns_of_any_name(name):
    columns, expected = NAMES[name]
    frame = pd.DataFrame(np.random.default_rng(0).normal(size=(N, 4)), columns=columns)
    assert pa.data.load(frame).schema.names == expected
    assert pa.data.load(frame.iloc[:, 0]).schema.names == expected[:1]


REFUSED = {
    "one dimension": (B, r"expected rows \(N, ...\) in tensor, got the shape \(60,\); give one column as x\[:, None\]"),
    "a list": (B.tolist(), r"got list; convert it with np.array"),
    "a meta tensor": (torch.empty(3, 2, device="meta"), "a nested, quantized or meta tensor"),
    "objects": (np.array([["a"]]), "got an array of <U1; give a DataFrame"),
    "a tiny column": (pd.DataFrame({"a": 1e-42 * B}), "column 'a' is at most .*e-42 in size, too small for float32; multiply it by 4e"),
    "a tiny array": (1e-310 * B[:, None], "tensor is at most .*e-310 in column 0, too small for float32; rescale"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_data_is_refused_with_what_to_give(name):
    data, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        pa.data.load(data)


def test_numbers_that_are_objects_are_numbers():
    found = pa.data.load(np.array([[decimal.Decimal(1), 2.5], [None, 4]] * 10, dtype=object), missing=True)
    assert found.domain == "real" and found.train.x[:, 0].isnan().any()


# --- columns that were left out, by name ---

DAYS = np.random.default_rng(1).integers(0, 700, N)
WHEN = pd.Timestamp("2020-01-01") + pd.to_timedelta(DAYS, unit="D")
WAYS = {  # of writing the same dates
    "ISO": WHEN.strftime("%Y-%m-%d"),
    "day first": WHEN.strftime("%d/%m/%Y"),
    "dots": WHEN.strftime("%d.%m.%Y"),
    "month first": WHEN.strftime("%m/%d/%Y"),
    "names of months": WHEN.strftime("%d %b %Y"),
    "whole numbers": WHEN.strftime("%Y%m%d").astype(int),
    "time stamps": WHEN,
    "a time zone": WHEN.tz_localize("UTC").tz_convert("America/New_York"),
    "periods": WHEN.to_period("D"),
    "dates": WHEN.date,
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("asked", [{"kinds": {"when": "real"}}, {"columns": ["when", "b"]}], ids=["kinds", "columns"])
def test_dates_that_are_asked_for_are_days(way, asked):
    frame = pd.DataFrame({"when": WAYS[way], "b": B})
    found = pa.data.load(frame, **asked)
    assert pa.data.load(frame).schema.names == ["b"]
    column = found.schema.columns[0]
    days = column.encode(frame["when"]) + column.shift - 18262  # days from 1970 to 2020
    assert np.array_equal(days, DAYS) and (column.decode(days + 18262 - column.shift) == WHEN).all()
    assert "2020-01-" in found.table and "Normal, standardised, in days" in found.table


def test_durations_that_are_asked_for_are_days():
    frame = pd.DataFrame({"spent": pd.to_timedelta(B, unit="D"), "b": B})
    column = pa.data.load(frame, kinds={"spent": "real"}).schema.columns[0]
    assert np.allclose(column.encode(frame["spent"]) + column.shift, B) and column.decode(np.zeros(1)).dtype.kind == "m"


def test_a_run_draws_and_fills_in_dates(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    frame = pd.DataFrame({"when": WAYS["dots"], "b": DAYS / 100 + 0.1 * B})
    frame.to_csv("t.csv", index=False)
    train = ["train", "--data", "t.csv", "--kinds", "{when: real}", "--epochs", "2", "--particles", "5", "--hidden", "4", "--out", "r"]
    assert main(train) == 0
    assert main(["sample", "r", "--n", "20", "--out", "new.csv"]) == 0
    assert pd.to_datetime(pd.read_csv("new.csv")["when"]).dt.year.between(2000, 2040).all()
    frame.mask(np.eye(N, 2).astype(bool)).to_csv("holes.csv", index=False)
    assert main(["impute", "r", "--data", "holes.csv", "--out", "filled.csv", "--draws", "20", "--particles", "50"]) == 0
    filled = pd.read_csv("filled.csv", parse_dates=["when low", "when high"])
    assert filled.loc[0, "when low"] < pd.Timestamp(filled.loc[0, "when"]) < filled.loc[0, "when high"]
    assert (filled["when"][1:] == frame["when"][1:]).all() and filled["when low"].isna().sum() == N - 1
    frame.assign(when="soon").to_csv("bad.csv", index=False)
    assert main(["encode", "r", "--data", "bad.csv"]) == 2
    assert "column 'when': expected a date, got 'soon'" in capsys.readouterr().err


def test_what_is_asked_for_by_name_is_taken_or_refused():
    frame = pd.DataFrame({"text": [f"text {i}" for i in range(N)], "one": 1.0, "none": np.nan, "list": [[1]] * N, "b": B})
    assert pa.data.load(frame, columns=["text", "one", "b"]).schema.names == ["text", "one", "b"]
    for name, why in {"none": "is empty; drop it", "list": r"holds \[1\]; drop it"}.items():
        with pytest.raises(ValueError, match=f"column {name!r} was given as 'category', but {why}"):
            pa.data.load(frame, kinds={name: "category"})
