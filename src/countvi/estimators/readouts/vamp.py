"""The prior of states within cell types: ``get_vamp_prior``, mixtures of the posteriors of the cells of a type."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import numpy as np

from countvi import query, seeding
from countvi.data import LABELS_COLUMN
from countvi.errors import OptionError, UnknownNameError, did_you_mean
from countvi.estimators.options import WHOLE

if TYPE_CHECKING:
    from anndata import AnnData

    from countvi.data import Column
    from countvi.estimators.state import Fitted
    from countvi.models.condscvi import CondSCVI
    from countvi.nn.state_priors import LearnedPrior

_SCVI_TOOLS_KEY = "overclustering_vamp"


def get_vamp_prior(
    self: Fitted[CondSCVI],
    adata: AnnData | None = None,
    p: int = 10,
    *,
    subcluster_key: str | None = None,
    batch_size: int | None = None,
    seed: int = seeding.DEFAULT_SEED,
) -> dict[str, np.ndarray]:
    """Summarise the posteriors of the cells of each type by a mixture of normals.

    Parameters
    ----------
    adata
        Cells; by default those of the model.
    p
        Components per type, found by k-means of the posterior means. A type with fewer cells has one for each cell.
    subcluster_key
        Column of ``obs`` with clusters within types, of at most ``p`` per type, to use instead. (scvi-tools: a column
        named ``overclustering_vamp``, which is taken too.)
    batch_size
        Cells at a time.
    seed
        Of the k-means.

    Returns
    -------
    dict
        ``"mean_vprior"`` and ``"var_vprior"``, shape ``(types, p, n_latent)``: means, and *variances* as in
        scvi-tools; ``"weights_vprior"``, shape ``(types, p)``. Components that a type does not use have mean 0,
        variance 1 and weight 0. With a learned prior (a file of scvi-tools), that prior.

    Raises
    ------
    OptionError
        If a type has more clusters than ``p``.
    """
    mixture = vamp_mixture(self, p, adata=adata, subcluster_key=subcluster_key, batch_size=batch_size, seed=seed)
    return {
        "mean_vprior": mixture.mean,
        "var_vprior": mixture.scale**2,
        "weights_vprior": mixture.weights,
    }


def vamp_mixture(
    model: Fitted[CondSCVI],
    p: int,
    *,
    adata: AnnData | None = None,
    subcluster_key: str | None = None,
    batch_size: int | None = None,
    seed: int,
) -> query.VampMixture:
    """Return means, standard deviations and weights of the mixtures; see :func:`get_vamp_prior`."""
    WHOLE("p", p)
    if model.options.prior == "mog":
        learned = cast("LearnedPrior", model.module.prior_of_state)
        parts = (learned.loc, learned.log_scale.exp(), learned.logits.softmax(-1))
        return query.VampMixture(*(part.detach().cpu().double().numpy() for part in parts))
    view = model.view(adata, None, batch_size)
    loc, scale = query.latent_moments(model.module, view.cells)
    column, labels = model.registry.columns[LABELS_COLUMN], view.codes[:, LABELS_COLUMN].numpy()
    n_types, data = model.registry.labels.n_levels, cast("AnnData", model.container(adata))
    if subcluster_key is None and _SCVI_TOOLS_KEY in data.obs:
        subcluster_key = _SCVI_TOOLS_KEY
    if subcluster_key is None:
        clusters = query.subclusters(loc, labels, n_types, p, seed)
    else:
        clusters = _given_clusters(data, column, labels, p, subcluster_key)
    return query.vamp_mixture(loc, scale, labels, clusters, n_types, p)


def _given_clusters(data: AnnData, types: Column, labels: np.ndarray, p: int, key: str) -> np.ndarray:
    if key not in data.obs:
        message = f"subcluster_key: there is no obs[{key!r}].{did_you_mean(key, data.obs.columns)}"
        raise UnknownNameError(message)
    clusters = np.unique(data.obs[key].astype(str).to_numpy(), return_inverse=True)[1]
    for code, name in enumerate(types.categories):
        n_clusters = len(np.unique(clusters[labels == code]))
        if n_clusters > p:
            message = f"Type {name!r} has {n_clusters} clusters in obs[{key!r}], more than p={p}. Pass a larger p."
            raise OptionError(message)
    return clusters
