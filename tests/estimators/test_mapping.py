"""New cells are mapped onto a trained model: what is new moves, what the reference knows does not, to the bit."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from tests.conftest import fit_small, simulate_adata
from tests.estimators import regularized

import countvi
from countvi import errors
from countvi.nn.mlp import Block

DECAY = {"weight_decay": 0.1}
HELD = {"freeze_batchnorm_decoder": True, "freeze_library_encoder": True}


def _scvi(keys: dict[str, Any], **options: Any) -> tuple[Any, Any]:
    reference = fit_small(simulate_adata(), {"batch_key": "batch", **keys}, **options)
    query = simulate_adata(n_cells=50, seed=5)
    query.obs["batch"] = np.array(["new", "a", "newer"])[np.arange(50) % 3]
    query.obs["donor"] = 3 + np.arange(50) % 2
    return reference, query


def _ambient(setup: str, **options: Any) -> tuple[Any, Any]:
    adata, query = regularized.make_rna(), regularized.make_rna(seed=4)
    countvi.AmbientRegularizedSCVI.setup_anndata(adata, **regularized.SETUPS[setup])
    reference = countvi.AmbientRegularizedSCVI(adata, **regularized.SMALL, **options)
    reference.train(1, **regularized.QUIET)
    query.obs["batch"] = np.array(["b1", "b9"])[np.arange(len(query)) // 2 % 2]
    query.obs["lane"] = np.array([2, 7, 8])[np.arange(len(query)) % 3]
    query.obs["donor"] = query.obs["donor"].cat.rename_categories({"x": "w"})
    return reference, query


def _multimodal(**options: Any) -> tuple[Any, Any]:
    mdata = regularized.make_mdata()
    query = regularized.make_mdata(
        rna=regularized.make_rna(seed=4)[5:].copy(), atac=regularized.make_atac(seed=3, cells=slice(40))
    )
    countvi.RegularizedMultimodalVI.setup_mudata(
        mdata, batch_key="batch", nn_conditioning_covariate_keys=["donor", "batch"]
    )
    reference = countvi.RegularizedMultimodalVI(mdata, **regularized.SMALL, **options)
    reference.train(1, **regularized.QUIET)
    for part in query.mod.values():
        part.obs["batch"] = part.obs["batch"].replace({"b1": "b2"})
    return reference, query


def _totalvi(batch: str | None, **options: Any) -> tuple[Any, Any]:
    cells = []
    for seed in (0, 5):
        adata = simulate_adata(seed=seed)
        counts = np.random.default_rng(seed).poisson(6.0, (len(adata), 4)).astype(np.float32)
        adata.obsm["protein"] = pd.DataFrame(counts, index=adata.obs_names, columns=list("WXYZ"))
        cells.append(adata)
    reference, query = cells
    if batch is not None:
        reference.obs["batch"] = batch
    query.obs["batch"] = np.array(["new", "a"])[np.arange(len(query)) % 2]
    query.obsm["protein"].loc[query.obs["batch"] == "new", "Y"] = 0.0
    countvi.TOTALVI.setup_anndata(reference, "protein", batch_key="batch")
    model = countvi.TOTALVI(reference, n_hidden=8, n_latent=3, **options)
    model.train(1, **regularized.QUIET)
    return model, query


CASES: dict[str, Callable[[], tuple[Any, Any]]] = {
    "scvi": partial(_scvi, {}),
    "scvi-all": partial(
        _scvi,
        {"categorical_covariate_keys": ["donor"], "continuous_covariate_keys": ["age"], "labels_key": "label"},
        n_layers=2,
        encode_covariates=True,
        use_observed_lib_size=False,
        dispersion="gene-batch",
    ),
    "scvi-embedding": partial(_scvi, {}, batch_representation="embedding", encode_covariates=True),
    "ambient": partial(_ambient, "batch"),
    "ambient-by-purpose": partial(_ambient, "by purpose", use_batch_norm="both"),
    "totalvi": partial(
        _totalvi, None, protein_batch_efficiency=True, n_layers_decoder=2, protein_dispersion="protein-batch"
    ),
    "totalvi-first-levels": partial(_totalvi, "a"),
    "multimodal": partial(_multimodal, latent_mode="weighted_mean", modality_weights="cell"),
}


@pytest.fixture(scope="module", params=list(CASES))
def pair(request):
    return CASES[request.param]()


def _state(model) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.module.state_dict().items()}


def _rows(table: torch.Tensor) -> set[bytes]:
    return {row.numpy().tobytes() for row in table}


def _map(reference, query, **freezing):
    model = type(reference).load_query_data(query, reference, **freezing)
    before = _state(model)
    model.train(2, plan_kwargs=DECAY, **regularized.QUIET)
    return model, before


def test_nothing_that_the_reference_knows_moves(pair) -> None:
    reference, query = pair
    known = _state(reference)
    model, before = _map(reference, query, **HELD)
    grown = 0
    for name, tensor in _state(model).items():
        if name not in known:  # a covariate that had one level, and no rows
            continue
        if tensor.shape == known[name].shape:
            assert torch.equal(tensor, known[name]), f"{name} moved"
            continue
        grown += 1
        fresh = [row for row in tensor if row.numpy().tobytes() not in _rows(known[name])]
        assert _rows(known[name]) <= _rows(tensor), f"rows of {name} moved"
        assert len(fresh) == len(tensor) - len(known[name])
        if name in dict(model.module.named_parameters()):
            assert not _rows(torch.stack(fresh)) & _rows(before[name]), f"new rows of {name} did not move"
    assert grown or len(known) < len(_state(model))


def test_the_cells_of_the_reference_look_as_they_did(pair) -> None:
    """It takes the known rows at the right codes."""
    reference, query = pair
    model, _ = _map(reference, query, **HELD)
    cells = reference.adata
    np.testing.assert_array_equal(model.get_latent_representation(cells), reference.get_latent_representation())
    np.testing.assert_array_equal(model.get_elbo(cells, return_mean=False), reference.get_elbo(return_mean=False))


def test_new_rows_start_at_the_mean_of_the_known() -> None:
    reference, query = CASES["scvi-embedding"]()
    known = reference.module.covariates.embedding.weight.detach()
    model = countvi.SCVI.load_query_data(query, reference)
    table = model.module.covariates.embedding.weight.detach()
    assert model.registry.columns[0].categories == ("a", "b", "c", "new", "newer")
    torch.testing.assert_close(table[3:], known.mean(0).expand(2, -1))


def test_library_moments_of_new_batches_are_those_of_the_query() -> None:
    reference, query = CASES["scvi-all"]()
    model = countvi.SCVI.load_query_data(query, reference)
    logs = np.log(np.asarray(query.X.sum(1)).ravel())
    np.testing.assert_allclose(model.module.library.loc[3], logs[query.obs["batch"] == "new"].mean(), rtol=1e-5)
    np.testing.assert_array_equal(model.module.library.loc[:3], reference.module.library.loc)


def test_a_covariate_that_had_one_level_gets_its_first_rows() -> None:
    adata, query = simulate_adata(), simulate_adata(seed=5)
    adata.obs["batch"], query.obs["batch"] = "old", "new"
    reference = fit_small(adata, {"batch_key": "batch"})
    assert reference.module.decode.layers[0].linear.levels is None
    model, _ = _map(reference, query, **HELD)
    table = model.module.decode.layers[0].linear.levels.weight.detach()
    assert (table[0] == 0).all()
    assert (table[1] != 0).all()
    np.testing.assert_array_equal(
        model.get_normalized_expression(adata, return_numpy=True),
        reference.get_normalized_expression(return_numpy=True),
    )


MOVES = {
    "freeze_batchnorm_decoder": ("decode.layers.", "batch_norm"),
    "freeze_batchnorm_encoder": ("encode_z.", "batch_norm"),
    "freeze_expression": ("encode_z.mlp.layers.0.linear", ""),
    "freeze_decoder_first_layer": ("decode.layers.0.linear", ""),
    "freeze_library_encoder": ("library.encode", ""),
}


@pytest.mark.parametrize("option", MOVES)
def test_each_option_lets_go_of_what_it_names(option) -> None:
    reference, query = CASES["scvi-all"]()
    known = _state(reference)
    held = dict.fromkeys(MOVES, True)
    model, _ = _map(reference, query, **{**held, option: False})
    start, part = MOVES[option]
    named = {name for name in known if name.startswith(start) and part in name}
    after = _state(model)
    moved = {
        name
        for name, tensor in known.items()
        if not (
            torch.equal(after[name], tensor)
            if after[name].shape == tensor.shape
            else _rows(tensor) <= _rows(after[name])
        )
    }
    assert moved == named


@pytest.mark.parametrize("case", ["scvi", "scvi-all", "totalvi", "ambient", "multimodal"])
def test_what_moves_without_a_word_is_what_the_docstring_names(case) -> None:
    reference, query = CASES[case]()
    known = _state(reference)
    model, _ = _map(reference, query)
    after = _state(model)
    moved = set()
    for name, tensor in known.items():
        same_shape = after[name].shape == tensor.shape
        if not (torch.equal(after[name], tensor) if same_shape else _rows(tensor) <= _rows(after[name])):
            moved.add(name)
    norms = {name for name in moved if "batch_norm" in name and name.startswith("decode")}
    assert {name for name in moved - norms if "library." not in name} == set()
    assert any("running" in name for name in norms) == any(
        "batch_norm" in name and name.startswith("decode") for name in known
    )
    cells = reference.adata
    np.testing.assert_array_equal(model.get_latent_representation(cells), reference.get_latent_representation())


@pytest.mark.parametrize("held", [True, False])
def test_the_first_layer_of_the_trunks_is_held_or_let_go(held) -> None:
    """That of TOTALVI's four trunks is one layer, and not part of any of them."""
    reference, query = CASES["totalvi"]()
    known = dict(reference.module.named_parameters())
    model, _ = _map(reference, query, **HELD, freeze_decoder_first_layer=held)
    after = dict(model.module.named_parameters())
    for name in ("decode.first.linear.weight", "decode.first.linear.bias"):
        assert torch.equal(after[name], known[name]) == held
        assert after[name].requires_grad != held
    rows, old = after["decode.first.linear.levels.weight"], known["decode.first.linear.levels.weight"]
    assert torch.equal(rows[: len(old)], old) == held
    assert len(rows) == len(old) + 1 and not torch.equal(rows[-1], old.mean(0))


def test_unfrozen_moves_everything() -> None:
    reference, query = CASES["scvi-all"]()
    model, before = _map(reference, query, unfrozen=True)
    after = _state(model)
    assert [name for name, _ in model.module.named_parameters() if torch.equal(after[name], before[name])] == []


def test_dropout_is_switched_off() -> None:
    reference, query = CASES["ambient"]()
    model = type(reference).load_query_data(query, reference, freeze_dropout=True)
    blocks = [part for part in model.module.modules() if isinstance(part, Block)]
    assert {(block.dropout, block.drop_input) for block in blocks} == {(0.0, 0.0)}


def test_a_saved_query_model_is_still_held(tmp_path) -> None:
    reference, query = CASES["ambient-by-purpose"]()
    reference.save(tmp_path / "reference")
    model = type(reference).load_query_data(query, tmp_path / "reference", **HELD)
    model.train(1, **regularized.QUIET)
    model.save(tmp_path / "query")
    again = type(reference).load(tmp_path / "query", query)
    np.testing.assert_array_equal(again.get_latent_representation(), model.get_latent_representation())
    again.train(1, plan_kwargs=DECAY, **regularized.QUIET)
    np.testing.assert_array_equal(
        again.get_latent_representation(reference.adata), reference.get_latent_representation()
    )
    assert "mapped onto a reference" in repr(again)


def test_a_query_model_is_a_reference_in_turn() -> None:
    reference, query = CASES["scvi"]()
    first, _ = _map(reference, query, **HELD)
    third = simulate_adata(seed=9)
    third.obs["batch"] = "third"
    second, _ = _map(first, third, **HELD)
    assert second.registry.columns[0].categories == ("a", "b", "c", "new", "newer", "third")
    np.testing.assert_array_equal(second.get_elbo(query, return_mean=False), first.get_elbo(return_mean=False))


def test_a_query_of_known_categories_needs_no_training() -> None:
    reference, query = CASES["scvi"]()
    query.obs["batch"] = "a"
    model = countvi.SCVI.load_query_data(query, reference, **HELD)
    np.testing.assert_array_equal(model.get_latent_representation(), reference.get_latent_representation(query))
    with pytest.raises(errors.OptionError, match="nothing to train"):
        model.train(1)


def test_clear_errors() -> None:
    reference, query = CASES["scvi"]()
    with pytest.raises(errors.FileFormatError, match="does not exist"):
        countvi.SCVI.load_query_data(query, "nowhere")
    with pytest.raises(errors.OptionError, match="must be of class AmbientRegularizedSCVI"):
        countvi.AmbientRegularizedSCVI.load_query_data(query, reference)  # type: ignore[arg-type]
    with pytest.raises(errors.OptionError, match="True or False"):
        countvi.SCVI.load_query_data(query, reference, unfrozen="yes")  # type: ignore[arg-type]
    with pytest.raises(errors.MismatchError, match="prepare_query_anndata"):
        countvi.SCVI.load_query_data(query[:, 3:].copy(), reference)
    del query.obs["batch"]
    with pytest.raises(errors.UnknownNameError, match="batch"):
        countvi.SCVI.load_query_data(query, reference)
    untrained = countvi.SCVI(reference.adata)
    with pytest.raises(errors.NotTrainedError, match="not trained"):
        countvi.SCVI.load_query_data(reference.adata, untrained)


def test_a_protein_without_counts_in_a_new_panel_was_not_measured_there() -> None:
    reference, query = CASES["totalvi"]()
    model = countvi.TOTALVI.load_query_data(query, reference)
    gaps = model.registry.modality("protein").gaps
    assert gaps.unmeasured == ((), (), (), (2,))


def test_cells_of_a_new_type_are_mapped_where_types_are_weighted():
    """What a cell of a type counts is that of the new cells: one over the share of its type, one on average."""
    rng = np.random.default_rng(0)
    reference = ad.AnnData(rng.poisson(3.0, (60, 8)).astype(np.float32))
    reference.obs["type"] = ["a", "b"] * 30
    countvi.CondSCVI.setup_anndata(reference, labels_key="type")
    model = countvi.CondSCVI(reference, n_hidden=8, weight_obs=True)
    model.train(1, enable_progress_bar=False)
    new = ad.AnnData(rng.poisson(3.0, (40, 8)).astype(np.float32))
    new.obs["type"] = ["a"] * 30 + ["c"] * 10
    mapped = countvi.CondSCVI.load_query_data(new, model)
    mapped.train(1, enable_progress_bar=False)
    weight = mapped.module.label_weight.numpy()
    assert weight[2] == pytest.approx(3 * weight[0], rel=1e-5)
    assert 0.75 * weight[0] + 0.25 * weight[2] == pytest.approx(1.0, rel=1e-5)
    assert np.isfinite(mapped.get_latent_representation()).all()
