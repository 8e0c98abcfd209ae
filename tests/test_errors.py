"""How names stand in a message."""

from __future__ import annotations

import anndata
import numpy as np
import pytest

import countvi
from countvi.errors import UnknownNameError, shorten


@pytest.mark.parametrize(
    ("n", "text"),
    [(0, "nothing"), (1, "'g0'"), (5, "'g0', 'g1', 'g2', 'g3', 'g4'"), (7, "'g0', 'g1', 'g2', 'g3', 'g4' and 2 more")],
)
def test_the_first_few_names_and_how_many_more(n: int, text: str) -> None:
    assert shorten([f"g{i}" for i in range(n)]) == text


def test_a_key_of_an_empty_obsm_is_refused_in_a_whole_sentence() -> None:
    adata = anndata.AnnData(np.ones((3, 2), np.float32))
    with pytest.raises(UnknownNameError, match=r"has no 'protein'; it has nothing\."):
        countvi.TOTALVI.setup_anndata(adata, "protein")
