"""Arguments that users of scvi-tools bring along."""

from __future__ import annotations

import inspect

import numpy as np
import pandas as pd
import pytest
import torch

import countvi
from countvi.errors import DataError, OptionError, UnknownNameError

pytestmark = pytest.mark.filterwarnings("ignore::countvi.errors.DataWarning")


def build(adata, **options):
    countvi.SCVI.setup_anndata(adata, batch_key="batch")
    return countvi.SCVI(adata, **{"n_hidden": 8, "n_latent": 2, **options})


def test_datasplitter_kwargs(adata):
    rows = np.arange(adata.n_obs)
    model = build(adata)
    model.train(1, datasplitter_kwargs={"external_indexing": [rows[10:], rows[:10]]}, enable_progress_bar=False)
    np.testing.assert_array_equal(model.validation_indices, rows[:10])
    with pytest.raises(OptionError, match=r"'external_indexing' only; got 'num_workers'"):
        build(adata).train(1, datasplitter_kwargs={"num_workers": 4})


def test_gradient_clip_val_changes_the_step(adata):
    weights = []
    for clip in (None, 1e-3):
        model = build(adata)
        model.train(1, gradient_clip_val=clip, plan_kwargs={"eps": 1.0}, enable_progress_bar=False)
        weights.append(model.module.rho.weight.detach().numpy())
    start = build(adata).module.rho.weight.detach().numpy()
    moved = [np.abs(end - start).max() for end in weights]
    assert moved[1] < 0.1 * moved[0]


def test_batch_representation(adata):
    model = build(adata, batch_representation="embedding")
    model.train(1, enable_progress_bar=False)
    vectors = model.get_batch_representation(indices=[5, 0])
    table = model.module.covariates.embedding.weight.detach().numpy()
    codes = [model.registry.code_of(0, adata.obs["batch"].iloc[i]) for i in (5, 0)]
    np.testing.assert_array_equal(vectors, table[codes])
    plain = build(adata)
    plain.train(1, enable_progress_bar=False)
    with pytest.raises(OptionError, match="batch_representation='embedding'"):
        plain.get_batch_representation()


def test_labels_are_asked_for_only_where_they_are_read(adata):
    adata.obs["label"] = np.where(np.arange(adata.n_obs) % 2, "T", "B")
    countvi.SCVI.setup_anndata(adata, batch_key="batch", labels_key="label")
    query = adata.copy()
    del query.obs["label"]
    model = countvi.SCVI(adata, n_hidden=8, n_latent=2)
    model.train(1, enable_progress_bar=False)
    np.testing.assert_array_equal(model.get_latent_representation(query), model.get_latent_representation())
    by_label = countvi.SCVI(adata, n_hidden=8, n_latent=2, dispersion="gene-label")
    by_label.train(1, enable_progress_bar=False)
    with pytest.raises(UnknownNameError, match="'label'"):
        by_label.get_latent_representation(query)


def test_the_set_up_can_be_looked_at(adata, capsys):
    model = build(adata)
    model.view_anndata_setup()
    told = capsys.readouterr().out
    assert f"{adata.n_vars:,} genes in X" in told
    assert "batch: obs['batch']" in told
    for name, n_cells in adata.obs["batch"].value_counts().items():
        line = next(line for line in told.splitlines() if f" {name} " in line)
        assert f" {n_cells} " in line


def test_where_a_model_is_put(adata):
    model = build(adata)
    model.to_device("auto")
    assert model.device.type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(OptionError, match="cannot be moved to device 'nowhere'"):
        model.to_device("nowhere")


@pytest.mark.parametrize("name", ["TOTALVI", "CondSCVI", "DestVI", "AmbientRegularizedSCVI", "RegularizedMultimodalVI"])
def test_a_notebook_can_complete_every_argument_of_train(name):
    """What a method passes on is in its signature too, and none of its own arguments is lost."""
    shown = inspect.signature(getattr(countvi, name).train).parameters
    passed_on = inspect.signature(countvi.SCVI.train).parameters
    assert set(passed_on) <= set(shown)
    assert not any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in shown.values())
    assert list(shown)[:2] == ["self", "max_epochs"]


def test_a_notebook_can_complete_every_argument_of_a_comparison():
    shown = inspect.signature(countvi.TOTALVI.differential_expression).parameters
    passed_on = inspect.signature(countvi.SCVI.differential_expression).parameters
    assert set(passed_on) - set(shown) == {"modality"}
    assert list(shown)[:4] == list(passed_on)[:4]
    assert shown["protein_prior_count"].default == 0.1


@pytest.mark.parametrize(
    "given", [{"lr": 0.003}, {"n_epochs_kl_warmup": 2}, {"n_steps_kl_warmup": 5}, {"reduce_lr_on_plateau": True}]
)
def test_entries_of_the_plan_that_the_peer_has_as_arguments(given, adata):
    """They do what they do in plan_kwargs, and go before it."""
    adata.obsm["protein"] = pd.DataFrame(adata.X[:, :4].toarray() + 1, index=adata.obs_names, columns=list("wxyz"))
    countvi.TOTALVI.setup_anndata(adata, "protein", batch_key="batch")
    impatient = {"schedule": "constant", "lr_patience": 0, "lr_threshold": 1e9}
    other = dict.fromkeys(given, False if given == {"reduce_lr_on_plateau": True} else 1)
    histories = []
    for arguments, plan in ((given, {}), ({}, given), (given, other), ({}, {})):
        model = countvi.TOTALVI(adata, n_hidden=8, n_latent=2)
        model.train(3, **arguments, plan_kwargs=impatient | plan, batch_size=45, enable_progress_bar=False)
        histories.append(model.history.drop(columns="seconds"))
    pd.testing.assert_frame_equal(histories[0], histories[1])
    pd.testing.assert_frame_equal(histories[0], histories[2])
    assert not histories[0].equals(histories[3])


def test_a_rate_by_name_of_cells_and_of_spots(adata):
    countvi.CondSCVI.setup_anndata(adata, labels_key="label")
    countvi.DestVI.setup_anndata(adata)
    reference = countvi.CondSCVI(adata, n_hidden=8, n_latent=2)
    reference.train(1, enable_progress_bar=False)
    makers = (
        lambda: countvi.CondSCVI(adata, n_hidden=8, n_latent=2),
        lambda: countvi.DestVI.from_rna_model(adata, reference, vamp_prior_p=2),
    )
    for make in makers:
        losses = []
        for arguments in ({"lr": 0.003}, {"plan_kwargs": {"lr": 0.003}}, {}):
            model = make()
            model.train(2, **arguments, batch_size=45, enable_progress_bar=False)
            losses.append(model.history["train_loss"].to_numpy())
        np.testing.assert_array_equal(losses[0], losses[1])
        assert not np.array_equal(losses[0], losses[2])


def test_something_else_than_an_anndata():
    with pytest.raises(DataError, match=r"An AnnData is expected here; got numpy.ndarray"):
        countvi.SCVI.setup_anndata(np.zeros((3, 3)))


def test_correlations_of_no_cells(trained):
    with pytest.raises(OptionError, match="at least one cell"):
        trained.get_feature_correlation_matrix(indices=[])
