"""Results that take minutes: uv run pytest -m slow."""

import json
import re

import pytest

from pyroae.cli import main


@pytest.mark.slow
def test_mnist_reaches_the_promised_elbo(real_data, tmp_path, capsys):
    assert main(["train", "--data", "mnist", "--particles", "10", "--out", str(tmp_path / "run")]) == 0
    results = json.loads((tmp_path / "run/results.json").read_text())
    assert results["elbo"] > -102
    assert re.search(r"20 epochs of \w+ in \d+\.\d s", capsys.readouterr().out)
