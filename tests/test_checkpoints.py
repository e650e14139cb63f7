"""A run that was stopped and taken up again ends as if it had not been; no fault loses what was learned."""

import functools

import pytest
import torch
from conftest import small_vae
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader, Dataset

import pyroae as pa
from pyroae.infer import loop

quiet = functools.partial(pa.fit, progress=False)


class Killed(Exception):
    pass


def stopped_after(steps, monkeypatch, train):
    """Run ``train`` with a checkpoint after so many steps, and no further."""
    step = loop.Training._step

    def stopping(self, batch):
        if not steps:
            raise Killed
        step(self, batch)
        if self.step == steps:
            self.save()
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(loop.Training, "_step", stopping)
        with pytest.raises(Killed):
            train()


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


class Noisy(Dataset):
    """Rows with noise of Python's, NumPy's and torch's own."""

    def __len__(self):
        return 60

    def __getitem__(self, i):
        import random

        import numpy as np

        return torch.full((64,), float(torch.rand(()) + np.random.rand() + random.random() > 1.5))


def dynamic():
    return pa.data.load("digits", binarize="dynamic", validation=0.1)


def plain(ae, **more):
    return quiet(ae, dynamic().train.x[:200].round(), epochs=4, batch_size=30, seed=1, **more)


def with_everything(ae, **more):
    data = dynamic()
    return quiet(
        ae,
        data.train,
        validation=data.validation,
        elbo=pa.objectives.Tempered(pa.schedules.Linear(70)),
        scheduler=functools.partial(lr_scheduler.StepLR, step_size=1, gamma=0.7),
        optimizer=torch.optim.RMSprop,
        patience=2,
        epochs=4,
        batch_size=12,
        lr=1e-2,
        seed=1,
        **more,
    )


def of_a_loader(ae, **more):
    loader = DataLoader(Noisy(), batch_size=7, shuffle=True, generator=torch.Generator().manual_seed(5))
    return quiet(ae, loader, epochs=3, seed=1, elbo=pa.Penalised(pa.penalties.L2()), clip=1.0, **more)


def of_the_callers_numbers(ae, **more):
    torch.manual_seed(2)
    return quiet(ae, dynamic().train.x[:100].round(), epochs=3, batch_size=30, accumulate=2, **more)


RUNS = {"plain": plain, "with everything": with_everything, "of a loader": of_a_loader, "of the caller's": of_the_callers_numbers}


@pytest.mark.parametrize("steps", [0, 1, 9, 64, 130])
@pytest.mark.parametrize("run", RUNS)
def test_a_run_goes_on_bit_for_bit(run, steps, tmp_path, monkeypatch):
    whole, half, again = (small_vae_of(0, corruption=pa.corruption.Masking(0.2)) for _ in range(3))
    if steps > 20 and run != "with everything":
        pytest.skip("over by then")
    history = RUNS[run](whole)
    stopped_after(steps, monkeypatch, lambda: RUNS[run](half, run_dir=tmp_path))
    torch.manual_seed(99)
    resumed = RUNS[run](again, resume=tmp_path)
    assert same(whole, again) and not same(whole, half)
    columns = set(history.rows[0]) - {"seconds"}
    assert [{c: row[c] for c in columns} for row in history.rows] == [{c: row[c] for c in columns} for row in resumed.rows]
    assert [row["seconds"] for row in resumed.rows] == sorted(row["seconds"] for row in resumed.rows)


def small_vae_of(seed, **parts):
    torch.manual_seed(seed)
    return small_vae(**parts)
