"""Draws from a guide in runs."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch

from countvi.batch import Design
from countvi.nn.latent import Gaussian, Given, Latent
from countvi.query.draws import RunningMean, Stream, at_counterfactual, draw, generator, posterior_mean, sample_chunks


class Latents(NamedTuple):
    z: Latent
    log_library: Latent


@pytest.mark.parametrize("n_samples", [1, 7, 12])
@pytest.mark.parametrize("n_cells", [0, 1, 3, 50])
@pytest.mark.parametrize("chunk", [1, 4, 10])
def test_chunks_cover_all_samples_and_stay_within_the_chunk(n_samples, n_cells, chunk):
    runs = list(sample_chunks(n_samples, n_cells, chunk))
    assert [i for run in runs for i in range(run.start, run.stop)] == list(range(n_samples))
    sizes = [run.stop - run.start for run in runs]
    assert all(size == 1 or size * n_cells <= chunk for size in sizes)


def test_draws_do_not_depend_on_the_split_into_runs(tiny):
    q = Latents(Gaussian(torch.zeros(5, 3), torch.ones(5, 3)), Given(torch.arange(5.0)))
    model = tiny.model()
    whole = draw(model, q, generator(1, Stream.STATES), 7)
    source = generator(1, Stream.STATES)
    parts = [draw(model, q, source, n) for n in (2, 4, 1)]
    assert whole.z.shape == (7, 5, 3)
    assert torch.equal(whole.z, torch.cat([part.z for part in parts]))
    assert torch.equal(whole.log_library, torch.arange(5.0))


def test_posterior_mean_of_a_logarithm_is_the_log_of_the_mean():
    log_library = Gaussian(torch.tensor([2.0]), torch.tensor([0.5]), event_dims=0)
    mean = posterior_mean(Latents(Gaussian(torch.tensor([[1.0, 3.0]]), torch.ones(1, 2)), log_library))
    assert torch.equal(mean.z, torch.tensor([[1.0, 3.0]]))
    samples = log_library.rsample(generator(0, Stream.LIBRARY), 400_000).double().exp()
    error = samples.std().item() / samples.shape[0] ** 0.5
    assert abs(samples.mean().item() - mean.log_library.exp().item()) < 4 * error


def test_running_mean_equals_the_mean():
    values = torch.rand(100, 4, generator=generator(0, Stream.STATES))
    mean = RunningMean()
    for part in values.split([1, 49, 30, 20]):
        mean.add(part)
    torch.testing.assert_close(mean.result(), values.mean(0))


def test_running_mean_keeps_digits_over_many_passes():
    mean = RunningMean()
    block = torch.full((1, 3), 0.1)
    for _ in range(20_000):
        mean.add(block)
    torch.testing.assert_close(mean.result(), block[0], rtol=1e-6, atol=0.0)


def test_streams_differ():
    numbers = {torch.rand(1, generator=generator(0, stream)).item() for stream in Stream}
    assert len(numbers) == len(Stream)


def test_counterfactual_replaces_one_column():
    design = Design(codes=torch.tensor([[0, 1], [2, 1]]), continuous=torch.zeros(2, 0))
    assert at_counterfactual(design, None) is design
    assert at_counterfactual(design, (0, 1)).codes.tolist() == [[1, 1], [1, 1]]
    assert design.codes.tolist() == [[0, 1], [2, 1]]


def test_several_covariates_can_be_changed_at_once():
    design = Design(torch.tensor([[0, 1, 2], [3, 4, 5]]), torch.zeros(2, 0))
    assert at_counterfactual(design, {0: 7, 2: 8}).codes.tolist() == [[7, 1, 8], [7, 4, 8]]
    assert at_counterfactual(design, (1, 9)).codes.tolist() == [[0, 9, 2], [3, 9, 5]]
    assert at_counterfactual(design, None) is design
