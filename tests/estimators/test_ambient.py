"""AmbientRegularizedSCVI through what users call."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from tests.estimators.regularized import QUIET, SETUPS, SMALL, make_rna

import countvi
from countvi.errors import DataWarning, MismatchError, NotSetUpError, OptionError, UnknownNameError
from countvi.estimators import training

Model = countvi.AmbientRegularizedSCVI


def build(setup: dict[str, Any] | None = None, adata: anndata.AnnData | None = None, **options: Any) -> Any:
    adata = make_rna() if adata is None else adata
    Model.setup_anndata(adata, **(setup or {}))
    return Model(adata, **{**SMALL, **options})


def fit(setup: dict[str, Any] | None = None, epochs: int = 2, **options: Any) -> Any:
    model = build(setup, **options)
    model.train(epochs, **QUIET)
    return model


@pytest.fixture(scope="module")
def trained() -> Any:
    """Of every kind of covariate; the read-out tests do not change it."""
    return fit(SETUPS["by purpose"], epochs=5)


def read_outs(model: Any, **which: Any) -> dict[str, Any]:
    """Everything that takes no random numbers, and some that do."""
    found = {
        "latent": model.get_latent_representation(**which),
        "expression": model.get_normalized_expression(use_z_mean=True, **which),
        "counts": model.get_normalized_expression(use_z_mean=True, library_size="latent", **which),
        "ambient": model.get_ambient_fraction(**which),
        "clean": model.get_decontaminated_counts(**which).toarray(),
        "library": model.get_latent_library_size(**which),
        "elbo": model.get_elbo(return_mean=False, **which),
        "profile": model.get_background_profile(),
        "scaling": model.get_feature_scaling(),
        "theta": model.get_inverse_dispersion(),
    }
    return {name: np.asarray(value) for name, value in found.items()}


# --- set-up and files


@pytest.mark.parametrize("setup", SETUPS.values(), ids=SETUPS)
@pytest.mark.parametrize("unusual", [False, True])
def test_every_set_up_is_saved_and_loaded(setup: dict[str, Any], unusual: bool, tmp_path: Path) -> None:
    options: dict[str, Any] = {"n_layers": 2} if unusual else {}
    if unusual and "batch_key" in setup:
        options["use_batch_in_decoder"] = True
    if unusual and "dispersion_key" not in setup:
        options["dispersion"] = "gene"
    model = fit(setup, epochs=1, **options)
    model.save(tmp_path / "model", save_anndata=True)
    for loaded, cells in [
        (Model.load(tmp_path / "model"), {}),
        (Model.load(tmp_path / "model", make_rna()), {}),
        (Model.load(tmp_path / "model", make_rna()), {"adata": make_rna()}),
    ]:
        assert loaded.registry == model.registry
        assert repr(loaded) == repr(model)
        expected = read_outs(model)
        for name, value in read_outs(loaded, **cells).items():
            np.testing.assert_array_equal(value, expected[name], err_msg=name)
    np.testing.assert_array_equal(Model.load(tmp_path / "model").validation_indices, model.validation_indices)


def test_loading_reads_no_counts_for_starting_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = fit(SETUPS["batch"], epochs=1)
    model.save(tmp_path / "model")
    monkeypatch.setattr("countvi.data.Dataset.level_sums", None)
    loaded = Model.load(tmp_path / "model", make_rna())
    np.testing.assert_array_equal(loaded.get_background_profile(), model.get_background_profile())


def test_it_trains_on_after_loading(tmp_path: Path) -> None:
    model = fit(SETUPS["by purpose"], epochs=1)
    model.save(tmp_path / "model", save_anndata=True)
    loaded = Model.load(tmp_path / "model")
    loaded.train(1, **QUIET)
    assert len(loaded.history) == 2
    assert np.isfinite(loaded.history["elbo_train"]).all()


def test_there_is_no_weight_decay_unless_asked_for() -> None:
    """It would be a second prior of background, factors and dispersions."""

    def background(**arguments: Any) -> Any:
        model = build(SETUPS["batch"])
        model.train(2, **arguments, **QUIET)
        return model.get_background_profile()

    plain = background()
    pd.testing.assert_frame_equal(plain, background(plan_kwargs={"weight_decay": 0.0, "lr": 0.02}))
    assert not plain.equals(background(plan_kwargs={"weight_decay": 0.1}))
    with pytest.raises(OptionError, match="plan_kwargs must be a dictionary"):
        background(plan_kwargs=[])


def test_the_divergence_weighs_fully_from_early_on() -> None:
    model = build(SETUPS["batch"])
    model.train(20, **QUIET)
    assert (model.history["kl_weight"].iloc[1:] == 1.0).all()
    slow = build(SETUPS["batch"])
    slow.train(20, plan_kwargs={"kl_warmup_fraction": 0.5}, **QUIET)
    assert (slow.history["kl_weight"] < 1.0).sum() in (9, 10)


def test_peaks_are_trained_for_three_quarters_as_long() -> None:
    genes, peaks = make_rna(), make_rna()
    peaks.var["feature_types"] = "Peaks"
    lengths = []
    for adata in (genes, peaks):
        model = build(SETUPS["batch"], adata)
        model.train(**QUIET)
        lengths.append(len(model.history))
    assert lengths[1] == math.ceil(0.75 * lengths[0]) < lengths[0]


def test_the_batch_and_what_it_stands_for() -> None:
    with pytest.raises(ValueError, match="two ways"):
        Model.setup_anndata(make_rna(), batch_key="batch", dispersion_key="donor")


def test_a_label_that_covariates_determine_is_warned_of_once(tmp_path: Path) -> None:
    adata = make_rna()
    adata.obs["type"] = np.where(adata.obs["batch"] == "b0", "T", "B")
    with pytest.warns(DataWarning, match=r"'type' and 'batch' divide the cells alike.*\(see get_confounding\(\)\)"):
        model = build({"batch_key": "batch", "labels_key": "type"}, adata)
    assert model.get_confounding()["problem"].tolist() == [True, True]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.train(1, **QUIET)
        model.save(tmp_path / "model")
        Model.load(tmp_path / "model", adata)


def test_a_query_needs_no_labels(trained: Any) -> None:
    query = make_rna()
    del query.obs["type"]
    np.testing.assert_array_equal(trained.get_latent_representation(query), trained.get_latent_representation())
    with pytest.raises(NotSetUpError, match=r"AmbientRegularizedSCVI\.setup_anndata"):
        Model(query)
    padded = Model.prepare_query_anndata(query[:, ::-1][:, :11].copy(), trained)
    assert list(padded.var_names) == list(query.var_names)
    with pytest.raises(MismatchError, match="prepare_query_anndata"):
        trained.get_latent_representation(query[:, 3:])


# --- arguments


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"gene_likelihood": "zinb"}, "gene_likelihood must be one of 'gamma_poisson', 'nb'"),
        ({"gene_likelihood": "poisson"}, "gene_likelihood must be one of"),
        ({"dispersion": "gene-cell"}, "dispersion must be one of 'gene', 'gene-batch'"),
        ({"n_hidden": 0}, "n_hidden must be a whole number of at least 1; got 0"),
        ({"n_latent": 2.5}, "n_latent must be a whole number"),
        ({"dropout_rate": 1.0}, "dropout_rate must be at least 0 and less than 1"),
        ({"library_log_vars_weight": 0}, "library_log_vars_weight must be a positive number"),
        ({"bg_init_gene_fraction": 1.0}, "bg_init_gene_fraction must be between 0 and 1"),
        ({"use_batch_norm": "all"}, "use_batch_norm must be one of"),
        ({"regularise_background": "yes"}, "regularise_background must be True or False"),
        ({"use_additive_background": 1}, "use_additive_background must be True or False"),
    ],
)
def test_arguments_that_cannot_be(options: dict[str, Any], words: str) -> None:
    with pytest.raises(OptionError, match=words):
        build(**options)


def test_defaults_are_those_of_the_method() -> None:
    model = build({"batch_key": "batch"}, n_hidden=128, n_latent=10)
    part = model.module.modalities["rna"]
    assert part.dispersion.prior.shape == 9
    assert part.dispersion.prior.rate == 3
    np.testing.assert_allclose(model.get_inverse_dispersion(), 9.0, rtol=1e-6)
    np.testing.assert_allclose(model.get_feature_scaling(), 1.0, rtol=1e-6)
    assert part.background.prior is None
    assert part.scaling.prior == type(part.scaling.prior)(200, 200)
    assert part.library.encode.loc.in_features == 16
    # Gamma(1, 100) once it is asked for.
    prior = build({"batch_key": "batch"}, regularise_background=True).module.modalities["rna"].background.prior
    assert (prior.shape, prior.rate) == (1, 100)


@pytest.mark.parametrize("sensitivity", [0.2, 1.0])
@pytest.mark.parametrize("setup", SETUPS.values(), ids=SETUPS)
def test_expected_counts_equal_observed_ones_before_training(setup: dict[str, Any], sensitivity: float) -> None:
    model = build(setup, library_log_means_centering_sensitivity=sensitivity)
    model.is_trained = True
    expected = model.get_normalized_expression(use_z_mean=True, library_size="latent", include_background=True)
    observed = make_rna().X.toarray()
    assert expected.to_numpy().sum() / observed.sum() == pytest.approx(1.0, abs=0.03)
    np.testing.assert_allclose(expected.sum(0), observed.sum(0), rtol=0.1)


def test_early_stopping_asks_for_improvement_in_proportion_to_the_genes(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []

    def run(model: Any, request: Any) -> Any:
        seen.append(request.early_stopping.min_delta)
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "run", run)
    model = build()
    for arguments in (
        {},
        {"early_stopping_min_delta_per_feature": 0.5},
        {"early_stopping_min_delta": 0.0},
        {"early_stopping_min_delta": 3.0},
    ):
        with pytest.raises(KeyboardInterrupt):
            model.train(1, early_stopping=True, **QUIET, **arguments)
    assert seen == pytest.approx([12 * 2e-4, 6.0, 0.0, 3.0])


# --- read-outs


def test_decontaminated_counts_are_never_above_the_counts(trained: Any) -> None:
    raw = make_rna().X.toarray()
    for integer in (False, True):
        clean = trained.get_decontaminated_counts(integer=integer)
        assert isinstance(clean, sp.csr_array)
        assert (clean.toarray() <= raw).all()
        assert (clean.toarray() >= 0).all()
        assert 0 < clean.sum() < raw.sum()
    assert (clean.toarray() == np.rint(clean.toarray())).all()


def test_what_is_ambient_and_what_is_left_make_up_the_counts(trained: Any) -> None:
    raw = make_rna().X.toarray()
    own = trained.get_normalized_expression(use_z_mean=True, library_size="latent").to_numpy()
    total = trained.get_normalized_expression(use_z_mean=True, library_size="latent", include_background=True)
    expected = raw * own / total.to_numpy()
    np.testing.assert_allclose(trained.get_decontaminated_counts().toarray(), expected, rtol=1e-4)
    fraction = trained.get_ambient_fraction()
    np.testing.assert_allclose(fraction, 1 - expected.sum(1) / raw.sum(1), rtol=1e-4)
    assert fraction.shape == (60,)
    assert 0 < fraction.min() <= fraction.max() < 1
    drawn = trained.get_ambient_fraction(n_samples=50)
    assert not np.array_equal(drawn, fraction)
    np.testing.assert_allclose(drawn, fraction, atol=0.1)


def test_expression_is_rho_in_units_of_an_average_cell(trained: Any) -> None:
    rho = trained.get_normalized_expression(use_z_mean=True)
    library = trained.get_latent_library_size()
    counts = trained.get_normalized_expression(use_z_mean=True, library_size="latent").to_numpy()
    donor, lane = make_rna().obs["donor"], make_rna().obs["lane"]
    factors = trained.get_feature_scaling()
    y = np.stack([factors["donor"][d] * factors["lane"][b] for d, b in zip(donor, lane, strict=True)])
    np.testing.assert_allclose(counts, library * rho.to_numpy() * y, rtol=1e-4)
    profile = trained.get_background_profile()
    batch = make_rna().obs["batch"]
    background = np.stack([profile["batch"][b] + profile["lane"][c] for b, c in zip(batch, lane, strict=True)])
    unit = float(trained.module.modalities["rna"].log_unit.exp())
    with_background = trained.get_normalized_expression(use_z_mean=True, include_background=True)
    np.testing.assert_allclose(with_background, rho.to_numpy() + background / unit, rtol=1e-4)
    assert rho.sum(1).mean() == pytest.approx(1.0, abs=0.3)


def test_tables_by_level() -> None:
    model = build(SETUPS["by purpose"])
    profile = model.get_background_profile()
    assert list(profile.index) == [f"g{i}" for i in range(12)]
    assert list(profile.columns) == [("batch", "b0"), ("batch", "b1"), ("lane", 1), ("lane", 2)]
    np.testing.assert_allclose(model.get_background_profile(normalize=True).sum(), 1.0, rtol=1e-6)
    assert list(model.get_feature_scaling().columns) == [
        ("donor", "x"), ("donor", "y"), ("donor", "z"), ("lane", 1), ("lane", 2)
    ]  # fmt: skip
    assert list(model.get_inverse_dispersion().columns) == ["x", "y", "z"]
    assert model.get_inverse_dispersion().columns.name == "donor"
    alone = build()
    for table in (alone.get_background_profile(), alone.get_feature_scaling(), alone.get_inverse_dispersion()):
        assert list(table.columns) == ["all"]
    assert list(build({"batch_key": "batch"}, dispersion="gene").get_inverse_dispersion().columns) == ["all"]


def test_without_the_parts() -> None:
    model = fit({"batch_key": "batch"}, use_additive_background=False, use_feature_scaling=False)
    for call in (model.get_ambient_fraction, model.get_decontaminated_counts, model.get_background_profile):
        with pytest.raises(OptionError, match="built without a background"):
            call()
    with pytest.raises(OptionError, match="built without feature factors"):
        model.get_feature_scaling()
    plain = model.get_normalized_expression(use_z_mean=True)
    pd.testing.assert_frame_equal(model.get_normalized_expression(use_z_mean=True, include_background=True), plain)


def test_counterfactual_covariates(trained: Any) -> None:
    donors = {
        d: trained.get_normalized_expression(transform_batch={"donor": d}, use_z_mean=True).to_numpy() for d in "xyz"
    }
    own = trained.get_normalized_expression(use_z_mean=True).to_numpy()
    expected = np.stack([donors[d][i] for i, d in enumerate(make_rna().obs["donor"])])
    np.testing.assert_allclose(own, expected, rtol=1e-5)
    mean = trained.get_normalized_expression(transform_batch=[{"donor": d} for d in "xyz"], use_z_mean=True)
    np.testing.assert_allclose(mean, np.mean(list(donors.values()), axis=0), rtol=1e-5)
    both = trained.get_normalized_expression(
        transform_batch={"donor": "x", "lane": 2, "batch": "b1"},
        use_z_mean=True,
        library_size="latent",
        include_background=True,
    )
    like = make_rna()
    like.obs[["lane", "batch"]] = [2, "b1"]
    like.obs["donor"] = "x"
    as_if = trained.get_normalized_expression(like, use_z_mean=True, library_size="latent", include_background=True)
    # The library size prior does not enter a read-out at the guide, so the two are the same numbers.
    np.testing.assert_allclose(both, as_if, rtol=1e-5)
    with pytest.raises(UnknownNameError, match=r"transform_batch: 'doner' is no covariate.*Did you mean 'donor'"):
        trained.get_normalized_expression(transform_batch={"doner": "x"})
    with pytest.raises(UnknownNameError, match="'w' is not a category of obs"):
        trained.get_normalized_expression(transform_batch={"donor": "w"})
    with pytest.raises(OptionError, match="an empty dictionary"):
        trained.get_normalized_expression(transform_batch={})


def test_numbers_do_not_depend_on_the_minibatch(trained: Any) -> None:
    whole = read_outs(trained)
    for name, value in read_outs(trained, batch_size=7).items():
        if name != "elbo":  # a draw, which goes by the minibatch
            np.testing.assert_allclose(value, whole[name], rtol=2e-5, atol=1e-6, err_msg=name)


def test_evaluation_is_deterministic(trained: Any) -> None:
    first = read_outs(trained)
    for name, value in read_outs(trained).items():
        np.testing.assert_array_equal(value, first[name], err_msg=name)


def test_draws_look_like_the_data() -> None:
    model = fit({"batch_key": "batch"}, epochs=30)
    raw = make_rna().X.toarray()
    drawn = np.mean([s.toarray() for s in model.posterior_predictive_sample(n_samples=200)], axis=0)
    np.testing.assert_allclose(drawn.mean(0), raw.mean(0), rtol=0.15)
    parameters = model.get_likelihood_parameters(n_samples=200, give_mean=True)
    np.testing.assert_allclose(parameters["mean"].mean(0), drawn.mean(0), rtol=0.1)
    theta = model.get_inverse_dispersion()
    assert set(parameters) == {"mean", "dispersions"}
    np.testing.assert_allclose(parameters["dispersions"][1], theta["b1"], rtol=1e-5)
    assert model.get_feature_correlation_matrix(gene_list=["g3", "g1"]).shape == (2, 2)


def test_evidence_with_the_terms_of_the_whole_data(trained: Any) -> None:
    history = trained.history
    terms = trained.get_log_prior()
    assert set(terms) == {"rna.theta", "rna.scaling"}
    per_cell = -sum(terms.values()) / len(trained.train_indices)
    assert per_cell == pytest.approx(history["kl_global_validation"].iloc[-1], rel=1e-4)
    assert trained.get_marginal_ll(n_mc_samples=200) > trained.get_elbo()
    assert set(trained.get_reconstruction_error()) == {"reconstruction_loss"}


def test_columns_of_the_history_are_of_one_unit() -> None:
    """What was descended is the sum of its parts, with the divergence at a weight between none and all."""
    history = fit({"batch_key": "batch"}, epochs=3).history
    assert (history["kl_global_train"].abs() > 0.1).all()
    rest = history["train_loss"] - history["reconstruction_loss_train"] - history["kl_global_train"]
    assert (rest >= -1e-3).all() and (rest <= history["kl_local_train"] + 1e-3).all()


def test_modality_names(trained: Any) -> None:
    np.testing.assert_array_equal(trained.get_ambient_fraction(modality="rna"), trained.get_ambient_fraction())
    with pytest.raises(UnknownNameError, match="no modality 'atac'"):
        trained.get_ambient_fraction(modality="atac")


def test_some_cells_and_genes(trained: Any) -> None:
    rows = np.array([50, 3, 3])
    everything = read_outs(trained)
    for name, value in read_outs(trained, indices=rows).items():
        if name not in ("profile", "scaling", "theta", "elbo"):
            np.testing.assert_allclose(value, everything[name][rows], rtol=2e-5, atol=1e-6, err_msg=name)
    frame = trained.get_normalized_expression(indices=rows, gene_list=["g5", "g2"], use_z_mean=True)
    assert list(frame.index) == ["cell50", "cell3", "cell3"]
    assert list(frame.columns) == ["g5", "g2"]


def test_cells_on_disk_train_the_same(tmp_path: Path) -> None:
    adata = make_rna()
    adata.write_h5ad(tmp_path / "a.h5ad")
    backed = anndata.read_h5ad(tmp_path / "a.h5ad", backed="r")
    one, other = build({"batch_key": "batch"}, adata), build({"batch_key": "batch"}, backed)
    np.testing.assert_array_equal(one.get_background_profile(), other.get_background_profile())
    other.train(1, **QUIET)
    assert np.isfinite(other.get_latent_representation()).all()


def test_who_sees_the_batch() -> None:
    """Encoder and decoder see a covariate exactly if they were told to."""
    swapped = make_rna()
    swapped.obs["batch"] = swapped.obs["batch"].map({"b0": "b1", "b1": "b0"})

    def moved(read_out: str, **setup_and_options: Any) -> bool:
        options = {name: setup_and_options.pop(name) for name in ("use_batch_in_decoder",) if name in setup_and_options}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "encoder_covariate_keys", DataWarning)
            model = fit({"batch_key": "batch", **setup_and_options}, epochs=1, **options)
        if read_out == "state":
            return not np.array_equal(model.get_latent_representation(swapped), model.get_latent_representation())
        own, other = (
            model.get_normalized_expression(transform_batch=b, use_z_mean=True).to_numpy() for b in ("b0", "b1")
        )
        return not np.array_equal(own, other)

    assert not moved("state")
    assert moved("state", encoder_covariate_keys=["batch"])
    assert not moved("expression")
    assert moved("expression", use_batch_in_decoder=True)
    assert moved("expression", nn_conditioning_covariate_keys=["batch"])


@pytest.mark.parametrize(
    ("setup", "options", "message"),
    [
        ({}, {"use_batch_in_decoder": True}, r"needs a batch, .* nn_conditioning_covariate_keys"),
        ({"dispersion_key": "batch"}, {"dispersion": "gene"}, r"no use for the dispersion key 'batch'"),
    ],
)
def test_options_that_would_do_nothing_are_refused(
    setup: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(OptionError, match=message):
        build(setup, **options)


def test_the_unit_of_expression() -> None:
    """By default the counts of an average cell, in the sense of the geometric mean."""
    one, fifth = (build({"batch_key": "batch"}, library_log_means_centering_sensitivity=s) for s in (1.0, 0.2))
    totals = make_rna().X.toarray().sum(1)
    assert float(one.module.modalities["rna"].log_unit) == pytest.approx(np.log(totals).mean(), rel=1e-5)
    ratio = float((fifth.module.modalities["rna"].log_unit - one.module.modalities["rna"].log_unit).exp())
    assert ratio == pytest.approx(5.0, rel=1e-4)
