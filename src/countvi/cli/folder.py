"""The folder of a run: what may be replaced, and when."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from countvi.errors import OptionError

_RESULTS = ("model", "latent.h5ad", "history.csv", "training.png")


@dataclass(frozen=True)
class RunFolder:
    """Where a run writes.

    Parameters
    ----------
    path
        The folder.
    overwrite
        Whether what a run wrote before may be replaced.
    resume
        Whether to go on from a checkpoint, if there is one.
    """

    path: Path
    overwrite: bool
    resume: bool

    @property
    def checkpoint(self) -> Path:
        """What a run that was cut off leaves behind; gone when a run has ended well."""
        return self.path / "checkpoint"

    @property
    def _has_checkpoint(self) -> bool:
        return self.checkpoint.is_dir() and any(self.checkpoint.iterdir())

    @property
    def _resumes(self) -> bool:
        return self.resume and self._has_checkpoint

    def check(self, counts: Path, written: Path | None) -> None:
        """Look, without touching anything, whether a run may start.

        Parameters
        ----------
        counts
            The input.
        written
            The copy of the input to write, if any.

        Raises
        ------
        OptionError
            If the input is missing, or something would be replaced that must not be.
        """
        if not counts.exists():
            message = f"There is no file {counts}."
            raise OptionError(message)
        if self.path.exists() and not self.path.is_dir():
            message = f"{self.path} is a file; --out takes a folder."
            raise OptionError(message)
        if self._writes(counts):
            message = f"The input {counts} has the place of a result in --out {self.path}; name another folder."
            raise OptionError(message)
        if written is not None:
            self._check_copy(counts, written)
        if not self.path.exists() or not any(self.path.iterdir()) or self._resumes or self.overwrite:
            return
        if not self.resume:
            choice = "--resume to go on with the run that was cut off there, or " if self._has_checkpoint else ""
            message = (
                f"{self.path} exists and is not empty. Pass {choice}--overwrite to replace what a run wrote there."
            )
            raise OptionError(message)
        found = [name for name in _RESULTS if (self.path / name).exists()]
        if found:
            message = (
                f"{self.path} has no checkpoint to resume from, but results ({', '.join(found)}): that run has ended. "
                "Pass --overwrite to train again."
            )
            raise OptionError(message)

    def _check_copy(self, counts: Path, written: Path) -> None:
        if written.resolve() == counts.resolve():
            message = f"--write-h5ad would replace the input {counts}; name another file."
            raise OptionError(message)
        if written.is_dir():
            message = f"{written} is a folder; --write-h5ad takes a file."
            raise OptionError(message)
        if self._writes(written):
            message = f"--write-h5ad {written} has the place of a result in --out {self.path}; name another file."
            raise OptionError(message)
        if written.exists() and not self.overwrite:
            message = f"{written} exists. Pass --overwrite to replace it, or name another file."
            raise OptionError(message)

    def _writes(self, file: Path) -> bool:
        """Whether a file lies where a result goes."""
        places = [(self.path / name).resolve() for name in (*_RESULTS, "run.yaml", "checkpoint")]
        return any(place in (file.resolve(), *file.resolve().parents) for place in places)

    def begin(self, options: str, written: Path | None) -> None:
        """Make room and leave the options. Only now, when nothing but training is left that could fail.

        Parameters
        ----------
        options
            Text of ``run.yaml``.
        written
            The copy of the input to write later, if any.
        """
        if not self._resumes:
            # What a run writes, and nothing else.
            for path in (*(self.path / name for name in _RESULTS), self.checkpoint):
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)
        self.path.mkdir(parents=True, exist_ok=True)
        (self.path / "run.yaml").write_text(options, encoding="utf-8")
        if written is not None:
            written.parent.mkdir(parents=True, exist_ok=True)

    def end(self) -> None:
        """Drop the checkpoint, when all results are written."""
        shutil.rmtree(self.checkpoint, ignore_errors=True)
