"""How names stand in a message."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest
import torch

import countvi
import countvi.train
from countvi.errors import DataWarning, NonFiniteError, OptionError, TrainingWarning, UnknownNameError, shorten


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


@pytest.mark.parametrize(
    ("ask", "wrong", "meant"),
    [
        (lambda cls, adata, **named: cls.setup_anndata(adata, **named), "batchkey", "batch_key"),
        (lambda cls, adata, **named: cls(adata, **named), "n_latents", "n_latent"),
        (lambda cls, adata, **named: cls(adata).train(**named), "early_stoping", "early_stopping"),
        (lambda cls, adata, **named: cls(adata).get_elbo(**named), "indeces", "indices"),
        (lambda cls, adata, **named: cls(adata).differential_expression(**named), "group_by", "groupby"),
        (lambda cls, adata, **named: cls.load_query_data(adata, "folder", **named), "freeze_droput", "freeze_dropout"),
    ],
)
@pytest.mark.parametrize("name", ["SCVI", "TOTALVI"])
def test_a_misspelt_argument_is_named_with_what_was_meant(name: str, ask: Any, wrong: str, meant: str) -> None:
    adata = anndata.AnnData(np.ones((4, 3), np.float32))
    adata.obsm["protein"] = np.ones((4, 2), np.float32)
    cls = getattr(countvi, name)
    cls.setup_anndata(adata, **({"protein_expression_obsm_key": "protein"} if name == "TOTALVI" else {}))
    for kind in (TypeError, OptionError):
        with pytest.raises(kind, match=rf"^\w+\(\) got an unexpected.*{wrong}'. Did you mean '{meant}'"):
            ask(cls, adata, **{wrong: 1})


def test_signatures_are_those_that_are_written() -> None:
    own = inspect.signature(countvi.SCVI.train)
    assert "early_stopping" in own.parameters and "named" not in own.parameters
    assert list(inspect.signature(countvi.SCVI).parameters)[:2] == ["adata", "n_hidden"]
    assert countvi.SCVI.train.__doc__ and countvi.SCVI.train.__name__ == "train"


def test_warnings_point_at_the_line_of_the_user(tmp_path: Path) -> None:
    adata = anndata.AnnData(np.random.default_rng(0).poisson(2.0, (40, 6)).astype(np.float32))
    countvi.SCVI.setup_anndata(adata)
    model = countvi.SCVI(adata, n_hidden=4, n_latent=2)
    model.train(max_epochs=1, enable_progress_bar=False)
    other = anndata.AnnData(adata.X + np.float32(0.5))
    with pytest.warns(DataWarning) as of_a_query:
        model.get_elbo(other)
    with torch.no_grad(), pytest.warns(TrainingWarning) as of_training:
        countvi.SCVI(adata, n_hidden=4, n_latent=2).train(
            max_epochs=1, enable_progress_bar=False, callbacks=[_Interrupts()]
        )
    for warned in (of_a_query, of_training):
        assert [Path(one.filename) for one in warned] == [Path(__file__)] * len(warned)


class _Interrupts(countvi.train.Callback):
    """Ctrl-C after the first epoch."""

    def on_epoch_end(self, progress: countvi.train.Progress) -> None:
        raise KeyboardInterrupt


def test_a_diverged_model_says_why_it_draws_no_counts() -> None:
    adata = anndata.AnnData(np.random.default_rng(0).poisson(2.0, (40, 6)).astype(np.float32))
    countvi.SCVI.setup_anndata(adata)
    model = countvi.SCVI(adata, n_hidden=4, n_latent=2)
    model.train(max_epochs=1, enable_progress_bar=False)
    with torch.no_grad():
        for name, parameter in model.module.named_parameters():
            if "theta" in name:
                parameter[..., 3:] = torch.inf
    for ask in (model.posterior_predictive_sample, model.get_predictive_checks):
        with pytest.raises(
            NonFiniteError, match=r"dispersions of 3 features of 'rna' is not finite, first in column 3"
        ):
            ask()
