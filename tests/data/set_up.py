"""Registries as the set-up methods of the models make them."""

from __future__ import annotations

from typing import Any

import countvi
from countvi.data import Registry, is_mudata, recall


def _registry(model: Any, data: Any, *arguments: Any, **keywords: Any) -> Registry:
    method = model.setup_mudata if is_mudata(data) else model.setup_anndata
    method(data, *arguments, **keywords)
    registry = recall(model, data)
    assert registry is not None
    return registry


def set_up(data: Any, **arguments: Any) -> Registry:
    """One matrix; all networks see the same covariates."""
    return _registry(countvi.SCVI, data, **arguments)


def set_up_by_role(data: Any, **arguments: Any) -> Registry:
    """One matrix; covariates have roles of their own."""
    return _registry(countvi.AmbientRegularizedSCVI, data, **arguments)


def set_up_several(data: Any, **arguments: Any) -> Registry:
    """A MuData of any modalities."""
    countvi.RegularizedMultimodalVI.setup_mudata(data, **arguments)
    registry = recall(countvi.RegularizedMultimodalVI, data)
    assert registry is not None
    return registry


def set_up_proteins(data: Any, **arguments: Any) -> Registry:
    """RNA and protein, in an AnnData or a MuData."""
    return _registry(countvi.TOTALVI, data, **arguments)
