"""Faults on purpose: processes killed at random moments, damaged files, a full disk. Nothing that was learned may be lost.

The short form runs with the other tests. The long one prints a table, row by row (``-k compiled``: one of them):

    PYROAE_TRIALS=50 uv run pytest -n 0 -m slow tests/test_faults.py -s
"""

import functools
import logging
import math
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import processes, small_vae
from safetensors.torch import load_file, save_file
from torch.optim import lr_scheduler

import pyroae as pa
from pyroae.training.checkpoints import Checkpoints

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are killed as Linux does it")


def train(mode, folder, acknowledged=None):
    """Warm-up, dynamic binarization, corruption, a scheduler, early stopping; written to ``end.safetensors`` when it is over."""
    torch.set_num_threads(1)
    torch.manual_seed(7)
    data = pa.data.load("digits", binarize="dynamic", validation=0.1)
    ae = small_vae(corruption=pa.corruption.Masking(0.2))
    if acknowledged is not None:
        write = Checkpoints.write

        def writing(self, state):
            write(self, state)
            acknowledged.value = state["step"]

        Checkpoints.write = writing
    history = pa.fit(
        ae,
        data.train,
        validation=pa.Validation(data.validation, patience=3),
        elbo=pa.objectives.Tempered(pa.schedules.Linear(150)),
        scheduler=functools.partial(lr_scheduler.StepLR, step_size=2, gamma=0.8),
        lr=3e-2,
        epochs=8,
        batch_size=32,
        seed=3,
        compile=mode,
        progress=False,
        run=pa.Run(folder, resume=True, save_every=0.05),
    )
    rows = torch.tensor([[row[name] for name in ("epoch", "loss", "validation_loss", "lr")] for row in history.rows], dtype=torch.float64)
    save_file({**{name: tensor.contiguous() for name, tensor in ae.state_dict().items()}, "rows": rows}, folder / "end.safetensors")


def busy(process):
    """Seconds that a process has computed, which goes by its work however busy the machine is; none once it is over."""
    try:
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def run(mode, folder, kill_after=math.inf):
    """Train in a process of its own, killed after so many seconds of work; the seconds, the last step written for sure, if it ended."""
    folder.mkdir(exist_ok=True)
    acknowledged = processes().Value("q", -1)
    process = processes().Process(target=train, args=(mode, folder, acknowledged))
    process.start()
    seconds = 0.0
    while process.is_alive() and seconds < kill_after:
        seconds = max(seconds, busy(process))
        time.sleep(0.005)
    process.kill()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return seconds, acknowledged.value, process.exitcode == 0


def trial(mode, folder, longest, generator):
    """Kill a run, often twice, and go on with it; the steps lost of those that were written, and the end."""
    lost = killed = 0
    for _ in range(2):
        _, step, ended = run(mode, folder, generator.uniform(0, longest))
        killed += not ended
        found = Checkpoints(folder).newest()
        lost += max(0, step - (found["step"] if found else -1))
        if ended:
            break
    run(mode, folder)
    return killed, lost, load_file(folder / "end.safetensors")


def kills(mode, trials, folder):
    """A row of the table: how many trials, kills, lost steps and ends that differ from the run that was never stopped."""
    run(mode, folder / "warm")
    longest, _, _ = run(mode, folder / "whole")
    end = load_file(folder / "whole/end.safetensors")
    totals, generator = [0, 0, 0], random.Random(0)
    for i in range(trials):
        killed, lost, other = trial(mode, folder / str(i), longest, generator)
        differs = end.keys() != other.keys() or not all(torch.equal(end[name], other[name]) for name in end)
        totals = [a + b for a, b in zip(totals, (killed, lost, differs))]
    return {"fault": f"SIGKILL, {mode}", "trials": trials, "faults": totals[0], "lost": totals[1], "ends that differ": totals[2]}


def truncated(path, generator):
    path.write_bytes(path.read_bytes()[: generator.randrange(path.stat().st_size)])


def edited(path, generator):
    content = bytearray(path.read_bytes())
    content[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
    path.write_bytes(content)


def torn(path, generator):
    """Blocks that never reached the disk read as zeros."""
    content = bytearray(path.read_bytes())
    start = generator.randrange(len(content))
    content[start : start + 512] = bytes(len(content[start : start + 512]))
    path.write_bytes(content)


def foreign(path, generator):
    save_file({"x": torch.zeros(3)}, path)


DAMAGES = {"truncated": truncated, "a bit flipped": edited, "a block of zeros": torn, "foreign": foreign}


def damages(name, trials, folder):
    """The newest file damaged: the one before it must be found, whole."""
    folder.mkdir(exist_ok=True)
    generator, states, lost, faults = random.Random(1), Checkpoints(folder), 0, 0
    states.folder.mkdir(exist_ok=True)
    for _ in range(trials):
        for step in (1, 2):
            states.write({"step": step, "weights": {"w": torch.full((500,), float(step))}, "history": [{"loss": 1.5}] * 20})
        newest = states.paths()[0]
        before = newest.read_bytes()
        DAMAGES[name](newest, generator)
        if newest.read_bytes() == before:
            continue
        faults += 1
        found = states.newest()
        lost += found["step"] != 1 or not torch.equal(found["weights"]["w"], torch.ones(500))
    return {"fault": name, "trials": trials, "faults": faults, "lost": lost}


def full_disk(folder):
    """A file system that holds the first checkpoints but not all that are written."""
    folder.mkdir(exist_ok=True)
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", folder], capture_output=True).returncode:
        return None
    try:
        written, lost, faults, states = [], 0, 0, Checkpoints(folder)
        states.folder.mkdir()
        for step in range(1, 12):
            try:
                states.write({"step": step, "w": torch.full((step * 10_000,), float(step))})
                written.append(step)
            except OSError:
                faults += 1
            lost += states.newest()["step"] != written[-1]
        return {"fault": "full disk", "trials": 11, "faults": faults, "lost": lost}
    finally:
        subprocess.run(["umount", folder], check=True)


def table(rows):
    names = ["fault", "trials", "faults", "lost", "ends that differ"]
    lines = [names, *([str(row.get(name, "")) for name in names] for row in rows)]
    return "\n".join("  ".join(f"{cell:>{max(len(line[i]) for line in lines)}}" for i, cell in enumerate(line)) for line in lines)


def check(rows):
    assert all(row["faults"] > 0 and row["lost"] == 0 and not row.get("ends that differ") for row in rows), "\n" + table(rows)


@pytest.fixture(autouse=True)
def _quiet_log(caplog):
    caplog.set_level(logging.CRITICAL, "pyroae")


def test_the_newest_file_damaged(tmp_path):
    check([damages(name, 15, tmp_path / name) for name in DAMAGES])


def test_killed_and_taken_up_again(tmp_path):
    row = kills("eager", 2, tmp_path)
    assert row["lost"] == row["ends that differ"] == 0


@pytest.mark.slow
def test_many_damages_and_a_full_disk(tmp_path):
    rows = [damages(name, 300, tmp_path / name) for name in DAMAGES]
    rows += [row for row in [full_disk(tmp_path / "small")] if row]
    print("\n" + table(rows))
    check(rows)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["eager", "traced", "compiled"])
def test_many_kills(mode, tmp_path):
    row = kills(mode, int(os.environ.get("PYROAE_TRIALS", "50")), tmp_path)
    print("\n" + table([row]))
    check([row])
