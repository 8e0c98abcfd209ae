"""How well a latent space keeps cell types apart and mixes batches."""

from __future__ import annotations

import numpy as np
import pandas as pd
from datasets import UNKNOWN
from sklearn.metrics import silhouette_score
from sklearn.neighbors import NearestNeighbors

_PERPLEXITY = 30
_N_HALVINGS = 50
# The silhouette takes all pairs of cells.
_MOST_CELLS = 10_000

SILHOUETTE, LABEL_LISI, BATCH_LISI = "silhouette of cell types", "LISI of cell types", "LISI of batches"


def scores(latent: np.ndarray, obs: pd.DataFrame, seed: int = 0) -> dict[str, float]:
    """Scores of a latent space by name: higher is better but for the LISI of cell types, where 1 is best.

    Parameters
    ----------
    latent
        Shape ``(cells, dimensions)``.
    obs
        With ``"cell_type"`` and ``"batch"``, as far as they are known.
    seed
        Of the cells drawn where there are more than 10,000.
    """
    some = np.arange(len(latent))
    if len(latent) > _MOST_CELLS:
        some = np.sort(np.random.default_rng(seed).choice(len(latent), _MOST_CELLS, replace=False))
    latent, obs, result = latent[some], obs.iloc[some], {}
    if "cell_type" in obs:
        known = ~obs["cell_type"].astype(str).isin(UNKNOWN).to_numpy()
        types = obs["cell_type"].astype(str).to_numpy()[known]
        result[SILHOUETTE] = float(silhouette_score(latent[known], types))
        result[LABEL_LISI] = float(lisi(latent[known], types).mean())
    if "batch" in obs and obs["batch"].nunique() > 1:
        result[BATCH_LISI] = float(lisi(latent, obs["batch"].astype(str).to_numpy()).mean())
    return result


def lisi(latent: np.ndarray, labels: np.ndarray, perplexity: float = _PERPLEXITY) -> np.ndarray:
    """Local inverse Simpson's index (Korsunsky et al. 2019): how many labels a cell's neighbourhood holds.

    Parameters
    ----------
    latent
        Shape ``(cells, dimensions)``.
    labels
        Shape ``(cells,)``.
    perplexity
        Effective number of neighbours; three times as many are looked at.

    Returns
    -------
    numpy.ndarray
        Between 1 and the number of labels, shape ``(cells,)``.
    """
    distance, neighbour = NearestNeighbors(n_neighbors=int(3 * perplexity)).fit(latent).kneighbors()
    weight = _weights(distance, perplexity)
    names, codes = np.unique(labels, return_inverse=True)
    near = codes[neighbour]
    shares = [(weight * (near == code)).sum(1) for code in range(len(names))]
    return 1 / np.square(shares).sum(0)


def _weights(distance: np.ndarray, perplexity: float) -> np.ndarray:
    """Weights ``exp(-beta distance)`` that sum to one, with ``beta`` such that their perplexity is what is asked for.

    The entropy falls with ``beta``, so ``beta`` is found by halving an interval, on a logarithmic scale.
    """
    distance = distance - distance.min(1, keepdims=True)
    distance /= np.maximum(distance.mean(1, keepdims=True), np.finfo(float).tiny)
    low, high = np.full((len(distance), 1), -15.0), np.full((len(distance), 1), 15.0)
    for _ in range(_N_HALVINGS):
        middle = (low + high) / 2
        weight = np.exp(-np.exp(middle) * distance)
        total = weight.sum(1, keepdims=True)
        entropy = np.log(total) + np.exp(middle) * (weight * distance).sum(1, keepdims=True) / total
        broad = entropy > np.log(perplexity)
        low, high = np.where(broad, middle, low), np.where(broad, high, middle)
    weight = np.exp(-np.exp(low) * distance)
    return weight / weight.sum(1, keepdims=True)
