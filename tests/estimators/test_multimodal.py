"""RegularizedMultimodalVI through what users call."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from tests.estimators.regularized import QUIET, SETUPS, SMALL, make_atac, make_mdata, make_obs, make_rna

import countvi
from countvi.errors import DataError, DataWarning, FileFormatError, NotSetUpError, OptionError, UnknownNameError

mudata = pytest.importorskip("mudata", reason="needs the optional package: pip install 'countvi[multimodal]'")
Model = countvi.RegularizedMultimodalVI

MODES: dict[str, dict[str, Any]] = {
    "concatenation": {},
    "slices": {"n_latent": {"rna": 4, "atac": 2}, "n_hidden": {"rna": 8, "atac": 5}},
    "equal": {"latent_mode": "weighted_mean"},
    "universal": {"latent_mode": "weighted_mean", "modality_weights": "universal"},
    "cell": {"latent_mode": "weighted_mean", "modality_weights": "cell"},
    "single": {"latent_mode": "single_encoder", "n_hidden": {"rna": 6, "atac": 9}},
}


@pytest.fixture(autouse=True)
def as_from_mudata_4() -> Iterator[None]:
    """Modalities keep their columns to themselves, as is the default from mudata 0.4."""
    with mudata.set_options(pull_on_update=False):
        yield


def build(setup: dict[str, Any] | None = None, mdata: Any = None, **options: Any) -> Any:
    mdata = make_mdata() if mdata is None else mdata
    Model.setup_mudata(mdata, **(setup or {}))
    return Model(mdata, **{**SMALL, **options})


def fit(setup: dict[str, Any] | None = None, epochs: int = 2, mdata: Any = None, **options: Any) -> Any:
    model = build(setup, mdata, **options)
    model.train(epochs, **QUIET)
    return model


@pytest.fixture(scope="module")
def trained() -> Any:
    """Of every kind of covariate; the read-out tests do not change it."""
    with mudata.set_options(pull_on_update=False):
        return fit(SETUPS["by purpose"], epochs=5)


def read_outs(model: Any, **which: Any) -> dict[str, np.ndarray]:
    """Everything that takes no random numbers, flat."""
    found = {
        "latent": model.get_latent_representation(**which),
        "expression": model.get_normalized_expression(use_z_mean=True, **which),
        "counts": model.get_normalized_expression(use_z_mean=True, library_size="latent", **which),
        "ambient": model.get_ambient_fraction(**which),
        "clean": {name: counts.toarray() for name, counts in model.get_decontaminated_counts(**which).items()},
        "library": model.get_latent_library_size(**which),
        "attribution": {
            f"{name} {kind}": values
            for name, both in model.get_modality_attribution(**which).items()
            for kind, values in both.items()
        },
        "profile": model.get_background_profile(),
        "scaling": model.get_feature_scaling(),
        "theta": model.get_inverse_dispersion(),
    }
    flat = {}
    for name, value in found.items():
        parts = value.items() if isinstance(value, dict) else [("", value)]
        flat |= {f"{name} {part}": np.asarray(values) for part, values in parts}
    return flat


# --- set-up and files


@pytest.mark.parametrize("setup", SETUPS.values(), ids=SETUPS)
def test_every_set_up_is_saved_and_loaded(setup: dict[str, Any], tmp_path: Path) -> None:
    check_files(fit(setup, epochs=1), tmp_path)


@pytest.mark.parametrize("options", MODES.values(), ids=MODES)
def test_every_latent_mode_is_saved_and_loaded(options: dict[str, Any], tmp_path: Path) -> None:
    check_files(fit(SETUPS["by purpose"], epochs=1, **options), tmp_path)


def check_files(model: Any, path: Path) -> None:
    model.save(path / "model", save_anndata=True)
    expected = read_outs(model)
    for loaded, cells in [
        (Model.load(path / "model"), {}),
        (Model.load(path / "model", make_mdata()), {"adata": make_mdata()}),
    ]:
        assert loaded.registry == model.registry
        assert repr(loaded) == repr(model)
        for name, value in read_outs(loaded, **cells).items():
            np.testing.assert_array_equal(value, expected[name], err_msg=name)
    loaded.train(1, **QUIET)
    assert len(loaded.history) == 2


def test_the_saved_data_are_the_data(tmp_path: Path) -> None:
    mdata = make_mdata()
    mdata.obs["note"] = [None, *["text"] * 59]
    before = mdata.obs.copy(), {name: adata.obs.copy() for name, adata in mdata.mod.items()}
    fit(mdata=mdata, epochs=1).save(tmp_path / "model", save_anndata=True)
    saved = mudata.read_h5mu(tmp_path / "model" / "mdata.h5mu")
    assert list(saved.mod) == ["rna", "atac"]
    for name, adata in mdata.mod.items():
        assert (saved[name].X != adata.X).nnz == 0
        assert (saved[name].layers["counts"] != adata.layers["counts"]).nnz == 0
        assert saved[name].obs.astype(str).equals(adata.obs.astype(str))
        assert adata.obs.equals(before[1][name])
    assert mdata.obs.equals(before[0])
    assert saved.obs["note"].isna().tolist() == mdata.obs["note"].isna().tolist()


def test_classes_do_not_load_each_other(tmp_path: Path) -> None:
    fit(epochs=1).save(tmp_path / "model")
    with pytest.raises(FileFormatError, match=r"holds a RegularizedMultimodalVI, not a AmbientRegularizedSCVI"):
        countvi.AmbientRegularizedSCVI.load(tmp_path / "model")


def test_other_names_and_layers(trained: Any) -> None:
    mdata = make_mdata(gex=make_rna(), peaks=make_atac())
    model = fit(
        {"modalities": {"RNA": "gex", "ATAC": "peaks"}, "layer": {"ATAC": "counts"}, "batch_key": "batch"},
        mdata=mdata,
        n_latent={"RNA": 2, "ATAC": 1},
    )
    assert "  data: 9 features in peaks: layers/counts" in repr(model)
    assert list(model.get_background_profile()) == ["RNA"]
    assert list(model.get_feature_scaling()) == ["ATAC"]
    assert model.get_latent_representation().shape == (60, 3)
    assert list(model.get_modality_latents()) == ["RNA", "ATAC"]


def test_it_wants_a_mudata_that_was_set_up() -> None:
    with pytest.raises(NotSetUpError, match=r"This MuData .* RegularizedMultimodalVI\.setup_mudata"):
        Model(make_mdata())
    with pytest.raises(DataError, match="A MuData is expected here; got anndata"):
        Model.setup_mudata(make_rna())


def test_a_query(trained: Any) -> None:
    query = make_mdata()
    fewer = mudata.MuData({"rna": query["rna"], "atac": query["atac"][:, 1:].copy()})
    prepared = Model.prepare_query_mudata(fewer, trained)
    assert prepared["atac"].n_vars == 9
    assert trained.get_latent_representation(prepared).shape == (60, 6)


# --- arguments


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"n_latent": {"rna": 3}}, OptionError, "n_latent leaves out 'atac'"),
        ({"n_hidden": {"rna": 3, "atca": 3}}, UnknownNameError, r"no modality 'atca'.*Did you mean 'atac'"),
        ({"dropout_rate": {"rna": 0.1, "atac": 1}}, OptionError, r"dropout_rate\['atac'\] must be at least 0 and less"),
        ({"latent_mode": "mean"}, OptionError, "latent_mode must be one of 'concatenation', 'weighted_mean'"),
        ({"modality_weights": "cell"}, OptionError, "modality_weights='cell' has no meaning with latent_mode='concat"),
        (
            {"latent_mode": "weighted_mean", "n_latent": {"rna": 3, "atac": 2}},
            OptionError,
            r"must be the same .* got \{'rna': 3, 'atac': 2\}",
        ),
        (
            {"latent_mode": "single_encoder", "n_latent": {"rna": 3, "atac": 2}},
            OptionError,
            "n_latent must be one number",
        ),
        ({"additive_background_modalities": "rna"}, OptionError, r"must be a list.*Write \['rna'\]"),
        ({"feature_scaling_modalities": ["ATAC"]}, UnknownNameError, "no modality 'ATAC'"),
    ],
)
def test_arguments_that_cannot_be(options: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        build(**options)


def test_which_modalities_have_what() -> None:
    model = build({"batch_key": "batch"}, make_mdata(a=make_rna(), b=make_atac()))  # told by the names of peaks only
    parts = model.module.modalities
    assert [(part.background is None, part.scaling is None) for part in parts.values()] == [(True, True), (True, False)]
    chosen = build(
        {"batch_key": "batch"}, additive_background_modalities=["atac"], feature_scaling_modalities=[]
    ).module.modalities
    assert [part.background is None for part in chosen.values()] == [True, False]
    assert [part.scaling is None for part in chosen.values()] == [True, True]


# --- the case of one modality


@pytest.mark.parametrize("setup", [name for name in SETUPS if name != "batch and conditioning"])
@pytest.mark.parametrize("mode", ["concatenation", "weighted_mean", "single_encoder"])
def test_one_modality_is_the_single_model(setup: str, mode: str) -> None:
    keys = dict(SETUPS[setup])
    adata = make_rna()
    single = countvi.AmbientRegularizedSCVI
    single.setup_anndata(adata, **keys)
    alone = single(adata, **SMALL)
    alone.train(2, **QUIET)
    keys.setdefault("feature_scaling_covariate_keys", [])
    lists = {"additive_background_modalities": ["rna"], "feature_scaling_modalities": ["rna"]}
    model = fit(keys, mdata=make_mdata(rna=make_rna()), latent_mode=mode, **lists)
    for name in ("get_latent_representation", "get_elbo"):
        np.testing.assert_allclose(getattr(model, name)(), getattr(alone, name)(), rtol=1e-6, atol=1e-7, err_msg=name)
    for name in ("get_ambient_fraction", "get_background_profile", "get_feature_scaling", "get_inverse_dispersion"):
        np.testing.assert_allclose(getattr(model, name)()["rna"], getattr(alone, name)(), rtol=1e-6, err_msg=name)


# --- cells without a modality


@pytest.mark.parametrize("options", MODES.values(), ids=MODES)
def test_a_missing_modality_leaves_other_cells_alone(options: dict[str, Any]) -> None:
    model = fit(SETUPS["by purpose"], **options)
    mdata = make_mdata()
    names = np.asarray(mdata.obs_names)
    both = mudata.MuData({"rna": mdata["rna"], "atac": mdata["atac"][:10].copy()})  # 30 more cells lose their ATAC
    same = np.flatnonzero(~np.isin(names, mdata["atac"].obs_names[10:]))
    assert list(both.obs_names[same]) == list(names[same])
    now, before = read_outs(model, adata=both), read_outs(model)
    for name, values in now.items():
        if not name.startswith(("profile", "scaling", "theta")):
            np.testing.assert_allclose(values[same], before[name][same], rtol=2e-5, atol=1e-6, err_msg=name)


def test_what_was_not_measured_is_left_out(trained: Any) -> None:
    names = np.asarray(trained.adata.obs_names)
    no_atac = ~np.isin(names, trained.adata["atac"].obs_names)
    no_rna = ~np.isin(names, trained.adata["rna"].obs_names)
    assert (no_atac.sum(), no_rna.sum()) == (20, 5)
    library = trained.get_latent_library_size()
    np.testing.assert_array_equal(np.isnan(library["atac"][:, 0]), no_atac)
    np.testing.assert_array_equal(np.isnan(library["rna"][:, 0]), no_rna)
    errors = trained.get_reconstruction_error(return_mean=False)
    np.testing.assert_array_equal(np.isnan(errors["atac"]), no_atac)
    means = trained.get_reconstruction_error()
    assert means["atac"] == pytest.approx(np.nanmean(errors["atac"]))
    np.testing.assert_array_equal(np.isnan(trained.get_ambient_fraction()["rna"]), no_rna)
    latents = trained.get_modality_latents()
    np.testing.assert_array_equal(np.isnan(latents["atac"]).all(1), no_atac)
    states = trained.get_latent_representation()
    np.testing.assert_allclose(states[~no_rna, :3], latents["rna"][~no_rna], rtol=1e-6)
    np.testing.assert_allclose(states[~no_atac, 3:], latents["atac"][~no_atac], rtol=1e-6)
    np.testing.assert_array_equal(states[no_rna, :3], 0)  # the prior
    _, variance = trained.get_latent_representation(return_dist=True)
    np.testing.assert_array_equal(variance[no_atac, 3:], 1)
    assert (trained.get_decontaminated_counts()["rna"][no_rna]).nnz == 0


@pytest.mark.filterwarnings("ignore::countvi.errors.DataWarning")
def test_what_no_cell_of_a_batch_has_is_not_left_at_random() -> None:
    """Peaks were measured in one batch of two: the other is decoded like it, and RNA as before."""
    atac = make_atac()
    atac = atac[(atac.obs["batch"] == "b0").to_numpy()].copy()
    model = fit(
        SETUPS["batch and conditioning"],
        mdata=make_mdata(rna=make_rna(), atac=atac),
        n_layers=2,
        additive_background_modalities=["rna", "atac"],
    )
    parts = model.module.modalities
    for layer in parts["atac"].decode.layers:
        b0, b1 = layer.linear.levels.weight[3:]  # the first three are donors
        assert torch.equal(b0, b1)
    assert torch.equal(*parts["atac"].background.beta)
    for layer in parts["rna"].decode.layers:
        assert not torch.isclose(*layer.linear.levels.weight[3:]).any()
    assert not torch.isclose(*parts["rna"].background.beta).any()


def test_library_priors_are_those_of_the_cells_measured() -> None:
    model = build({"batch_key": "batch"})
    adata = model.adata["atac"]
    totals = np.log(adata.X.toarray().sum(1))
    for code, level in enumerate(["b0", "b1"]):
        prior = model.module.modalities["atac"].library
        mine = totals[np.asarray(adata.obs["batch"] == level)]
        assert float(prior.loc[code]) == pytest.approx(mine.mean(), rel=1e-5)
        assert float(prior.scale[code]) == pytest.approx(np.sqrt(0.5) * mine.std(), rel=1e-5)


def test_expected_counts_equal_observed_ones_before_training() -> None:
    model = build(
        SETUPS["by purpose"],
        library_log_means_centering_sensitivity={"rna": 1.0, "atac": 0.2},
        additive_background_modalities=["rna", "atac"],
    )
    model.is_trained = True
    expected = model.get_normalized_expression(use_z_mean=True, library_size="latent", include_background=True)
    for name, adata in model.adata.mod.items():
        mine = expected[name].loc[adata.obs_names]
        assert mine.to_numpy().sum() / adata.X.sum() == pytest.approx(1.0, abs=0.03)


# --- read-outs


def test_every_read_out_can_name_a_modality(trained: Any) -> None:
    for name in (
        "get_normalized_expression",
        "get_likelihood_parameters",
        "get_latent_library_size",
        "posterior_predictive_sample",
        "get_feature_correlation_matrix",
        "get_inverse_dispersion",
    ):
        found = getattr(trained, name)()
        assert list(found) == ["rna", "atac"], name
        one = getattr(trained, name)(modality="atac")
        if name == "get_likelihood_parameters":
            one, found = one["mean"], {"atac": found["atac"]["mean"]}
        if sp.issparse(one):
            one, found = one.toarray(), {"atac": found["atac"].toarray()}
        np.testing.assert_array_equal(np.asarray(one), np.asarray(found["atac"]), err_msg=name)
        assert np.asarray(one).shape[0] in (60, 9)
        with pytest.raises(UnknownNameError, match=r"no modality 'prot'; the model has 'rna', 'atac'"):
            getattr(trained, name)(modality="prot")


def test_parts_that_a_modality_lacks(trained: Any) -> None:
    assert list(trained.get_ambient_fraction()) == ["rna"]
    assert list(trained.get_feature_scaling()) == ["atac"]
    with pytest.raises(OptionError, match="Modality 'atac' was built without a background"):
        trained.get_background_profile(modality="atac")
    with pytest.raises(OptionError, match="Modality 'rna' was built without feature factors"):
        trained.get_feature_scaling(modality="rna")
    with pytest.raises(OptionError, match="out holds one modality"):
        trained.get_normalized_expression(out=np.empty((60, 12), np.float32))


def test_attribution_is_the_slope_of_the_expected_counts(trained: Any) -> None:
    found = trained.get_modality_attribution(indices=[7, 20])
    relative = trained.get_modality_attribution(indices=[7, 20], relative=True)
    batch = trained.dataset.batch(np.array([7, 20]))
    model = trained.module.double()
    try:
        batch = batch.to(dtype=torch.float64)
        with torch.no_grad():
            q = model.guide(batch)
            library = q.log_library.loc + q.log_library.scale.square() / 2
            z, step = q.z.loc, 1e-5

            def means(at: torch.Tensor) -> dict[str, torch.Tensor]:
                latents = type(q)(z=at, log_library=library)
                return {name: y.mean for name, y in model.generate(latents, batch.design).items()}

            for j in range(6):
                shift = step * torch.eye(6, dtype=torch.float64)[j]
                up, down, here = means(z + shift), means(z - shift), means(z)
                for name in ("rna", "atac"):
                    slopes = ((up[name] - down[name]) / (2 * step)).abs()
                    expected = slopes.mean(-1).numpy()
                    np.testing.assert_allclose(found[name]["attribution"][:, j], expected, rtol=1e-3)
                    expected = (slopes.sum(-1) / here[name].sum(-1)).numpy()
                    np.testing.assert_allclose(relative[name]["attribution"][:, j], expected, rtol=1e-3)
    finally:
        model.float()
    for name in ("rna", "atac"):
        np.testing.assert_allclose(found[name]["weighted_z"], found[name]["attribution"] * z.numpy(), rtol=1e-4)


def test_slices_of_the_cell_state(trained: Any) -> None:
    assert trained.modality_slices == {"rna": slice(0, 3), "atac": slice(3, 6)}
    assert build(**MODES["slices"]).modality_slices == {"rna": slice(0, 4), "atac": slice(4, 6)}
    assert build(latent_mode="weighted_mean").modality_slices == {}


def test_a_single_encoder_has_no_parts() -> None:
    model = fit(latent_mode="single_encoder")
    assert model.modality_slices == {}
    assert model.get_latent_representation().shape == (60, 3)
    with pytest.raises(OptionError, match="no states of single modalities"):
        model.get_modality_latents()


def test_numbers_do_not_depend_on_the_minibatch(trained: Any) -> None:
    whole = read_outs(trained)
    for name, value in read_outs(trained, batch_size=7).items():
        np.testing.assert_allclose(value, whole[name], rtol=2e-5, atol=1e-6, err_msg=name)


def test_some_cells(trained: Any) -> None:
    rows = np.array([57, 3, 3])
    everything = read_outs(trained)
    for name, value in read_outs(trained, indices=rows).items():
        if not name.startswith(("profile", "scaling", "theta")):
            np.testing.assert_allclose(value, everything[name][rows], rtol=2e-5, atol=1e-6, err_msg=name)


def test_cells_on_disk(tmp_path: Path) -> None:
    memory = make_mdata()
    countvi.data.write_h5mu(memory, tmp_path / "m.h5mu")
    backed = mudata.read_h5mu(tmp_path / "m.h5mu", backed="r")
    one, other = build({"batch_key": "batch"}, memory), build({"batch_key": "batch"}, backed)
    np.testing.assert_array_equal(one.get_background_profile()["rna"], other.get_background_profile()["rna"])
    other.train(1, **QUIET)
    assert np.isfinite(other.get_latent_representation()).all()


def test_a_query_without_a_modality(trained: Any) -> None:
    query = mudata.MuData({"rna": make_rna()})
    with pytest.warns(DataWarning, match="no modality 'atac'") as caught:
        found = trained.get_normalized_expression(query, use_z_mean=True)
    assert len(caught) == 1
    assert found["atac"].shape == (60, 9)  # what would be expected
    assert np.isfinite(found["atac"].to_numpy()).all()


def test_confounded_covariates_are_warned_of() -> None:
    mdata = make_mdata()
    mdata.obs["type"] = np.where(np.arange(60) % 2 == int(mdata.obs_names[0][-1]) % 2, "T", "B")
    mdata.obs["batch"] = mdata.obs["type"]
    with pytest.warns(DataWarning, match="divide the cells alike"):
        build({"batch_key": "batch", "labels_key": "type"}, mdata)


def test_obs_of_the_whole_is_enough() -> None:
    mdata = make_mdata()
    for adata in mdata.mod.values():
        adata.obs = adata.obs[[]]
    mdata.obs = make_obs().loc[mdata.obs_names]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = fit(SETUPS["by purpose"], mdata=mdata)
    expected = fit(SETUPS["by purpose"])
    np.testing.assert_array_equal(model.get_latent_representation(), expected.get_latent_representation())


@pytest.mark.parametrize(("counts_per_peak", "units"), [(60, 20), (30, 16), (60_000, 128)])
def test_sparse_peaks_have_small_networks(counts_per_peak, units, tmp_path):
    mdata = make_mdata()
    mdata["atac"].X = sp.csr_matrix(np.full(mdata["atac"].shape, counts_per_peak / mdata["atac"].n_obs, np.float32))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)  # halves are no counts
        model = build(mdata=mdata, n_hidden=None)
    sizes = {name: part.rho.in_features for name, part in model.module.modalities.items()}
    assert sizes == {"rna": 128, "atac": units}
    assert [encoder.loc.in_features for encoder in model.module.encode_z.encoders] == list(sizes.values())
    model.train(1, **QUIET)
    model.save(tmp_path / "model")
    alone = Model.load(tmp_path / "model")  # without the counts that the sizes came from
    assert {name: part.rho.in_features for name, part in alone.module.modalities.items()} == sizes


def test_units_that_are_given_are_kept():
    model = build(n_hidden=7)
    assert {part.rho.in_features for part in model.module.modalities.values()} == {7}
