"""Arguments of every method that takes any: what cannot be is refused in a sentence; numbers of NumPy are numbers."""

from __future__ import annotations

import dataclasses
import inspect

import numpy as np
import pytest

import countvi
from countvi.errors import MismatchError, OptionError
from countvi.estimators.build.condscvi import CondSCVIOptions
from countvi.estimators.build.regularized import AmbientOptions, MultimodalOptions
from countvi.estimators.build.scvi import SCVIOptions
from countvi.estimators.build.totalvi import TOTALVIOptions
from countvi.train import TrainingPlan

READ_OUTS = [
    "get_latent_representation",
    "get_elbo",
    "get_reconstruction_error",
    "get_marginal_ll",
    "get_normalized_expression",
    "get_likelihood_parameters",
    "get_latent_library_size",
    "posterior_predictive_sample",
    "get_feature_correlation_matrix",
]


def new(adata, **options) -> countvi.SCVI:
    countvi.SCVI.setup_anndata(adata, batch_key="batch")
    return countvi.SCVI(adata, **{"n_hidden": 4, "n_latent": 2, **options})


def fitted(adata, *, max_epochs=1, **arguments) -> countvi.SCVI:
    model = new(adata)
    model.train(max_epochs, enable_progress_bar=False, **arguments)
    return model


# ------------------------------------------------------------------ seeds

NO_SEEDS = [-1, 1.5, "a", None, True, 2**63]


@pytest.mark.parametrize("seed", [*NO_SEEDS])
def test_what_is_no_seed(adata, seed):
    with pytest.raises(OptionError, match=r"seed must be a whole number of at least 0"):
        new(adata, seed=seed)
    if seed is not None:  # where it stands for the model's
        with pytest.raises(OptionError, match=r"seed must be a whole number of at least 0"):
            fitted(adata, seed=seed)


@pytest.mark.parametrize("name", READ_OUTS)
def test_what_is_no_seed_of_a_read_out(trained, name):
    random = {"give_mean": False} if name in ("get_latent_representation", "get_latent_library_size") else {}
    for seed in NO_SEEDS:
        with pytest.raises(OptionError, match=r"seed must be a whole number of at least 0"):
            getattr(trained, name)(seed=seed, **random)


@pytest.mark.parametrize("kind", [np.int64, np.uint8])
def test_numbers_of_numpy_are_seeds(adata, kind, tmp_path):
    ours, theirs = new(adata.copy(), seed=3), new(adata.copy(), seed=kind(3))
    for model in (ours, theirs):
        model.train(1, enable_progress_bar=False)
    theirs.save(tmp_path / "model")
    assert countvi.SCVI.load(tmp_path / "model").seed == 3
    np.testing.assert_array_equal(ours.get_latent_representation(), theirs.get_latent_representation())
    np.testing.assert_array_equal(
        ours.get_latent_representation(give_mean=False, seed=5),
        theirs.get_latent_representation(give_mean=False, seed=kind(5)),
    )


# ------------------------------------------------------------------ the constructor


@pytest.mark.parametrize(
    "name", ["use_observed_lib_size", "encode_covariates", "deeply_inject_covariates", "log_variational"]
)
def test_switches_are_true_or_false(adata, name):
    # "no" would otherwise count as yes.
    for value in ("no", None, 1, 0.0):
        with pytest.raises(OptionError, match=f"{name} must be True or False"):
            new(adata, **{name: value})
    assert getattr(new(adata, **{name: np.False_}).options, name) is False


# ------------------------------------------------------------------ training


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"plan_kwargs": [("lr", 0.1)]}, "plan_kwargs must be a dictionary"),
        ({"plan_kwargs": TrainingPlan()}, "plan_kwargs must be a dictionary"),
        ({"plan_kwargs": {"lr": "fast"}}, r"plan_kwargs\['lr'\] must be a positive number; got 'fast'"),
        ({"plan_kwargs": {"lr": True}}, r"plan_kwargs\['lr'\] must be a positive number"),
        (
            {"plan_kwargs": {"weight_decay": -1}},
            r"plan_kwargs\['weight_decay'\] must be a number of at least 0; got -1",
        ),
        ({"plan_kwargs": {"max_kl_weight": float("nan")}}, r"plan_kwargs\['max_kl_weight'\] must be a number"),
        ({"plan_kwargs": {"min_kl_weight": 0.5, "max_kl_weight": 0.1}}, r"'min_kl_weight'\] \(0.5\) is above"),
        ({"plan_kwargs": {"n_epochs_kl_warmup": -1}}, r"plan_kwargs\['n_epochs_kl_warmup'\] must be a whole number"),
        ({"plan_kwargs": {"n_steps_kl_warmup": 2.5}}, r"plan_kwargs\['n_steps_kl_warmup'\] must be a whole number"),
        ({"plan_kwargs": {"lr_factor": 1.0}}, r"plan_kwargs\['lr_factor'\] must be a number between 0 and 1"),
        ({"plan_kwargs": {"lr_patience": None}}, r"plan_kwargs\['lr_patience'\] must be a whole number"),
        ({"early_stopping": True, "early_stopping_patience": -1}, "early_stopping_patience must be a whole number"),
        ({"early_stopping": True, "early_stopping_patience": "x"}, "early_stopping_patience must be a whole number"),
        (
            {"early_stopping": True, "early_stopping_min_delta": float("nan")},
            "early_stopping_min_delta must be a number",
        ),
        ({"early_stopping": True, "early_stopping_warmup_epochs": 0.5}, "early_stopping_warmup_epochs must be a whole"),
        ({"accelerator": "abacus"}, "no running with accelerator='abacus'"),
        ({"precision": "8-bit"}, "no running with .*precision='8-bit'"),
        ({"devices": 0}, "no running with .*devices=0"),
        ({"strategy": "divide"}, "no running with .*strategy='divide'"),
        ({"logger": True}, "logger must be a Lightning Fabric logger.*got True"),
        ({"callbacks": [print]}, r"callbacks must be countvi\.train\.Callback objects"),
        ({"callbacks": [countvi.train.Callback]}, r"callbacks must be countvi\.train\.Callback objects"),
        ({"external_indexing": [[0.5, 1.7], [2]]}, "row numbers or a boolean mask; got float64"),
        ({"external_indexing": [["c1"], ["c2"]]}, "row numbers or a boolean mask"),
        ({"external_indexing": np.arange(50)}, "got 50 parts"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_what_training_refuses(adata, arguments, message):
    with pytest.raises(OptionError, match=message):
        fitted(adata, **{"accelerator": "cpu", **arguments})


def test_external_indexing_takes_what_indices_take(adata):
    mask = np.arange(adata.n_obs) % 5 > 0
    by_mask = fitted(adata.copy(), external_indexing=[mask, ~mask])
    np.testing.assert_array_equal(by_mask.train_indices, np.flatnonzero(mask))
    np.testing.assert_array_equal(by_mask.validation_indices, np.flatnonzero(~mask))
    by_slice = fitted(adata.copy(), external_indexing=[slice(0, 70), range(70, 80), [-1]])
    np.testing.assert_array_equal(by_slice.train_indices, np.arange(70))
    np.testing.assert_array_equal(by_slice.test_indices, [adata.n_obs - 1])
    with pytest.raises(MismatchError, match=r"one entry per cell \(90\); got 3"):
        fitted(adata.copy(), external_indexing=[mask[:3]])
    with pytest.raises(MismatchError, match="rows that do not exist, such as 90"):
        fitted(adata.copy(), external_indexing=[[0, 90]])


def test_numbers_of_numpy_can_be_checkpointed_and_resumed(adata, tmp_path):
    numbers = {"seed": 1, "batch_size": 30, "check_val_every_n_epoch": 2, "early_stopping_patience": 3}
    of_numpy = {name: np.int64(value) for name, value in numbers.items()}
    fitted(
        adata.copy(),
        max_epochs=np.int64(2),
        plan_kwargs={"lr": np.float32(0.25), "n_steps_kl_warmup": np.int32(2)},
        checkpoint_dir=tmp_path / "run",
        early_stopping=True,
        **of_numpy,
    )
    resumed = fitted(
        adata.copy(),
        max_epochs=2,
        plan_kwargs={"lr": 0.25, "n_steps_kl_warmup": 2},
        checkpoint_dir=tmp_path / "run",
        early_stopping=True,
        resume=True,
        **numbers,
    )
    assert len(resumed.history) == 2


def test_another_split_of_the_same_sizes_is_not_resumed(adata, tmp_path):
    rows = np.arange(adata.n_obs)
    fitted(adata.copy(), checkpoint_dir=tmp_path, external_indexing=[rows[10:], rows[:10]])
    with pytest.raises(OptionError, match="belongs to a run with other settings"):
        fitted(adata.copy(), checkpoint_dir=tmp_path, external_indexing=[rows[:80], rows[80:]], resume=True)


def test_a_checkpoint_folder_that_cannot_be_is_refused_before_training(adata, tmp_path):
    (tmp_path / "file").write_text("")
    model = new(adata)
    with pytest.raises(OptionError, match="checkpoint_dir must be a folder"):
        model.train(1, checkpoint_dir=tmp_path / "file", enable_progress_bar=False)
    assert len(model.history) == 0


def test_a_device_that_is_not_there(trained):
    with pytest.raises(OptionError, match="cannot be moved to device 'abacus'"):
        trained.to_device("abacus")
    assert np.isfinite(trained.get_latent_representation()).all()


# ------------------------------------------------------------------ read-outs


@pytest.mark.parametrize("value", [0, -1, 1.5, None])
def test_numbers_of_draws(trained, value):
    for name, argument in [
        ("get_latent_representation", "mc_samples"),
        ("get_marginal_ll", "n_mc_samples"),
        ("get_marginal_ll", "n_mc_samples_per_pass"),
        ("get_likelihood_parameters", "n_samples"),
        ("posterior_predictive_sample", "n_samples"),
        ("get_feature_correlation_matrix", "n_samples"),
    ]:
        with pytest.raises(OptionError, match=f"{argument} must be a whole number of at least 1"):
            getattr(trained, name)(**{argument: value})


@pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf"), "x", None, True, 1j, [1.0]])
def test_sizes_are_positive_numbers(trained, value):
    with pytest.raises(OptionError, match="rna_size_factor must be a positive number"):
        trained.get_feature_correlation_matrix(rna_size_factor=value)
    with pytest.raises(OptionError, match="library_size must be a positive number or 'latent'"):
        trained.get_normalized_expression(library_size=value)


def test_any_collection_of_genes(trained):
    expected = trained.get_normalized_expression(gene_list=["g1", "g4"])
    for genes in (("g1", "g4"), {"g1": 0, "g4": 0}.keys(), np.array(["g1", "g4"]), iter(["g1", "g4"])):
        assert trained.get_normalized_expression(gene_list=genes).equals(expected)
    assert set(trained.get_normalized_expression(gene_list={"g1", "g4"}).columns) == {"g1", "g4"}
    with pytest.raises(MismatchError, match=r"one list of names; got an array of shape \(1, 2\)"):
        trained.get_normalized_expression(gene_list=[["g1", "g4"]])
    assert trained.get_normalized_expression(gene_list=[]).shape == (90, 0)
    with pytest.raises(OptionError, match="gene_list is empty"):
        trained.get_feature_correlation_matrix(gene_list=[])


# ------------------------------------------------------------------ options


@pytest.mark.parametrize(
    ("model_class", "options"),
    [
        (countvi.SCVI, SCVIOptions),
        (countvi.TOTALVI, TOTALVIOptions),
        (countvi.CondSCVI, CondSCVIOptions),
        (countvi.AmbientRegularizedSCVI, AmbientOptions),
        (countvi.RegularizedMultimodalVI, MultimodalOptions),
    ],
)
def test_signatures_and_options_have_the_same_defaults(model_class, options):
    signature = inspect.signature(model_class.__init__).parameters.values()
    said = {p.name: p.default for p in signature if p.name not in ("self", "adata", "mdata", "seed")}
    fields = {field.name: field.default for field in dataclasses.fields(options)}
    assert said == {name: fields[name] for name in said}
    # What is left is read from files of scvi-tools alone.
    assert fields.keys() - said.keys() <= {"generation", "prior", "num_classes_mog"}


def test_a_background_that_a_model_does_not_have_is_refused(adata):
    model = new(adata)
    model.train(1, enable_progress_bar=False)
    with pytest.raises(OptionError, match="include_background=True adds an ambient background"):
        model.get_normalized_expression(include_background=True)
