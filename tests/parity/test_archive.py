"""Every model that scvi-tools saved reads, with the names and shapes that its options imply, and the same weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from countvi.files import ScviArchive, read_scvi_archive

pytestmark = pytest.mark.parity

FIXTURES = Path(__file__).parent / "fixtures"
CASES = sorted(folder.name for folder in FIXTURES.iterdir() if (folder / "model.pt").exists())
Shapes = dict[str, tuple[int, ...]]


def read(case: str) -> tuple[ScviArchive, dict[str, np.ndarray[Any, Any]], dict[str, Any]]:
    with np.load(FIXTURES / case / "expected.npz", allow_pickle=False) as arrays:
        expected = dict(arrays)
    return read_scvi_archive(FIXTURES / case), expected, json.loads(str(expected["case"]))


def stack(name: str, n_in: int, n_hot: int, init: dict[str, Any], part: str, n_layers: int) -> Shapes:
    """Entries of a stack of layers: covariates enter the first layer, and the others if injected deeply."""
    hidden, shapes = init["n_hidden"], {}
    deep = init.get("deeply_inject_covariates", True)
    for i in range(n_layers):
        width = (hidden if i else n_in) + n_hot * (i == 0 or deep)
        layer = f"{name}.fc_layers.Layer {i}"
        shapes |= {f"{layer}.0.weight": (hidden, width), f"{layer}.0.bias": (hidden,)}
        if init.get("use_batch_norm", "both") in (part, "both"):
            shapes |= {f"{layer}.1.{x}": (hidden,) for x in ("weight", "bias", "running_mean", "running_var")}
            shapes[f"{layer}.1.num_batches_tracked"] = ()
    return shapes


def linear(name: str, n_in: int, n_out: int) -> Shapes:
    return {f"{name}.weight": (n_out, n_in), f"{name}.bias": (n_out,)}


def expected_shapes(case: dict[str, Any], expected: dict[str, np.ndarray[Any, Any]]) -> Shapes:
    """Names and shapes from the options and the data alone."""
    setup, init = case["setup"], case["init"]

    def levels(key: str | None) -> int:
        return 1 if key is None else len(np.unique(expected[f"obs_{key}"]))

    hidden, latent, genes = init["n_hidden"], init["n_latent"], expected["counts"].shape[1]
    n_layers, encode = init.get("n_layers", 1), init.get("encode_covariates", False)
    embedding = init.get("batch_representation") == "embedding"
    n_batch = levels(setup.get("batch_key"))
    covariates = [levels(key) for key in setup.get("categorical_covariate_keys", [])]
    n_hot = sum(n for n in [*([] if embedding else [n_batch]), *covariates] if n > 1)
    n_extra = len(setup.get("continuous_covariate_keys", [])) + 5 * embedding
    shapes: Shapes = {}
    for name, n_out, layers in (("z_encoder", latent, n_layers), ("l_encoder", 1, 1)):
        shapes |= stack(f"{name}.encoder", genes + n_extra * encode, n_hot * encode, init, "encoder", layers)
        shapes |= linear(f"{name}.mean_encoder", hidden, n_out) | linear(f"{name}.var_encoder", hidden, n_out)
    shapes |= stack("decoder.px_decoder", latent + n_extra, n_hot, init, "decoder", n_layers)
    for head in ("px_scale_decoder.0", "px_r_decoder", "px_dropout_decoder"):
        shapes |= linear(f"decoder.{head}", hidden, genes)
    columns = {"gene": (), "gene-batch": (n_batch,), "gene-label": (levels(setup.get("labels_key")),)}
    if init["dispersion"] in columns:
        shapes["px_r"] = (genes, *columns[init["dispersion"]])
    if embedding:
        shapes["_embeddings_dict.batch.weight"] = (n_batch, 5)
    if not init.get("use_observed_lib_size", True) and "size_factor_key" not in setup:
        shapes |= {"library_log_means": (1, n_batch), "library_log_vars": (1, n_batch)}
    return shapes


def leaves(value: Any, where: str = ""):
    """Everything in nested containers, with where it is."""
    if isinstance(value, dict):
        for key, part in value.items():
            yield f"{where} key", key
            yield from leaves(part, f"{where}[{key!r}]")
    elif isinstance(value, list | tuple | set | frozenset):
        for part in value:
            yield from leaves(part, f"{where}[]")
    elif isinstance(value, np.ndarray) and value.dtype == object:
        for part in value.ravel():
            yield from leaves(part, f"{where}[]")
    else:
        yield where, value


def test_the_grid_is_covered():
    options = [(case["setup"], case["init"]) for case in (read(name)[2] for name in CASES)]
    assert len(CASES) >= 24
    assert {init["gene_likelihood"] for _, init in options} == {"zinb", "nb", "poisson", "normal"}
    assert {init["dispersion"] for _, init in options} == {"gene", "gene-batch", "gene-label", "gene-cell"}
    assert {init.get("n_layers", 1) for _, init in options} == {1, 2}
    kinds = {
        ("categorical_covariate_keys" in s, "continuous_covariate_keys" in s, i.get("encode_covariates", False))
        for s, i in options
    }
    everything = {(cat, cont, enc) for cat in (False, True) for cont in (False, True) for enc in (False, True)}
    assert kinds == everything - {(False, False, True)}
    assert any("size_factor_key" in setup for setup, _ in options)
    assert any("batch_key" not in setup for setup, _ in options)
    for option, value in (
        ("use_observed_lib_size", False),
        ("latent_distribution", "ln"),
        ("deeply_inject_covariates", False),
        ("batch_representation", "embedding"),
        ("use_batch_norm", "none"),
        ("use_batch_norm", "decoder"),
        ("use_layer_norm", "encoder"),
        ("use_layer_norm", "both"),
        ("log_variational", False),
    ):
        assert any(init.get(option) == value for _, init in options), option


@pytest.mark.parametrize("case", CASES)
def test_names_and_shapes(case):
    archive, expected, options = read(case)
    assert {name: tuple(tensor.shape) for name, tensor in archive.state.items()} == expected_shapes(options, expected)
    for name, tensor in archive.state.items():
        assert type(tensor) is torch.Tensor
        assert tensor.dtype == (torch.int64 if name.endswith("num_batches_tracked") else torch.float32)
        assert torch.isfinite(tensor).all()


@pytest.mark.parametrize("case", CASES)
def test_weights(case):
    archive, expected, _ = read(case)
    kept = {name.removeprefix("weight/"): array for name, array in expected.items() if name.startswith("weight/")}
    assert len(kept) == 3
    for name, array in kept.items():
        np.testing.assert_array_equal(archive.state[name].numpy(), array)


@pytest.mark.parametrize("case", CASES)
def test_names_options_and_registry(case):
    archive, expected, options = read(case)
    assert archive.var_names == expected["var_names"].tolist()
    attributes = archive.attributes
    assert attributes["is_trained_"] is options["trained"]
    init = attributes["init_params_"]
    stored = init["non_kwargs"] | {k: v for group in init["kwargs"].values() for k, v in group.items()}
    assert options["init"].items() <= stored.items()
    registry = attributes["registry_"]
    assert registry["scvi_version"] == options["versions"]["scvi-tools"]
    setup = {key: value for key, value in registry["setup_args"].items() if value is not None}
    assert setup == options["setup"]
    if "batch_key" in setup:
        mapping = registry["field_registries"]["batch"]["state_registry"]["categorical_mapping"]
        assert mapping.tolist() == np.unique(expected[f"obs_{setup['batch_key']}"]).tolist()


@pytest.mark.parametrize("case", CASES)
def test_only_plain_values(case):
    archive, _, _ = read(case)
    seen = list(leaves([archive.state, archive.var_names, archive.attributes]))
    assert len(seen) > 50
    for where, value in seen:
        plain = value is None or type(value) in (bool, int, float, str, torch.Tensor)
        assert plain or type(value).__module__ == "numpy", (where, type(value))


def test_history():
    archive, _, _ = read("zinb_trained")
    history = archive.attributes["history_"]
    assert {"elbo_train", "elbo_validation", "reconstruction_loss_train", "kl_local_train"} <= set(history)
    for metric, table in history.items():
        assert list(table) == ["epoch", metric]
        assert table["epoch"].tolist() == [0, 1, 2]
        assert np.isfinite(table[metric].astype(float)).all()
    indices = [archive.attributes[f"{part}_indices_"] for part in ("train", "validation", "test")]
    assert sorted(np.concatenate(indices).tolist()) == list(range(24))
