"""Finished training runs, kept so that an interrupted benchmark can go on where it was.

A run is a file of JSON in ``results/runs``, which may be deleted at any time. It is only used again where the command
line says so, and only on the same machine, with the same versions and within a day.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from measure import PEER, Settings, machine

_LIFETIME = 24 * 3_600


@dataclass(frozen=True)
class Run:
    """One training.

    Parameters
    ----------
    seconds
        Wall time of ``train``.
    elbo
        Held-out ELBO per cell in nats.
    epochs
        How many were run.
    scores
        What :func:`separation.scores` gives for the latent space.
    """

    seconds: float
    elbo: float
    epochs: int
    scores: dict[str, float]


class RunStore:
    """The folder of finished runs.

    Parameters
    ----------
    settings
        Where it is, and whether to take up what it holds.
    """

    def __init__(self, settings: Settings) -> None:
        self.folder: Path = settings.results / "runs"
        self.reuse = settings.reuse

    def get(self, side: str, what: dict[str, Any], train: Callable[[], Run]) -> Run:
        """Return a finished run, or train.

        Parameters
        ----------
        side
            Name of the library.
        what
            What tells this run from others of the library: data, sizes, likelihood, seed, epochs.
        train
            Does it.
        """
        # The peer's runs do not depend on our version.
        ours_only = ("commit", "countvi") if side == PEER else ()
        key = {**what, "side": side, **{k: v for k, v in machine().items() if k not in ("date", *ours_only)}}
        path = self.folder / ("-".join(str(value) for value in (side, *what.values())) + ".json")
        if self.reuse and path.exists():
            kept = json.loads(path.read_text())
            # A commit with "+" has changes on top, which may be others by now.
            settled = not str(key.get("commit", "")).endswith("+")
            if kept["key"] == key and settled and time.time() - kept["finished"] < _LIFETIME:
                return Run(**kept["run"])
        run = train()
        self.folder.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"key": key, "finished": time.time(), "run": asdict(run)}, indent=1) + "\n")
        return run
