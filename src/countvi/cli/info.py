"""What is in a saved model, as text."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from countvi.files import Manifest


def describe(folder: Path) -> str:
    """Describe a saved model.

    Raises
    ------
    FileFormatError
        If the folder is not a readable model.
    """
    from countvi.files import read_model

    manifest, tensors = read_model(folder)
    n_weights = sum(tensor.numel() for tensor in tensors.values() if tensor.is_floating_point())
    lines = [f"{manifest.model_class} in {folder}"]
    lines += [f"  {name:<10}{text}" for name, text in _facts(manifest, n_weights)]
    return "\n".join(lines)


def _facts(manifest: Manifest, n_weights: int) -> list[tuple[str, str]]:
    from countvi.data import Registry

    facts: list[tuple[str, str]] = []
    registry = Registry.from_json(manifest.registry)
    for modality in registry.modalities:
        names = modality.feature_names
        facts.append(("features", f"{len(names):,} in {modality.location}: {', '.join(names[:3])}, ..."))
    facts.extend(
        (registry.covariates.name(i), f"obs[{column.key!r}], {len(column.categories)} categories")
        for i, column in enumerate(registry.columns)
        if column.key is not None
    )
    facts.append(("options", ", ".join(f"{name}={value}" for name, value in manifest.init_args.items())))
    facts.append(("weights", f"{n_weights:,}"))
    facts.append(("training", _training(manifest)))
    facts.append(("saved", f"{manifest.created}, {', '.join(f'{n} {v}' for n, v in manifest.versions.items())}"))
    return facts


def _training(manifest: Manifest) -> str:
    if not manifest.is_trained:
        return "none yet"
    history: dict[str, list[Any]] = manifest.history
    n_epochs = len(next(iter(history.values()), []))
    text = f"{n_epochs} epochs, seed {manifest.seed}"
    held_out = [value for value in history.get("elbo_validation", []) if value is not None]
    return f"{text}, held-out ELBO {-held_out[-1]:,.1f} nats per cell after the last" if held_out else text
