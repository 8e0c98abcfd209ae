"""The options that commands share: types, help and grouping.

An option that is not given is ``None``, so that ``--config`` and then the model's own default can fill it in. The help
names that default.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

_DATA, _MODEL, _TRAINING, _FILES = "Data", "Model", "Training", "Files"

Counts = Annotated[
    Path | None,
    typer.Argument(help="The cells: .h5ad, or .h5 of Cell Ranger 3 and later.", metavar="CELLS", show_default=False),
]

ModalCounts = Annotated[
    Path | None,
    typer.Argument(help="The cells: a MuData, .h5mu.", metavar="CELLS", show_default=False),
]

Out = Annotated[Path | None, typer.Option(help="Folder to write to.", rich_help_panel=_FILES)]
Config = Annotated[Path | None, typer.Option(help="YAML file with options.", rich_help_panel=_FILES)]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace what a run wrote before.", rich_help_panel=_FILES)
]
WriteH5ad = Annotated[
    Path | None,
    typer.Option(
        "--write-h5ad",
        help="Also write the input, with the latent space in obsm, to this file.",
        rich_help_panel=_FILES,
    ),
]

Layer = Annotated[str | None, typer.Option(help="Layer with the raw counts (default: X).", rich_help_panel=_DATA)]
BatchKey = Annotated[str | None, typer.Option(help="Column of obs: batches to integrate over.", rich_help_panel=_DATA)]
LabelsKey = Annotated[str | None, typer.Option(help="Column of obs: cell types.", rich_help_panel=_DATA)]
SizeFactorKey = Annotated[
    str | None, typer.Option(help="Column of obs: size factors, instead of total counts.", rich_help_panel=_DATA)
]
CategoricalCovariateKey = Annotated[
    list[str] | None, typer.Option(help="Column of obs with categories; may be repeated.", rich_help_panel=_DATA)
]
ContinuousCovariateKey = Annotated[
    list[str] | None, typer.Option(help="Column of obs with numbers; may be repeated.", rich_help_panel=_DATA)
]

BatchKeyOfPurposes = Annotated[
    str | None,
    typer.Option(
        help="Column of obs: serves as ambient, dispersion and library size key at once.", rich_help_panel=_DATA
    ),
]
AmbientCovariateKey = Annotated[
    list[str] | None,
    typer.Option(help="Column of obs whose levels have a background each; may be repeated.", rich_help_panel=_DATA),
]
NnConditioningCovariateKey = Annotated[
    list[str] | None,
    typer.Option(help="Column of obs that the decoder sees; may be repeated.", rich_help_panel=_DATA),
]
NnContinuousCovariateKey = Annotated[
    list[str] | None,
    typer.Option(
        help="Column of obs with numbers, which encoders and decoder see; may be repeated.", rich_help_panel=_DATA
    ),
]
FeatureScalingCovariateKey = Annotated[
    list[str] | None,
    typer.Option(
        help="Column of obs whose levels have a factor for each feature; may be repeated.", rich_help_panel=_DATA
    ),
]
DispersionKey = Annotated[
    str | None, typer.Option(help="Column of obs whose levels have dispersions of their own.", rich_help_panel=_DATA)
]
LibrarySizeKey = Annotated[
    str | None,
    typer.Option(help="Column of obs whose levels have a library size prior of their own.", rich_help_panel=_DATA),
]
EncoderCovariateKey = Annotated[
    list[str] | None,
    typer.Option(help="Column of obs that the encoders see (default: none); may be repeated.", rich_help_panel=_DATA),
]
Modality = Annotated[
    list[str] | None, typer.Option(help="Modality to use (default: all); may be repeated.", rich_help_panel=_DATA)
]

NLatent = Annotated[
    int | None, typer.Option(help="Dimensions of the latent space (default: 10).", rich_help_panel=_MODEL)
]
NHidden = Annotated[int | None, typer.Option(help="Units per hidden layer (default: 128).", rich_help_panel=_MODEL)]
NHiddenOfModalities = Annotated[
    int | None,
    typer.Option(help="Units per hidden layer (default: 128, fewer for sparse peaks).", rich_help_panel=_MODEL),
]
NLayers = Annotated[
    int | None, typer.Option(help="Hidden layers of encoder and decoder (default: 1).", rich_help_panel=_MODEL)
]
DropoutRate = Annotated[
    float | None, typer.Option(help="Dropout of the encoder (default: 0.1).", rich_help_panel=_MODEL)
]
GeneLikelihood = Annotated[
    str | None, typer.Option(help="zinb, nb, poisson or normal (default: zinb).", rich_help_panel=_MODEL)
]
Dispersion = Annotated[
    str | None, typer.Option(help="gene, gene-batch, gene-label or gene-cell (default: gene).", rich_help_panel=_MODEL)
]
LatentDistribution = Annotated[str | None, typer.Option(help="normal or ln (default: normal).", rich_help_panel=_MODEL)]
EncodeCovariates = Annotated[
    bool | None,
    typer.Option(
        "--encode-covariates/--no-encode-covariates",
        help="Whether the encoder sees batch and covariates (default: no).",
        rich_help_panel=_MODEL,
    ),
]

DispersionOfPurposes = Annotated[
    str | None,
    typer.Option(
        help="gene-batch: per level of the dispersion key; or gene (default: gene-batch).", rich_help_panel=_MODEL
    ),
]
UseAdditiveBackground = Annotated[
    bool | None,
    typer.Option(
        "--use-additive-background/--no-use-additive-background",
        help="Whether there are ambient counts (default: yes).",
        rich_help_panel=_MODEL,
    ),
]
BgInitGeneFraction = Annotated[
    float | None,
    typer.Option(
        help="Share of a gene's counts taken for background before training (default: 0.2).", rich_help_panel=_MODEL
    ),
]
RegulariseBackground = Annotated[
    bool | None,
    typer.Option(
        "--regularise-background/--no-regularise-background",
        help="Whether the background has its prior (default: no).",
        rich_help_panel=_MODEL,
    ),
]
UseFeatureScaling = Annotated[
    bool | None,
    typer.Option(
        "--use-feature-scaling/--no-use-feature-scaling",
        help="Whether each gene has factors (default: yes).",
        rich_help_panel=_MODEL,
    ),
]
UseBatchInDecoder = Annotated[
    bool | None,
    typer.Option(
        "--use-batch-in-decoder/--no-use-batch-in-decoder",
        help="Whether the decoder sees the batch (default: no).",
        rich_help_panel=_MODEL,
    ),
]
LatentMode = Annotated[
    str | None,
    typer.Option(
        help="concatenation, weighted_mean or single_encoder (default: concatenation).", rich_help_panel=_MODEL
    ),
]
ModalityWeights = Annotated[
    str | None,
    typer.Option(help="Of a weighted mean: equal, universal or cell (default: equal).", rich_help_panel=_MODEL),
]
BackgroundModality = Annotated[
    list[str] | None,
    typer.Option(
        help="Modality with ambient counts (default: those of genes); may be repeated.", rich_help_panel=_MODEL
    ),
]
ScalingModality = Annotated[
    list[str] | None,
    typer.Option(
        help="Modality with feature factors (default: those of peaks); may be repeated.", rich_help_panel=_MODEL
    ),
]

MaxEpochs = Annotated[
    int | None,
    typer.Option(
        help="Passes over the training cells (default: by their number and the batch size).",
        rich_help_panel=_TRAINING,
    ),
]
BatchSize = Annotated[int | None, typer.Option(help="Cells per step (default: 64).", rich_help_panel=_TRAINING)]
BatchSizeOfRegularized = Annotated[
    int | None, typer.Option(help="Cells per step (default: 128).", rich_help_panel=_TRAINING)
]
TrainSize = Annotated[
    float | None,
    typer.Option(
        help="Share of the cells to train on; the rest is held out (default: 0.9).", rich_help_panel=_TRAINING
    ),
]
EarlyStopping = Annotated[
    bool | None,
    typer.Option(
        "--early-stopping/--no-early-stopping",
        help="Stop when the held-out ELBO stops improving, and keep the best weights (default: no).",
        rich_help_panel=_TRAINING,
    ),
]
Seed = Annotated[
    int | None,
    typer.Option(help="The same seed on the same machine gives the same run (default: 0).", rich_help_panel=_TRAINING),
]
Accelerator = Annotated[
    str | None, typer.Option(help="auto, cpu, cuda or mps (default: auto).", rich_help_panel=_TRAINING)
]
Resume = Annotated[bool, typer.Option("--resume", help="Continue a run that was cut off.", rich_help_panel=_TRAINING)]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress.", rich_help_panel=_TRAINING)]

ProteinExpressionObsmKey = Annotated[
    str | None, typer.Option(help="Entry of obsm with the protein counts.", rich_help_panel=_DATA)
]
ProteinNamesUnsKey = Annotated[
    str | None, typer.Option(help="Entry of uns with the names of the proteins.", rich_help_panel=_DATA)
]
ProteinMaskObsmKey = Annotated[
    str | None, typer.Option(help="Entry of obsm, true where a protein was measured.", rich_help_panel=_DATA)
]
PanelKey = Annotated[
    str | None, typer.Option(help="Column of obs: antibody panels (default: the batch).", rich_help_panel=_DATA)
]
NLatentOfProteins = Annotated[
    int | None, typer.Option(help="Dimensions of the latent space (default: 20).", rich_help_panel=_MODEL)
]
NHiddenOfProteins = Annotated[
    int | None, typer.Option(help="Units per hidden layer (default: 256).", rich_help_panel=_MODEL)
]
GeneLikelihoodOfProteins = Annotated[str | None, typer.Option(help="nb or zinb (default: nb).", rich_help_panel=_MODEL)]
GeneDispersion = Annotated[
    str | None, typer.Option(help="gene, gene-batch, gene-label or gene-cell (default: gene).", rich_help_panel=_MODEL)
]
ProteinDispersion = Annotated[
    str | None, typer.Option(help="protein, protein-batch or protein-label (default: protein).", rich_help_panel=_MODEL)
]
EncodeCovariatesOfProteins = Annotated[
    bool | None,
    typer.Option(
        "--encode-covariates/--no-encode-covariates",
        help="Whether the encoder sees batch and covariates (default: yes).",
        rich_help_panel=_MODEL,
    ),
]
OverrideMissingProteins = Annotated[
    bool | None,
    typer.Option(
        "--override-missing-proteins/--no-override-missing-proteins",
        help="Take proteins without counts in a panel for zeros (default: no).",
        rich_help_panel=_MODEL,
    ),
]
BatchSizeOfProteins = Annotated[
    int | None, typer.Option(help="Cells per step (default: 256).", rich_help_panel=_TRAINING)
]
