"""Options are the arguments of the functions that a command calls: all of them, with their types and defaults."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import yaml

import countvi
from countvi.cli import building, commands, main, source
from countvi.cli.commands import LEFT_OUT, Option
from countvi.cli.train import COMMANDS
from countvi.cli.values import GivenOptions, converted, read
from countvi.errors import OptionError

TRAINED = [
    (f"train {name}", f"{command.model}.{call}")
    for name, command in COMMANDS.items()
    for call in ("setup_anndata", "setup_mudata", "__init__", "train")
    if hasattr(getattr(countvi, command.model), call)
]
CALLED = [
    *TRAINED,
    ("de", "SCVI.differential_expression"),
    ("de", "TOTALVI.differential_expression"),
    ("de", "RegularizedMultimodalVI.differential_expression"),
    ("map", "SCVI.load_query_data"),
    ("map", "SCVI.transfer_labels"),
    *(("map", f"{command.model}.train") for command in COMMANDS.values()),
    ("deconvolve", "deconvolve"),
]


def run(*arguments: object) -> int:
    """Exit code of the command line."""
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    return int(stop.value.code or 0)


def arguments_of(name: str) -> dict[str, inspect.Parameter]:
    """Parameters of a function as Python knows it, imported."""
    function: Any = countvi
    for part in name.split("."):
        function = getattr(function, part)
    parameters = dict(inspect.signature(function).parameters)
    return {argument: p for argument, p in parameters.items() if argument not in ("self", "cls")}


def test_all_models_that_cells_train_have_a_command() -> None:
    trained = {
        n for n in countvi.__all__ if hasattr(getattr(countvi, n), "train") and inspect.isclass(getattr(countvi, n))
    }
    assert trained - {"DestVI"} == {command.model for command in COMMANDS.values()}  # DestVI: countvi deconvolve


@pytest.mark.parametrize(("command", "name"), CALLED)
def test_every_argument_is_an_option_or_left_out_for_a_reason(command: str, name: str) -> None:
    call = name.split(".")[-1]
    options = {option.name: option for option in building.options_of(command) if call in option.calls}
    for argument, parameter in arguments_of(name).items():
        reason = LEFT_OUT.get(argument) or LEFT_OUT.get(f"{call}.{argument}")
        assert (argument in options) != bool(reason), argument
        if reason is None:
            default = parameter.default
            alone = next(o for o in commands.signature_of(name, "Any") if o.name == argument)
            if (argument, call) == ("batch_size", "train"):
                default = getattr(countvi, name.split(".")[0]).defaults.batch_size
            assert alone.default == default or alone.default is default is inspect.Parameter.empty, argument
            shown = {True: "yes", False: "no"}.get(default, default) if isinstance(default, bool) else default
            said = re.search(r"\(default: (.*)\)\.$", alone.help)
            if default is None or default is inspect.Parameter.empty:
                assert said is None, argument
            elif isinstance(default, float):
                assert said and float(said[1]) == pytest.approx(default, rel=1e-3), argument
            else:
                assert said and said[1] == str(shown), argument


@pytest.mark.parametrize("name", sorted({name for _, name in CALLED}))
def test_what_is_read_from_the_sources_is_what_python_imports(name: str) -> None:
    there, here = arguments_of(name), dict(inspect.signature(source.function(name)).parameters)
    here = {argument: p for argument, p in here.items() if argument not in ("self", "cls")}
    assert {n: (p.default, p.kind) for n, p in here.items()} == {n: (p.default, p.kind) for n, p in there.items()}
    public: Any = countvi
    for part in name.replace(".__init__", "").split("."):
        public = getattr(public, part)
    assert inspect.cleandoc(source.function(name).__doc__ or "") == inspect.cleandoc(public.__doc__)


def test_nothing_is_left_out_that_no_function_has() -> None:
    there = {argument for _, name in CALLED for argument in arguments_of(name)}
    calls = {f"{name.split('.')[-1]}.{argument}" for _, name in CALLED for argument in arguments_of(name)}
    assert LEFT_OUT.keys() <= there | calls
    assert set(commands.OLDER) <= there


def test_every_argument_of_a_model_is_described() -> None:
    for command, name in TRAINED:
        for option in commands.signature_of(name):
            assert re.sub(r"\(default: .*", "", option.help), (command, option.name)
            assert not re.search(r"``|:\w+:`|^(See|As of|As for) ", option.help), (command, option.help)


@pytest.mark.parametrize("command", [*(f"train {name}" for name in COMMANDS), "de", "map", "deconvolve"])
def test_help_is_whole_in_a_narrow_terminal(command: str) -> None:
    code = f"from countvi.cli import main; main({[*command.split(), '--help']!r})"
    environment = os.environ | {"COLUMNS": "80"}
    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    ).stdout
    assert "…" not in shown and "<" not in shown
    for option in building.options_of(command):
        assert f" {option.written}" in shown, option.name
    words = " ".join(shown.split()).replace("- ", "-")
    for option in building.options_of(command):
        assert " ".join(option.help.split()).replace("- ", "-") in words, option.name
    assert max(len(line) for line in shown.splitlines() if " --no-" not in line) <= 80


@pytest.mark.parametrize(
    ("annotation", "texts", "value"),
    [
        (int | None, "3", 3),
        (float | None, "1e-3", 1e-3),
        (str | Path | None, "3", "3"),
        (bool | float | None, "true", True),
        (bool | float | None, "0.5", 0.5),
        (Literal["a", "b"] | None, "b", "b"),
        (Sequence[str] | None, ["x"], ["x"]),
        (Sequence[str] | None, ["x=1", "y"], ["x=1", "y"]),
        (Sequence[str] | None, ["[]"], []),
        (Sequence[float] | None, ["0.5", "1"], [0.5, 1.0]),
        (Sequence[str] | Literal[False] | None, ["x"], ["x"]),
        (int | Mapping[str, int], ["8"], 8),
        (int | Mapping[str, int], ["rna=8", "atac=4"], {"rna": 8, "atac": 4}),
        (int | Mapping[str, int], ['{"rna": 8}'], {"rna": 8}),
        (str | Mapping[str, str | None] | None, ["rna=raw", "atac=none"], {"rna": "raw", "atac": None}),
        (Sequence[str] | Mapping[str, str] | None, ["rna", "atac"], ["rna", "atac"]),
        (Sequence[str] | Mapping[str, str] | None, ["a=rna"], {"a": "rna"}),
        (Mapping[str, Any] | None, ["lr=1e-3", "amsgrad=true", "optimizer=adam", "x=none"], None),
        (Any, ["0,1"], "0,1"),
        (Any, ["a", "b"], ["a", "b"]),
    ],
)
def test_text_becomes_what_the_type_asks_for(annotation: Any, texts: Any, value: Any) -> None:
    option = Option("x", annotation, None, "", "Model", ("f",))
    if value is None:
        value = {"lr": 1e-3, "amsgrad": True, "optimizer": "adam", "x": None}
    found = read([option], {"x": texts}, None)["x"]
    assert found == value and type(found) is type(value)
    given = GivenOptions("f", [option], {"x": found})
    assert converted(option, yaml.safe_load(given.to_yaml())["x"], "x") == value


@pytest.mark.parametrize(
    ("annotation", "texts"),
    [(int, "3.5"), (float, "much"), (int | Mapping[str, int], ["a", "b"]), (Mapping[str, int], ["a"])],
)
def test_text_of_another_type_is_refused(annotation: Any, texts: Any) -> None:
    with pytest.raises(OptionError, match="--x must be"):
        read([Option("x", annotation, None, "", "Model", ("f",))], {"x": texts}, None)


def test_none_is_a_value_where_it_is_not_the_default() -> None:
    option = Option("delta", float | None, 0.25, "", "Model", ("f",))
    assert read([option], {"delta": "none"}, None) == {"delta": None}
    assert (
        converted(option, yaml.safe_load(GivenOptions("f", [option], {"delta": None}).to_yaml())["delta"], "x") is None
    )


@pytest.fixture
def cells(tmp_path: Path) -> Path:
    obs = pd.DataFrame({"donor": ["a", "b"] * 30, "sex": ["f"] * 20 + ["m"] * 40}, index=[f"c{i}" for i in range(60)])
    counts = sp.csr_matrix(np.random.default_rng(0).poisson(2.0, (60, 20)).astype(np.float32))
    anndata.AnnData(counts, obs=obs).write_h5ad(tmp_path / "cells.h5ad")
    return tmp_path / "cells.h5ad"


def test_older_spellings_and_files_of_older_runs_are_read(cells: Path, tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(
        f"counts: {cells}\nout: {tmp_path / 'first'}\ncategorical_covariate_key:\n- donor\nn_hidden: 8\nn_latent: 2\n"
        "max_epochs: 1\nseed: 3\n"
    )
    assert run("train", "scvi", "--config", config, "--quiet") == 0
    keys = ["--categorical-covariate-key", "donor", "--n-hidden", 8, "--n-latent", 2, "--max-epochs", 1, "--seed", 3]
    assert run("train", "scvi", cells, "--out", tmp_path / "second", *keys, "--quiet") == 0
    name = "model/model.safetensors"
    assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()
    written = yaml.safe_load((tmp_path / "second" / "run.yaml").read_text())
    assert written["categorical_covariate_keys"] == ["donor"]
    options = {o.name: o for o in building.options_of("train multimodal")}
    for old, new in {"background_modality": "additive_background_modalities", "modality": "modalities"}.items():
        assert old in options[new].spellings


def test_options_that_were_not_there_before_reach_the_model(cells: Path, tmp_path: Path) -> None:
    small = ["--max-epochs", 1, "--n-hidden", 8, "--n-latent", 2, "--quiet"]
    asked = ["--batch-representation", "embedding", "--no-log-variational", "--batch-key", "donor"]
    asked += ["--plan-kwargs", "lr=1e-4", "--plan-kwargs", "schedule=constant", "--validation-size", "0.05"]
    assert run("train", "scvi", cells, "--out", tmp_path / "a", *asked, *small) == 0
    model = countvi.SCVI.load(tmp_path / "a" / "model", anndata.read_h5ad(cells))
    assert model.get_batch_representation().shape == (60, 5)
    assert not model.options.log_variational
    assert model.history["lr"].iloc[-1] == pytest.approx(1e-4)
    again = ["--config", tmp_path / "a" / "run.yaml", "--out", tmp_path / "b", "--quiet"]
    assert run("train", "scvi", *again) == 0
    name = "model/model.safetensors"
    assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_condscvi(cells: Path, tmp_path: Path) -> None:
    small = ["--max-epochs", 1, "--n-hidden", 8, "--n-latent", 2, "--quiet"]
    assert (
        run("train", "condscvi", cells, "--out", tmp_path / "run", "--labels-key", "sex", "--weight-obs", *small) == 0
    )
    model = countvi.CondSCVI.load(tmp_path / "run" / "model", anndata.read_h5ad(cells))
    assert model.cell_types == ["f", "m"] and model.options.weight_obs
    latent = anndata.read_h5ad(tmp_path / "run" / "latent.h5ad").obsm["X_CondSCVI"]
    np.testing.assert_array_equal(latent, model.get_latent_representation())


def test_totalvi_of_a_mudata(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mudata = pytest.importorskip("mudata", reason="needs the optional package: pip install 'countvi[multimodal]'")
    rng, names = np.random.default_rng(0), [f"c{i}" for i in range(40)]
    rna = anndata.AnnData(sp.csr_matrix(rng.poisson(2.0, (40, 12)).astype(np.float32)), obs=pd.DataFrame(index=names))
    protein = anndata.AnnData(rng.poisson(9.0, (40, 3)).astype(np.float32), obs=pd.DataFrame(index=names))
    rna.var_names, protein.var_names = [f"g{i}" for i in range(12)], ["CD3", "CD4", "CD19"]
    with mudata.set_options(pull_on_update=False):
        mudata.MuData({"rna": rna, "prot": protein}).write(tmp_path / "cells.h5mu")
    asked = ["--modality", "rna_layer=rna", "--modality", "protein_layer=prot", "--out", tmp_path / "run"]
    small = ["--max-epochs", 1, "--n-hidden", 8, "--n-latent", 2, "--quiet"]
    assert run("train", "totalvi", tmp_path / "cells.h5mu", *asked, *small) == 0
    model = countvi.TOTALVI.load(tmp_path / "run" / "model", countvi.io.read_mudata(tmp_path / "cells.h5mu"))
    assert model.get_protein_foreground_probability().shape == (40, 3)
    capsys.readouterr()
    key = ["--protein-expression-obsm-key", "adt"]
    assert run("train", "totalvi", tmp_path / "cells.h5mu", *asked, "--overwrite", *key, *small) == 2
    assert "--protein-expression-obsm-key does not go with" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["train", "scvi", "x.h5ad", "--batchkey", "x"], "There is no option --batchkey. Did you mean '--batch-key'?"),
        (["train", "scvi", "--n-latnt=3"], "Did you mean '--n-latent'?"),
        (["train", "scvi", "x", "--no-encode-covariats"], "Did you mean '--no-encode-covariates'?"),
        (["map", "a", "b", "--labels-kye", "x"], "Did you mean '--labels-key'?"),
        (["train", "scvi", "a", "b"], "b is one argument too many."),
        (["train", "scvi", "a", "--out", "o", "--n-latent", "3.5"], "--n-latent must be a whole number; got '3.5'."),
        (["deconvolve", "--out", "o"], "Give --reference, on the command line or in --config."),
    ],
)
def test_a_misspelt_option_is_one_sentence(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith("countvi: ") and sentence in said and said.count("\n") == 1


def test_what_another_model_takes_is_refused(cells: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--max-epochs", 1, "--n-hidden", 8, "--n-latent", 2, "--quiet"]
    assert run("train", "scvi", cells, "--out", tmp_path / "run", "--batch-key", "donor", *small) == 0
    capsys.readouterr()
    model = tmp_path / "run" / "model"
    assert run("de", model, cells, "--groupby", "sex", "--out", tmp_path / "de.csv", "--scale-protein") == 2
    assert "--scale-protein does not go with a model of class SCVI" in capsys.readouterr().err
    asked = ["--out", tmp_path / "mapped", "--adversarial-classifier", "true"]
    assert run("map", model, cells, *asked) == 2
    assert "--adversarial-classifier does not go with a model of class SCVI" in capsys.readouterr().err
    assert not (tmp_path / "mapped").exists()
