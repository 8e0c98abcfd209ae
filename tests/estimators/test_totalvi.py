"""TOTALVI for users: read-outs by their definitions, and what is recovered from simulated cells."""

from __future__ import annotations

import copy
import warnings

import anndata
import numpy as np
import pandas as pd
import pytest
import torch

import countvi
from countvi.errors import DataWarning, NotSetUpError, OptionError, UnknownNameError
from countvi.query.draws import posterior_mean

N_CELLS, N_GENES, N_PROTEINS = 600, 30, 6


def simulate(seed: int = 0) -> anndata.AnnData:
    """Two cell types; each has three proteins of its own; the background of batch b is twice that of batch a."""
    rng = np.random.default_rng(seed)
    kind, batch = rng.integers(2, size=N_CELLS), rng.integers(2, size=N_CELLS)
    rho = rng.gamma(1.0, 1.0, (2, N_GENES))
    x = rng.poisson(rng.gamma(4.0, 25.0, (N_CELLS, 1)) * (rho / rho.sum(1, keepdims=True))[kind])
    background = np.array([4.0, 8.0])[batch][:, None] * rng.lognormal(0.0, 0.2, (N_CELLS, N_PROTEINS))
    own = (np.arange(N_PROTEINS) < 3)[None, :] == (kind == 0)[:, None]
    mean = np.where(own, 12.0, 1.0) * background
    y = rng.poisson(mean * rng.gamma(10.0, 0.1, mean.shape))
    obs = pd.DataFrame({"batch": np.array(["a", "b"])[batch], "kind": kind.astype(str)})
    obs.index = [f"c{i}" for i in range(N_CELLS)]
    adata = anndata.AnnData(x.astype(np.float32), obs=obs, var=pd.DataFrame(index=[f"g{i}" for i in range(N_GENES)]))
    names = [f"p{i}" for i in range(N_PROTEINS)]
    adata.obsm["protein"] = pd.DataFrame(y.astype(float), index=obs.index, columns=names)
    adata.obsm["own"] = own
    return adata


def fitted(adata: anndata.AnnData, epochs: int | None = None, **options) -> countvi.TOTALVI:
    countvi.TOTALVI.setup_anndata(adata, "protein", batch_key="batch")
    model = countvi.TOTALVI(adata, n_latent=4, n_hidden=32, **options)
    model.train(epochs, batch_size=100, enable_progress_bar=False)
    return model


@pytest.fixture(scope="module")
def model() -> countvi.TOTALVI:
    return fitted(simulate())


def test_foreground_is_recovered(model):
    own = model.adata.obsm["own"]
    probability = model.get_protein_foreground_probability(n_samples=5)
    assert list(probability.columns) == [f"p{i}" for i in range(N_PROTEINS)]
    assert probability.to_numpy()[own].mean() > 0.95 > 0.05 > probability.to_numpy()[~own].mean()
    _, protein = model.get_normalized_expression(n_samples=5)
    assert np.median(protein.to_numpy()[own]) > 20 * np.median(protein.to_numpy()[~own])


def test_background_of_batches_is_recovered(model):
    background = model.get_protein_background_mean(n_samples=5)
    batch = (model.adata.obs["batch"] == "b").to_numpy()
    ratio = background[batch].mean(0) / background[~batch].mean(0)
    np.testing.assert_allclose(ratio.mean(), 2.0, rtol=0.25)


def test_predictive_means_are_those_of_the_model(model):
    """Per protein and batch, within Monte-Carlo error: draws of counts beside the exact mean of the mixture."""
    drawn = np.stack(model.posterior_predictive_sample(n_samples=40)["protein"])
    _, expected = model.get_normalized_expression(n_samples=40, include_protein_background=True, seed=1)
    for batch in ("a", "b"):
        rows = (model.adata.obs["batch"] == batch).to_numpy()
        error = drawn[:, rows].std((0, 1)) / np.sqrt(40 * rows.sum())
        # Both sides are means of posterior draws, so that both have the error.
        assert (np.abs(drawn[:, rows].mean((0, 1)) - expected[rows].mean(0)) < 5 * np.sqrt(2) * error).all()


def test_predictive_means_of_proteins_are_those_of_the_data(model):
    """Per protein and batch, within the error of means of as many cells; over all of them, closer."""
    drawn = np.stack(model.posterior_predictive_sample(n_samples=20)["protein"]).mean(0)
    y, ratios = model.adata.obsm["protein"].to_numpy(), []
    for batch in ("a", "b"):
        rows = (model.adata.obs["batch"] == batch).to_numpy()
        error = np.hypot(y[rows].std(0), drawn[rows].std(0) / np.sqrt(20)) / np.sqrt(rows.sum())
        assert (np.abs(drawn[rows].mean(0) - y[rows].mean(0)) < 2 * error).all()
        ratios.append(drawn[rows].mean(0) / y[rows].mean(0))
    assert abs(np.mean(ratios) - 1.0) < 0.05


def test_predictive_means_of_genes_are_those_of_the_data(model):
    """Per gene and batch; what training leaves open is much more than the Monte-Carlo error."""
    drawn = model.posterior_predictive_sample(n_samples=10)
    adata = model.adata
    for batch in ("a", "b"):
        rows = (adata.obs["batch"] == batch).to_numpy()
        rna = np.mean([sample.toarray()[rows].mean(0) for sample in drawn["rna"]], axis=0)
        x = np.asarray(adata.X)[rows]
        np.testing.assert_allclose(rna, x.mean(0), rtol=0.15, atol=5 * x.std(0).max() / np.sqrt(len(x)))


def test_rows_have_the_stated_sums(model):
    for batches in (None, "a", ["a", "b"]):
        rna, protein = model.get_normalized_expression(
            transform_batch=batches, library_size=50.0, scale_protein=True, n_samples=2
        )
        np.testing.assert_allclose(rna.sum(1), 50.0, rtol=1e-5)
        np.testing.assert_allclose(protein.sum(1), 1.0, rtol=1e-5)
    rna, _ = model.get_normalized_expression(library_size="latent")
    np.testing.assert_allclose(rna.sum(1), np.asarray(model.adata.X).sum(1), rtol=1e-4)


def test_several_batches_are_averaged(model):
    both = model.get_normalized_expression(transform_batch=["a", "b"], indices=[0, 5])
    each = [model.get_normalized_expression(transform_batch=batch, indices=[0, 5]) for batch in "ab"]
    for i in range(2):
        np.testing.assert_allclose(both[i], (each[0][i] + each[1][i]) / 2, rtol=1e-5)


def test_protein_expression_by_its_definition(model):
    """Beside the decoded parameters: (1 - pi) foreground, plus pi background if asked."""
    arguments = {"indices": [3, 1], "n_samples": 400, "return_mean": False}
    _, own = model.get_normalized_expression(**arguments)
    _, total = model.get_normalized_expression(**arguments, include_protein_background=True)
    _, drawn = model.get_normalized_expression(**arguments, sample_protein_mixing=True)
    probability = model.get_protein_foreground_probability(**arguments)
    assert own.shape == total.shape == probability.shape == (400, 2, N_PROTEINS)
    assert (total >= own).all() and (total > own)[probability < 0.99].all()
    # What is drawn to be there is the whole foreground, of which its probability is expected.
    np.testing.assert_allclose((drawn * probability)[drawn > 0], own[drawn > 0], rtol=1e-4)
    np.testing.assert_allclose((drawn > 0).mean(0), probability.mean(0), atol=5 * 0.5 / np.sqrt(400))
    same = model.get_normalized_expression(**arguments, sampling_protein_mixing=True)[1]
    np.testing.assert_array_equal(drawn, same)


def test_means_over_the_background_are_exact(model):
    """Given the mean of z, many draws of the background average to what the exact mean gives."""
    exact = model.get_protein_background_mean(indices=[0], n_samples=300)
    with torch.no_grad():
        batch = model.dataset.batch(np.zeros(4000, dtype=np.int64))
        latents = model.module.sample(model.module.guide(batch), torch.Generator().manual_seed(0))
        drawn = model.module.generate(latents, batch.design)["protein"].rate.log_background.exp()
    np.testing.assert_allclose(exact[0], drawn.mean(0), rtol=0.1)


@pytest.mark.parametrize("background", [False, True])
def test_mean_shares_are_means_of_shares(model, background):
    """Given the mean of z, shares average to what the mean says; the share of the means is another number."""
    arguments = {"indices": [0, 40], "scale_protein": True, "include_protein_background": background}
    model = copy.deepcopy(model)
    with torch.no_grad():  # a background that is less certain than that of this fit
        model.module.protein.scale.bias += 3.0
    _, exact = model.get_normalized_expression(**arguments, use_z_mean=True, return_numpy=True)
    cells = model.dataset.batch(np.array([0, 40]))
    with torch.no_grad():
        guide = model.module.guide(cells)
        rate = model.module.generate(posterior_mean(guide), cells.design)["protein"].rate
    loc, scale, pi = rate.loc.numpy(), rate.scale_of_log.numpy(), rate.pi_logits.sigmoid().numpy()
    beta = np.exp(loc + scale * np.random.default_rng(0).normal(size=(100_000, *loc.shape)))
    values = beta * ((1 - pi) * rate.log_alpha.exp().numpy() + background * pi)
    shares = values / values.sum(-1, keepdims=True)
    error = shares.std(0) / np.sqrt(len(shares))
    np.testing.assert_allclose(exact, shares.mean(0), atol=5 * error.max(), rtol=0)
    of_means = values.mean(0) / values.mean(0).sum(-1, keepdims=True)
    assert np.abs(of_means - shares.mean(0)).max() > 20 * error.max()


def test_shapes_names_and_evidence(model):
    rna, protein = model.get_normalized_expression(gene_list=["g3", "g1"], protein_list=["p5"], indices=[4, 2])
    assert list(rna.columns) == ["g3", "g1"] and list(protein.columns) == ["p5"]
    assert list(rna.index) == list(protein.index) == ["c4", "c2"]
    rna, protein = model.get_normalized_expression(n_samples_overall=7)
    assert rna.shape == (7, N_GENES) and protein.shape == (7, N_PROTEINS)
    parameters = model.get_likelihood_parameters(indices=[0, 1, 2], n_samples=2)
    assert set(parameters["protein"]) >= {"mean", "background_mean", "foreground_mean", "background_probability"}
    assert all(value.shape == (2, 3, N_PROTEINS) for value in parameters["protein"].values())
    np.testing.assert_allclose(model.get_latent_library_size().ravel(), np.asarray(model.adata.X).sum(1), rtol=1e-5)
    assert set(model.get_reconstruction_error()) == {"rna", "protein"}
    few = np.arange(20)
    tight, loose = model.get_marginal_ll(indices=few, n_mc_samples=200), model.get_elbo(indices=few)
    assert loose < tight < loose + 40
    matrix = model.get_feature_correlation_matrix(n_samples=2, gene_list=["g0", "g1"], log_transform=True)
    assert list(matrix.index) == ["g0", "g1", *(f"p{i}" for i in range(N_PROTEINS))]
    # Proteins of one type go together, and against those of the other.
    assert matrix.loc["p0", "p1"] > 0.3 > -0.3 > matrix.loc["p0", "p4"]


def test_the_decoder_starts_at_the_counts():
    """Untrained: the background of each batch, and the foreground where there is some, within a factor of 1.5."""
    adata = simulate(6)
    countvi.TOTALVI.setup_anndata(adata, "protein", batch_key="batch")
    protein = countvi.TOTALVI(adata).module.protein
    own, y = adata.obsm["own"], adata.obsm["protein"].to_numpy()
    for level, batch in enumerate("ab"):
        rows = (adata.obs["batch"] == batch).to_numpy()
        background = [y[rows & ~own[:, t], t].mean() for t in range(N_PROTEINS)]
        assert (np.abs(protein.prior.loc[level].detach().numpy() - np.log(background)) < np.log(1.5)).all()
    factor = protein.alpha.bias.detach().numpy() + 1.0
    assert (np.abs(np.log(factor / 12.0)) < np.log(1.5)).all(), factor
    np.testing.assert_allclose(torch.sigmoid(protein.pi.bias.detach()), 1.0 - own.mean(0), atol=0.1)
    constant = countvi.TOTALVI(adata, empirical_protein_background_prior=False).module.protein
    assert (constant.prior.loc == 3.0).all() and (constant.loc.bias == protein.loc.bias).all()


def test_one_heap_of_counts_starts_as_background():
    """Poisson counts, rare or frequent, and counts with more spread; two heaps, the upper one small, do not."""
    rng = np.random.default_rng(8)
    adata = simulate(8)
    heaps = [rng.poisson(mean, N_CELLS) for mean in (0.5, 1.0, 2.0, 4.0, 8.0, 100.0)]
    heaps.append(rng.poisson(rng.lognormal(np.log(50.0), 0.5, N_CELLS)))
    heaps.append(rng.poisson(np.where(rng.random(N_CELLS) < 0.05, 60.0, 4.0)))
    adata.obsm["protein"] = np.stack(heaps, axis=1).astype(float)
    countvi.TOTALVI.setup_anndata(adata, "protein")
    protein = countvi.TOTALVI(adata).module.protein
    share = torch.sigmoid(protein.pi.bias.detach()).numpy()
    np.testing.assert_allclose(share[:-1], 0.9, rtol=1e-5)
    np.testing.assert_allclose(share[-1], 0.95, atol=0.03)
    np.testing.assert_allclose(protein.alpha.bias[-1].item() + 1.0, 15.0, rtol=0.3)


@pytest.mark.filterwarnings("ignore::countvi.errors.DataWarning")
def test_what_no_cell_shows_starts_somewhere():
    """A batch of three cells, a protein without counts, and one that is measured in five cells only."""
    adata = simulate(7)[:200].copy()
    adata.obs["batch"] = np.where(np.arange(200) < 3, "few", "many")
    adata.obsm["protein"].iloc[:, 1] = 0.0
    adata.obsm["protein"].iloc[5:, 2] = np.nan
    countvi.TOTALVI.setup_anndata(adata, "protein", batch_key="batch")
    module = countvi.TOTALVI(adata, n_hidden=8).module
    assert all(torch.isfinite(parameter).all() for parameter in module.parameters())
    prior = module.protein.prior
    assert torch.equal(prior.loc[0], prior.loc[1]) and prior.loc[0, 2] == 3.0 and (prior.loc[:, 1] < -2).all()


def test_saved_and_loaded_models_agree(model, tmp_path):
    model.save(tmp_path / "model")
    again = countvi.TOTALVI.load(tmp_path / "model", model.adata)
    np.testing.assert_array_equal(again.get_latent_representation(), model.get_latent_representation())
    pd.testing.assert_frame_equal(again.get_normalized_expression()[1], model.get_normalized_expression()[1])
    assert again.history.equals(model.history)


@pytest.mark.filterwarnings("ignore::countvi.errors.DataWarning")
def test_a_hidden_protein_is_imputed():
    """Hidden in one batch, a protein is predicted there from the other."""
    adata = simulate(1)
    truth = adata.obsm["protein"].to_numpy().copy()
    hidden = (adata.obs["batch"] == "b").to_numpy()
    adata.obsm["protein"].iloc[hidden, [0, 4]] = np.nan
    model = fitted(adata, 25)
    assert model.adversary() is not None, "missing proteins switch the classifier on"
    _, protein = model.get_normalized_expression(n_samples=5, transform_batch="a", include_protein_background=True)
    for column in (0, 4):
        r = np.corrcoef(np.log1p(protein.to_numpy()[hidden, column]), np.log1p(truth[hidden, column]))[0, 1]
        assert r > 0.8, (column, r)
    errors = model.get_reconstruction_error(return_mean=False)
    assert np.isfinite(errors["protein"]).all()


@pytest.mark.parametrize("decoded_in", [None, "a"])
@pytest.mark.filterwarnings("ignore::countvi.errors.DataWarning")
def test_what_no_cell_of_a_batch_has_is_not_left_at_random(decoded_in):
    """Hidden in batch b, a protein has the scale of a where it is decoded in a, and at most twice that in b.

    The other proteins are twice as high in b.
    """
    adata = simulate(1)
    hidden = (adata.obs["batch"] == "b").to_numpy()
    truth = adata.obsm["protein"].to_numpy()[~hidden]
    adata.obsm["protein"].iloc[hidden, [0, 4]] = np.nan
    model = fitted(adata, 25, protein_dispersion="protein-batch")
    cells = {"indices": np.flatnonzero(hidden), "transform_batch": decoded_in, "n_samples": 5}
    _, protein = model.get_normalized_expression(include_protein_background=True, **cells)
    for column in (0, 4):
        ratio = protein.to_numpy()[:, column].mean() / truth[:, column].mean()
        assert 0.8 < ratio < (2.0 if decoded_in is None else 1.25), (column, ratio)
    phi = model.module.protein.log_phi.value
    assert torch.equal(phi[1, [0, 4]], phi[0, [0, 4]]) and not torch.equal(phi[1, 1], phi[0, 1])


@pytest.mark.parametrize("likelihood", ["nb", "zinb"])
def test_a_batch_without_proteins_is_decoded_like_the_others(likelihood):
    """Only the proteins; what the trunk of pi does in that batch is learned where the RNA's dropout needs it."""
    adata = simulate(3)[:120].copy()
    adata.obsm["protein"].iloc[(adata.obs["batch"] == "b").to_numpy()] = np.nan
    model = fitted(adata, 1, gene_likelihood=likelihood, n_layers_decoder=2)
    a, b = model.module.decode.first.linear.levels.weight
    alike = torch.eq(a, b).view(4, -1)
    assert alike.all(1).tolist() == [False, True, True, likelihood == "nb"]
    assert not alike[0].any() and (likelihood == "nb" or not alike[3].any())
    rest = [torch.equal(*network.layers[0].linear.levels.weight) for network in model.module.decode.rest]
    assert rest == [False, True, True, likelihood == "nb"]
    for head in (model.module.protein.loc, model.module.protein.scale, model.module.protein.alpha):
        assert torch.equal(*head.levels.weight)
    assert not torch.equal(*model.module.rho.levels.weight)


@pytest.mark.filterwarnings("ignore::countvi.errors.DataWarning")
def test_what_was_learned_of_a_batch_outlives_cells_that_lack_it(tmp_path):
    adata = simulate(6)[:80].copy()
    model = fitted(adata, 1, protein_dispersion="protein-batch")
    model.save(tmp_path / "model")
    less = adata.copy()
    less.obsm["protein"].iloc[(less.obs["batch"] == "b").to_numpy(), 2] = np.nan
    again = countvi.TOTALVI.load(tmp_path / "model", less)
    again.train(1, enable_progress_bar=False, plan_kwargs={"lr": 1e-6})
    learned, now = (m.module.protein.log_phi.value[1, 2].item() for m in (model, again))
    assert now == pytest.approx(learned, abs=1e-3)
    mapped = countvi.TOTALVI.load_query_data(less, model)
    mapped.train(1, enable_progress_bar=False)
    assert mapped.module.protein.log_phi.value[1, 2].item() == learned


def test_proteins_of_a_cell_that_has_none():
    adata = simulate(2)[:80].copy()
    adata.obsm["protein"].iloc[:5] = np.nan
    countvi.TOTALVI.setup_anndata(adata, "protein")
    model = countvi.TOTALVI(adata, n_latent=2, n_hidden=8)
    model.train(1, enable_progress_bar=False)
    errors = model.get_reconstruction_error(return_mean=False)
    assert np.isnan(errors["protein"][:5]).all() and np.isfinite(errors["protein"][5:]).all()
    assert np.isfinite(model.get_normalized_expression()[1].to_numpy()).all()


def test_a_guess_is_said_and_can_be_overridden():
    adata = simulate(3)[:60].copy()
    adata.obsm["protein"].iloc[(adata.obs["batch"] == "b").to_numpy(), 2] = 0.0
    countvi.TOTALVI.setup_anndata(adata, "protein", batch_key="batch")
    with pytest.warns(DataWarning, match="no counts in batch 'b'.*p2"):
        model = countvi.TOTALVI(adata, n_hidden=8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        overridden = countvi.TOTALVI(adata, n_hidden=8, override_missing_proteins=True)
    assert "protein" not in overridden.dataset.patterns and "protein" in model.dataset.patterns


def test_what_is_refused():
    adata = simulate(4)[:40].copy()
    with pytest.raises(NotSetUpError, match="setup_anndata"):
        countvi.TOTALVI(adata)
    countvi.TOTALVI.setup_anndata(adata, "protein")
    for name, value in {"n_latent": 0, "gene_likelihood": "poisson", "dropout_rate_decoder": 1.0}.items():
        with pytest.raises(OptionError, match=name):
            countvi.TOTALVI(adata, **{name: value})
    model = countvi.TOTALVI(adata, n_hidden=8)
    with pytest.raises(OptionError, match="several batches"):
        model.train(1, adversarial_classifier=True)
    with pytest.raises(OptionError, match="adversarial_classifier"):
        model.train(1, adversarial_classifier="yes")
    model.train(1, enable_progress_bar=False)
    with pytest.raises(UnknownNameError, match="proteins are not in the model"):
        model.get_normalized_expression(protein_list=["CD3"])
