"""CondSCVI and DestVI for users: what they recover, the limits that they must keep, errors and files."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from scipy.stats import spearmanr

import countvi
from countvi.errors import DataError, DataWarning, MismatchError, NotTrainedError, OptionError, UnknownNameError

N_GENES, N_TYPES, N_CELLS, N_SPOTS = 50, 3, 450, 60
TYPES = ["T cell", "B cell", "NK"]
SORTED = sorted(TYPES)
P = 0.4
QUIET = {"enable_progress_bar": False}


@dataclass
class Truth:
    """What the counts were drawn from; types in the order of the model."""

    cells: anndata.AnnData
    slide: anndata.AnnData
    gradient: np.ndarray
    proportions: np.ndarray
    expression: np.ndarray
    """Of each type in each spot, shape ``(types, spots, genes)``."""
    many: anndata.AnnData
    """Spots enough for a network to learn from."""
    proportions_of_many: np.ndarray


def draw(random: np.random.Generator, mean: np.ndarray) -> np.ndarray:
    shape = mean * (1 - P) / P
    return random.negative_binomial(np.maximum(shape, 1e-12), 1 - P).astype(np.float32)


@pytest.fixture(scope="module")
def truth() -> Truth:
    """The model's own process: three types with a gradient through each, negative binomials that share p."""
    random = np.random.default_rng(0)
    base = random.normal(0, 1.0, (N_TYPES, N_GENES))
    along = random.normal(0, 0.6, (N_TYPES, N_GENES))
    batch = random.normal(0, 0.5, (2, N_GENES))

    def frequencies(label, gradient, code=None):
        logits = base[label] + gradient[:, None] * along[label] + (0 if code is None else batch[code])
        weights = np.exp(logits)
        return weights / weights.sum(1, keepdims=True)

    label, code = random.integers(0, N_TYPES, N_CELLS), random.integers(0, 2, N_CELLS)
    gradient = random.uniform(-1, 1, N_CELLS)
    depth = random.lognormal(np.log(600), 0.3, N_CELLS)
    genes = pd.DataFrame(index=[f"gene{i}" for i in range(N_GENES)])
    cells = anndata.AnnData(
        sp.csr_matrix(draw(random, depth[:, None] * frequencies(label, gradient, code))),
        obs=pd.DataFrame(
            {"type": np.array(SORTED)[label], "batch": np.array(["one", "two"])[code]},
            index=[f"cell{i}" for i in range(N_CELLS)],
        ),
        var=genes.copy(),
    )

    def spots(n_spots: int) -> tuple[anndata.AnnData, np.ndarray, np.ndarray]:
        proportions = random.dirichlet(np.full(N_TYPES, 0.7), n_spots)
        where = random.uniform(-1, 1, (N_TYPES, n_spots))
        expression = np.stack([frequencies(np.full(n_spots, c), where[c]) for c in range(N_TYPES)])
        mean = 3_000 * np.einsum("sc,csg->sg", proportions, expression)
        names = pd.DataFrame(index=[f"spot{i}" for i in range(n_spots)])
        return anndata.AnnData(sp.csr_matrix(draw(random, mean)), obs=names, var=genes.copy()), proportions, expression

    return Truth(cells, gradient=gradient, **named(*spots(N_SPOTS)), **of_many(*spots(600)))


def named(slide, proportions, expression) -> dict:
    return {"slide": slide, "proportions": proportions, "expression": expression}


def of_many(slide, proportions, expression) -> dict:
    return {"many": slide, "proportions_of_many": proportions}


def trained_reference(cells: anndata.AnnData, **keys) -> countvi.CondSCVI:
    cells = cells.copy()
    countvi.CondSCVI.setup_anndata(cells, **keys)
    model = countvi.CondSCVI(cells, n_hidden=32, n_latent=2)
    model.train(**QUIET)
    return model


@pytest.fixture(scope="module")
def reference(truth) -> countvi.CondSCVI:
    return trained_reference(truth.cells, labels_key="type", batch_key="batch")


@pytest.fixture(scope="module")
def slide(truth) -> anndata.AnnData:
    slide = truth.slide.copy()
    countvi.DestVI.setup_anndata(slide)
    return slide


@pytest.fixture(scope="module")
def spatial(reference, slide) -> countvi.DestVI:
    model = countvi.DestVI.from_rna_model(slide, reference, vamp_prior_p=4)
    model.train(**QUIET)
    return model


# ---------------------------------------------------------------- single cells


def test_states_within_types_follow_the_gradient(truth, reference):
    states = reference.get_latent_representation()
    for label in SORTED:
        rows = (truth.cells.obs["type"] == label).to_numpy()
        best = max(abs(spearmanr(states[rows, i], truth.gradient[rows])[0]) for i in range(2))
        # Turned in the plane, a single coordinate follows less than the best direction.
        fitted = np.linalg.lstsq(np.c_[states[rows], np.ones(rows.sum())], truth.gradient[rows], rcond=None)[0]
        along = spearmanr(np.c_[states[rows], np.ones(rows.sum())] @ fitted, truth.gradient[rows])[0]
        assert max(best, along) > 0.8, label


def test_the_batch_acts(truth, reference):
    """In place of scvi-tools, where transform_batch changes nothing: what is decoded follows the batch asked for."""
    as_one, as_two = (
        reference.get_normalized_expression(transform_batch=name, use_z_mean=True) for name in ("one", "two")
    )
    own = reference.get_normalized_expression(use_z_mean=True)
    is_one = (truth.cells.obs["batch"] == "one").to_numpy()
    np.testing.assert_allclose(own[is_one], as_one[is_one])
    np.testing.assert_allclose(own[~is_one], as_two[~is_one])
    counts = truth.cells.X.toarray()
    totals = counts.sum(1, keepdims=True)
    observed = np.log((counts / totals)[is_one].mean(0) / (counts / totals)[~is_one].mean(0))
    decoded = np.log(as_one.to_numpy() / as_two.to_numpy()).mean(0)
    assert spearmanr(observed, decoded)[0] > 0.8


def test_readouts_of_cells(reference):
    rows = np.arange(8)
    expression = reference.get_normalized_expression(indices=rows)
    np.testing.assert_allclose(expression.sum(1), 1.0, rtol=1e-5)
    parameters = reference.get_likelihood_parameters(indices=rows)
    assert parameters["mean"].shape == parameters["dispersions"].shape == (8, N_GENES)
    drawn = reference.posterior_predictive_sample(indices=rows)
    assert drawn.shape == (8, N_GENES) and np.array_equal(drawn.data, np.rint(drawn.data))
    bound, evidence = reference.get_elbo(indices=rows), reference.get_marginal_ll(indices=rows, n_mc_samples=200)
    assert bound < evidence < 0
    assert reference.get_reconstruction_error(indices=rows)["reconstruction_loss"] < -bound


def test_a_rare_type_counts_more_when_asked(truth):
    is_nk = (truth.cells.obs["type"] == "NK").to_numpy()
    few = truth.cells[np.r_[np.flatnonzero(is_nk)[:6], np.flatnonzero(~is_nk)[:150]]].copy()
    countvi.CondSCVI.setup_anndata(few, labels_key="type")
    model = countvi.CondSCVI(few, weight_obs=True)
    batch = model.dataset.batch(np.arange(few.n_obs))
    weight = model.module.weight(batch.design).numpy()
    assert weight.mean() == pytest.approx(1.0, rel=1e-6)
    sizes = few.obs["type"].value_counts()
    assert weight[few.obs["type"] == sizes.idxmin()].min() > weight[few.obs["type"] == sizes.idxmax()].max()


def test_given_clusters_are_the_components(truth):
    cells = truth.cells[:60].copy()
    cells.obs["cluster"] = [f"k{i % 2}" for i in range(60)]
    countvi.CondSCVI.setup_anndata(cells, labels_key="type")
    model = countvi.CondSCVI(cells, n_hidden=8, n_latent=2)
    with pytest.raises(NotTrainedError, match="not trained"):
        model.get_vamp_prior()
    model.train(1, **QUIET)
    weights = model.get_vamp_prior(p=3, subcluster_key="cluster")["weights_vprior"]
    assert ((weights > 0).sum(1) == 2).all()
    np.testing.assert_allclose(weights.sum(1), 1.0)
    with pytest.raises(OptionError, match="more than p=1"):
        model.get_vamp_prior(p=1, subcluster_key="cluster")
    with pytest.raises(UnknownNameError, match="Did you mean 'cluster'"):
        model.get_vamp_prior(subcluster_key="clusters")


# ---------------------------------------------------------------- spots


def test_proportions_and_expression_are_found(truth, spatial):
    proportions = spatial.get_proportions()
    assert list(proportions.columns) == SORTED
    np.testing.assert_allclose(proportions.sum(1), 1.0, rtol=1e-5)
    assert np.abs(proportions.to_numpy() - truth.proportions).mean() < 0.06
    assert spearmanr(proportions.to_numpy().ravel(), truth.proportions.ravel())[0] > 0.9
    for index, label in enumerate(SORTED):
        there = truth.proportions[:, index] > 0.5
        scale = spatial.get_scale_for_ct(label).to_numpy()[there]
        scale = scale / scale.sum(1, keepdims=True)
        assert np.median([spearmanr(a, b)[0] for a, b in zip(scale, truth.expression[index][there], strict=True)]) > 0.9


def test_proportions_start_at_a_sparse_mixture(reference, slide):
    """Some types are absent from the start, and training leaves them so; each spot has some."""
    model = countvi.DestVI.from_rna_model(slide, reference, vamp_prior_p=4)
    model.is_trained = True
    there = model.get_proportions().to_numpy() > 0
    assert 0 < there.sum() < there.size
    assert there.any(1).all()
    model.train(5, **QUIET)
    trained = model.get_proportions().to_numpy()
    np.testing.assert_array_equal(trained > 0, there)


def test_with_one_state_per_type_the_start_is_stationary(reference, slide, monkeypatch):
    """The slope of the Poisson likelihood times the abundance is what a type explains beyond its share: the penalty."""
    import torch

    from countvi.estimators.build import spots_start
    from countvi.estimators.build.spots_start import reference_of, state_profiles

    monkeypatch.setattr(spots_start, "_STEPS", 1_000)  # there are spots that take some hundred
    model = countvi.DestVI.from_rna_model(slide, reference, vamp_prior_p=1)
    model.is_trained = True
    with torch.no_grad():
        profiles = state_profiles(reference_of(reference, np.arange(N_GENES), 1, None, 0))[:, 0].double().numpy()
    profiles = profiles * np.exp(model.module.log_alpha.detach().double().numpy())
    counts = slide.X.toarray()
    beta = model.get_proportions(normalize=False).to_numpy() * counts.sum(1, keepdims=True)
    slope = (counts / (beta @ profiles)) @ profiles.T - profiles.sum(1)
    np.testing.assert_allclose((slope * beta)[beta > 20.0], 3.0, atol=0.2)


def test_a_larger_penalty_leaves_fewer_types_at_the_start(reference, slide):
    present = []
    for counts in (1.0, 30.0, 300.0):
        model = countvi.DestVI.from_rna_model(slide, reference, vamp_prior_p=4, sparsity_reg=counts)
        model.is_trained = True
        present.append(int((model.get_proportions().to_numpy() > 0).sum()))
    assert present[0] > present[1] > present[2] >= N_SPOTS


def test_the_start_is_near_the_truth(reference, slide, truth):
    """Before any training, of spots whose cells are in states that vary."""
    model = countvi.DestVI.from_rna_model(slide, reference)
    model.is_trained = True
    start = model.get_proportions()[SORTED].to_numpy()
    assert np.abs(start - truth.proportions).mean() < 0.08
    assert np.corrcoef(start.ravel(), truth.proportions.ravel())[0, 1] > 0.9


def test_factors_of_genes_are_shrunk_as_far_as_they_are_noise():
    import torch

    from countvi.estimators.build.spots_start import gene_factors

    rng = np.random.default_rng(0)
    expected = rng.gamma(1.0, 500.0, 2_000)
    same = rng.poisson(expected)
    factors = gene_factors(torch.from_numpy(same).double(), torch.from_numpy(expected)).numpy()
    assert np.abs(factors).max() < 0.1
    true = rng.normal(0.0, 1.0, 2_000)
    other = rng.poisson(expected * np.exp(true)).astype(float)
    factors = gene_factors(torch.from_numpy(other), torch.from_numpy(expected)).numpy()
    often = expected > 500.0
    # All but a constant, by which the sums agree.
    slope, _ = np.polyfit(true[often], factors[often], 1)
    assert 0.8 < slope < 1.0
    assert np.corrcoef(true[often], factors[often])[0, 1] > 0.97
    # Never seen where some were expected: less, but not infinitely.
    assert gene_factors(torch.tensor([0.0, 500.0]), torch.tensor([50.0, 450.0])).isfinite().all()


def test_factors_of_genes_between_assays_are_in_the_start(reference, slide):
    """A slide on which some genes are seen four times less than on another: the factors say so."""
    from countvi.estimators.build.spots_start import reference_of, start_of

    known = reference_of(reference, np.arange(N_GENES), 4, None, 0)
    rng = np.random.default_rng(0)
    lost = rng.random(N_GENES) < 0.5
    counts = slide.X.toarray()
    thinned = counts.copy()
    thinned[:, lost] = rng.binomial(counts[:, lost].astype(int), 0.25)
    found = []
    for values in (counts, thinned):
        adata = anndata.AnnData(sp.csr_matrix(values.astype(np.float32)), obs=slide.obs.copy(), var=slide.var.copy())
        countvi.DestVI.setup_anndata(adata)
        data = countvi.DestVI.from_rna_model(adata, reference, vamp_prior_p=4).dataset
        found.append(start_of(data, known, None, 3.0).log_alpha.numpy())
    often = counts.sum(0) > 200
    difference = found[1] - found[0]
    step = difference[often & ~lost].mean() - difference[often & lost].mean()
    assert 0.75 * np.log(4.0) < step < np.log(4.0)


def test_a_spot_of_hardly_any_counts_has_proportions(reference, slide):
    counts = slide.X.toarray()
    counts[:2] = 0.0
    counts[1, 0] = 1.0
    poor = anndata.AnnData(sp.csr_matrix(counts), obs=slide.obs.copy(), var=slide.var.copy())
    countvi.DestVI.setup_anndata(poor)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)
        model = countvi.DestVI.from_rna_model(poor, reference, vamp_prior_p=4, entropy_reg=1.0)
        model.train(3, **QUIET)
    proportions = model.get_proportions().to_numpy()
    np.testing.assert_allclose(proportions.sum(1), 1.0, rtol=1e-5)


def test_shares_of_the_types_sum_to_the_counts(slide, spatial):
    parts = [spatial.get_expression_for_ct(label, return_sparse_array=True).toarray() for label in SORTED]
    counts = slide.X.toarray()
    total = np.sum(parts, axis=0)
    assert all((part >= 0).all() for part in parts)
    assert (total <= counts * (1 + 1e-5)).all()
    with_noise = spatial.get_proportions(keep_noise=True)
    assert list(with_noise.columns) == [*SORTED, "noise_term"]
    frame = spatial.get_expression_for_ct("NK", indices=[3, 1])
    np.testing.assert_allclose(frame.to_numpy(), parts[SORTED.index("NK")][[3, 1]], rtol=1e-5)
    assert list(frame.index) == ["spot3", "spot1"]


def test_numbers_of_a_spot_do_not_depend_on_the_batch(spatial):
    whole = spatial.get_elbo(return_mean=False)
    np.testing.assert_allclose(spatial.get_elbo(return_mean=False, batch_size=7), whole, rtol=1e-5)
    np.testing.assert_allclose(spatial.get_elbo(indices=[5, 2], return_mean=False), whole[[5, 2]], rtol=1e-5)
    a, b = spatial.get_proportions(), spatial.get_proportions(batch_size=7)
    np.testing.assert_allclose(a, b, rtol=1e-5)


def test_genes_are_matched_by_name(reference, slide, spatial):
    turned = slide[::-1, ::-1].copy()
    pd.testing.assert_frame_equal(spatial.get_proportions(adata=turned)[::-1], spatial.get_proportions())
    fewer = slide[:, 5:].copy()
    countvi.DestVI.setup_anndata(fewer)
    with pytest.warns(DataWarning, match="45 of the reference's 50 genes"):
        model = countvi.DestVI.from_rna_model(fewer, reference, vamp_prior_p=4)
    assert model.missing_genes == [f"gene{i}" for i in range(5)]
    model.train(2, **QUIET)
    assert model.get_scale_for_ct("NK", gene_list=["gene9", "gene7"]).columns.tolist() == ["gene9", "gene7"]
    other = anndata.AnnData(slide.X, var=pd.DataFrame(index=[f"ENSG{i}" for i in range(N_GENES)]))
    countvi.DestVI.setup_anndata(other)
    with pytest.raises(MismatchError, match="none of the reference's"):
        countvi.DestVI.from_rna_model(other, reference)


def test_one_type_is_all_there_is(truth, slide):
    model = trained_reference(truth.cells[truth.cells.obs["type"] == "NK"])
    spatial = countvi.DestVI.from_rna_model(slide, model, vamp_prior_p=3)
    spatial.train(2, **QUIET)
    assert (spatial.get_proportions() == 1.0).all(axis=None)
    assert list(spatial.get_gamma()) == ["0"]


def test_a_spot_of_one_cell_is_of_its_type(truth, reference):
    cells = truth.cells[:30]
    slide = anndata.AnnData(cells.X.copy(), obs=pd.DataFrame(index=cells.obs_names), var=cells.var.copy())
    countvi.DestVI.setup_anndata(slide)
    model = countvi.DestVI.from_rna_model(slide, reference, vamp_prior_p=4)
    model.train(100, **QUIET)
    assert (model.get_proportions().idxmax(axis=1) == cells.obs["type"]).mean() > 0.9


def test_an_amortised_model_reads_spots_it_has_not_seen(truth, reference):
    slide = truth.many.copy()
    countvi.DestVI.setup_anndata(slide)
    model = countvi.DestVI.from_rna_model(slide, reference, vamp_prior_p=4, amortization="both")
    model.train(30, train_size=0.8, **QUIET)
    rows = model.validation_indices
    assert len(rows) == 120
    held_out = model.get_proportions(indices=rows).to_numpy()
    assert spearmanr(held_out.ravel(), truth.proportions_of_many[rows].ravel())[0] > 0.8
    unseen = slide[:4].copy()
    unseen.obs_names = ["a", "b", "c", "d"]
    np.testing.assert_allclose(model.get_proportions(adata=unseen), model.get_proportions(indices=range(4)), rtol=1e-5)


def test_a_model_with_a_table_reads_its_own_spots_only(slide, spatial):
    unseen = slide[:4].copy()
    unseen.obs_names = ["a", "b", "c", "d"]
    with pytest.raises(MismatchError, match="amortization='both'"):
        spatial.get_proportions(adata=unseen)
    for arguments in ({"train_size": 0.5}, {"early_stopping": True}, {"validation_size": 0.1}):
        with pytest.raises(OptionError, match="cannot be held out"):
            spatial.train(1, **arguments)


def test_a_start_can_be_given(truth, reference, slide):
    given = pd.DataFrame(truth.proportions, index=slide.obs_names, columns=SORTED)
    model = countvi.DestVI.from_rna_model(
        slide, reference, vamp_prior_p=4, initial_proportions=given[SORTED[::-1]][::-1]
    )
    model.is_trained = True
    np.testing.assert_allclose(model.get_proportions(normalize=False), given.clip(1e-3), rtol=1e-4)
    for wrong, error in (
        (given.iloc[:, :2], MismatchError),
        (-given, DataError),
        (given.to_numpy()[:3], MismatchError),
    ):
        with pytest.raises(error, match="initial_proportions"):
            countvi.DestVI.from_rna_model(slide, reference, initial_proportions=wrong)


def test_priors_do_what_they_say(reference, slide, spatial):
    def fit(**options) -> countvi.DestVI:
        model = countvi.DestVI.from_rna_model(slide, reference, vamp_prior_p=4, **options)
        model.train(100, **QUIET)
        return model

    def entropy(model: countvi.DestVI) -> float:
        p = model.get_proportions().to_numpy()
        return float(-(p * np.log(p.clip(1e-30))).sum(1).mean())

    assert entropy(fit(entropy_reg=20.0)) < entropy(spatial) - 0.02
    assert fit(l1_reg=200.0).get_proportions(normalize=False, keep_noise=True).to_numpy().mean() < (
        0.9 * spatial.get_proportions(normalize=False, keep_noise=True).to_numpy().mean()
    )
    stiff = fit(beta_reg=5_000.0)
    assert stiff.module.log_alpha.std() < 0.5 * spatial.module.log_alpha.std()


def test_errors(reference, slide):
    with pytest.raises(OptionError, match="from_rna_model"):
        countvi.DestVI(slide)
    untrained = countvi.CondSCVI(reference.adata, n_hidden=8)
    with pytest.raises(NotTrainedError, match="reference is not trained"):
        countvi.DestVI.from_rna_model(slide, untrained)
    for arguments in ({"l1_reg": -1.0}, {"amortization": "all"}, {"beta_reg": "5"}, {"dropout_amortization": 1.0}):
        with pytest.raises(OptionError, match=next(iter(arguments))):
            countvi.DestVI.from_rna_model(slide, reference, **arguments)
    model = countvi.DestVI.from_rna_model(slide, reference)
    with pytest.raises(NotTrainedError, match="train"):
        model.get_proportions()
    model.is_trained = True
    with pytest.raises(UnknownNameError, match="Did you mean 'B cell'"):
        model.get_scale_for_ct("B cells")
    twice = slide.copy()
    twice.obs_names = ["same"] * N_SPOTS
    countvi.DestVI.setup_anndata(twice)
    with pytest.raises(DataError, match="obs_names_make_unique"):
        countvi.DestVI.from_rna_model(twice, reference)


@pytest.mark.parametrize("amortization", ["none", "both"])
def test_files(tmp_path, reference, slide, amortization):
    model = countvi.DestVI.from_rna_model(slide, reference, vamp_prior_p=4, amortization=amortization)
    model.train(2, **QUIET)
    model.save(tmp_path / "model")
    loaded = countvi.DestVI.load(tmp_path / "model", slide)
    pd.testing.assert_frame_equal(loaded.get_proportions(), model.get_proportions())
    np.testing.assert_array_equal(loaded.get_gamma(return_numpy=True), model.get_gamma(return_numpy=True))
    assert loaded.get_elbo() == model.get_elbo() and loaded.cell_types == SORTED
    with pytest.warns(DataWarning, match="not the data this model was trained on"):
        part = countvi.DestVI.load(tmp_path / "model", slide[10:14].copy())
    np.testing.assert_allclose(part.get_proportions(), model.get_proportions()[10:14], rtol=1e-5)
    loaded.train(1, **QUIET)
    reference.save(tmp_path / "reference")
    again = countvi.CondSCVI.load(tmp_path / "reference", reference.adata)
    assert again.get_elbo() == reference.get_elbo()
    assert "DestVI (trained" in repr(loaded) and len(repr(loaded)) < 1_500
