"""Exported encoders and decoders give the model's own numbers in torch and in onnxruntime, for any number of rows."""

import importlib.util

import numpy as np
import onnxruntime
import pandas as pd
import pytest
import torch
from conftest import small_vae

import pyroae as pa
from pyroae.cli import main


def mixed_table():
    people = pd.DataFrame({"height": np.linspace(1.5, 1.9, 40), "smokes": ["yes", "no"] * 20, "children": [0, 1, 2, 5] * 10})
    return pa.recipes.vae(people, latent_dim=2, hidden=8), people


def gallery():
    torch.manual_seed(0)
    grey = torch.rand(40, 64)
    return {
        "Bernoulli": small_vae(),
        "Normal, learned scale": small_vae(likelihood=pa.likelihoods.Normal(64)),
        "standardised columns": pa.recipes.vae(torch.randn(40, 64) * 5 + 3, latent_dim=4, hidden=8),
        "holes": pa.recipes.vae(grey.round(), latent_dim=4, hidden=8).with_missing(),
        "a mixed table": mixed_table()[0],
        "Delta": pa.recipes.autoencoder(grey, latent_dim=4, hidden=8),
        "dictionary": pa.recipes.sparse(grey, latent_dim=4, hidden=8),
        "FullNormal": small_vae(posterior=pa.posteriors.FullNormal()),
        "mixture prior": small_vae(prior=pa.priors.GaussianMixture(4, components=3)),
        "convolutions": pa.Autoencoder(
            *(pa.priors.Normal(4), pa.likelihoods.Bernoulli(64), pa.posteriors.Normal(), pa.nets.Conv([4, 8]), pa.nets.Deconv([8, 4]))
        ),
        "in double precision": small_vae().double(),
    }


GALLERY = gallery()


def run(path, x, names):
    if path.suffix == ".pt2":
        return [each.numpy() for each in torch.export.load(path).module()(x)]
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    return session.run(names, {given.name: x.numpy()})


@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
@pytest.mark.parametrize("name", GALLERY)
def test_the_numbers_are_the_models(name, suffix, tmp_path):
    ae = GALLERY[name].eval()
    outputs = {part: pa.export(ae, tmp_path / f"{part}{suffix}", part) for part in ("encoder", "decoder")}
    for rows in (1, 7):
        x = (torch.rand(rows, *ae.likelihood.event_shape) > 0.5).to(next(ae.parameters()).dtype)
        z = ae.latent_mean(x)
        expected = {"z": z, "x": ae.likelihood.mean_or_mode(ae.decode(z)).detach()}
        if outputs["encoder"][1:]:
            expected["z_std"] = ae.encode(x).stddev.detach()
        found = {}
        for part, given in (("encoder", x), ("decoder", z)):
            found |= zip(outputs[part], run(tmp_path / f"{part}{suffix}", given, outputs[part]))
        assert found.keys() == expected.keys()
        for output, value in expected.items():
            np.testing.assert_allclose(found[output], value, rtol=1e-4, atol=1e-5)


def test_the_model_is_left_alone(tmp_path):
    ae = small_vae().train()
    before = {name: value.clone() for name, value in ae.state_dict().items()}
    pa.export(ae, tmp_path / "encoder.pt2")
    assert ae.training and all(torch.equal(before[name], value) for name, value in ae.state_dict().items())


BAD = {
    "ending": (lambda ae: pa.export(ae, "encoder.pt"), r"ending in \.onnx or \.pt2, got encoder\.pt"),
    "part": (lambda ae: pa.export(ae, "prior.pt2", "prior"), "'encoder' or 'decoder', got 'prior'"),
    "condition": (lambda ae: pa.export(ae.replace(condition=pa.conditions.Labels(3)), "e.pt2"), "without a condition"),
}


@pytest.mark.parametrize("name", BAD)
def test_errors(name, vae):
    call, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        call(vae)


def test_without_onnx_the_extra_is_named(vae, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"onnx and onnxscript.*pip install 'pyroae\[onnx\]'"):
        pa.export(vae, "encoder.onnx")


def test_the_command_writes_a_runs_halves(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--epochs", "1", "--particles", "5", "--hidden", "8", "--latent_dim", "3"]) == 0
    assert main(["export", "runs/vae-digits-1", "--part", "decoder"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "written        runs/vae-digits-1/decoder.onnx: z (rows, 3) -> x"
    assert main(["export", "runs/vae-digits-1", "--out", "encoder.pt2"]) == 0
    z, ae = torch.randn(5, 3), pa.load("runs/vae-digits-1/model.safetensors")
    (x,) = run(tmp_path / "runs/vae-digits-1/decoder.onnx", z, ["x"])
    np.testing.assert_allclose(x, ae.decode(z).mean.detach(), atol=1e-5)
    assert main(["export", "runs/vae-digits-1", "--part", "prior"]) == 2 and "encoder" in capsys.readouterr().err
