"""A run scores the same data afterwards: columns by name, splits by content, whatever has become of the file."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import pyroae as pa
from pyroae.cli import main
from pyroae.data.digests import find_rows, row_digests
from pyroae.files import read_tensors, write_tensors

QUICK = ["--epochs", "2", "--particles", "5", "--hidden", "8", "--latent_dim", "2"]


def people(n=80, seed=0):
    rng = np.random.default_rng(seed)
    age = rng.normal(40, 10, n).round(2)
    return pd.DataFrame(
        {
            "age": age,
            "income": (1000 * age + rng.normal(0, 3000, n)).round(0),
            "town": rng.choice(["Bonn", "Köln", "Trier"], n),
            "visits": rng.poisson(3, n),
        }
    )


def run(*argv, capsys, code=0):
    capsys.readouterr()
    assert main([str(token) for token in argv]) == code
    out = capsys.readouterr()
    return out.out if code == 0 else out.err


@pytest.fixture
def trained(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    people().to_csv("people.csv", index=False)
    run("train", "--data", "people.csv", *QUICK, "--out", "r", "--seed", "0", capsys=capsys)
    return tmp_path


def scores(folder="r", particles=5):
    return pd.read_csv(f"{folder}/evaluation-{particles}.csv")["log_likelihood"].tolist()


CHANGES = {
    "nothing": lambda frame: frame,
    "columns in another order": lambda frame: frame[["town", "visits", "age", "income"]],
    "rows in another order": lambda frame: frame.sample(frac=1, random_state=1),
    "a column more": lambda frame: frame.assign(more=1.5),
    "rows appended": lambda frame: pd.concat([frame, people(5, seed=1)]),
    "a new category in an appended row": lambda frame: pd.concat([frame, people(1, seed=1).assign(town="Ulm")]),
    "a training row changed": lambda frame: frame.assign(age=frame["age"].where(frame["age"] != train_age(), 99.0)),
}


def train_age():
    return pa.data.load("people.csv").train.frame()["age"][0].round(2)


@pytest.mark.parametrize("change", CHANGES)
def test_evaluate_scores_the_rows_that_were_held_out(change, trained, capsys):
    run("evaluate", "r", "--particles", "5", capsys=capsys)
    before = scores()
    CHANGES[change](people()).to_csv("people.csv", index=False)
    said = run("evaluate", "r", "--particles", "5", capsys=capsys)
    assert scores() == before, "the same test rows in the same order"
    new = {"rows appended": 5, "a new category in an appended row": 1, "a training row changed": 1}.get(change)
    assert (f"{new} rows of the source are new" in said) if new else "are new" not in said


def test_changed_test_rows_are_refused_with_how_to_go_on(trained, capsys):
    frame = people()
    held_out = pa.data.load("people.csv").test.frame()["age"].round(2)
    frame.loc[frame["age"].isin(held_out[:3]), "income"] += 1
    frame.to_csv("people.csv", index=False)
    said = run("evaluate", "r", capsys=capsys, code=2)
    assert "3 of 16 test rows are missing, 3 rows are new" in said and "--data" in said
    assert "are left out" in run("evaluate", "r", "--data", "people.csv", "--particles", "5", capsys=capsys)
    assert len(pd.read_csv("r/evaluation-5-people.csv")) == 16


def test_a_run_goes_on_with_its_own_rows_only(trained, capsys):
    pd.concat([people(), people(5, seed=1)]).to_csv("people.csv", index=False)
    run("train", "--resume", "r", "--epochs", "3", capsys=capsys)
    people()[:70].to_csv("people.csv", index=False)
    assert "train rows are missing" in run("train", "--resume", "r", "--epochs", "4", capsys=capsys, code=2)


def test_a_run_finds_its_data_from_any_folder(trained, capsys, monkeypatch):
    (trained / "elsewhere").mkdir()
    monkeypatch.chdir(trained / "elsewhere")
    run("evaluate", "../r", "--particles", "5", capsys=capsys)
    assert json.loads((trained / "r" / "settings.json").read_text())["data"] == str(trained / "people.csv")


def test_a_damaged_record_is_one_clear_message(trained, capsys):
    path = trained / "r" / "data.safetensors"
    content, digests = read_tensors(path, "pyroae-data-1")
    content["schema"]["columns"][0]["kind"] = "text"
    write_tensors(path, content, digests)
    assert "columns with a name and a kind of real" in run("evaluate", "r", capsys=capsys, code=2)
    path.write_bytes(path.read_bytes()[:100])
    assert "data.safetensors: a truncated file" in run("evaluate", "r", capsys=capsys, code=2)


@pytest.mark.parametrize("binarize", ["dynamic", "static", "threshold"])
def test_binarized_images_are_the_same_afterwards(binarize, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for i, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (30, 8, 8)).astype(np.uint8)):
        (tmp_path / "images" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "images" / "ab"[i % 2] / f"{i}.png")
    run("train", "--data", "images", "--binarize", binarize, *QUICK, "--out", "r", capsys=capsys)
    run("evaluate", "r", "--particles", "5", capsys=capsys)
    before = scores()
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "images" / "a" / "0new.png")
    assert "1 rows of the source are new" in run("evaluate", "r", "--particles", "5", capsys=capsys) and scores() == before


# --- using a run on new rows ---


def test_new_rows_come_in_the_data_s_units_and_names(trained, capsys):
    said = run("sample", "r", "--n", "50", "--out", "new.csv", capsys=capsys)
    new = pd.read_csv("new.csv")
    assert list(new) == list(people()) and len(new) == 50 and "written        new.csv" in said
    assert set(new["town"]) <= {"Bonn", "Köln", "Trier"} and 10_000 < new["income"].median() < 100_000
    assert (new["visits"] == new["visits"].round()).all()


def test_codes_of_new_rows_by_column_names(trained, capsys):
    people(20, seed=2)[["town", "visits", "income", "age"]].to_csv("new.csv", index=False)
    run("encode", "r", "--data", "new.csv", "--out", "codes.csv", capsys=capsys)
    codes = pd.read_csv("codes.csv")
    ours = pa.load("r/model.safetensors").latent_mean(people(20, seed=2))
    assert list(codes) == ["z1", "z2"] and np.allclose(codes, ours, atol=1e-5)
    people(5).drop(columns="age").to_csv("new.csv", index=False)
    assert "there is no column 'age'" in run("encode", "r", "--data", "new.csv", capsys=capsys, code=2)
    people(5).assign(town="Ulm").to_csv("new.csv", index=False)
    assert "'Ulm' in 5 rows" in run("encode", "r", "--data", "new.csv", capsys=capsys, code=2)


def test_missing_values_are_filled_in_with_intervals(trained, capsys):
    holes = people(20, seed=2).assign(name="x")
    holes.loc[3, "income"], holes.loc[4, "town"], holes.loc[5, ["age", "visits"]] = np.nan, None, np.nan
    holes.to_csv("holes.csv", index=False)
    said = run("impute", "r", "--data", "holes.csv", "--draws", "50", "--particles", "100", "--out", "filled.csv", capsys=capsys)
    filled = pd.read_csv("filled.csv")
    assert "4 missing values filled in" in said and not filled[list(holes)].isna().any().any()
    kept = holes.notna()
    assert ((filled[list(holes)] == holes) | ~kept).all().all()
    assert filled.loc[3, "income low"] < filled.loc[3, "income"] < filled.loc[3, "income high"] and 0 < filled.loc[4, "town p"] <= 1
    assert filled["income low"].notna().sum() == 1


# --- digests ---


def test_digests_tell_rows_apart_and_survive_order():
    x = torch.randn(1000, 7)
    digests = row_digests(x)
    assert len(set(digests.tolist())) == 1000 and np.array_equal(row_digests(x.flip(0)), digests[::-1])
    assert row_digests(torch.tensor([[0.0, torch.nan]]))[0] == row_digests(torch.tensor([[-0.0, -torch.nan]]))[0]


@pytest.mark.parametrize(
    "wanted, present, at", [([5, 5, 5], [5, 1, 5], [0, 2, -1]), ([], [1], []), ([1], [], [-1]), ([3, 9], [9, 3], [1, 0])]
)
def test_rows_are_found_once_each(wanted, present, at):
    assert find_rows(np.array(wanted, np.uint64), np.array(present, np.uint64)).tolist() == at
