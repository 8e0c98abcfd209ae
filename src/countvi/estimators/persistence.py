"""From an estimator to a model folder and back."""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
import platform
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import pandas as pd
import torch
from torch import Tensor, nn

from countvi import data as data_layer
from countvi import files
from countvi.errors import DataWarning, FileFormatError, OptionError, shorten, warn
from countvi.estimators.bounded import check_depth, first_line, whole
from countvi.estimators.state import Mapped
from countvi.train import Row

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData

    from countvi.data.container import Container
    from countvi.estimators.state import Fitted

    E = TypeVar("E", bound=Fitted)

_SPLIT = "split."
_MAPPED = "mapped"
_PACKAGES = ("countvi", "torch", "numpy", "scipy", "anndata")


def save(self: Fitted, dir_path: str | Path, *, overwrite: bool = False, save_anndata: bool = False) -> None:
    """Write the model to a folder: weights in safetensors, everything else in JSON.

    The folder appears whole or not at all; with ``overwrite`` the old model stays until the new one is complete.

    Parameters
    ----------
    dir_path
        The folder.
    overwrite
        Replace the model in the folder.
    save_anndata
        Write the data beside it as ``adata.h5ad``, for :meth:`load` to find.
    """
    adata = self.adata
    if save_anndata and adata is None:
        message = "save_anndata=True, but this model has no data: it was loaded without. Pass save_anndata=False."
        raise OptionError(message)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.module.state_dict().items()}
    if self.split is not None:
        parts = dataclasses.asdict(self.split)
        tensors |= {f"{_SPLIT}{name}": torch.from_numpy(rows.copy()) for name, rows in parts.items()}
    manifest = files.Manifest(
        model_class=type(self).__name__,
        init_args=self.arguments,
        registry=self.registry.to_json(),
        history=pd.DataFrame(self.epochs).to_dict("list"),  # type: ignore[arg-type]
        split=self.split is not None,
        seed=self.seed,
        versions={
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in _PACKAGES},
        },
        data_fingerprint=self.training_fingerprint(),
        is_trained=self.is_trained,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        extra={} if self.mapped is None else {_MAPPED: self.mapped.to_json()},
    )
    write_data = partial(_write_data, adata) if save_anndata and adata is not None else None
    files.write_model(dir_path, manifest, tensors, overwrite=overwrite, write_data=write_data)


def _write_data(data: Container, folder: Path) -> None:
    import h5py
    from anndata.io import write_elem

    if data_layer.is_mudata(data):
        data_layer.write_h5mu(data, folder / files.MUDATA_FILE)
        return
    # Not write_h5ad, which would turn the user's text columns into categories, and close the file behind a backed
    # AnnData while the model reads from it.
    with h5py.File(folder / files.DATA_FILE, "w") as file:
        write_elem(file, "/", data_layer.storable(data))


def _read_data(folder: Path) -> Container | None:
    """The data saved with a model, if any."""
    for name in (files.DATA_FILE, files.MUDATA_FILE):
        file = folder / name
        if not file.exists():
            continue
        if not file.is_file():
            message = f"{file} is not a file: the model in {folder} was changed; load it with adata=False."
            raise FileFormatError(message)
        try:
            return _open_data(file)
        except ImportError:
            raise
        except Exception as error:  # a damaged file can fail in any way
            message = (
                f"{file} cannot be read ({first_line(error)}): load the model with adata=False, or with your data."
            )
            raise FileFormatError(message) from error
    return None


def _open_data(file: Path) -> Container:
    if file.name == files.MUDATA_FILE:
        return data_layer.read_h5mu(file)
    import anndata

    return anndata.read_h5ad(file)


def load(
    cls: type[E],
    dir_path: str | Path,
    adata: AnnData | MuData | Literal[False] | None = None,
    *,
    device: str = "cpu",
) -> E:
    """Read a model that :meth:`save` wrote. Opening a folder runs no code from it.

    Parameters
    ----------
    dir_path
        The folder.
    adata
        Data for the read-outs; genes are matched by name and categories by value, no ``setup_anndata`` is needed.
        ``None`` takes the data saved with the model, if any; ``False`` takes none.
    device
        Where to put the model; see :meth:`to_device`.

    Raises
    ------
    FileFormatError
        If the folder is damaged, newer than this countvi, or of another class.
    MismatchError
        If ``adata`` lacks genes or has categories that the model does not know.
    """
    manifest, tensors = files.read_model(dir_path)
    if manifest.model_class != cls.__name__:
        message = (
            f"{dir_path} holds a {manifest.model_class}, not a {cls.__name__}. Load it with "
            f"countvi.{manifest.model_class}.load(...)."
        )
        raise FileFormatError(message)
    if adata is None:
        adata = _read_data(Path(dir_path))
    with whole(dir_path, tensors):
        model = _assemble(cls, manifest, tensors, dir_path, None if adata is False else adata)
    model.to_device(device)
    return model


def _assemble(
    cls: type[E], manifest: files.Manifest, tensors: dict[str, Tensor], path: str | Path, adata: Container | None
) -> E:
    registry = data_layer.Registry.from_json(manifest.registry)
    check_depth(path, manifest.init_args, tensors)
    model = cls.restore(adata, registry, manifest.init_args, manifest.seed or 0)
    load_weights(model.module, {name: t for name, t in tensors.items() if not name.startswith(_SPLIT)}, path)
    if _MAPPED in manifest.extra:
        model.mapped = Mapped.from_json(manifest.extra[_MAPPED])
        model.mapped.hold(model.module)
    model.epochs = _rows(manifest.history)
    model.is_trained = manifest.is_trained
    model.fingerprint = manifest.data_fingerprint
    split = {name.removeprefix(_SPLIT): rows.numpy() for name, rows in tensors.items() if name.startswith(_SPLIT)}
    if split:
        model.split = _known_split(model, data_layer.Split(**split))
    return model


def load_weights(module: nn.Module, weights: dict[str, Tensor], path: str | Path) -> None:
    """Fill a model with saved weights.

    Raises
    ------
    FileFormatError
        If names or shapes differ from what the model has, or a weight is NaN or infinite: training keeps weights
        finite, so such a file is damaged.
    """
    expected = module.state_dict()
    missing, extra = sorted(expected.keys() - weights.keys()), sorted(weights.keys() - expected.keys())
    if missing or extra:
        message = (
            f"{path} does not fit the model it describes: "
            f"{'no weights for ' + shorten(missing) if missing else 'unknown weights ' + shorten(extra)}."
        )
        raise FileFormatError(message)
    for name, tensor in expected.items():
        if tensor.shape != weights[name].shape:
            message = (
                f"{path}: {name} has shape {tuple(weights[name].shape)}; the model it describes needs "
                f"{tuple(tensor.shape)}."
            )
            raise FileFormatError(message)
        if not weights[name].isfinite().all():
            message = (
                f"{path}: {name} holds values that are not finite, so the model computes nothing; use another copy."
            )
            raise FileFormatError(message)
    module.load_state_dict(weights)


def _rows(history: dict[str, list[Any]]) -> list[Row]:
    table = pd.DataFrame(history, dtype=float)
    return [{str(name): value for name, value in row.items() if pd.notna(value)} for row in table.to_dict("records")]


def _known_split(model: Fitted, split: data_layer.Split) -> data_layer.Split | None:
    """The saved split, unless the data at hand are other data."""
    if model.counted is None or model.counted.fingerprint() == model.fingerprint:
        return split
    message = (
        "These are not the data this model was trained on, so its split into training and held-out cells does "
        "not apply; the next train() draws a new one."
    )
    warn(message, DataWarning)
    return None
