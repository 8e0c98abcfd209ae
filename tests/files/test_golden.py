"""Models saved by every earlier format still load, and compute what they computed when they were saved."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import countvi
from countvi.files import MANIFEST_FILE, Manifest
from countvi.files.manifest import FORMAT_VERSION

HERE = Path(__file__).parent
NAMES = sorted(folder.name for folder in (HERE / "golden").iterdir() if folder.is_dir())

# Twelve genes and thirty cells: some have no counts, which is said on loading.
pytestmark = pytest.mark.filterwarnings("ignore::countvi.errors.DataWarning")


@pytest.fixture(scope="module")
def maker():
    """The script that wrote the folders: its data and its read-outs."""
    spec = importlib.util.spec_from_file_location("make_golden", HERE / "make_golden.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(params=NAMES)
def name(request) -> str:
    return request.param


@pytest.fixture
def expected(name, maker) -> dict[str, np.ndarray]:
    with np.load(maker.GOLDEN / f"{name}.npz", allow_pickle=False) as file:
        return {key: file[key] for key in file.files}


@pytest.fixture
def model(name, maker) -> Any:
    if name.startswith("multimodal"):
        pytest.importorskip("mudata", reason="needs the optional package: pip install 'countvi[multimodal]'")
    saved = json.loads((maker.GOLDEN / name / MANIFEST_FILE).read_text())
    data = maker.golden_data()
    data = maker.of_both(data) if name.startswith("multimodal") else data
    return getattr(countvi, saved["model_class"]).load(maker.GOLDEN / name, data)


def test_there_is_every_model_in_every_format(maker):
    versions = range(1, FORMAT_VERSION + 1)
    assert sorted(f"{case}_v{version}" for case in maker.CASES for version in versions) == NAMES
    classes = {json.loads((maker.GOLDEN / name / MANIFEST_FILE).read_text())["model_class"] for name in NAMES}
    assert classes == {
        "SCVI",
        "TOTALVI",
        "CondSCVI",
        "DestVI",
        "AmbientRegularizedSCVI",
        "RegularizedMultimodalVI",
    }


def test_it_computes_what_it_computed(model, expected, maker):
    for key, values in maker.read_outs(model).items():
        np.testing.assert_allclose(values, expected[key], rtol=1e-6, atol=1e-6, err_msg=key)
    assert np.ptp(expected["loc"], axis=0).min() > 1e-3  # cells differ, so the comparison says something


def test_what_was_kept_besides_the_weights(model, expected, name):
    for part in ("train", "validation", "test"):
        np.testing.assert_array_equal(getattr(model, f"{part}_indices"), expected[part])
    assert np.isfinite(model.history["elbo_train"]).all()
    assert model.is_trained
    assert ("mapped onto a reference" in repr(model)) == name.startswith("mapped")
    if name.startswith("scvi"):
        assert model.options.latent_distribution == "ln"
        assert not model.options.use_observed_lib_size


def test_it_trains_on(model, name, maker):
    held_out, n_epochs = model.validation_indices, len(model.history)
    # A CondSCVI holds nothing out unless it is told to.
    arguments = maker.SHORT if name.startswith("condscvi") else {"batch_size": 16, "enable_progress_bar": False}
    model.train(1, **arguments)
    np.testing.assert_array_equal(model.validation_indices, held_out)
    assert len(model.history) == n_epochs + 1
    assert np.isfinite(model.history["elbo_train"]).all()


def test_what_a_registry_becomes_is_what_is_made_today(name, maker):
    case = name.rpartition("_v")[0]
    first, now = (
        Manifest.from_json((maker.GOLDEN / folder / MANIFEST_FILE).read_text()).registry
        for folder in (f"{case}_v1", f"{case}_v{FORMAT_VERSION}")
    )
    del first["setup_args"], now["setup_args"]  # a record that nothing reads
    assert first == now


def test_it_is_small(name, maker):
    files = [maker.GOLDEN / f"{name}.npz", *(maker.GOLDEN / name).iterdir()]
    assert sum(file.stat().st_size for file in files) < 50_000
