"""Every example runs, with small arguments."""

import importlib.util
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
SMALL = {
    "vae": ({"epochs": 1, "particles": 5, "hidden": 16}, "vae.png"),
    "semi_supervised": ({"epochs": 1, "hidden": 8, "code": 2}, None),
    "priors": ({"epochs": 1, "particles": 5, "hidden": 8, "code": 4, "components": 3}, "priors.json"),
}


@pytest.mark.parametrize("name", [path.stem for path in EXAMPLES.glob("*.py")])
def test_example(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    arguments, made = SMALL[name]
    module.main(**arguments)
    assert [path.name for path in tmp_path.iterdir()] == ([made] if made else [])
