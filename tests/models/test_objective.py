"""Where cells are averaged and global terms divided."""

from __future__ import annotations

import torch

from countvi.models.objective import Elbo, Objective


def vector(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


ELBO = Elbo(
    log_lik={"rna": vector(-10.0, -20.0), "protein": vector(-1.0, -3.0)},
    kl={"z": vector(2.0, 4.0), "log_library": vector(0.5, 1.5)},
    log_prior={"beta": torch.tensor(-50.0, dtype=torch.float64)},
)


def test_per_cell_numbers():
    torch.testing.assert_close(ELBO.reconstruction, vector(11.0, 23.0))
    torch.testing.assert_close(ELBO.divergence, vector(2.5, 5.5))
    torch.testing.assert_close(ELBO.per_cell, vector(-13.5, -28.5))


def test_loss_weights_only_what_is_annealed_and_spreads_global_terms():
    loss = Objective(n_cells=100, annealed=frozenset({"z"})).loss(ELBO, kl_weight=0.25)
    assert loss.item() == 17.0 + 0.25 * 3.0 + 1.0 + 50.0 / 100
    both = Objective(n_cells=100, annealed=frozenset({"z", "log_library"})).loss(ELBO, kl_weight=0.0)
    assert both.item() == 17.0 + 0.5


def test_at_full_weight_the_loss_is_the_negative_elbo():
    plain = Elbo(log_lik=ELBO.log_lik, kl=ELBO.kl)
    loss = Objective(n_cells=100, annealed=frozenset({"z"})).loss(plain, kl_weight=1.0)
    torch.testing.assert_close(loss, -plain.per_cell.mean())
