"""The command line: ``countvi train scvi counts.h5ad --out run``, ``countvi info run/model``."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from countvi import __version__
from countvi.cli import _arguments as given
from countvi.errors import CountviError

app = typer.Typer(
    help="Deep generative models of single-cell counts.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
train = typer.Typer(help="Train a model and write it, its latent space and its training curves.", no_args_is_help=True)
app.add_typer(train, name="train")


def _say_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"countvi {__version__}")
        raise typer.Exit


@app.callback()
def common(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", callback=_say_version, is_eager=True)] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Deep generative models of single-cell counts."""
    context.obj = {"debug": debug}


@train.command("scvi")
def train_scvi(
    counts: given.Counts = None,
    out: given.Out = None,
    config: given.Config = None,
    overwrite: given.Overwrite = False,
    write_h5ad: given.WriteH5ad = None,
    layer: given.Layer = None,
    batch_key: given.BatchKey = None,
    labels_key: given.LabelsKey = None,
    size_factor_key: given.SizeFactorKey = None,
    categorical_covariate_key: given.CategoricalCovariateKey = None,
    continuous_covariate_key: given.ContinuousCovariateKey = None,
    n_latent: given.NLatent = None,
    n_hidden: given.NHidden = None,
    n_layers: given.NLayers = None,
    dropout_rate: given.DropoutRate = None,
    gene_likelihood: given.GeneLikelihood = None,
    dispersion: given.Dispersion = None,
    latent_distribution: given.LatentDistribution = None,
    encode_covariates: given.EncodeCovariates = None,
    max_epochs: given.MaxEpochs = None,
    batch_size: given.BatchSize = None,
    train_size: given.TrainSize = None,
    early_stopping: given.EarlyStopping = None,
    seed: given.Seed = None,
    accelerator: given.Accelerator = None,
    resume: given.Resume = False,
    quiet: given.Quiet = False,
) -> None:
    """Train scVI (Lopez et al. 2018). Options given here beat those of --config; others have their defaults."""
    _start("scvi", dict(locals()), get_type_hints(train_scvi))


@train.command("ambient")
def train_ambient(
    counts: given.Counts = None,
    out: given.Out = None,
    config: given.Config = None,
    overwrite: given.Overwrite = False,
    write_h5ad: given.WriteH5ad = None,
    layer: given.Layer = None,
    batch_key: given.BatchKeyOfPurposes = None,
    labels_key: given.LabelsKey = None,
    ambient_covariate_key: given.AmbientCovariateKey = None,
    nn_conditioning_covariate_key: given.NnConditioningCovariateKey = None,
    nn_continuous_covariate_key: given.NnContinuousCovariateKey = None,
    feature_scaling_covariate_key: given.FeatureScalingCovariateKey = None,
    dispersion_key: given.DispersionKey = None,
    library_size_key: given.LibrarySizeKey = None,
    encoder_covariate_key: given.EncoderCovariateKey = None,
    n_latent: given.NLatent = None,
    n_hidden: given.NHidden = None,
    n_layers: given.NLayers = None,
    dropout_rate: given.DropoutRate = None,
    dispersion: given.DispersionOfPurposes = None,
    use_additive_background: given.UseAdditiveBackground = None,
    bg_init_gene_fraction: given.BgInitGeneFraction = None,
    regularise_background: given.RegulariseBackground = None,
    use_feature_scaling: given.UseFeatureScaling = None,
    use_batch_in_decoder: given.UseBatchInDecoder = None,
    max_epochs: given.MaxEpochs = None,
    batch_size: given.BatchSizeOfRegularized = None,
    train_size: given.TrainSize = None,
    early_stopping: given.EarlyStopping = None,
    seed: given.Seed = None,
    accelerator: given.Accelerator = None,
    resume: given.Resume = False,
    quiet: given.Quiet = False,
) -> None:
    """Train AmbientRegularizedSCVI: scVI with ambient counts. Options given here beat those of --config."""
    _start("ambient", dict(locals()), get_type_hints(train_ambient))


@train.command("multimodal")
def train_multimodal(
    counts: given.ModalCounts = None,
    out: given.Out = None,
    config: given.Config = None,
    overwrite: given.Overwrite = False,
    modality: given.Modality = None,
    layer: given.Layer = None,
    batch_key: given.BatchKeyOfPurposes = None,
    labels_key: given.LabelsKey = None,
    ambient_covariate_key: given.AmbientCovariateKey = None,
    nn_conditioning_covariate_key: given.NnConditioningCovariateKey = None,
    nn_continuous_covariate_key: given.NnContinuousCovariateKey = None,
    feature_scaling_covariate_key: given.FeatureScalingCovariateKey = None,
    dispersion_key: given.DispersionKey = None,
    library_size_key: given.LibrarySizeKey = None,
    encoder_covariate_key: given.EncoderCovariateKey = None,
    n_latent: given.NLatent = None,
    n_hidden: given.NHiddenOfModalities = None,
    n_layers: given.NLayers = None,
    dropout_rate: given.DropoutRate = None,
    dispersion: given.DispersionOfPurposes = None,
    latent_mode: given.LatentMode = None,
    modality_weights: given.ModalityWeights = None,
    background_modality: given.BackgroundModality = None,
    scaling_modality: given.ScalingModality = None,
    bg_init_gene_fraction: given.BgInitGeneFraction = None,
    regularise_background: given.RegulariseBackground = None,
    use_batch_in_decoder: given.UseBatchInDecoder = None,
    max_epochs: given.MaxEpochs = None,
    batch_size: given.BatchSizeOfRegularized = None,
    train_size: given.TrainSize = None,
    early_stopping: given.EarlyStopping = None,
    seed: given.Seed = None,
    accelerator: given.Accelerator = None,
    resume: given.Resume = False,
    quiet: given.Quiet = False,
) -> None:
    """Train RegularizedMultimodalVI: one state of several modalities. Options given here beat those of --config."""
    _start("multimodal", dict(locals()), get_type_hints(train_multimodal))


@train.command("totalvi")
def train_totalvi(
    counts: given.Counts = None,
    out: given.Out = None,
    config: given.Config = None,
    overwrite: given.Overwrite = False,
    write_h5ad: given.WriteH5ad = None,
    protein_expression_obsm_key: given.ProteinExpressionObsmKey = None,
    protein_names_uns_key: given.ProteinNamesUnsKey = None,
    protein_mask_obsm_key: given.ProteinMaskObsmKey = None,
    layer: given.Layer = None,
    batch_key: given.BatchKey = None,
    panel_key: given.PanelKey = None,
    labels_key: given.LabelsKey = None,
    size_factor_key: given.SizeFactorKey = None,
    categorical_covariate_key: given.CategoricalCovariateKey = None,
    continuous_covariate_key: given.ContinuousCovariateKey = None,
    n_latent: given.NLatentOfProteins = None,
    n_hidden: given.NHiddenOfProteins = None,
    gene_likelihood: given.GeneLikelihoodOfProteins = None,
    gene_dispersion: given.GeneDispersion = None,
    protein_dispersion: given.ProteinDispersion = None,
    latent_distribution: given.LatentDistribution = None,
    encode_covariates: given.EncodeCovariatesOfProteins = None,
    override_missing_proteins: given.OverrideMissingProteins = None,
    max_epochs: given.MaxEpochs = None,
    batch_size: given.BatchSizeOfProteins = None,
    train_size: given.TrainSize = None,
    early_stopping: given.EarlyStopping = None,
    seed: given.Seed = None,
    accelerator: given.Accelerator = None,
    resume: given.Resume = False,
    quiet: given.Quiet = False,
) -> None:
    """Train totalVI (Gayoso, Steier et al. 2021): RNA and protein. Options given here beat those of --config."""
    _start("totalvi", dict(locals()), get_type_hints(train_totalvi))


def _start(command: str, options: dict[str, Any], kinds: dict[str, Any]) -> None:
    """Run a ``train`` command on its options, of the types that its signature says."""
    from countvi.cli import _options, _train

    switches = _options.Switches(
        config=options.pop("config"),
        overwrite=options.pop("overwrite"),
        resume=options.pop("resume"),
        quiet=options.pop("quiet"),
    )
    _train.run(_train.COMMANDS[command], _options.resolve(options, switches.config, kinds), switches)


@app.command("de")
def differential(
    folder: Annotated[Path, typer.Argument(help="Folder of a saved model.")],
    counts: Annotated[Path, typer.Argument(help="The cells, as the model reads them.", metavar="CELLS")],
    out: Annotated[Path, typer.Option(help="Table to write, .csv (or .csv.gz).")],
    groupby: Annotated[str, typer.Option(help="Column of obs with the groups.")],
    group1: Annotated[list[str] | None, typer.Option(help="Group to compare; may be repeated (default: each).")] = None,
    group2: Annotated[str | None, typer.Option(help="What to compare it with (default: all other cells).")] = None,
    sample_key: Annotated[str | None, typer.Option(help="Column of obs with donors or samples.")] = None,
    mode: Annotated[str, typer.Option(help="change or vanilla.")] = "change",
    delta: Annotated[float, typer.Option(help="Smallest log2 fold change that counts.")] = 0.25,
    fdr_target: Annotated[float, typer.Option(help="Share of false discoveries to aim at.")] = 0.05,
    batch_correction: Annotated[bool, typer.Option("--batch-correction", help="Decode under every batch.")] = False,
    modality: Annotated[str | None, typer.Option(help="Which modality of a model of several.")] = None,
    n_samples_overall: Annotated[int, typer.Option(help="Draws of each population.")] = 5_000,
    seed: Annotated[int, typer.Option(help="Of the draws.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the table.")] = False,
) -> None:
    """Compare groups of cells: differential expression of a saved model."""
    options = dict(locals())
    from countvi.cli import _differential

    paths = {name: options.pop(name) for name in ("folder", "counts", "out")}
    typer.echo(_differential.run(**paths, overwrite=options.pop("overwrite"), options=options))


@app.command("map")
def map_cells(
    reference: Annotated[Path, typer.Argument(help="Folder of a saved model.")],
    cells: Annotated[Path, typer.Argument(help="The new cells, as for `countvi train`.")],
    out: Annotated[Path, typer.Option(help="Folder to write to.")],
    labels_key: Annotated[
        str | None, typer.Option(help="Column of obs of the reference's cells: labels to transfer.")
    ] = None,
    reference_cells: Annotated[
        Path | None, typer.Option(help="The reference's cells, if the model was saved without.")
    ] = None,
    max_epochs: given.MaxEpochs = None,
    overwrite: given.Overwrite = False,
    quiet: given.Quiet = False,
) -> None:
    """Map new cells onto a trained model, and label them by its cells."""
    from countvi.cli import _map

    asked = _map.MapRequest(
        reference, cells, out, labels_key, reference_cells, max_epochs, overwrite=overwrite, quiet=quiet
    )
    _map.run(asked)


@app.command("deconvolve")
def deconvolve(
    reference: Annotated[Path, typer.Option(help="Single cells with types: .h5ad, or .h5 of Cell Ranger.")],
    labels_key: Annotated[str, typer.Option(help="Column of obs of the reference: cell types.")],
    spatial: Annotated[Path, typer.Option(help="The slide; maps need its obsm['spatial'].")],
    out: Annotated[Path, typer.Option(help="Folder to write to.")],
    layer: Annotated[str | None, typer.Option(help="Layer of the reference with raw counts (default: X).")] = None,
    spatial_layer: Annotated[str | None, typer.Option(help="Layer of the slide with raw counts (default: X).")] = None,
    batch_key: Annotated[str | None, typer.Option(help="Column of obs of the reference: batches.")] = None,
    n_genes: Annotated[int, typer.Option(help="How many of the most variable shared genes to use.")] = 2_000,
    gene: Annotated[list[str] | None, typer.Option(help="Gene to draw by type; may be repeated.")] = None,
    cells_per_spot: Annotated[
        float, typer.Option(help="Cells that a spot holds on average, for the presence calls.")
    ] = 6,
    fdr: Annotated[float, typer.Option(help="False discovery rate of the presence map.")] = 0.05,
    max_epochs: Annotated[int | None, typer.Option(help="Epochs of the reference's model.")] = None,
    spatial_max_epochs: Annotated[int | None, typer.Option(help="Epochs of the slide's model.")] = None,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what an earlier run wrote.")] = False,
    quiet: given.Quiet = False,
) -> None:
    """Find the cell types of the spots of a slide: DestVI (Lopez et al. 2022), its tables and maps."""
    options = dict(locals())
    from countvi.cli import _deconvolve

    paths = {name: options.pop(name) for name in ("reference", "spatial", "out")}
    options["enable_progress_bar"] = not options.pop("quiet")
    genes, rate, replace = tuple(options.pop("gene") or ()), options.pop("fdr"), options.pop("overwrite")
    typer.echo(_deconvolve.run(_deconvolve.Request(**paths, genes=genes, fdr=rate, overwrite=replace, options=options)))


@app.command("info")
def info(folder: Annotated[Path, typer.Argument(help="Folder of a saved model.")]) -> None:
    """Say what is in a saved model."""
    from countvi.cli import _info

    typer.echo(_info.describe(folder))


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; what a user can mend is said in one sentence, with exit code 2."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        app(args=arguments, prog_name="countvi")
    except (CountviError, OSError) as error:
        if "--debug" in arguments:
            traceback.print_exc()
        typer.echo(f"countvi: {_sentence(error)}", err=True)
        raise SystemExit(2) from None


def _sentence(error: CountviError | OSError) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}."
    return str(error)
