"""Arguments that users of scvi-tools bring along."""

from __future__ import annotations

import numpy as np
import pytest

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


def test_something_else_than_an_anndata():
    with pytest.raises(DataError, match=r"An AnnData is expected here; got numpy.ndarray"):
        countvi.SCVI.setup_anndata(np.zeros((3, 3)))


def test_correlations_of_no_cells(trained):
    with pytest.raises(OptionError, match="at least one cell"):
        trained.get_feature_correlation_matrix(indices=[])
