"""The main job from end to end, through the command line."""

import csv
import json
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import pyroae as pa
from pyroae.cli import main
from pyroae.cli.commands import COMMANDS, Command, usage
from pyroae.cli.completion import completion
from pyroae.cli.options import parse_call, parse_train
from pyroae.data.named import NAMED
from pyroae.experiment import metrics
from pyroae.experiment.settings import arguments_of
from pyroae.experiment.train import _build, _load_data

QUICK = ["--epochs", "2", "--particles", "20"]


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def run(*argv, capsys):
    assert main([*argv]) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def only_model():
    """The model of the only run there is, whatever its name."""
    (path,) = Path("runs").glob("*/model.safetensors")
    return pa.load(path)


def settings(run_name):
    with open(f"runs/{run_name}/settings.json") as file:
        return json.load(file)


def test_the_main_job_writes_a_run_folder_and_a_short_report(capsys, tmp_path):
    report = run("train", "--epochs", "30", "--particles", "50", capsys=capsys)
    folder = tmp_path / "runs/vae-digits-1"
    assert {path.name for path in folder.iterdir()} == {
        "checkpoints",
        "settings.json",
        "data.safetensors",
        "model.safetensors",
        "history.csv",
        "results.json",
        "results.csv",
        "training.png",
        "reconstructions.png",
        "samples.png",
        "filters.png",
        "codes.png",
        "interpolation.png",
    }
    results = json.loads((folder / "results.json").read_text())
    assert f"test ELBO      {results['elbo']:.2f}" in report and "Monte-Carlo s.e." in report and "runs/vae-digits-1" in report
    assert results["elbo"] == pytest.approx(results["reconstruction"] - results["kl"]) and results["elbo"] < results["log_likelihood"]
    with open(folder / "history.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    losses = [float(row["loss"]) for row in rows]
    assert len(losses) == 30 and losses[-1] < losses[0]
    assert float(rows[-1]["kl"]) - float(rows[-1]["reconstruction"]) == pytest.approx(losses[-1], abs=2.0)
    for name in ("reconstructions.png", "samples.png", "filters.png", "interpolation.png"):
        with Image.open(folder / name) as image:
            assert image.width > 400 and len(image.convert("L").getcolors()) > 20
    again = pa.elbo_terms(pa.load(folder / "model.safetensors"), pa.data.load("digits", binarize="dynamic").test)
    assert again.elbo.mean().item() == pytest.approx(results["elbo"], rel=1e-5)


@pytest.mark.parametrize("recipe", ["autoencoder", "denoising", "sparse", "sparse_kl", "contractive", "rae", "vq_vae", "vae"])
def test_every_recipe_by_name(recipe, capsys):
    report = run("train", recipe, *QUICK, capsys=capsys)
    point = "not estimated here"
    said = {"vae": "Monte-Carlo s.e.", "sparse": point, "rae": point, "vq_vae": "bits/dim"}
    said = said.get(recipe, "not exist under an improper prior")
    assert said in report
    assert settings(f"{recipe}-digits-1")["recipe"] == recipe


SWAPS = {
    "prior": (["--prior", "Laplace", "--prior.scale", ".5"], lambda ae: ae.prior().base_dist.scale[0].item() == 0.5),
    "likelihood": (["--likelihood", "Normal", "--likelihood.scale", "per_dimension"], lambda ae: ae.likelihood.raw_scale.shape == (64,)),
    "likelihood from Pyro": (
        ["--likelihood", "FromPyro", "--likelihood.family", "StudentT"],
        lambda ae: ae.likelihood.family.__name__ == "StudentT",
    ),
    "keywords of Pyro's": (
        ["--likelihood", "FromPyro", "--likelihood.family", "StudentT", "--likelihood.df", "3", "--likelihood.scale", "learned"],
        lambda ae: ae.likelihood.df[0].item() == 3 and ae.likelihood.raw_scale.shape == (),
    ),
    "posterior": (["--posterior", "Delta"], lambda ae: isinstance(ae.posterior, pa.posteriors.Delta)),
    "encoder": (["--encoder", "MLP", "--encoder.hidden", "[30,20]", "--encoder.activation", "Tanh"], lambda ae: len(ae.encoder) == 5),
    "decoder": (["--decoder", "MLP", "--decoder.hidden", "[]"], lambda ae: len(ae.decoder) == 1),
    "condition": (["--condition", "Labels", "--condition.classes", "10"], lambda ae: ae.encoder[0].in_features == 74),
    "prior with a condition": (
        ["--condition", "Labels", "--prior", "Conditioned", "--prior.family", "Laplace"],
        lambda ae: ae.prior.network[0].in_features == 10,
    ),
    "prior from Pyro": (
        ["--prior", "FromPyro", "--prior.family", "Gumbel", "--prior.loc", "0", "--prior.scale", "learned"],
        lambda ae: ae.prior.family.__name__ == "Gumbel",
    ),
    "corruption": (["--corruption", "SaltPepper", "--corruption.fraction", ".3"], lambda ae: ae.corruption.fraction == 0.3),
    "objective": (["--objective", "RenyiELBO", "--objective.num_particles", "3"], lambda ae: ae.objective.num_particles == 3),
    "penalty": (
        ["--objective", "Penalised", "--objective.penalty", "L2", "--objective.penalty.weight", ".2"],
        lambda ae: ae.objective.penalty.weight == 0.2,
    ),
    "schedule": (
        ["--objective", "Tempered", "--objective.beta", "Linear", "--objective.beta.steps", "100"],
        lambda ae: ae.objective.beta == 0.0 and ae.objective.arguments["beta"].steps == 100,
    ),
    "total correlation": (
        ["--objective", "Penalised", "--objective.penalty", "TotalCorrelation", "--objective.penalty.num_data", "1437"],
        lambda ae: ae.objective.penalty.num_data == 1437,
    ),
    "Wasserstein": (
        ["--objective", "Penalised", "--objective.penalty", "MMD", "--objective.elbo", "Tempered", "--objective.elbo.beta", "0"],
        lambda ae: ae.objective.elbo.beta == 0.0,
    ),
    "hidden and latent dimensions": (
        ["--hidden", "[40,30]", "--latent_dim", "5"],
        lambda ae: ae.prior.event_shape == (5,) and ae.encoder[0].out_features == 40,
    ),
}


@pytest.mark.parametrize("name", SWAPS)
def test_every_part_is_swappable_by_name(name, capsys):
    options, holds = SWAPS[name]
    run("train", "vae", *options, *QUICK, capsys=capsys)
    assert holds(only_model())


def test_optimizer_scheduler_and_early_stopping(capsys):
    options = ["--optimizer", "AdamW", "--optimizer.weight_decay", ".1", "--optimizer.lr", ".004"]
    options += ["--scheduler", "StepLR", "--scheduler.step_size", "1", "--validation", ".1", "--patience", "3"]
    run("train", *options, *QUICK, capsys=capsys)
    with open("runs/vae-digits-1/history.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["lr"]) for row in rows] == pytest.approx([0.004, 0.0004]) and "validation_loss" in rows[0]


def test_settings_repeat_the_run(capsys):
    run("train", "denoising", "--corruption", "Gaussian", "--seed", "3", *QUICK, capsys=capsys)
    run("train", "--config", "runs/denoising-digits-Gaussian-1/settings.json", capsys=capsys)
    weights = [pa.load(f"runs/denoising-digits-Gaussian-{i}/model.safetensors").state_dict() for i in (1, 2)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_yaml_config_and_print_config(capsys):
    with open("config.yaml", "w") as file:
        file.write("prior: {class: Laplace, scale: 0.5}\nepochs: 2\nparticles: 20\n")
    run("train", "vae", "--config", "config.yaml", capsys=capsys)
    assert isinstance(only_model().prior, pa.priors.Laplace)
    printed = run("train", "vae", "--prior", "Laplace", "--prior.scale", ".5", "--print_config", capsys=capsys)
    assert yaml.safe_load(printed)["prior"] == {"class": "Laplace", "scale": 0.5} and len(list(Path("runs").iterdir())) == 1


def test_out_names_the_folder_and_data_may_be_a_file(capsys, tmp_path):
    x = torch.randn(60, 5)
    (tmp_path / "table.csv").write_text("\n".join(",".join(map(str, row)) for row in x.tolist()))
    report = run("train", "--data", "table.csv", "--out", "here/now", *QUICK, capsys=capsys)
    assert "here/now" in report and (tmp_path / "here/now/reconstructions.png").exists() and "(5,) numbers each, real" in report


def test_grey_levels_are_binarized_only_where_no_likelihood_was_chosen(capsys):
    assert "binarized anew" in run("train", *QUICK, capsys=capsys) and settings("vae-digits-1")["binarize"] == "dynamic"
    chosen = run("train", "--likelihood", "ContinuousBernoulli", *QUICK, capsys=capsys)
    assert "unit" in chosen and "binarized anew" not in chosen


def test_epochs_by_default_are_enough_for_a_small_set(capsys):
    run("train", "--batch_size", "1437", "--particles", "2", "--lr", "1e-5", "--hidden", "[]", capsys=capsys)
    assert settings("vae-digits-1")["epochs"] == 4000


def test_a_table_of_ones_own_is_trained_while_held_out_rows_gain(capsys, tmp_path):
    torch.manual_seed(0)
    (tmp_path / "table.csv").write_text("\n".join(",".join(map(str, row)) for row in torch.randn(25, 3).tolist()))
    report = run("train", "--data", "table.csv", "--out", "own", "--particles", "2", "--lr", "0.05", "--hidden", "8", capsys=capsys)
    written = json.loads((tmp_path / "own/settings.json").read_text())
    assert (written["epochs"], written["validation"], written["patience"]) == (4000, 0.1, 400)
    assert 400 < len((tmp_path / "own/history.csv").read_text().splitlines()) < 4000 and "2 validation" in report


def test_parts_lists_every_kind(capsys):
    listed = run("parts", capsys=capsys)
    for name in ("Laplace", "ContinuousBernoulli", "Delta", "MLP", "SaltPepper", "Penalised", "Contractive", "TraceMeanField_ELBO"):
        assert f"  {name} " in listed
    assert "MLP" not in run("parts", "prior", capsys=capsys)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example_that_parses(command, capsys):
    """Its own and the screen's; the runs in it are tried in other tests."""
    assert main([command, "--help"]) == 0
    said = capsys.readouterr().out
    example = " ".join(said.partition("example: ")[2].split())
    assert f"pyroae {command}" in example and f"\n  {command} " in usage()
    if command == "train":
        assert parse_train(example.split()[2:])[0]["prior"].arguments["components"] == 100
    if command in ("evaluate", "compare"):
        assert parse_call(command, COMMANDS[command].load(), "", "", example.split()[2:])["particles"] in (1000, 5000)


def test_answers_for_machines(capsys, tmp_path):
    trained = json.loads(run("train", "--json", *QUICK, capsys=capsys))
    assert trained["run"] == "runs/vae-digits-1" and trained["epochs"] == 2 and trained["elbo"] < trained["log_likelihood"]
    json.loads(run("train", *QUICK, "--json", capsys=capsys))
    found = json.loads(run("evaluate", "runs/vae-digits-1", "--particles", "10", "--json", capsys=capsys))
    for file in ("results.json", "evaluation-10.json"):  # what does not exist, such as k-hat below 25 particles, is null
        json.loads((tmp_path / "runs/vae-digits-1" / file).read_text(), parse_constant=pytest.fail)
    assert found["unreliable"] is None and found["elbo"] == trained["elbo"]  # too few particles to tell
    ranked = json.loads(run("compare", "runs/vae-digits-1", "runs/vae-digits-2", "--particles", "30", "--json", capsys=capsys))["runs"]
    assert ranked[1]["difference"] == pytest.approx(ranked[1]["log_likelihood"] - ranked[0]["log_likelihood"])
    assert "Laplace" in json.loads(run("parts", "--json", "prior", capsys=capsys))["prior"]


def test_colour_only_on_a_terminal(capsys, monkeypatch):
    for variables, coloured in (({"TERM": "xterm"}, True), ({"TERM": "dumb"}, False), ({"TERM": "xterm", "NO_COLOR": "1"}, False)):
        with monkeypatch.context() as patch:
            for name, value in variables.items():
                patch.setenv(name, value)
            assert main(["trian"]) == 2 and "\033" not in capsys.readouterr().err
            patch.setattr("sys.stderr.isatty", lambda: True)
            assert main(["trian"]) == 2 and ("\033[31m" in capsys.readouterr().err) == coloured


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(
    "typed, offered",
    [
        ("pyroae e", "evaluate"),
        ("pyroae train den", "denoising"),
        ("pyroae train --pri", "--prior"),
        ("pyroae train --prior Vam", "VampPrior"),
        ("pyroae train vae --prior.compo", "--prior.components"),
        ("pyroae evaluate --propo", "--proposal"),
    ],
)
def test_bash_completes(typed, offered, completion_script):
    words = typed.split()
    ask = f"COMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1}; _shtab_pyroae; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    found = subprocess.run(["bash", "-c", f"source {completion_script}; {ask}"], capture_output=True, text=True)
    assert offered in found.stdout.split(), found.stderr


@pytest.fixture(scope="module")
def completion_script(tmp_path_factory):
    path = tmp_path_factory.mktemp("completion") / "script"
    path.write_text(completion("bash").text)
    return path


def test_tensorboard_by_a_flag(capsys, tmp_path):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run("train", "--tensorboard", "true", "--latent_dim", "2", *QUICK, capsys=capsys)
    events = reader.EventAccumulator(str(tmp_path / "runs/vae-digits-1/tensorboard")).Reload()
    with open("runs/vae-digits-1/history.csv", newline="") as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file)]
    assert [event.value for event in events.Scalars("loss")] == pytest.approx(losses)
    assert {"samples", "reconstructions"} <= set(events.Tags()["images"]) and set(events.Tags()["histograms"]) == {"code/z1", "code/z2"}


def test_help_fits_a_screen(capsys):
    """All but a line for each command fits into half of it, so that there is room for more commands."""
    shown = run("--help", capsys=capsys).splitlines()
    assert len(shown) - len(COMMANDS) <= 12 and max(map(len, shown)) <= 80
    text = run("train", "contractive", "--help", capsys=capsys)
    assert "--weight" in text and "--binarize {threshold,static,dynamic}" in text and "--scheduler" in text
    assert "pyroae.model" not in text and "class '" not in text  # names, no paths
    assert "--prior.components" in run("parts", "prior", "VampPrior", capsys=capsys)


PRIORS = ["Normal", "Laplace", "SoftLaplace", "StudentT", "Logistic", "SpikeSlab", "GaussianMixture", "VampPrior", "Flow"]
OTHER_CODES = [
    ("Uniform", "Delta"),
    ("Flat", "Delta"),
    ("Hierarchical", "Hierarchical"),
    ("OneHot", "OneHot"),
    ("OneHot", "OneHotStraightThrough"),
    ("Bernoulli", "BernoulliStraightThrough"),
    ("Sphere", "ProjectedNormal"),
    ("Sphere", "PowerSpherical"),
    ("RelaxedOneHot", "RelaxedOneHot"),
    ("OneHot", "OneHotGumbel"),
    ("Bernoulli", "BernoulliGumbel"),
    ("RelaxedBernoulli", "RelaxedBernoulli"),
    ("Hierarchical", "TopDown"),
    ("Clusters", "Clusters"),
    ("ClassAndStyle", "Clusters"),
]
POSTERIORS = ["Normal", "Laplace", "StudentT", "FullNormal", "LowRankNormal", "Flow"]


@pytest.mark.parametrize(
    "prior, posterior", [(prior, "Normal") for prior in PRIORS] + [("Normal", posterior) for posterior in POSTERIORS[1:]] + OTHER_CODES
)
def test_every_prior_and_posterior_by_name(prior, posterior, capsys):
    run("train", "--prior", prior, "--posterior", posterior, "--latent_dim", "3", *QUICK, capsys=capsys)
    ae = only_model()
    assert (type(ae.prior).__name__, type(ae.posterior).__name__) == (prior, posterior)


LIKELIHOODS = {
    "unit": ["ContinuousBernoulli", "Normal", "OptimalNormal", "Laplace", "StudentT", "LogisticMixture"],
    "binary": ["Bernoulli", "Categorical"],
    "levels": ["GreyLevels", "DiscretizedLogistic", "LogisticMixture"],
    "counts": ["Poisson", "NegativeBinomial", "ZeroInflatedNegativeBinomial"],
    "positive": ["Gamma", "LogNormal"],
    "inside": ["Beta"],
}
DOMAINS = {
    "unit": lambda u: (u * 255).round() / 255,
    "binary": torch.round,
    "levels": lambda u: (u * 255).round() / 255,
    "counts": lambda u: (u * 9).round(),
    "positive": lambda u: u + 0.1,
    "inside": lambda u: 0.1 + 0.8 * u,
}


@pytest.mark.parametrize("domain, likelihood", [(domain, name) for domain, names in LIKELIHOODS.items() for name in names])
def test_every_likelihood_by_name(domain, likelihood, capsys, tmp_path):
    np.save(tmp_path / "x.npy", DOMAINS[domain](torch.rand(60, 6)).numpy())
    run("train", "--data", "x.npy", "--likelihood", likelihood, *QUICK, capsys=capsys)
    assert type(only_model().likelihood).__name__ == likelihood


def test_a_conditional_model_is_scored_by_label_and_is_no_rival_of_others(capsys):
    out = run("train", "conditional", *QUICK, capsys=capsys)
    assert "test log p(x|y)" in out
    run("train", "vae", *QUICK, capsys=capsys)
    assert main(["compare", "runs/conditional-digits-1", "runs/vae-digits-1"]) == 2
    assert "gives log p(x), but runs/conditional-digits-1 log p(x|y)" in capsys.readouterr().err


def test_data_with_holes_by_name(capsys, tmp_path):
    x = torch.randn(60, 5)
    x[torch.rand(60, 5) < 0.2] = torch.nan
    np.savetxt(tmp_path / "x.csv", x.numpy(), delimiter=",", header="a,b,c,d,e", comments="")
    run("train", "--data", "x.csv", "--missing", "true", "--likelihood", "Missing", "--likelihood.of", "Normal", *QUICK, capsys=capsys)
    assert not pa.impute(only_model(), x).isnan().any()


@pytest.mark.parametrize("encoder, decoder", [("Linear", "Linear"), ("GatedMLP", "Residual"), ("Conv", "Deconv"), ("MLP", "Tied")])
def test_every_network_by_name(encoder, decoder, capsys):
    options = ["--posterior", "Delta"] if decoder == "Tied" else []
    run("train", "--encoder", encoder, "--decoder", decoder, *options, *QUICK, capsys=capsys)


def test_a_run_is_evaluated_again(capsys, tmp_path):
    run("train", *QUICK, capsys=capsys)
    first = json.loads((tmp_path / "runs/vae-digits-1/results.json").read_text())
    report = run("evaluate", "runs/vae-digits-1", "--particles", "200", capsys=capsys)
    again = json.loads((tmp_path / "runs/vae-digits-1/evaluation-200.json").read_text())
    assert again["elbo"] == first["elbo"] and again["log_likelihood"] > first["elbo"] and again["particles"] == 200
    for line in ("verdict  ", "inference gap  KL", "rate  ", "units  ", "labels         linear probe", "reconstruction mean squared"):
        assert line in report
    assert {"mutual_information", "active_units", "linear_probe", "unreliable"} <= again.keys()
    with open(tmp_path / "runs/vae-digits-1/evaluation-200.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 360 and sum(float(row["log_likelihood"]) for row in rows) / 360 == pytest.approx(again["log_likelihood"])
    assert "evaluation-200.json" in report and f"{again['log_likelihood']:.2f}" in report


def test_a_part_of_ones_own_is_named_by_its_module(capsys, tmp_path, monkeypatch):
    source = ["import pyroae as pa", "from pyro import distributions as dist", "@pa.register('likelihoods')"]
    source += ["class Heavy(pa.likelihoods.Likelihood):"]
    source += ["    def __init__(self, event_shape=None, scale: float | str = 'learned'):"]
    source += ["        super().__init__(dist.Cauchy, event_shape, scale=scale)"]
    (tmp_path / "my_parts.py").write_text("\n".join(source))
    monkeypatch.syspath_prepend(tmp_path)
    run("train", "--likelihood", "my_parts.Heavy", "--likelihood.scale", ".3", *QUICK, capsys=capsys)
    ae = only_model()
    assert type(ae.likelihood).__name__ == "Heavy" and ae.reconstruct(torch.rand(2, 64)).isfinite().all()


def test_a_point_posterior_is_scored_by_a_proposal(capsys):
    assert "evaluate RUN fits a proposal" in run("train", "sparse", "--latent_dim", "2", "--hidden", "8", *QUICK, capsys=capsys)
    by_guide = run("evaluate", "runs/sparse-digits-1", "--particles", "30", "--proposal", "guide", capsys=capsys)
    assert "draws of a point posterior (Delta) give none" in by_guide
    assert "test log p(x)  -" in run("evaluate", "runs/sparse-digits-1", "--particles", "30", capsys=capsys)
    report = run("evaluate", "runs/sparse-digits-1", "--particles", "30", "--proposal", "prior", capsys=capsys)
    assert "test log p(x)  -" in report and "evaluation-30-prior.json" in report


def test_runs_are_ranked_with_paired_errors(capsys):
    run("train", "--epochs", "10", "--particles", "5", capsys=capsys)
    run("train", *QUICK, capsys=capsys)
    table = run("compare", "runs/vae-digits-2", "runs/vae-digits-1", "--particles", "30", capsys=capsys).splitlines()
    assert [line.split()[0] for line in table[-2:]] == ["runs/vae-digits-1", "runs/vae-digits-2"]
    models, test = (pa.load(f"runs/vae-digits-{i}/model.safetensors") for i in (2, 1)), pa.data.load("digits", binarize="dynamic").test
    scores = [pa.log_likelihood(model, test, particles=30) for model in models]
    found = pa.compare(*scores)
    assert f"{found.difference:.3f}" in table[-1] and f"{found.se:.2g}" in table[-1]
    for arguments, message in (
        (["runs/vae-digits-1"], "at least two different"),
        (["runs/vae-digits-1", "runs/none"], "expected a run folder"),
        (["runs/vae-digits-1", "runs/vae-digits-2", "--particles", "0"], "at least 1"),
    ):
        assert main(["compare", *arguments]) == 2 and message in capsys.readouterr().err


README = (Path(__file__).parent.parent / "examples/README.md").read_text()
TABLED = sorted(set(re.findall(r"^\| [^|]* \| `pyroae (train [^`]*)` \|", README, re.MULTILINE)))


@pytest.mark.parametrize("command", TABLED)
def test_every_command_in_the_readmes_table_trains_its_model(command, tmp_path):
    (tmp_path / "people.csv").write_text("id,age,town,income\n" + "a,1.5,,low\nb,,Ulm,high\nc,2.5,Bonn,high\n" * 5)
    settings, _, _, _ = parse_train(shlex.split(command.replace("mnist", "digits"))[1:])  # which are here
    found, _, _ = _load_data(settings, {}, None)
    options = arguments_of(pa.fit, settings) | {"epochs": 1, "progress": False, "compile": "eager"}
    assert math.isfinite(pa.fit(_build(settings, found), found.test, **options).loss[0])


def test_pictures_as_it_trains(capsys, tmp_path):
    run("train", "--latent_dim", "2", "--epochs", "4", "--figures_every", "2", "--particles", "5", "--out", "two", capsys=capsys)
    run("train", "--latent_dim", "2", "--epochs", "4", "--particles", "5", "--out", "same", capsys=capsys)
    of_two = {
        "reconstructions.png",
        "samples.png",
        "filters.png",
        "interpolation.png",
        "manifold.png",
        "manifold-by-prior.png",
        "codes.png",
    }
    for folder in ("two/epoch-0002", "two/epoch-0004"):
        assert {path.name for path in (tmp_path / folder).iterdir()} == of_two
    assert (tmp_path / "two/epoch-0002/samples.png").read_bytes() != (tmp_path / "two/samples.png").read_bytes()
    losses = [
        [row["loss"] for row in csv.DictReader((tmp_path / name / "history.csv").read_text().splitlines())] for name in ("two", "same")
    ]
    assert losses[0] == losses[1]  # drawing changes nothing


@pytest.mark.parametrize("recipe", ["autoencoder", "denoising", "contractive", "vae"])
def test_pretraining_by_command(recipe, capsys, tmp_path):
    losses = []
    for pretrain in ("0", "10"):
        run(
            "train",
            recipe,
            "--hidden",
            "[32,16]",
            "--pretrain",
            pretrain,
            "--epochs",
            "1",
            "--out",
            pretrain,
            "--particles",
            "5",
            capsys=capsys,
        )
        with open(tmp_path / pretrain / "history.csv", newline="") as file:
            losses.append(float(next(csv.DictReader(file))["loss"]))
    assert losses[1] < losses[0] - 0.5


LINES = {  # what SYSTEMS without a recipe of their own are called
    "PCA": "autoencoder --hidden [] --latent_dim 4",
    "linear VAE": "vae --hidden [] --likelihood Normal --posterior Normal --posterior.scale per_dimension",
    "tied": "autoencoder --encoder MLP --decoder Tied",
    "tied contractive": "contractive --decoder Tied",
    "denoising VAE": "vae --corruption Gaussian",
    "noisy pictures": "vae --latent_dim 2 --corruption SaltPepper",
    "salt and pepper": "denoising --corruption SaltPepper --corruption.fraction .3",
    "KL-sparse": "sparse_kl --hidden [] --latent_dim 100",
    "RAE-GP": "rae --objective Penalised --objective.penalty DecoderJacobian --fit_prior FullNormal",
    "RAE-SN": "rae --weight 0 --decoder SpectralNorm --fit_prior GaussianMixture --fit_prior.full true --fit_prior.components 2",
    "VQ-VAE, by loss": "vq_vae --posterior VectorQuantised --posterior.decay 0 --fit_prior Codes --fit_prior.learned true",
    "finite scalars": "vae --prior Codes --prior.event_shape [16,3] --posterior FiniteScalar --posterior.levels [8,5,5]",
    "Hamiltonian": "vae --hidden 8 --posterior Hamiltonian --posterior.steps 1",
    "hyperbolic": "vae --prior WrappedNormal --prior.curvature .5 --posterior WrappedNormal --latent_dim 2",
    "MS-SSIM": "vae --objective Penalised --objective.penalty MultiScaleSSIM --objective.penalty.weight 50",
    "two-stage": "vae --latent_dim 2 --hidden 4 --fit_prior Hierarchical --fit_prior.top 1 --fit_prior.hidden 4",
}


@pytest.mark.parametrize("line", LINES.values(), ids=list(LINES))
def test_a_system_by_one_command(line, capsys):
    assert "run folder" in run("train", *line.split(), *QUICK, capsys=capsys)


def test_a_fitted_prior_is_scored_at_once(capsys):
    """And such runs can be ranked."""
    fitted = "--fit_prior", "FullNormal", "--latent_dim", "2", "--hidden", "8", "--epochs", "2", "--particles", "30"
    reports = [run("train", recipe, *fitted, capsys=capsys) for recipe in ("autoencoder", "rae")]
    assert all("100 of 360 examples" in report and "test log p(x)  -" in report for report in reports)
    assert "difference" in run(
        "compare", "runs/autoencoder-digits-1", "runs/rae-digits-1", "--particles", "30", "--examples", "20", "--json", capsys=capsys
    )


def test_a_command_is_a_function_and_a_row(capsys, tmp_path, monkeypatch):
    """Options, help and completion follow from its signature and docstring."""
    source = ["from pyroae.experiment.output import CommandOutput", "def hello(run: str, times: int = 2) -> CommandOutput:"]
    source += ['    """Say hello."""', "    return CommandOutput(' '.join([run] * times), {'times': times})"]
    (tmp_path / "hello.py").write_text("\n".join(source))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(COMMANDS, "hello", Command("hello:hello", "RUN", "say hello", "pyroae hello x"))
    monkeypatch.setattr(Command, "load", lambda self: import_module("hello").hello if self.function == "hello:hello" else load(self))
    assert run("hello", "x", "--times", "3", capsys=capsys).strip() == "x x x"
    assert main(["hello", "x", "--tims", "3"]) == 2 and "did you mean '--times'" in capsys.readouterr().err
    assert "  hello RUN                say hello\n" in run("--help", capsys=capsys)
    assert "--times" in completion("bash").text


@pytest.mark.parametrize("ask", [lambda: np.zeros(2**50), lambda: torch.zeros(2**50)], ids=["NumPy", "torch"])
def test_memory_that_is_not_there_is_one_sentence(ask, capsys, monkeypatch):
    monkeypatch.setattr(Command, "load", lambda self: ask)
    assert main(["parts"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("pyroae: out of memory: ") and len(said.splitlines()) == 1
    monkeypatch.setattr(Command, "load", lambda self: lambda: torch.zeros(2) @ torch.zeros(3))
    with pytest.raises(RuntimeError):
        main(["parts"])


load = Command.load


def test_a_data_set_is_a_function_and_a_row(capsys, monkeypatch):
    def stripes(limit):
        x = torch.rand(60, 6)
        return pa.data.DataSet("stripes", pa.data.Split(x[10:], None, "unit"), pa.data.Split(x[:10], None, "unit"))

    monkeypatch.setitem(NAMED, "stripes", stripes)
    Path("stripes").mkdir()  # a folder of the same name is not meant
    assert "10 test" in run("train", "--data", "stripes", *QUICK, capsys=capsys)
    assert main(["train", "--data", "strips"]) == 2 and "did you mean 'stripes'" in capsys.readouterr().err


def test_a_metric_is_a_function_and_a_row(capsys, monkeypatch):
    monkeypatch.setitem(metrics.METRICS, "darkness", lambda ae, found: ({"darkness": 0.5}, "0.50 on the mean"))
    run("train", *QUICK, "--out", "run", capsys=capsys)
    assert "darkness       0.50 on the mean" in run("evaluate", "run", "--particles", "5", capsys=capsys)
    assert json.loads(Path("run/evaluation-5.json").read_text())["darkness"] == 0.5


def test_the_version(capsys):
    assert run("--version", capsys=capsys).strip() == f"pyroae {pa.__version__}"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's full device")
@pytest.mark.parametrize("command", ["parts", "train --help"])
def test_output_to_a_full_device_is_one_sentence(command):
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-m", "pyroae", *command.split()], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr and "cannot be written" in done.stderr, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's full device")
def test_a_message_to_a_full_device_leaves_the_exit_status():
    with open("/dev/full", "w") as full:
        assert subprocess.run([sys.executable, "-m", "pyroae", "train", "--nope"], stdout=subprocess.PIPE, stderr=full).returncode == 2


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no named pipes in folders")
def test_a_settings_file_is_read_once(tmp_path):
    """As from ``--config <(echo ...)``, which gives its content once."""
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=lambda: (tmp_path / "pipe").write_text("prior: {class: Laplace, scale: 0.5}"))
    writer.start()
    settings, _, _, _ = parse_train(["--config", "pipe"])
    writer.join()
    assert settings["prior"].arguments == {"scale": 0.5}


def test_options_of_parts_inside_parts(capsys):
    penalised = "--objective Penalised --objective.penalty Contractive --objective.penalty.weight .3".split()
    others = "--objective.elbo Tempered --objective.elbo.beta 2 --likelihood=Normal --likelihood.scale=1 --optimizer SGD".split()
    settings, written, _, _ = parse_train(["contractive", *others, *penalised])
    assert settings["objective"].elbo.beta == 2.0 and settings["objective"].penalty.weight == 0.3
    assert written["likelihood"] == {"class": "Normal", "scale": 1} and settings["optimizer"].func is torch.optim.SGD
