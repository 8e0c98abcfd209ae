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

NLatent = Annotated[
    int | None, typer.Option(help="Dimensions of the latent space (default: 10).", rich_help_panel=_MODEL)
]
NHidden = Annotated[int | None, typer.Option(help="Units per hidden layer (default: 128).", rich_help_panel=_MODEL)]
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

MaxEpochs = Annotated[
    int | None,
    typer.Option(
        help="Passes over the training cells (default: by their number; 40 for 2,000 cells, 4 for a million).",
        rich_help_panel=_TRAINING,
    ),
]
BatchSize = Annotated[int | None, typer.Option(help="Cells per step (default: 128).", rich_help_panel=_TRAINING)]
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
