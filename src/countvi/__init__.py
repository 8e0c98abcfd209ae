"""Deep generative models of single-cell and spatial count data, fitted by variational inference.

>>> import countvi
>>> countvi.SCVI.setup_anndata(adata, layer="counts", batch_key="batch")  # doctest: +SKIP
>>> model = countvi.SCVI(adata)  # doctest: +SKIP
>>> model.train()  # doctest: +SKIP
>>> adata.obsm["X_scVI"] = model.get_latent_representation()  # doctest: +SKIP

Names are looked up when they are first used, so ``import countvi`` loads neither torch nor anndata.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from countvi import io, metrics, plot
    from countvi import plot as pl
    from countvi.estimators.ambient import AmbientRegularizedSCVI
    from countvi.estimators.condscvi import CondSCVI
    from countvi.estimators.deconvolution import deconvolve
    from countvi.estimators.destvi import DestVI
    from countvi.estimators.multimodal import RegularizedMultimodalVI
    from countvi.estimators.scvi import SCVI
    from countvi.estimators.totalvi import TOTALVI

__version__ = "0.1.0"

__all__ = [
    "SCVI",
    "TOTALVI",
    "AmbientRegularizedSCVI",
    "CondSCVI",
    "DestVI",
    "RegularizedMultimodalVI",
    "__version__",
    "deconvolve",
    "io",
    "metrics",
    "pl",
    "plot",
]

_OBJECTS = {
    "AmbientRegularizedSCVI": "countvi.estimators.ambient",
    "CondSCVI": "countvi.estimators.condscvi",
    "DestVI": "countvi.estimators.destvi",
    "RegularizedMultimodalVI": "countvi.estimators.multimodal",
    "SCVI": "countvi.estimators.scvi",
    "deconvolve": "countvi.estimators.deconvolution",
    "TOTALVI": "countvi.estimators.totalvi",
}
"""Public classes and functions, and the modules that define them."""

_MODULES = {
    "batch": "countvi.batch",
    "cli": "countvi.cli",
    "data": "countvi.data",
    "errors": "countvi.errors",
    "estimators": "countvi.estimators",
    "files": "countvi.files",
    "io": "countvi.io",
    "likelihoods": "countvi.likelihoods",
    "metrics": "countvi.metrics",
    "models": "countvi.models",
    "nn": "countvi.nn",
    "ops": "countvi.ops",
    "pl": "countvi.plot",
    "plot": "countvi.plot",
    "query": "countvi.query",
    "seeding": "countvi.seeding",
    "train": "countvi.train",
    "typing": "countvi.typing",
}
"""Attributes that are modules."""


def __getattr__(name: str) -> object:
    """Import a public name when it is first used (PEP 562)."""
    if name in _OBJECTS:
        value = getattr(import_module(_OBJECTS[name]), name)
    elif name in _MODULES:
        value = import_module(_MODULES[name])
    else:
        from countvi.errors import did_you_mean

        message = f"module 'countvi' has no attribute {name!r}.{did_you_mean(name, __dir__())}"
        raise AttributeError(message)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Name everything that :func:`__getattr__` finds."""
    return sorted({*__all__, *_OBJECTS, *_MODULES})
