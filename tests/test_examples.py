"""Every example runs, with small arguments."""

import json
import math
import shutil
from pathlib import Path
from statistics import median

import numpy as np
import pytest
import torch
from conftest import EXAMPLES, imported, linear_gaussian
from pyro.infer import TraceMeanField_ELBO

import pyroae as pa

SMALL = {
    "vae": ({"epochs": 1, "particles": 5, "hidden": 16}, "vae.png"),
    "callbacks": ({"epochs": 2, "particles": 5, "every": 1}, None),
    "semi_supervised": ({"epochs": 1, "hidden": 8, "latent_dim": 2}, None),
    "adversarial": ({"epochs": 1, "hidden": 8}, "adversarial"),
    "objectives": ({"data": "digits", "epochs": 1, "particles": 5, "hidden": 8, "latent_dim": 4, "test_rows": 20}, "objectives.json"),
    "priors": ({"epochs": 1, "particles": 5, "hidden": 8, "latent_dim": 4, "components": 3}, "priors.json"),
    "benchmarks/training": ({"shapes": ("6-4-2",), "rows": 200, "rounds": 1, "rivals": ("pyroae, eager", "by hand")}, "training"),
    "classics": ({"epochs": 1, "particles": 5, "hidden": 8, "units": 8, "latent_dim": 3}, "classics"),
    "pretraining": ({"epochs": 1, "hidden": [8], "latent_dim": 4, "steps": 1, "few": [20]}, "pretraining.json"),
    "bound": ({"epochs": 1, "codes": [2, 3], "hidden": 8, "particles": 3, "repeats": 2, "rows": 10}, "bound"),
    "invariance": ({"data": "digits", "copies": 1, "hidden": 8, "epochs": 1, "examples": 10}, "invariance"),
    "modalities": ({"data": "digits", "epochs": 1, "latent_dim": 2, "hidden": 8, "examples": 10, "particles": 5}, "modalities"),
    "budget/budget": (
        {
            "data": "digits",
            "epochs": 1,
            "latent_dim": 2,
            "hidden": 8,
            "examples": 5,
            "particles": 5,
            "only": ["autoencoder", "TopK"],
            "out": "records",
            "models": "records",
        },
        "records",
    ),
    "pyro_table": ({"only": "part 1", "steps": 2, "rounds": 1, "modes": ["eager"]}, "pyro_programs"),
    "tables/everyday": ({"options": ["--epochs", "1", "--particles", "5"], "only": ["iris.csv", "linnerud"]}, "everyday.json"),
    "tables/imputation": ({"seeds": 1, "epochs": 1, "draws": 2, "only": ["wine"]}, "imputation.json"),
    "benchmarks/lines": ({"lines": ["table"], "rounds": 1, "rivals": ["pyroae, traced", "by hand", "pyro.infer.SVI"]}, "lines"),
    "benchmarks/startup": ({"rounds": 1, "epochs": 4, "graphs": False}, "startup"),
    "benchmarks/trust": (
        {"data": 3, "epochs": 1, "particles": 30, "seeds": 2, "chains": 2, "temperatures": 4, "cases": ["digits"]},
        "trust",
    ),
    "benchmarks/trust_parts": (
        {"data": 3, "epochs": 1, "particles": 30, "latent_dim": 2, "hidden": 4, "only": ["Normal with holes likelihood", "Laplace prior"]},
        "trust_parts",
    ),
    "benchmarks/smoke_gpu": ({"device": "cpu", "only": ["recorded step", "no wait for the device"]}, "smoke_gpu"),
    "benchmarks/step_operations": ({"hidden": [8], "latent_dim": 2, "batch_size": 10}, "step_operations"),
    "benchmarks/likelihood": ({"data": 1, "particles": 10, "batch_sizes": [], "repeats": 1}, "likelihood"),
}

ELSEWHERE = ["pyro_examples", "reference"]  # have tests of their own


@pytest.fixture(autouse=True)
def _as_for_scripts(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)  # they can import their neighbours
    monkeypatch.syspath_prepend(EXAMPLES / "benchmarks")


@pytest.mark.parametrize(
    "name", [path.stem for path in EXAMPLES.glob("*.py") if path.stem not in ELSEWHERE] + [name for name in SMALL if "/" in name]
)
def test_example(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = imported(name)
    arguments, made = SMALL[name]
    module.main(**arguments)
    assert {path.name if "." in (made or "") else path.stem for path in tmp_path.iterdir()} == ({made} if made else set())


REPRODUCED = {  # arguments, the record written
    "vae": ({}, "vae"),
    "iwae": ({"k": 2, "layers": 2}, "iwae-k2-2-layer-static"),
    "priors": ({"prior": "VampPrior"}, "priors-VampPrior"),
    "ppca": ({}, "ppca"),
    "contractive": ({}, "contractive-plain"),
    "stacked": ({}, "SDAE-3"),
}


@pytest.mark.parametrize("name", REPRODUCED)
def test_reproduction(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(EXAMPLES / "reproduce")
    arguments, made = REPRODUCED[name]
    main = imported(f"reproduce/{name}").main
    main(**arguments, quick=True, out="results")
    found = Path("results", f"{made}.json").read_text()
    main(**arguments, quick=True, out="results")  # it is there, and nothing is done again
    assert Path("results", f"{made}.json").read_text() == found and math.isfinite(json.loads(found)["ours"])
    model = next(Path("runs").glob("*/model.safetensors"), None)
    if name in ("vae", "priors"):
        value = json.loads(found)["adaptive"]["log p(x)"]
        assert math.isfinite(value) and f"{value:.2f}" in imported("reproduce/common").table("results") and pa.load(model)
    if name == "iwae":
        assert [row["passes"] for row in json.loads(found)["curve"]] == [1, 4]
        imported("reproduce/annealing").main(str(model), quick=True, out="results")
        assert "BDMC" in imported("reproduce/common").table("results")


def test_the_curves_of_the_records(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES / "reproduce")
    for path in (EXAMPLES / "reproduce/results").glob("*.json"):
        shutil.copy(path, tmp_path)
    imported("reproduce/curves").main(out=str(tmp_path))
    assert (tmp_path / "curves.png").exists()


def test_the_readme_has_the_table_of_results(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES / "reproduce")
    assert imported("reproduce/common").table() in (EXAMPLES / "reproduce/README.md").read_text()


@pytest.mark.parametrize("name", ["modalities", "invariance"])
def test_the_readme_has_the_rows_of_the_record(name):
    rows, page = json.loads((EXAMPLES / f"{name}.json").read_text()), (EXAMPLES / "README.md").read_text()
    assert rows and all("| " + " | ".join(row.values()) + " |" in page for row in rows)


def test_the_readme_has_the_tables_of_speed():
    assert imported("benchmarks/speed").text() in (EXAMPLES / "benchmarks/README.md").read_text()


def test_the_readme_has_the_table_of_lines():
    found = json.loads((EXAMPLES / "benchmarks/lines.json").read_text())["seconds a step"]
    assert imported("benchmarks/lines").table(found) in (EXAMPLES / "benchmarks/README.md").read_text()
    assert len(found) == len(imported("benchmarks/lines").LINES)


def test_the_first_page_has_the_speed_of_the_records():
    """Median ratios of a round, 784-400-20: each rival's time over that of a compiled step."""
    page = " ".join((EXAMPLES.parent / "README.md").read_text().split())
    for name in ("training", "training-xeon", "training-h200"):
        seconds = json.loads((EXAMPLES / f"benchmarks/{name}.json").read_text())["seconds"]["networks"]["784-400-20"]
        ratio = {rival: median(b / a for a, b in zip(seconds["pyroae, compiled"], times)) for rival, times in seconds.items()}
        ours = [ratio[rival] for rival in ("pyro.infer.SVI, validation off", "pythae", "by hand, torch.compile", "NumPyro, jitted epoch")]
        assert ", ".join(f"{each:.1f}" for each in ours) in page, ours


@pytest.mark.parametrize("name", ["table", "counts", "vamp", "flow", "dictionary", "conv", "cells"])
def test_rivals_by_hand_have_as_many_parameters_and_a_loss_near_ours(name):
    line = imported("benchmarks/lines").LINES[name]
    x = line.data()[: line.batch]
    model, guide = line.pyroae()
    loss = sum(TraceMeanField_ELBO().loss(model, guide, x) for _ in range(3)) / 3
    module = line.by_hand()
    assert loss == pytest.approx(sum(module(x).item() for _ in range(3)) / 3, rel=0.3)
    ours = {p for program in (model, guide) if isinstance(program, torch.nn.Module) for p in program.parameters()}
    assert sum(p.numel() for p in ours) == sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("name", ["table", "counts", "vamp", "flow", "dictionary", "conv", "cells"])
def test_rivals_of_numpyro_have_a_loss_near_that_by_hand(name):
    pytest.importorskip("numpyro", reason="NumPyro is in the extra 'benchmarks'")
    lines = imported("benchmarks/lines")
    line = lines.LINES[name]
    x = line.data()[: line.batch]
    by_hand = sum(line.by_hand()(x).item() for _ in range(3)) / 3
    assert lines.numpyros(line)([(x,)]) == pytest.approx(by_hand, rel=0.3)


def test_what_auto_loses_is_counted_against_the_best_mode_that_could_be_chosen():
    auto = imported("benchmarks/auto")
    seconds = {"eager": [3.0, 3.0], "traced": [2.0, 2.0], "compiled, kept": [1.0, 2.0], "auto, kept": [1.1, 2.4]}
    seconds |= {"compiled, cold": [9.0, 9.0], "auto, cold": [2.5, 2.5]}
    row = auto.table([{"steps": 10, "seconds": seconds}]).splitlines()[-1]
    assert row == "| 10 | 3.00 | 2.00 | 1.50 | 1.75 (1.15) | 9.00 | 2.50 (1.25) |"


def test_the_readme_has_the_table_of_auto():
    rows = json.loads((EXAMPLES / "benchmarks/auto.json").read_text())["runs"]
    assert imported("benchmarks/auto").table(rows) in (EXAMPLES / "benchmarks/README.md").read_text()


def test_the_cost_of_the_adaptive_proposal_is_that_of_calls_after_the_first():
    adaptive, exact = imported("benchmarks/adaptive"), linear_gaussian()
    found = adaptive.measure(exact.ae, exact.x[:3], "eager", 30, 2)
    assert [len(each) for each in found["seconds"].values()] == [3, 3] and 0 <= found["reliable"] <= 1
    row = {"model": "m", "compile": "eager", "seconds": {"guide": [9.0, 1.0, 2.0, 4.0], "auto": [9.0, 2.0, 6.0, 8.0]}, "reliable": 0.5}
    assert adaptive.table([row]).splitlines()[-1] == "| m | eager | 2.00 | 6.00 | 2.00 | 1.00 | 50.0% |"


def test_the_readme_has_the_table_of_the_adaptive_proposals_cost():
    rows = json.loads((EXAMPLES / "benchmarks/adaptive.json").read_text())["rows"]
    assert imported("benchmarks/adaptive").table(rows) in (EXAMPLES / "benchmarks/README.md").read_text()


def test_the_readme_has_the_tables_of_trust():
    page, tables = (EXAMPLES / "benchmarks/README.md").read_text(), imported("benchmarks/trust")
    rows = json.loads((EXAMPLES / "benchmarks/trust.json").read_text())["rows"].values()
    assert {row["model"] for row in rows} == set(tables.CASES) and {row["proposal"] for row in rows} >= set(tables.PROPOSALS)
    parts = json.loads((EXAMPLES / "benchmarks/trust_parts.json").read_text())["rows"]
    for cells in [[row[column] for column in tables.HEAD] for row in rows] + [[name, *cells] for name, cells in parts.items()]:
        assert "| " + " | ".join(cells) + " |" in page, cells


def test_the_recorded_adaptive_scores_are_reliable_for_nine_digits_in_ten():
    rows = json.loads((EXAMPLES / "benchmarks/trust_parts.json").read_text())["rows"]
    assert len(rows) == 13 and min(float(cells[1].strip("%")) for cells in rows.values()) >= 90


def test_kept_weights_are_small_and_of_those_records():
    kept = sorted((EXAMPLES / "reproduce/weights").glob("*.safetensors"))
    assert {path.stem for path in kept} >= {"vae", "priors-Normal", "iwae-k1-1-layer-static"}
    assert sum(path.stat().st_size for path in kept) < 10e6
    for path in kept:
        assert pa.load(path).likelihood.event_shape and (EXAMPLES / f"reproduce/results/{path.stem}.json").exists()


@pytest.mark.parametrize("name", ["vae", "priors-Normal", "iwae-k1-1-layer-static"])
def test_kept_weights_have_the_recorded_score(name, real_data):
    record = json.loads((EXAMPLES / f"reproduce/results/{name}.json").read_text())
    test = pa.data.load("binarized-mnist").test
    elbo = pa.elbo_terms(pa.load(EXAMPLES / f"reproduce/weights/{name}.safetensors"), test, particles=1).elbo
    assert elbo.mean().item() == pytest.approx(record["ELBO"], abs=0.15)  # one draw of each of 10,000 digits: s.e. below .03


def test_the_readmes_result_is_that_of_the_record():
    record = json.loads((EXAMPLES / "reproduce/results/iwae-k1-1-layer-static.json").read_text())
    claim = f"log p(x) = {record['ours']:.2f} ± {record['sampling s.e.']:.2f} nats per digit"
    assert claim in (EXAMPLES.parent / "README.md").read_text(), claim


def test_objectives_goes_on_where_it_was_and_refuses_other_settings(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main, small = imported("objectives").main, SMALL["objectives"][0]
    main(**small, only=["VAE"])
    first = json.loads(Path("objectives.json").read_text())["rows"]
    main(**small, only=["VAE", "IWAE 5"])
    second = json.loads(Path("objectives.json").read_text())["rows"]
    assert list(second) == ["VAE", "IWAE 5"] and second["VAE"] == first["VAE"]
    with pytest.raises(ValueError, match="is of other settings"):
        main(**small | {"epochs": 2})


def test_both_readings_of_the_bound_and_the_gap():
    exact = linear_gaussian(widen=1.3)  # KL(q || p(z|x)) of two Normals around one mean
    gap = 3 * ((1.3**2 - 1) / 2 - math.log(1.3))
    found = imported("bound").readings(exact.ae, exact.x, 2000)
    assert found["gap"] == pytest.approx(gap, abs=0.03) and found["log p(x)"] == pytest.approx(exact.log_p.mean().item(), abs=0.02)
    for reading in ("E log p(x|z) - KL", "E log p(x,z) + H"):
        assert found[reading] == pytest.approx(exact.log_p.mean().item() - gap, abs=0.03)


def test_ten_draws_have_a_tenth_of_the_gradients_variance(grey):
    vae = pa.recipes.vae(grey)
    found = imported("bound").noise(vae, grey.train.x[:64], 60)
    for name in ("Monte-Carlo KL", "closed-form KL"):
        one, ten = (found[f"gradient's variance, {name}, L = {n}"] for n in (1, 10))
        assert ten == pytest.approx(one / 10, rel=0.4)


@pytest.mark.slow
def test_both_critics_bring_the_codes_to_what_they_should_be(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main, after = imported("adversarial").main, {}
    for kind, weight in (("adversarial", 3.0), ("factor", 10.0), ("factor", 0.0)):
        main(kind=kind, weight=weight)
        after[kind, weight] = json.loads(Path("adversarial.json").read_text())["after"]
    assert after["adversarial", 3.0]["mmd"] < 0.1
    assert after["factor", 10.0]["total correlation"] < 0.6 * after["factor", 0.0]["total correlation"]


def test_a_critic_of_images_learns_to_tell_and_the_vae_to_reconstruct(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    imported("adversarial").main(kind="vae_gan", epochs=6, hidden=32, weight=0.3)
    found = json.loads(Path("adversarial.json").read_text())
    assert found["after"]["reconstruction"] > found["before"]["reconstruction"] + 5


def test_dictionaries_from_memory_and_from_disk(tmp_path, capsys):
    dictionaries = imported("dictionaries/dictionaries")
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(10_200, 6)).astype(np.float16))
    for kind in ("TopK", "BatchTopK", "JumpReLU", "Gated"):
        dictionaries.pareto(str(tmp_path / "x.npy"), kind, ks=[8], atoms=16, epochs=1)
    assert capsys.readouterr().out.count("| pyroae, ") == 4
    dictionaries.stream(str(tmp_path), n=3000, d=8, atoms=4, active=2, block=1000)
    assert "3,000 rows of 8 numbers" in capsys.readouterr().out and not (tmp_path / "rows.npy").exists()


def test_the_readme_has_the_table_of_the_budget(monkeypatch):
    assert imported("budget/budget").table() in (EXAMPLES / "budget/README.md").read_text()
