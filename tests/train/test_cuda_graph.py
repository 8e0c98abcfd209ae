"""Steps whose cells lie on the device: the same training, whether they are recorded or not."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from countvi.batch import RNA, Batch, CountBlock, Design
from countvi.errors import TrainingWarning
from countvi.train import loop
from countvi.train.cuda_graph import CudaGraphSteps, StepParts
from countvi.train.resident import Resident

CPU = torch.device("cpu")


def block(matrix: np.ndarray) -> CountBlock:
    csr = sp.csr_matrix(matrix)
    arrays = (csr.data.astype(np.float32), csr.indices.astype(np.int64), csr.indptr.astype(np.int64))
    return CountBlock(*map(torch.from_numpy, arrays), n_features=matrix.shape[1])


def design(codes: np.ndarray) -> Design:
    return Design(torch.from_numpy(codes)[:, None], torch.zeros(len(codes), 0))


def counts(n_cells: int, n_genes: int, seed: int = 0) -> np.ndarray:
    x = np.random.default_rng(seed).poisson(0.4, (n_cells, n_genes)).astype(np.float32)
    x[n_cells // 2] = 0.0
    return x


@pytest.mark.parametrize(("n_cells", "n_genes"), [(1, 1), (5, 3), (41, 40)])
def test_rows_are_those_of_the_matrix(n_cells, n_genes):
    x, codes = counts(n_cells, n_genes), np.arange(n_cells)
    parts = [
        Batch({RNA: block(part)}, design(at))
        for part, at in zip(np.array_split(x, 3), np.array_split(codes, 3), strict=True)
        if len(part)
    ]
    resident = Resident.join(parts, CPU, torch.float64, limit=1e9)
    rows = np.random.default_rng(1).integers(0, n_cells, 7)
    batch = resident.batch(torch.from_numpy(rows))
    taken = batch.counts[RNA]
    np.testing.assert_array_equal(taken.to_dense().numpy(), x[rows])
    np.testing.assert_array_equal(taken.totals().numpy(), x[rows].sum(1))
    np.testing.assert_array_equal(batch.design.codes[:, 0].numpy(), rows)
    assert taken.values.dtype == torch.float64
    assert taken.values.shape == (7 * n_genes,)


def test_without_a_single_count():
    parts = [Batch({RNA: block(np.zeros((4, 3), np.float32))}, design(np.arange(4)))]
    taken = Resident.join(parts, CPU, torch.float32, limit=1e9).batch(torch.tensor([3, 0]))
    assert taken.counts[RNA].to_dense().tolist() == [[0.0] * 3] * 2


def test_what_does_not_fit_stays_where_it_is():
    parts = [Batch({RNA: block(counts(50, 40))}, design(np.arange(50)))]
    assert Resident.join(parts, CPU, torch.float32, limit=1e3) is None


def unrecorded(run) -> CudaGraphSteps:
    """What a run on a GPU prepares, on the CPU."""
    resident = run.loader.resident(CPU, run.dtype, 1e9)
    parts = StepParts(run.loss_module, run.parameters, run.optimizer, run.plan.gradient_clip_val)
    return CudaGraphSteps(parts, resident, CPU, record=False)


@pytest.mark.parametrize("options", [{}, {"plan_kwargs": {"gradient_clip_val": 1.0, "weight_decay": 0.1}}])
def test_the_same_training_as_step_by_step(tiny, monkeypatch, options):
    by_step = tiny.train(tiny.make(), 4, precision="64-true", **options)
    monkeypatch.setattr(loop._Run, "_record", unrecorded)
    at_once = tiny.train(tiny.make(), 4, precision="64-true", **options)
    for name, weight in tiny.weights(by_step).items():
        torch.testing.assert_close(tiny.weights(at_once)[name], weight, rtol=1e-5, atol=1e-7, msg=name)
    for column in ("train_loss", "elbo_train", "kl_z_train", "elbo_validation", "lr", "kl_weight"):
        np.testing.assert_allclose(at_once.history[column], by_step.history[column], rtol=1e-6, err_msg=column)


def test_a_step_that_is_not_finite_is_looked_at(tiny, monkeypatch):
    monkeypatch.setattr(loop._Run, "_record", unrecorded)
    take, seen = CudaGraphSteps._work, []

    def spoiled(self, size):
        take(self, size)
        seen.append(size)
        if len(seen) == 5:  # in the second epoch
            self._loss.fill_(torch.nan)
            with torch.no_grad():
                for parameter in self._parts.loss_module.parameters():
                    parameter.fill_(torch.nan)

    monkeypatch.setattr(CudaGraphSteps, "_work", spoiled)
    model = tiny.train(tiny.make(), 4)
    assert len(seen) == 6, "the rest is taken step by step"
    assert len(model.history["train_loss"]) == 4
    assert np.isfinite(model.history["train_loss"].to_numpy()).all()


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@needs_gpu
def test_recorded_on_a_gpu(tiny, monkeypatch):
    with warnings.catch_warnings():
        warnings.simplefilter("error", TrainingWarning)  # said where recording fails
        recorded = tiny.train(tiny.make(), 6, accelerator="cuda")
    monkeypatch.setattr(loop._Run, "_record", lambda run: None)
    by_step = tiny.train(tiny.make(), 6, accelerator="cuda")
    np.testing.assert_allclose(recorded.history["train_loss"], by_step.history["train_loss"], rtol=1e-3)
    for name, weight in tiny.weights(by_step).items():
        torch.testing.assert_close(tiny.weights(recorded)[name], weight, rtol=1e-2, atol=1e-3, msg=name)


@needs_gpu
def test_the_same_bits_twice_on_a_gpu(tiny):
    first, second = (tiny.weights(tiny.train(tiny.make(), 6, accelerator="cuda")) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
