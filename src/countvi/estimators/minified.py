"""Keep the posterior of cells instead of their counts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from countvi import data as data_layer
from countvi import query
from countvi.errors import choose

if TYPE_CHECKING:
    from countvi.estimators.state import Fitted


def minify_adata(
    self: Fitted, minified_data_type: Literal["latent_posterior_parameters"] = data_layer.MINIFIED_TYPE
) -> None:
    """Keep the posterior of the model's cells instead of their counts, which takes far less space.

    The data of the model become a copy of ``obs`` with means and variances in ``obsm``; your own AnnData or MuData
    is unchanged. Cell states, expression, library sizes, predictive samples and correlations are read out as
    before. What compares with counts (evidence, checks, ambient counts, training) says that it needs them: pass
    ``adata=`` there. Save with ``save_anndata=True`` to keep the small data with the model.

    Parameters
    ----------
    minified_data_type
        ``"latent_posterior_parameters"``; there is no other.
    """
    choose("minified_data_type", minified_data_type, {data_layer.MINIFIED_TYPE: None})
    view = self.view()
    self.training_fingerprint()  # of the counts, while they are here
    posterior = query.latent_posteriors(self.module, view.cells)
    self.adata = data_layer.minified(self.container(None), self.registry, posterior, view.dataset.patterns)
