"""``get_predictive_checks`` of every model: tables with the names of genes and cells."""

from __future__ import annotations

import numpy as np
import pytest
from tests.conftest import fit_small, simulate_adata
from tests.estimators import regularized

import countvi
from countvi import errors


def test_tables_are_named_and_those_of_the_cells_asked_for() -> None:
    adata = simulate_adata()
    model = fit_small(adata, {"batch_key": "batch"}, epochs=3)
    checks = model.get_predictive_checks(indices=model.validation_indices, n_samples=3)
    assert list(checks.genes.index) == list(adata.var_names)
    assert list(checks.cells.index) == list(adata.obs_names[model.validation_indices])
    held_out = adata.X[model.validation_indices].toarray()
    np.testing.assert_allclose(checks.genes["zero_fraction"], (held_out == 0).mean(0))
    np.testing.assert_allclose(checks.cells["mean"], held_out.mean(1))
    countvi.pl.predictive_check(checks)
    with pytest.raises(errors.OptionError, match="at least one cell"):
        model.get_predictive_checks(indices=[])
    with pytest.raises(errors.OptionError, match="n_samples"):
        model.get_predictive_checks(n_samples=0)


def test_of_several_modalities_each_in_the_cells_that_have_it() -> None:
    mdata = regularized.make_mdata()
    countvi.RegularizedMultimodalVI.setup_mudata(mdata, batch_key="batch")
    model = countvi.RegularizedMultimodalVI(mdata, **regularized.SMALL)
    model.train(1, **regularized.QUIET)
    checks = model.get_predictive_checks(n_samples=2)
    for name in ("rna", "atac"):
        assert set(checks[name].cells.index) == set(mdata[name].obs_names)
        np.testing.assert_allclose(checks[name].genes["mean"], np.asarray(mdata[name].X.mean(0)).ravel(), rtol=1e-6)
    alone = model.get_predictive_checks(modality="atac", n_samples=2)
    np.testing.assert_array_equal(alone.genes, checks["atac"].genes)
