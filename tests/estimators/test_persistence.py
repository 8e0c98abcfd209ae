"""Saving and loading: the same numbers come back, and what cannot be loaded says why."""

from __future__ import annotations

import json

import anndata
import numpy as np
import pandas as pd
import pytest

import countvi
from countvi.errors import DataWarning, FileFormatError, MismatchError, NotTrainedError, OptionError
from countvi.files import DIGEST

ALL_KEYS = {
    "batch_key": "batch",
    "labels_key": "label",
    "categorical_covariate_keys": ["donor"],
    "continuous_covariate_keys": ["age"],
}
CONFIGURATIONS = [
    ({}, {}),
    (ALL_KEYS, {"encode_covariates": True, "n_layers": 2}),
    (ALL_KEYS, {"batch_representation": "embedding", "dispersion": "gene-batch"}),
    (ALL_KEYS, {"dispersion": "gene-label", "gene_likelihood": "nb", "deeply_inject_covariates": False}),
    (ALL_KEYS, {"dispersion": "gene-cell", "use_observed_lib_size": False}),
    ({"size_factor_key": "sf"}, {"gene_likelihood": "poisson"}),
    ({"batch_key": "batch"}, {"gene_likelihood": "normal", "use_batch_norm": "none", "use_layer_norm": "both"}),
    ({"layer": "counts"}, {"latent_distribution": "ln", "log_variational": False}),
]


def with_layer(adata: anndata.AnnData) -> anndata.AnnData:
    adata.layers["counts"] = adata.X
    return adata


@pytest.fixture(scope="module")
def saved(simulate, fit, tmp_path_factory):
    """A model, its data, and the folder it was saved in."""
    adata = simulate()
    model = fit(adata, {"batch_key": "batch"}, 2)
    folder = tmp_path_factory.mktemp("models") / "model"
    model.save(folder)
    return model, adata, folder


@pytest.mark.parametrize(("setup", "options"), CONFIGURATIONS, ids=lambda value: ",".join(map(str, value)) or "none")
def test_round_trip(simulate, fit, tmp_path, setup, options):
    adata = with_layer(simulate())
    model = fit(adata, setup, 2, **options)
    model.save(tmp_path / "model")
    loaded = countvi.SCVI.load(tmp_path / "model", with_layer(simulate()))
    latent = {"mc_samples": 50}
    np.testing.assert_array_equal(loaded.get_latent_representation(**latent), model.get_latent_representation(**latent))
    np.testing.assert_array_equal(loaded.get_elbo(return_mean=False), model.get_elbo(return_mean=False))
    pd.testing.assert_frame_equal(loaded.history, model.history)
    assert repr(loaded) == repr(model)
    assert loaded.registry == model.registry
    assert loaded.is_trained
    for part in ("train_indices", "validation_indices", "test_indices"):
        np.testing.assert_array_equal(getattr(loaded, part), getattr(model, part))


def test_no_set_up_is_needed_and_genes_are_matched_by_name(saved, simulate):
    model, _, folder = saved
    other = simulate()[:, ::-1].copy()
    loaded = countvi.SCVI.load(folder, other)
    np.testing.assert_allclose(
        loaded.get_latent_representation(), model.get_latent_representation(), rtol=2e-5, atol=2e-6
    )
    np.testing.assert_array_equal(loaded.train_indices, model.train_indices)
    with pytest.raises(MismatchError, match=r"'gene0'.*prepare_query_anndata"):
        countvi.SCVI.load(folder, simulate()[:, 1:].copy())


def test_load_without_data(saved):
    model, adata, folder = saved
    for nothing in (None, False):
        loaded = countvi.SCVI.load(folder, nothing)
        assert loaded.adata is None
        with pytest.raises(MismatchError, match="has no data: it was loaded without"):
            loaded.get_latent_representation()
        with pytest.raises(MismatchError, match="has no data"):
            loaded.train(1, enable_progress_bar=False)
        np.testing.assert_array_equal(loaded.get_latent_representation(adata), model.get_latent_representation())
        assert list(loaded.get_normalized_expression(adata).index) == list(adata.obs_names)
        np.testing.assert_array_equal(loaded.validation_indices, model.validation_indices)


def test_a_model_without_data_can_be_saved_again(saved, tmp_path):
    model, adata, folder = saved
    first = countvi.SCVI.load(folder, False)
    first.save(tmp_path / "again")
    with pytest.raises(OptionError, match="save_anndata=True, but this model has no data"):
        first.save(tmp_path / "data", save_anndata=True)
    again = countvi.SCVI.load(tmp_path / "again", adata)  # knows its training data, so the split holds
    np.testing.assert_array_equal(again.validation_indices, model.validation_indices)
    np.testing.assert_array_equal(again.get_latent_representation(), model.get_latent_representation())


@pytest.mark.parametrize("backed", [False, True])
def test_save_with_the_data(simulate, fit, tmp_path, backed):
    adata = simulate()
    if backed:
        adata.write_h5ad(tmp_path / "counts.h5ad")
        adata = anndata.read_h5ad(tmp_path / "counts.h5ad", backed="r")
    model = fit(adata, {"batch_key": "batch"})
    model.save(tmp_path / "model", save_anndata=True)
    loaded = countvi.SCVI.load(tmp_path / "model")
    assert loaded.adata is not None
    np.testing.assert_array_equal(loaded.get_latent_representation(), model.get_latent_representation())
    assert countvi.SCVI.load(tmp_path / "model", False).adata is None
    if backed:
        assert str(adata.filename) == str(tmp_path / "counts.h5ad")
        adata.file.close()


def test_overwrite(simulate, fit, tmp_path):
    adata = simulate()
    first, second = fit(adata), fit(adata, None, 2, seed=5)
    first.save(tmp_path / "model", save_anndata=True)
    with pytest.raises(OptionError, match="overwrite=True"):
        second.save(tmp_path / "model")
    second.save(tmp_path / "model", overwrite=True)
    loaded = countvi.SCVI.load(tmp_path / "model", adata)
    np.testing.assert_array_equal(loaded.get_latent_representation(), second.get_latent_representation())
    assert countvi.SCVI.load(tmp_path / "model").adata is None  # the data of the first are gone with it
    assert loaded.seed == 5


def test_a_model_of_another_class(saved):
    class Other(countvi.SCVI):
        pass

    with pytest.raises(FileFormatError, match=r"holds a SCVI, not a Other.*countvi\.SCVI\.load"):
        Other.load(saved[2])


def edit(folder, tmp_path, **values):
    """Copy a model and change its manifest."""
    copy = tmp_path / "edited"
    copy.mkdir(parents=True)
    (copy / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest[DIGEST]  # as in folders that were written without
    (copy / "manifest.json").write_text(json.dumps({**manifest, **values}))
    return copy


def test_a_newer_format(saved, tmp_path):
    with pytest.raises(FileFormatError, match=r"format.*999"):
        countvi.SCVI.load(edit(saved[2], tmp_path, format_version=999))


def test_an_option_this_version_does_not_know(saved, tmp_path):
    arguments = json.loads((saved[2] / "manifest.json").read_text())["init_args"]
    with pytest.raises(FileFormatError, match="n_wings"):
        countvi.SCVI.load(edit(saved[2], tmp_path, init_args={**arguments, "n_wings": 2}))


def test_weights_of_another_shape(saved, tmp_path):
    arguments = json.loads((saved[2] / "manifest.json").read_text())["init_args"]
    with pytest.raises(FileFormatError, match="has shape"):
        countvi.SCVI.load(edit(saved[2], tmp_path, init_args={**arguments, "n_hidden": 16}))
    with pytest.raises(FileFormatError, match="does not fit the model it describes"):
        countvi.SCVI.load(edit(saved[2], tmp_path / "deeper", init_args={**arguments, "n_layers": 2}))


@pytest.mark.parametrize("file", ["model.safetensors", "manifest.json"])
def test_a_truncated_file(saved, tmp_path, file):
    copy = edit(saved[2], tmp_path)
    whole = (copy / file).read_bytes()
    for keep in (0, 7, len(whole) // 2, len(whole) - 3):
        (copy / file).write_bytes(whole[:keep])
        with pytest.raises(FileFormatError):
            countvi.SCVI.load(copy)
    (copy / file).unlink()
    with pytest.raises(FileFormatError):
        countvi.SCVI.load(copy)


def test_no_folder(tmp_path):
    with pytest.raises(FileFormatError, match="does not exist"):
        countvi.SCVI.load(tmp_path / "nothing")


def test_training_goes_on_with_the_same_split(simulate, fit, tmp_path):
    adata = simulate()
    model = fit(adata, None, 2)
    model.save(tmp_path / "model")
    loaded = countvi.SCVI.load(tmp_path / "model", simulate())
    held_out = model.validation_indices
    for one in (model, loaded):
        one.train(2, batch_size=16, enable_progress_bar=False)
        np.testing.assert_array_equal(one.validation_indices, held_out)
        assert len(one.history) == 4
        with pytest.raises(OptionError, match="cells held out before would be trained on"):
            one.train(1, train_size=0.5, enable_progress_bar=False)
    np.testing.assert_array_equal(loaded.get_latent_representation(), model.get_latent_representation())


def test_other_data_have_a_split_of_their_own(saved, simulate):
    model, _, folder = saved
    with pytest.warns(DataWarning, match="not the data this model was trained on"):
        loaded = countvi.SCVI.load(folder, simulate(30, seed=3))
    with pytest.raises(NotTrainedError, match="no split"):
        _ = loaded.train_indices
    assert np.isfinite(loaded.get_latent_representation()).all()
    loaded.train(1, batch_size=16, enable_progress_bar=False)
    assert len(loaded.train_indices) + len(loaded.validation_indices) == 30
    assert len(loaded.history) == len(model.history) + 1


def test_an_untrained_model(simulate, tmp_path):
    adata = simulate()
    countvi.SCVI.setup_anndata(adata)
    model = countvi.SCVI(adata, n_hidden=8, seed=4)
    model.save(tmp_path / "model")
    loaded = countvi.SCVI.load(tmp_path / "model", adata)
    assert not loaded.is_trained
    with pytest.raises(NotTrainedError):
        loaded.get_latent_representation()
    for one in (model, loaded):
        one.train(1, enable_progress_bar=False)
    np.testing.assert_array_equal(loaded.get_latent_representation(), model.get_latent_representation())


def test_the_same_seed_gives_the_same_bytes(simulate, fit, tmp_path):
    for name in ("a", "b"):
        fit(simulate(), {"batch_key": "batch"}, 2).save(tmp_path / name)
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (tmp_path / "b" / "model.safetensors").read_bytes()


def damaged(folder, tmp_path, change):
    """Copy a model with changed bytes of its manifest, its digest as it was."""
    copy = edit(folder, tmp_path)
    (copy / "manifest.json").write_bytes(change(bytearray((folder / "manifest.json").read_bytes())))
    return copy


def test_one_flipped_bit_of_the_manifest_is_refused(saved, tmp_path):
    def another_gene(text):
        return bytes(text).replace(b'"gene11"', b'"gene91"')

    def another_latent_distribution(text):
        return bytes(text).replace(b'"latent_distribution": "normal"', b'"latent_distribution": "ln"')

    for i, change in enumerate((another_gene, another_latent_distribution)):
        with pytest.raises(FileFormatError, match=r"not what was saved.*checksum"):
            countvi.SCVI.load(damaged(saved[2], tmp_path / str(i), change))


def test_random_flips_of_the_manifest_are_refused(saved, tmp_path):
    whole = (saved[2] / "manifest.json").read_bytes()
    values, rng = json.loads(whole), np.random.default_rng(5)
    copy = damaged(saved[2], tmp_path, bytes)
    for at, bit in zip(rng.integers(len(whole), size=60), rng.integers(8, size=60), strict=True):
        flipped = bytearray(whole)
        flipped[at] ^= 1 << bit
        (copy / "manifest.json").write_bytes(flipped)
        try:
            countvi.SCVI.load(copy)
        except FileFormatError:
            continue
        assert json.loads(flipped) == values  # white space


def test_a_gene_named_twice_is_refused(saved, tmp_path):
    registry = json.loads((saved[2] / "manifest.json").read_text())["registry"]
    names = registry["modalities"][0]["feature_names"]
    names[3] = names[4]
    with pytest.raises(FileFormatError, match=rf"the gene '{names[4]}' more than once"):
        countvi.SCVI.load(edit(saved[2], tmp_path, registry=registry))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_weight_that_is_not_finite_is_refused_by_name(saved, simulate, fit, tmp_path, value):
    import torch

    model = fit(simulate())
    with torch.no_grad():
        model.module.get_parameter("rho.weight")[2, 1] = value
    model.save(tmp_path / "model")
    with pytest.raises(FileFormatError, match=r"rho\.weight holds values that are not finite"):
        countvi.SCVI.load(tmp_path / "model")


@pytest.mark.parametrize(
    "arguments",
    [{"n_layers": 10**8}, {"n_layers": 1e308}, {"n_hidden": 10**9}, {"n_latent": 10**7}, {"n_latent": 10**300}],
    ids=str,
)
def test_a_model_larger_than_its_weights_is_not_built(saved, tmp_path, arguments):
    options = json.loads((saved[2] / "manifest.json").read_text())["init_args"] | arguments
    with pytest.raises((FileFormatError, OptionError)):
        countvi.SCVI.load(edit(saved[2], tmp_path, init_args=options))


@pytest.mark.parametrize("name", ["manifest.json", "model.safetensors", "adata.h5ad"])
def test_pipes_and_devices_are_not_opened(saved, tmp_path, name):
    import os

    for i, make in enumerate((os.mkfifo, lambda path: os.symlink("/dev/zero", path))):
        copy = edit(saved[2], tmp_path / str(i))
        (copy / name).unlink(missing_ok=True)
        make(copy / name)
        with pytest.raises(FileFormatError, match=name.replace(".", r"\.")):
            countvi.SCVI.load(copy)


@pytest.mark.parametrize(
    "registry",
    [{}, {"columns": []}, {"modalities": 3}, {"covariates": {"batch": 9}}, {"continuous_keys": [1]}, {"columns": [[]]}],
    ids=str,
)
def test_a_damaged_registry(saved, tmp_path, registry):
    whole = json.loads((saved[2] / "manifest.json").read_text())["registry"]
    with pytest.raises(FileFormatError, match="registry of the model"):
        countvi.SCVI.load(edit(saved[2], tmp_path, registry={**whole, **registry} if registry else {}))


def test_damaged_data_beside_a_model(saved, tmp_path):
    copy = edit(saved[2], tmp_path)
    (copy / "adata.h5ad").write_bytes(b"not HDF5")
    with pytest.raises(FileFormatError, match=r"adata\.h5ad cannot be read.*adata=False"):
        countvi.SCVI.load(copy)
    assert countvi.SCVI.load(copy, False).adata is None
