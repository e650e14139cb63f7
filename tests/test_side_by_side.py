"""The page that compares libraries: every line on it runs."""

import re
from pathlib import Path

import pytest
import torch
from test_examples import EXAMPLES, SMALL, imported

import pyroae as pa

PAGE = (Path(__file__).parents[1] / "examples" / "side_by_side.md").read_text()
TABLES = PAGE.partition("\n## ")[2]
ROWS = [re.split(r"(?<!\\)\|", line)[1:-1] for line in TABLES.splitlines() if line.startswith("| ")]
ROWS = [[cell.strip() for cell in row] for row in ROWS if row[1].strip() != "here"]
LINES = {f"{name}: {line}"[:60]: line.strip("`") for name, line, _ in ROWS if line != "no"}


@pytest.fixture(scope="module")
def names():
    """What the lines use."""
    block = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL).group(1)
    found: dict = {}
    torch.manual_seed(0)
    exec(block, found)  # noqa: S102 (our own page)
    return found


def test_every_row_has_a_line_or_a_reason():
    assert len(ROWS) == 26 + 10 + 7 + 8
    assert all((line == "no" and reason) or re.fullmatch("`.+`", line) for _, line, reason in ROWS)


@pytest.mark.parametrize("line", [line for line in LINES.values() if not line.startswith("python ")])
def test_a_line_is_a_model_that_trains(line, names):
    ae = eval(line, names)  # noqa: S307 (our own page)
    assert isinstance(ae, pa.Autoencoder)
    x, *others = arguments(ae, names)
    history = pa.fit(ae, (x, *others) if others else x, epochs=2, batch_size=32, compile="eager", progress=False, seed=0)
    assert torch.isfinite(torch.tensor(history.loss)).all() and any(p.requires_grad for p in ae.parameters())


def arguments(ae, names):
    """A few rows of what a model is trained on."""
    labels = names["data"].train.labels[:64]
    if "Poisson" in repr(ae.likelihood) or "Binomial" in repr(ae.likelihood):
        return (names["counts"].train.x[:64],)
    x = names["data"].train.x[:64]
    if ae.inputs is not None:
        return torch.randn(64, 100), x
    return (x,) if ae.condition is None else (x, labels)


@pytest.mark.parametrize("line", [line for line in LINES.values() if line.startswith("python ")])
def test_a_command_runs(line, tmp_path, monkeypatch):
    _, script, option, value = line.split()
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(EXAMPLES)
    imported(Path(script).stem).main(**SMALL["adversarial"][0], **{option.removeprefix("--"): value})
    assert (tmp_path / "adversarial.json").exists()
