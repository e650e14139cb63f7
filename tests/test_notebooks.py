"""Every notebook runs from a clean kernel, in a short form; as committed it was executed, is small, and has more prose than code."""

import os
import re
from pathlib import Path

import nbformat
import pytest
from conftest import processes
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def kernel(connection: str, folder: Path):
    """A kernel whose process has imported modules and nothing else."""
    from ipykernel.kernelapp import IPKernelApp

    os.chdir(folder)
    os.environ["PYROAE_QUICK"] = "1"
    IPKernelApp.launch_instance(["-f", connection, "--log-level=ERROR"])


class Forked(AsyncKernelManager):
    """Starts kernels from one process that has imported torch already: that takes seconds, for every kernel."""

    process = None

    async def start_kernel(self, cwd, **_):
        self.write_connection_file()
        self.process = processes().Process(target=kernel, args=(self.connection_file, cwd), daemon=True)
        self.process.start()

    @property
    def has_kernel(self):
        return self.process is not None

    async def _async_is_alive(self):
        return self.process.is_alive()

    is_alive = _async_is_alive

    async def shutdown_kernel(self, **_):
        self.process.terminate()
        self.process.join()


@pytest.fixture
def warnings_as_here(request):
    """A cell that filters warnings as this suite does, and draws pictures."""
    asked = [(line.split(":") + [""] * 3)[:4] for line in request.config.getini("filterwarnings")]
    filters = [f"warnings.filterwarnings({action!r}, {text!r}, {kind or 'Warning'}, {where!r})" for action, text, kind, where in asked]
    return nbformat.v4.new_code_cell("\n".join(["import warnings", "%matplotlib inline", *filters]))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path, tmp_path, warnings_as_here):
    notebook = nbformat.read(path, 4)
    notebook.cells.insert(0, warnings_as_here)
    resources = {"metadata": {"path": tmp_path}}
    NotebookClient(notebook, km=Forked(), timeout=300, startup_timeout=300, resources=resources).execute(cleanup_kc=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_committed_executed_and_small(path):
    cells = nbformat.read(path, 4).cells
    code, prose = ([cell for cell in cells if cell.cell_type == kind] for kind in ("code", "markdown"))
    outputs = [output for cell in code for output in cell.outputs]
    assert len(code) <= 15 and words(prose) > words(code)
    assert "you will be able to" in prose[0].source and "find_spec" in code[0].source
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1)) and outputs
    assert {output.output_type for output in outputs} <= {"display_data", "execute_result", "stream"}
    assert all(output.get("name") != "stderr" for output in outputs)
    assert not re.search(r"/(home|root|tmp|work|usr|Users)/|site-packages", path.read_text())
    assert path.stat().st_size < 300_000
    assert f"]({path.name})" in (ROOT / "notebooks/README.md").read_text()


def words(cells):
    return sum(len(cell.source.split()) for cell in cells)
