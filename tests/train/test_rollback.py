"""Steps that are not finite: undone, then named."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

import countvi
from countvi import seeding
from countvi.batch import RNA
from countvi.errors import NonFiniteError
from countvi.train.rollback import NonFiniteAt, first_non_finite

NAN = float("nan")


def poison(model, steps: set[int] | None = None, change=None):
    """Make training steps (all of them if none are named) decode something that is not finite."""
    seen = [0]

    def hook(module, inputs, out):
        if not module.training:
            return out
        seen[0] += 1
        if steps is not None and seen[0] not in steps:
            return out
        return out * NAN if change is None else change(out.clone())

    model.module.rho.register_forward_hook(hook)
    return model


def finite(model) -> bool:
    return all(torch.isfinite(tensor).all() for tensor in model.module.state_dict().values())


@pytest.mark.parametrize("steps", [{1}, {5}, {15}, {2, 7}, {4, 5, 6}], ids=str)
def test_a_bad_step_is_undone_and_the_rate_halved(tiny, steps):
    model = tiny.train(poison(tiny.make(), steps), 5, plan_kwargs={"schedule": "constant"})
    history = model.history
    bad = np.array([sum(step <= 3 * (epoch + 1) for step in steps) for epoch in range(5)])
    np.testing.assert_array_equal(history["n_rollbacks"], bad)
    np.testing.assert_allclose(history["lr"], 1e-3 * 0.5**bad)
    assert finite(model) and np.isfinite(history["elbo_validation"]).all()
    assert np.isfinite(model.get_latent_representation()).all()


def test_a_bad_gradient_is_undone(tiny):
    model = tiny.make()
    seen = []

    def hook(grad):
        seen.append(None)
        return grad * NAN if len(seen) == 5 else grad

    model.module.rho.weight.register_hook(hook)
    tiny.train(model, 6)
    assert model.history["n_rollbacks"].iloc[-1] >= 1 and finite(model)
    assert np.isfinite(model.history["elbo_validation"]).all()


def test_a_bad_gradient_in_the_last_step_is_undone(tiny):
    model, seen = tiny.make(), []

    def hook(grad):
        seen.append(None)
        return grad * NAN if len(seen) == 6 else grad

    model.module.rho.weight.register_hook(hook)
    tiny.train(model, 2)
    assert len(seen) == 6 and finite(model) and np.isfinite(model.get_latent_representation()).all()


def test_what_no_minibatch_uses_cannot_hide_in_a_snapshot(tiny):
    """The dispersion of a batch without training cells: the loss does not see when it is not finite."""
    adata = tiny.simulate()
    adata.obs["batch"] = ["north"] + ["east", "west", "west"] * 33
    countvi.SCVI.setup_anndata(adata, batch_key="batch")
    model = countvi.SCVI(adata, n_hidden=8, n_latent=3, gene_likelihood="nb", dispersion="gene-batch")
    seen = []

    def hook(grad):
        seen.append(None)
        if len(seen) != 200:
            return grad
        grad = grad.clone()
        grad[1] = NAN
        return grad

    assert model.registry.batch.n_levels == 3 and list(model.registry.columns[0].categories)[1] == "north"
    model.module.observe.log_theta.value.register_hook(hook)
    rows = np.arange(100)
    tiny.train(model, 80, external_indexing=[rows[10:], rows[1:10], rows[:1]])
    assert len(seen) == 240 and finite(model) and model.history["n_rollbacks"].iloc[-1] == 1


def test_always_bad_names_gene_cell_and_batch(tiny):
    def change(out):
        out[1, 3] = torch.inf
        return out

    model = poison(tiny.make(), change=change)
    with pytest.raises(NonFiniteError) as caught:
        tiny.train(model, 5)
    message = str(caught.value)
    assert "logits of rho" in message and "gene 'gene-3'" in message
    cell, batch = re.search(r"cell '(cell-\d+)', batch '(\w+)'", message).groups()
    assert model.adata.obs.loc[cell, "batch"] == batch
    assert not model.is_trained


def test_always_bad_leaves_finite_weights(tiny):
    model = tiny.make()
    tiny.train(model, 1)
    poison(model)
    with pytest.raises(NonFiniteError):
        tiny.train(model, 5)
    assert finite(model)


def test_a_parameter_is_named(tiny):
    model = tiny.make()
    with torch.no_grad():
        model.module.rho.bias[4] = NAN
    with pytest.raises(NonFiniteError, match=r"parameter rho\.bias"):
        tiny.train(model, 5)


def test_a_run_without_a_single_good_step_is_an_error(tiny):
    with pytest.raises(NonFiniteError, match="logits of rho"):
        tiny.train(poison(tiny.make()), 1)


def problem(tiny, n_cells: int = 20):
    """As many cells as genes, where it is easy to take one for the other."""
    model = tiny.make(n_cells, 20, gene_likelihood="zinb")
    return model.module.train(), model.dataset.batch(np.arange(n_cells))


def find(model, batch) -> NonFiniteAt:
    with seeding.forked(0):
        return first_non_finite(model, batch, seeding.generator(0))


def spoil(module: torch.nn.Module, row: int, column: int | None = None):
    def hook(_, inputs, out):
        out = out.clone()
        out[(row,) if column is None else (row, column)] = NAN
        return out

    return module.register_forward_hook(hook)


@pytest.mark.parametrize("n_cells", [20, 15])
def test_first_non_finite(tiny, n_cells):
    model, batch = problem(tiny, n_cells)
    code = int(batch.design.codes[7, 0])
    assert find(model, batch) == NonFiniteAt("the gradient of the loss")
    cases = [
        (model.encode_z.loc, 1, "the posterior loc of z", None),
        (model.encode_z.log_variance, 2, "the posterior scale of z", None),
        (model.rho, 5, "the decoder's output (logits of rho)", 5),
        (model.observe.pi_logits, 11, "pi", 11),
    ]
    for module, column, quantity, gene in cases:
        handle = spoil(module, 7, column)
        found = find(model, batch)
        handle.remove()
        assert (found.quantity, found.cell, found.gene, found.batch_code) == (quantity, 7, gene, code)
        assert found.modality == (None if gene is None else RNA)


@pytest.mark.parametrize("n_cells", [20, 15])
def test_first_non_finite_with_a_dispersion_per_gene_names_no_cell(tiny, n_cells):
    model, batch = problem(tiny, n_cells)
    with torch.no_grad():
        model.observe.log_theta.value[9] = 200.0
    found = find(model, batch)
    assert (found.quantity, found.cell, found.gene) == ("theta", None, 9)


def test_first_non_finite_of_a_spot(tiny):
    """Where a state has a vector for each of several types."""
    adata = tiny.simulate(20, 20)
    countvi.CondSCVI.setup_anndata(adata, labels_key="batch")
    reference = countvi.CondSCVI(adata, n_hidden=8, n_latent=3)
    reference.train(1, enable_progress_bar=False, accelerator="cpu")
    countvi.DestVI.setup_anndata(adata)
    destvi = countvi.DestVI.from_rna_model(adata, reference)
    model, batch = destvi.module.train(), destvi.dataset.batch(np.arange(20))
    assert find(model, batch) == NonFiniteAt("the gradient of the loss")
    for part, quantity in (
        (model.infer_gamma, "the posterior loc of gamma"),
        (model.decode, "the sum of what was decoded for each type"),
    ):
        handle = spoil(part, 7)
        found = find(model, batch)
        handle.remove()
        assert (found.quantity, found.cell) == (quantity, 7)


@pytest.mark.parametrize("n_cells", [20, 15])
def test_first_non_finite_in_the_likelihood_names_the_gene(tiny, n_cells):
    """A value whose square is out of range. (Size factors, else one such value makes the library as large)."""
    adata = tiny.simulate(n_cells, 20)
    adata.obs["factor"] = 1.0
    countvi.SCVI.setup_anndata(adata, batch_key="batch", size_factor_key="factor")
    model = countvi.SCVI(adata, n_hidden=8, n_latent=3, gene_likelihood="normal")
    batch = model.dataset.batch(np.arange(n_cells))
    block = batch.counts[RNA]
    at = int(torch.nonzero((block.rows == 7) & (block.columns > 4))[0])
    block.values[at] = 3e30
    found = find(model.module.eval(), batch)
    assert (found.quantity, found.cell) == ("the log-likelihood", 7)
    assert found.gene == int(block.columns[at])
