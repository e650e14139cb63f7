"""Runs by name, listed, and compared; options that other programs call by another name."""

import json
from pathlib import Path

import pytest
import torch

import pyroae as pa
from pyroae.cli import main

QUICK = ["--epochs", "1", "--particles", "5", "--hidden", "4", "--latent_dim", "2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three runs and one that was stopped."""
    folder = tmp_path_factory.mktemp("listed")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["train", *QUICK]) == main(["train", *QUICK, "--lr", "0.01"]) == 0
        assert main(["train", *QUICK, "--prior", "GaussianMixture", "--prior.components", "3", "--objective", "IWAE"]) == 0
        stopped = Path("runs/vae-digits-9")
        stopped.mkdir()
        (stopped / "settings.json").write_text(Path("runs/vae-digits-1/settings.json").read_text())
        Path("runs/other").mkdir()
        Path("runs/other/settings.json").write_text("{")
    return folder


@pytest.fixture(autouse=True)
def _there(folder, monkeypatch):
    monkeypatch.chdir(folder)


def test_names_say_the_recipe_the_data_and_the_changed_parts():
    assert {path.name for path in Path("runs").glob("*-*")} == {
        "vae-digits-1",
        "vae-digits-2",
        "vae-digits-9",
        "vae-digits-GaussianMixture-IWAE-1",
    }


def test_the_list_has_scores_and_what_differs(capsys):
    assert main(["list"]) == 0
    head, *rows, broken = capsys.readouterr().out.splitlines()
    assert head.split() == ["run", "recipe", "data", "log", "p(x)", "s.e.", "ELBO", "differs", "by"] and "runs/other" in broken
    by_name = {row.split()[0]: row for row in rows}
    assert len(rows) == 4 and "stopped" in by_name["runs/vae-digits-9"] and "nan" not in "".join(rows)
    assert "prior GaussianMixture(components=3), objective IWAE" in by_name["runs/vae-digits-GaussianMixture-IWAE-1"]
    assert "lr 0.01" in by_name["runs/vae-digits-2"] and "lr default" in by_name["runs/vae-digits-1"]
    scores = [json.loads(Path(name, "results.json").read_text())["log_likelihood"] for name in by_name if "9" not in name]
    assert scores == sorted(scores, reverse=True) and f"{scores[0]:.2f}" in rows[0]
    assert main(["list", "runs", "--json"]) == 0 and len(json.loads(capsys.readouterr().out)["runs"]) == 4
    assert main(["list", "nowhere"]) == 2 and "no folder nowhere" in capsys.readouterr().err


def test_a_run_with_a_class_that_is_not_known_here_is_listed(folder, capsys):
    run = Path("runs/vae-digits-WideStudent-1")
    run.mkdir()
    settings = json.loads(Path("runs/vae-digits-1/settings.json").read_text())
    (run / "settings.json").write_text(json.dumps(settings | {"prior": {"class": "my_parts.WideStudent", "df": 4.0}}))
    try:
        assert main(["list"]) == 0
        (row,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith(str(run))]
        assert "stopped" in row and "prior my_parts.WideStudent(df=4.0)" in row
        assert main(["parts", "prior", "my_parts.WideStudent"]) == 2 and "--use my_parts" in capsys.readouterr().err
    finally:
        (run / "settings.json").unlink()
        run.rmdir()


def test_compare_scores_a_sample(capsys):
    assert main(["compare", "runs/vae-digits-1", "runs/vae-digits-2", "--particles", "5", "--examples", "20", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["examples"] == 20
    assert main(["compare", "runs/vae-digits-1", "runs/vae-digits-2", "--particles", "5", "--examples", "20"]) == 0
    assert "20 test examples (--examples)" in capsys.readouterr().out
    assert main(["compare", "runs/vae-digits-1", "runs/vae-digits-2", "--examples", "0"]) == 2


def test_a_misspelt_command_is_suggested(capsys):
    assert main(["trian"]) == 2 and "did you mean 'train'?" in capsys.readouterr().err


def test_no_share_is_printed_of_k_hats_that_do_not_exist(capsys):
    assert main(["compare", "runs/vae-digits-1", "runs/vae-digits-2", "--particles", "5"]) == 0
    out = capsys.readouterr().out
    assert "nan" not in out and "differs by" in out and "lr 0.01" in out


@pytest.mark.parametrize(
    "option, meant",
    [
        ("--latent", "--latent_dim"),
        ("--z_dim", "--latent_dim"),
        ("--learning_rate", "--lr"),
        ("--learning-rate", "--lr"),
        ("--layers", "--hidden"),
        ("--beta", "--objective.beta"),
        ("--components", "--prior.components"),
        ("--qqq", "--help"),
    ],
)
def test_an_unknown_option_names_the_one_that_is_meant(option, meant, capsys):
    assert main(["train", option, "3"]) == 2
    message = capsys.readouterr().err
    assert f"no option {option}" in message and meant in message


@pytest.mark.parametrize("entries, dim, width", [(64, 8, 128), (255, 8, 128), (256, 20, 400), (784, 20, 400)])
def test_a_vae_is_larger_for_larger_data(entries, dim, width):
    vae = pa.recipes.vae(torch.rand(5, entries).round())
    assert vae.encode(torch.zeros(1, entries)).event_shape == (dim,) and vae.encoder[0].out_features == width
