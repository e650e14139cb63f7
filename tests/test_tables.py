"""Tables as people have them: how a file is written, what a column is, what is left out, and what is said of it."""

import bz2
import gzip
import io
import os
import zipfile

import numpy as np
import pandas as pd
import pytest
import torch

import pyroae as pa
from pyroae.cli import main
from pyroae.data import kinds, number_text, text

ROWS = 40
RNG = np.random.default_rng(0)
PEOPLE = pd.DataFrame(
    {
        "age": RNG.normal(40, 10, ROWS).round(1),
        "income": RNG.lognormal(10, 1.0, ROWS).round(2),
        "visits": np.r_[RNG.negative_binomial(1, 0.1, ROWS - 1), 70],
        "smokes": RNG.integers(0, 2, ROWS),
        "town": RNG.choice(["Bonn", "Köln", "Trier"], ROWS),
        "grade": RNG.integers(1, 6, ROWS),
    }
)
KINDS = {"age": "real", "income": "positive", "visits": "count", "smokes": "binary", "town": "category", "grade": "category"}


def csv(**options):
    return PEOPLE.to_csv(index=False, **options)


FILES = {  # name -> (file name, content)
    "commas": ("t.csv", csv()),
    "semicolons and decimal commas": ("t.csv", csv(sep=";", decimal=",")),
    "tabs": ("t.tsv", csv(sep="\t")),
    "blanks": ("t.txt", csv(sep=" ")),
    "bars": ("t.dat", csv(sep="|")),
    "a byte-order mark": ("t.csv", csv().encode("utf-8-sig")),
    "latin-1": ("t.csv", csv().encode("latin-1")),
    "utf-16": ("t.csv", csv().encode("utf-16")),
    "utf-16 without a mark": ("t.csv", csv().encode("utf-16-be")),
    "utf-32": ("t.csv", csv().encode("utf-32")),
    "decimal commas in quotes": ("t.csv", csv(decimal=",", quoting=1)),
    "quotes around everything": ("t.csv", csv(quoting=1)),
    "single quotes": ("t.csv", csv(sep=";", quoting=1, quotechar="'")),
    "Windows' line ends": ("t.csv", csv().replace("\n", "\r\n")),
    "blanks behind commas": ("t.csv", csv().replace(",", ", ")),
    "gzip": ("t.csv.gz", gzip.compress(csv().encode())),
    "bzip2": ("t.csv.bz2", bz2.compress(csv().encode())),
    "JSON records": ("t.json", PEOPLE.to_json(orient="records")),
    "JSON lines by another name": ("t.json", PEOPLE.to_json(orient="records", lines=True)),
    "JSON by parts": ("t.json", PEOPLE.to_json(orient="split")),
    "JSON by columns": ("t.json", PEOPLE.to_json()),
    "JSON lines": ("t.jsonl", PEOPLE.to_json(orient="records", lines=True)),
}


def written(folder, name, content):
    path = folder / name
    path.write_bytes(content) if isinstance(content, bytes) else path.write_text(content, encoding="utf-8", newline="")
    return path


def together(found):
    return pd.concat([found.train.frame(), found.test.frame()]).sort_values("income", ignore_index=True)


@pytest.mark.parametrize("name", FILES)
def test_a_table_is_the_same_however_it_is_written(name, tmp_path):
    found = pa.data.load(written(tmp_path, *FILES[name]))
    assert {column.name: column.kind for column in found.schema.columns} == KINDS
    pd.testing.assert_frame_equal(together(found), PEOPLE.sort_values("income", ignore_index=True), check_dtype=False, rtol=1e-5)


LONG = {  # name -> (a table of numbers, whether it can be read in blocks)
    "plain": ("a,b\n1.5,2\n-3,4e2\n.5,-1E-3\n", True),
    "no header": ("1.5,2\n-3,4\n", True),
    "a byte-order mark": ("\ufeffa,b\n1.5,2\n-3,4\n", True),
    "Windows' line ends": ("a;b\r\n1.5;2\r\n-3;4\r\n", True),
    "quoted cells": ('"a","b, c"\n"1.5","2"\n"-3",""\n', True),
    "blank lines": ("a,b\n1.5,2\n\n-3,4\n", True),
    "missing values of all kinds": ("a,b\n1.5,NA\n?,4\n,nan\n-999,null\n", True),
    "an index": (",a,b\n0,1.5,2\n1,-3,4\n", True),
    "numbers of 18 digits": ("a,b\n1.5,123456789012345678\n-3,4\n", True),
    "numbers beyond int64": ("a,b\n1.5,98765432109876543210\n-3,4\n", False),
    "infinity below": ("a,b\n1.5,2\n" + "1,2\n" * 60 + "inf,-inf\n", True),
    "text below": ("a,b\n1.5,2\n" + "1,2\n" * 60 + "x,2\n", False),
    "a short row below": ("a,b\n1.5,2\n" + "1,2\n" * 60 + "1\n", True),
    "blanks before numbers": ("a, b\n1.5, 2\n-3, NA\n", None),
    "a plus sign below": ("a,b\n1.5,2\n" + "1,2\n" * 60 + "+1,2\n", None),
    "hexadecimal numbers": ("a,b\n1.5,0x1F\n-3,0x2A\n", False),
    "decimal commas": ("a;b\n1,5;2\n-3,25;4\n", False),
    "the same name twice": ("a,a\n1.5,2\n-3,4\n", False),
    "old Macs' line ends": ("a,b\r1.5,2\r-3,4\r", False),
}


@pytest.mark.parametrize("name", LONG)
def test_a_long_table_of_numbers_is_the_same_by_either_parser(name, tmp_path, monkeypatch):
    content, in_blocks = LONG[name]
    path = written(tmp_path, "t.csv", content)
    usual = text.read(path, {}, [-999], 1e9)[0]
    monkeypatch.setattr(number_text, "LONG", 0)
    read, results = number_text.read, []
    monkeypatch.setattr(number_text, "read", lambda *args: results.append(read(*args)) or results[-1])
    long = text.read(path, {}, [-999], 1e9)[0]
    pd.testing.assert_frame_equal(long, usual, check_dtype=False, rtol=1e-15)
    assert in_blocks is None or in_blocks == (results != [] and results[-1] is not None)


def test_a_long_table_of_blank_lines_takes_no_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(number_text, "LONG", 0)
    path = written(tmp_path, "t.csv.gz", gzip.compress(("1.5,2,3,4\n" * 60 + "\n" * 900_000).encode()))
    with pytest.raises(ValueError, match="t.csv.gz would take 0.0 GB of memory"):
        text.read(path, {}, [], 1e6)


@pytest.mark.parametrize("suffix", [".parquet", ".feather", ".xlsx", ".csv.zip"])
def test_binary_formats(suffix, tmp_path):
    path = tmp_path / f"t{suffix}"
    if suffix == ".xlsx":
        pytest.importorskip("openpyxl", reason="the extra pyroae[excel] is not installed")
        PEOPLE.to_excel(path, index=False)
    elif suffix == ".csv.zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("t.csv", csv())
    else:
        pytest.importorskip("pyarrow", reason="the extra pyroae[parquet] is not installed")
        getattr(PEOPLE, f"to_{suffix[1:]}")(path)
    pd.testing.assert_frame_equal(
        together(pa.data.load(path)), PEOPLE.sort_values("income", ignore_index=True), check_dtype=False, rtol=1e-5
    )


NUMBERS = "\n".join(f"{a:.3f},{b:.3f}" for a, b in RNG.normal(size=(12, 2)))
HEADERS = {  # name -> (text, the columns' names, rows)
    "none": (NUMBERS, ["x0", "x1"], 12),
    "names": ("a,b\n" + NUMBERS, ["a", "b"], 12),
    "pandas' numbers": ("0,1\n" + NUMBERS, ["0", "1"], 12),
    "years": ("1990,1991\n" + NUMBERS, ["1990", "1991"], 12),
    "a question mark in the first row": ("?,1.5\n" + NUMBERS, ["x0", "x1"], 13),
    "pandas' index": (pd.DataFrame(RNG.normal(size=(12, 2))).to_csv(), ["0", "1"], 12),
    "R's row names": (
        '"a" "b"\n' + "\n".join(f'"{i}" {x:.2f} {y:.2f}' for i, (x, y) in enumerate(RNG.normal(size=(12, 2)), 1)),
        ["a", "b"],
        12,
    ),
    "a title": ("Measured in May\n\na,b\n" + NUMBERS, ["a", "b"], 12),
    "comments": ("# by instrument 7\n# in May\na,b\n" + NUMBERS, ["a", "b"], 12),
    "names in a comment": ("# by instrument 7\n# a,b\n" + NUMBERS, ["a", "b"], 12),
    "comments alone": ("# by instrument 7\n" + NUMBERS, ["x0", "x1"], 12),
    "text below a single name": ("a\n" + "\n".join(f"{i % 3}.5" for i in range(12)), ["a"], 12),
    "scikit-learn's own": ("12,2,no,yes\n" + "\n".join(f"{line},{i % 2}" for i, line in enumerate(NUMBERS.splitlines())), ["x0", "x1"], 12),
}


@pytest.mark.parametrize("name", HEADERS)
def test_the_header_is_told_from_the_rows(name, tmp_path):
    text, names, rows = HEADERS[name]
    found = pa.data.load(written(tmp_path, "t.csv", text))
    assert found.schema.names == names and len(found.train) + len(found.test) == rows
    if name == "scikit-learn's own":
        assert found.schema.classes == ("no", "yes") and found.train.labels is not None


def test_options_of_the_reader_go_before_what_is_inferred(tmp_path):
    path = written(tmp_path, "t.csv", "1,2\n" + NUMBERS)
    assert pa.data.load(path, csv={"header": None}).schema.names == ["x0", "x1"]
    with pytest.raises(ValueError, match="there is no option 'engine'"):
        pa.data.load(path, csv={"engine": "python"})


def test_decimal_commas_under_a_comma_are_refused_with_what_to_do(tmp_path):
    with pytest.raises(ValueError, match="1 cells in a row, as many as there are names.*decimal commas"):
        pa.data.load(written(tmp_path, "t.csv", "height\n" + "1,735\n1,801\n" * 5))
    grouped = pa.data.load(written(tmp_path, "t.csv", "a,b\n" + "".join(f'"{i},{i}35",{i / 7}\n' for i in range(1, 10))))
    assert grouped.train.frame()["a"].min() > 1000


LEFT_OUT = {  # column -> why
    "Unnamed: 0": "index",
    "id": "identifier",
    "constant": "constant",
    "empty": "empty",
    "date": "dates",
    "when": "dates",
    "yyyymmdd": "dates",
    "comment": "text",
    "bytes": "neither numbers nor text",
}


def messy():
    dates = pd.date_range("2020-01-01", periods=ROWS)
    return pd.DataFrame(
        {
            "Unnamed: 0": range(ROWS),
            "id": RNG.permutation(ROWS) + 1000,
            "constant": 3.0,
            "empty": np.nan,
            "date": dates.strftime("%Y-%m-%d"),
            "when": dates,
            "yyyymmdd": dates.strftime("%Y%m%d").astype(int),
            "comment": [f"said {i} times" for i in range(ROWS)],
            "bytes": [b"a", b"b"] * (ROWS // 2),
            "share": [f"{p:.1f}%" for p in RNG.uniform(0, 100, ROWS)],
            "price": np.where(RNG.random(ROWS) < 0.2, -999.0, RNG.uniform(1, 2, ROWS)),
            "species": RNG.choice(["cat", "dog"], ROWS),
        }
    )


def test_postal_codes_keep_their_zeros(tmp_path):
    towns = "\n".join(f"0{1000 + i % 4},{i / 7:.3f}" for i in range(60))
    found = pa.data.load(written(tmp_path, "t.csv", "code,size\n" + towns))
    assert found.schema.columns[0].values == ["01000", "01001", "01002", "01003"]
    padded = "\n".join(f"{i:03d},{i * i % 100:03d}" for i in range(60))  # numbers of one length
    assert pa.data.load(written(tmp_path, "t.csv", "a,b\n" + padded), columns="a,b").domain == "real"


def test_numbers_but_for_a_word_are_pointed_out():
    ages = pd.DataFrame({"age": [str(i) if i % 9 else "unknown" for i in range(60)], "town": ["Bonn", "Ulm"] * 30})
    found = pa.data.load(ages)
    assert "numbers but for 'unknown': if they stand for missing values, use na='unknown' (--na 'unknown')" in found.table
    assert pa.data.load(ages, na="unknown").schema.columns[0].missing


def test_options_of_the_reader_hold_for_what_is_inferred_too(tmp_path):
    path = written(tmp_path, "t.csv", "3 rows; of 2 columns; by hand\n%\na;b\n1,5;2\n2,5;7\n3,5;1\n")
    found = pa.data.load(path, csv={"skiprows": 1, "comment": "%"}, columns="a,b", test=0.4)
    assert found.schema.names == ["a", "b"] and found.train.frame()["a"].max() < 4


SIGNED = {  # how numbers are written -> the numbers
    "percent": (["12.5%", "-3 %", "100%"], [12.5, -3, 100]),
    "currencies": (["$1,234.50", "$ 2", "$3,000,000"], [1234.5, 2, 3e6]),
    "currencies behind, decimal commas": (["1.234,50 €", "2,25 €", "12,375 €"], [1234.5, 2.25, 12.375]),
    "percent, decimal commas": (["12,5 %", "0,125 %", None], [12.5, 0.125, np.nan]),
    "thousands": (["1,234", "12,345,678", "-1,000.5"], [1234, 12345678, -1000.5]),
    "thousands in Switzerland": (["1'234.5", "2'000", "12'345'678"], [1234.5, 2000, 12345678]),
    "thousands in France": (["1\u202f234", "12\u00a0345", "1\u202f000"], [1234, 12345, 1000]),
}


@pytest.mark.parametrize("name", SIGNED)
def test_numbers_with_signs_are_numbers(name):
    written, expected = (np.resize(np.array(values, dtype=object), 30) for values in SIGNED[name])
    column = pa.data.load(pd.DataFrame({"a": written, "b": RNG.normal(size=30)}), kinds={"a": "real"}).schema.columns[0]
    assert np.allclose(column.encode(pd.Series(written)) + column.shift, expected.astype(float), equal_nan=True)


def test_patterns_are_read_by_every_engine():
    """A column of pandas 3 is matched by Arrow, whose patterns have no lookbehind and no ``\\u``."""
    text = pd.Series(["1'234", "2\u202f000", "12\u00a0345,6", "7 %", "8"], dtype="string[pyarrow]")
    assert text.str.contains(kinds._SIGNED).tolist() == [True, True, True, True, False]


def test_what_is_no_text_or_no_table_is_refused(tmp_path):
    for name, content, message in (
        ("t.csv", b"PK\x03\x04" + bytes(50), "expected text, got another format, such as Excel"),
        ("t.json", "3", "expected a list of rows, or a mapping from columns"),
        ("t.json", '{"a": 1}', "expected a list of rows, or a mapping from columns"),
        ("t.json", "[]", "expected a list of rows, or a mapping from columns"),
    ):
        with pytest.raises(ValueError, match=message):
            pa.data.load(written(tmp_path, name, content))


def test_what_is_left_out_and_what_is_remarked_on():
    found = pa.data.load(messy())
    assert found.schema.names == ["share", "price", "species"]
    lines = {line.split("  ")[0]: line for line in found.table.splitlines()}
    assert all("left out" in lines[name] and why in lines[name] for name, why in LEFT_OUT.items()), found.table
    assert "note: price: -999 in" in found.table and "na=-999" in found.table and "labels='species'" in found.table
    assert 0 <= found.train.frame()["share"].min() <= found.train.frame()["share"].max() <= 100


def test_kinds_columns_drop_and_na_say_otherwise():
    assert pa.data.load(messy(), columns=["id", "price"]).schema.names == ["id", "price"]
    assert pa.data.load(messy(), drop="share,price").schema.names == ["species"]
    assert pa.data.load(messy(), na=-999).schema.columns[1].missing
    kinds = pa.data.load(PEOPLE, kinds={"visits": "real", "age": "positive"}).schema.columns
    assert [column.kind for column in kinds[:3]] == ["positive", "positive", "real"]
    assert pa.data.load(messy().astype({"share": str}), kinds={"comment": "category"}, drop=["species"]).schema.columns[0].size == ROWS


REFUSED = {
    "a column that is not there": (dict(drop=["incom"]), "drop: there is no column 'incom'; did you mean 'income'"),
    "a label that is not there": (dict(labels="incom"), "labels: there is no column 'incom'"),
    "an unknown kind": (dict(kinds={"age": "int"}), "there is no kind 'int'"),
    "a kind that does not fit": (dict(kinds={"town": "real"}), "column 'town' was given as 'real', but holds"),
    "counts that are none": (dict(kinds={"age": "count"}), "column 'age' was given as 'count', but its values go from"),
    "labels that are numbers": (dict(labels="income"), "labels as classes, got 40 different values"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_asked_of_a_table(name):
    options, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        pa.data.load(PEOPLE, **options)


def test_strange_tables_are_refused_by_name():
    with pytest.raises(ValueError, match="column 'a' occurs twice"):
        pa.data.load(pd.DataFrame([[1.0, 2.0]] * 5, columns=["a", "a"]))
    with pytest.raises(ValueError, match="column 'a' is infinite in row 3"):
        pa.data.load(pd.DataFrame({"a": [1.0, 2.0, np.inf, 4.5]}))
    with pytest.raises(ValueError, match="column 'a' is 1e\\+300 in row 2, too large for float32"):
        pa.data.load(pd.DataFrame({"a": [1.0, 1e300, 2.5]}))
    with pytest.raises(ValueError, match="no column of table can be modelled.*text: 40 different values"):
        pa.data.load(messy()[["comment"]])


@pytest.mark.parametrize("of", ["frame", "array", "csv", "tensor"])
def test_numbers_that_float32_would_destroy_are_centred_first(of, tmp_path):
    noise = RNG.normal(size=(200, 1))
    frame = pd.DataFrame(1e9 + noise, columns=["t"])
    frame.to_csv(tmp_path / "t.csv", index=False, float_format="%.6f")
    source = {"frame": frame, "array": frame.to_numpy(), "csv": tmp_path / "t.csv", "tensor": torch.tensor(frame.to_numpy())}[of]
    found = pa.data.load(source)
    assert found.domain == "real" and found.schema.columns[0].shift == pytest.approx(1e9, abs=1)
    assert np.allclose(np.sort(np.r_[found.train.frame(), found.test.frame()], axis=0), np.sort(1e9 + noise, axis=0), atol=1e-4)
    ae = pa.recipes.vae(found)
    assert torch.allclose(
        ae.encode(1e9 + noise).mean, ae.encode(torch.from_numpy(noise + 1e9 - found.schema.columns[0].shift)).mean, atol=1e-5
    )


def test_pixels_are_one_kind_however_they_come(tmp_path):
    pixels = RNG.integers(0, 256, (30, 64)).astype(np.uint8)
    pixels[0], pixels[1] = 0, 255
    frame = pd.DataFrame(pixels, columns=[f"pixel{i}" for i in range(64)])
    np.save(tmp_path / "x.npy", pixels), np.save(tmp_path / "f.npy", pixels.astype(float)), frame.to_csv(tmp_path / "x.csv", index=False)
    frame.to_parquet(tmp_path / "x.parquet")
    sets = [pa.data.load(tmp_path / name) for name in ("x.npy", "f.npy", "x.csv", "x.parquet")]
    assert {found.domain for found in sets} == {"unit"}
    assert all(torch.equal(found.train.x, sets[0].train.x) for found in sets)
    parts = [pa.recipes.likelihood_of(pa.data.load(tmp_path / name, binarize="dynamic")) for name in ("x.npy", "x.csv")]
    assert [repr(part) for part in parts] == ["Bernoulli(event_shape=(64,))"] * 2
    (frame / 255).to_csv(tmp_path / "x.csv", index=False)
    scaled = pa.data.load(tmp_path / "x.csv")
    assert scaled.domain == "unit" and torch.allclose(scaled.train.x, sets[0].train.x, atol=1e-6)
    ranks = pd.DataFrame(RNG.random((300, 64))).rank(pct=True)  # scaled columns of another table
    assert pa.data.load((ranks - ranks.min()) / (ranks.max() - ranks.min())).domain == "real"


def digits_table():
    from sklearn.datasets import load_digits

    pixels, classes = load_digits(return_X_y=True)
    return pd.DataFrame(pixels[:500].astype(int), columns=[f"p{i}" for i in range(64)]), classes[:500]


BESIDE_PIXELS = {  # name -> a table of pixels and classes
    "called label": lambda x, y: x.assign(label=y),
    "first and called label": lambda x, y: pd.concat([pd.Series(y, name="label"), x], axis=1),
    "text": lambda x, y: x.assign(target=[f"digit {value}" for value in y]),
    "last, without a name": lambda x, y: x.assign(x64=y).set_axis([f"x{i}" for i in range(65)], axis=1),
    "first, without a name": lambda x, y: pd.concat([pd.Series(y), x], axis=1).set_axis([f"x{i}" for i in range(65)], axis=1),
    "beside a number of the row": lambda x, y: x.assign(label=y, id=range(len(x))),
}


@pytest.mark.parametrize("name", BESIDE_PIXELS)
def test_classes_beside_pixels_are_labels(name):
    table = BESIDE_PIXELS[name](*digits_table())
    found = pa.data.load(table)
    pixels = found.train.x * found.schema.columns[0].scale
    assert found.domain == "unit" and found.event_shape == (64,) and pixels.max() == 16 and len(found.schema.classes) == 10
    label = found.schema.label
    assert f"{label}: used as the labels" in found.table
    kept = pa.data.load(table, kinds={label: "category"})
    assert kept.train.labels is None and {column.kind for column in kept.schema.columns} == {"unit", "category"}
    assert pa.data.load(table, columns=[name for name in table if name != "id"]).event_shape == (65,)


def test_pixels_at_the_edge_are_no_classes():
    pixels, _ = digits_table()
    assert pa.data.load(pixels).event_shape == (64,)
    noise = pd.DataFrame(RNG.integers(0, 17, (400, 64)))
    assert pa.data.load(noise).event_shape == (64,) and pa.data.load(noise).train.labels is None


def test_genes_are_counts_beside_columns_of_other_kinds():
    table = cells().assign(**{f"more{i}": RNG.poisson(1.0, 60) for i in range(40)}, cell_type=RNG.choice(["a", "b"], 60))
    kinds = {column.name: column.kind for column in pa.data.load(table.drop(columns="quality")).schema.columns}
    assert {kind for name, kind in kinds.items() if name[0] in "gm"} == {"count"} and kinds["cell_type"] == kinds["batch"] == "binary"
    answers = pd.DataFrame(RNG.integers(1, 6, (200, 120)))  # a questionnaire
    assert {column.kind for column in pa.data.load(answers).schema.columns} == {"category"}


def test_a_structured_array_is_a_table():
    assert pa.data.load(PEOPLE.to_records(index=False)).schema.names == list(PEOPLE)


def test_counts_of_genes_and_expressions_are_one_kind():
    genes = pd.DataFrame(RNG.negative_binomial(0.3, 0.02, (50, 150)), columns=[f"g{i}" for i in range(150)]).assign(silent=0)
    found = pa.data.load(genes)
    assert found.domain == "counts" and "silent" not in found.schema.names and len(found.schema.names) == 150
    assert pa.data.load(np.log1p(genes.drop(columns="silent"))).domain == "real"


def test_a_schema_finds_columns_by_name_and_names_what_it_does_not_know():
    found = pa.data.load(PEOPLE, labels="town")
    turned = PEOPLE[PEOPLE.columns[::-1]].assign(more=1)
    x, labels = found.schema.encode(turned)
    assert np.array_equal(x, found.schema.encode(PEOPLE)[0]) and len(set(labels)) == 3
    with pytest.raises(ValueError, match="there is no column 'age'"):
        found.schema.encode(PEOPLE.drop(columns="age"))
    with pytest.raises(ValueError, match="column 'grade' has the value '9' in 40 rows, unknown to this model; known: 1, 2, 3"):
        found.schema.encode(PEOPLE.assign(grade=9))
    assert found.schema.encode(PEOPLE.astype({"grade": str}))[0][0, 4] == x[0, 4]


def test_a_model_file_remembers_the_schema(tmp_path):
    ae = pa.recipes.vae(pa.data.load(PEOPLE, labels="town"))
    pa.save(ae, tmp_path / "m.safetensors")
    again = pa.load(tmp_path / "m.safetensors")
    assert again.schema == ae.schema and list(again.schema.frame(again.sample(3))) == ["age", "income", "visits", "smokes", "grade"]


# --- how large a file may become ---


def test_sizes_are_looked_up_before_memory_is_taken(tmp_path):
    packed = written(tmp_path, "bomb.csv.gz", gzip.compress(b"a,b\n" + b"1,2\n" * 500_000))
    with pytest.raises(ValueError, match="unpacks to more than the limit.*raise it by limit="):
        pa.data.load(packed, limit=1e6)
    np.savez_compressed(tmp_path / "bomb.npz", np.zeros((1000, 1000)))
    with pytest.raises(ValueError, match="would take 0.0 GB of memory, more than the limit.*limit=8.8e\\+06"):
        pa.data.load(tmp_path / "bomb.npz", limit=1e6)
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (10**6, 10**7)})
    with zipfile.ZipFile(tmp_path / "lie.npz", "w") as archive:
        archive.writestr("train.npy", header.getvalue())
    with pytest.raises(ValueError, match="would take 80,000.0 GB"):
        pa.data.load(tmp_path / "lie.npz")


def test_pipes_are_no_data(tmp_path):
    os.mkfifo(tmp_path / "t.csv")
    with pytest.raises(ValueError, match="is a pipe or a device"):
        pa.data.load(tmp_path / "t.csv")
    (tmp_path / "images").mkdir()
    os.mkfifo(tmp_path / "images/a.png")
    with pytest.raises(ValueError, match="expected images .* got none"):
        pa.data.load(tmp_path / "images")


def test_a_column_that_becomes_text_late_in_a_long_file_is_text_throughout(tmp_path):
    rows = 250_000
    codes = [f"{i % 7:03d}" for i in range(rows)]
    frame = pd.DataFrame({"code": codes, "x": np.arange(rows) % 11 + 0.5, "late": np.nan})
    frame.loc[rows - 9 :, "code"], frame["late"] = "A12", frame["late"].astype(object)
    frame.loc[rows - 9 :, "late"] = ["yes", "no", "yes"] * 3
    frame.to_csv(tmp_path / "long.csv", index=False)
    code, x, late = pa.data.load(tmp_path / "long.csv").schema.columns
    assert list(code.values) == [*(f"{i:03d}" for i in range(7)), "A12"]
    assert x.kind == "real" and late.values == ["no", "yes"] and late.missing


def test_a_header_of_many_names_is_read_as_one(tmp_path):
    wide = pd.DataFrame(RNG.normal(size=(8, 20_000)))
    wide.to_csv(tmp_path / "wide.csv", index=False)
    found = pa.data.load(tmp_path / "wide.csv")
    assert found.schema.names == [str(i) for i in range(20_000)] and len(found.train) + len(found.test) == 8


def cells(n=60):
    rng = np.random.default_rng(3)
    batch, genes = rng.choice(["one", "two"], n), [f"g{i}" for i in range(80)]
    return pd.DataFrame(rng.poisson(2.0, (n, 80)), columns=genes).assign(batch=batch, quality=rng.normal(50, 10, n))


def test_covariates_are_given_to_the_model_and_no_part_of_x():
    found = pa.data.load(cells(), covariates="batch, quality")
    assert found.schema.names == [f"g{i}" for i in range(80)] and found.train.labels.shape == (48, 2)
    y = torch.cat([found.train.labels, found.test.labels])
    assert set(y[:, 0].tolist()) == {0.0, 1.0} and y[:, 1].mean().abs() < 1e-5 and y[:, 1].std(correction=0) == pytest.approx(1.0, abs=1e-4)
    assert [line.split()[1] for line in found.table.splitlines() if line.startswith(("batch", "quality"))] == ["covariate"] * 2
    three = cells().assign(batch=np.resize(["a", "b", "c"], 60))
    assert pa.data.load(three, covariates=["batch"]).train.labels.sum(1).tolist() == [1.0] * 48  # one-hot
    vae = pa.recipes.conditional(found, latent_dim=2, hidden=4)
    shuffled = cells()[cells().columns[::-1]]
    assert torch.equal(vae.encode(shuffled).mean, vae.encode(cells()).mean) and vae.encode(cells()).mean.isfinite().all()
    with pytest.raises(ValueError, match="there is no covariate 'batch'"):
        vae.encode(cells().drop(columns="batch"))


def test_a_run_with_covariates(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    cells().to_csv("cells.csv", index=False)
    options = ["--covariates", "batch,quality", "--epochs", "1", "--particles", "5", "--hidden", "4", "--out", "run"]
    assert main(["train", "conditional", "--data", "cells.csv", "--posterior", "Delta", *options]) == 0
    assert main(["sample", "run", "--data", "cells.csv", "--out", "new.csv"]) == 0 and len(pd.read_csv("new.csv")) == 60
    assert main(["sample", "run"]) == 2 and "--data FILE" in capsys.readouterr().err


COVARIATES = {
    "with labels": (dict(labels="batch", covariates="quality"), "labels or covariates, got both"),
    "misspelt": (dict(covariates="bach"), "covariates: there is no column 'bach'"),
    "constant": (dict(covariates="g0"), "the covariate 'g0' cannot be used: constant"),
    "with holes": (dict(covariates="quality"), "the covariate 'quality' is missing in 1 rows"),
}


@pytest.mark.parametrize("name", COVARIATES)
def test_covariates_that_cannot_be_used(name):
    options, message = COVARIATES[name]
    frame = cells()
    if name == "constant":
        frame["g0"] = 1
    if name == "with holes":
        frame.loc[3, "quality"] = np.nan
    with pytest.raises(ValueError, match=message):
        pa.data.load(frame, **options)


def test_single_columns_are_modelled_otherwise_by_name():
    holes = PEOPLE.assign(age=PEOPLE["age"].mask(PEOPLE["age"] > 50))
    vae = pa.recipes.vae(holes, latent_dim=2, hidden=4)
    changed = vae.replace(likelihood=pa.likelihoods.Product({"income": pa.likelihoods.Gamma(), "age, visits": pa.likelihoods.StudentT()}))
    kept = {name: repr(column) for name, column in zip(vae.likelihood.names, vae.likelihood.columns)}
    now = {name: repr(column) for name, column in zip(changed.likelihood.names, changed.likelihood.columns)}
    assert now["income"] == "Gamma(event_shape=(1,))" and now["age, visits"] == "Missing(StudentT(event_shape=(2,)))"
    assert {name: now[name] for name in ("smokes", "town", "grade")} == {name: kept[name] for name in ("smokes", "town", "grade")}
    x = changed.schema.encode(holes)[0]
    expected = {"age, visits": [0, 2], "income": [1], "smokes": [3], "town": [4], "grade": [5]}
    for (name, _), (_, part) in zip(now.items(), changed.likelihood._parts(torch.from_numpy(x))):
        assert np.array_equal(part, x[:, expected[name]], equal_nan=True), name
    pa.fit(changed, holes, epochs=1, progress=False)
    frame = pd.DataFrame(RNG.normal(size=(40, 3)), columns=["a", "b", "c"])
    one = pa.recipes.vae(frame, latent_dim=2, hidden=4).replace(likelihood=pa.likelihoods.Product({"b": pa.likelihoods.Laplace()}))
    assert one.likelihood.names == ["b", "a, c"] and one.likelihood.order.tolist() == [1, 0, 2]


MISNAMED = {
    "another name": ({"incom": "StudentT"}, "Product: there is no column 'incom'; did you mean 'income'"),
    "a column twice": ({"income": "StudentT", "income, age": "Normal"}, "expected every column once"),
}


@pytest.mark.parametrize("name", MISNAMED)
def test_columns_that_a_product_cannot_name(name):
    columns, message = MISNAMED[name]
    product = pa.likelihoods.Product({name: getattr(pa.likelihoods, part)() for name, part in columns.items()})
    with pytest.raises(ValueError, match=message):
        pa.recipes.vae(PEOPLE, latent_dim=2, hidden=4).replace(likelihood=product)
    with pytest.raises(ValueError, match="expected a model of a table"):
        pa.recipes.vae(np.ones((9, 2)), latent_dim=2, hidden=4).replace(likelihood=product)


def test_the_command_names_columns(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    PEOPLE.to_csv("people.csv", index=False)
    options = ["--epochs", "1", "--particles", "5", "--hidden", "4", "--latent_dim", "2", "--out", "run"]
    columns = ["--likelihood.columns.income", "Standardised", "--likelihood.columns.income.of", "StudentT"]
    assert main(["train", "--data", "people.csv", "--likelihood", "Product", *columns, *options]) == 0
    assert repr(pa.load("run/model.safetensors").likelihood.columns[0]) == "Standardised(StudentT(event_shape=[1]))"
    assert main(["evaluate", "run", "--particles", "5"]) == 0
    assert main(["train", "--data", "people.csv", "--likelihood", "Product", "--likelihood.columns.income", "StudenT"]) == 2
    assert "no likelihood 'StudenT'; did you mean 'StudentT'" in capsys.readouterr().err


class Annotated:
    """What AnnData has of its interface: counts X, names of genes, annotations of cells."""

    def __init__(self, x=None, obs=None):
        self.X = np.asarray(cells().iloc[:, :80]) if x is None else x
        self.obs = cells()[["batch", "quality"]].set_axis([f"cell{i}" for i in range(60)]) if obs is None else pd.DataFrame(obs)
        self.var_names = [f"g{i}" for i in range(self.X.shape[1])]


def test_annotated_counts_have_names_and_covariates():
    assert pa.data.load(Annotated()).schema.names == [f"g{i}" for i in range(80)]
    assert pa.data.load(Annotated(), covariates="batch").train.labels.shape == (48, 1)
    assert pa.data.load(Annotated(), labels="batch").schema.classes == ("one", "two")


def test_few_genes_of_few_counts_are_counts():
    counts = np.random.default_rng(0).poisson(1.0, (60, 30))
    found = pa.data.load(
        Annotated(counts, {"batch": ["x", "y"] * 30, "size": counts.sum(1) / 7}), kinds={"batch": "binary", "size": "real"}
    )
    assert [column.kind for column in found.schema.columns] == ["count"] * 30 + ["binary", "real"]
    expressions = pa.data.load(Annotated(np.random.default_rng(0).normal(size=(60, 30)), {}))
    assert {column.kind for column in expressions.schema.columns} == {"real"}
