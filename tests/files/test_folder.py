from __future__ import annotations

import json
import os
import shutil
import stat
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from countvi.errors import FileFormatError, OptionError
from countvi.files import DIGEST, MANIFEST_FILE, TENSORS_FILE, Manifest, folder, read_model, write_model


def make_manifest(note: str = "first") -> Manifest:
    return Manifest(
        model_class="SCVI",
        init_args={"n_latent": 3},
        registry={"var_names": ["β-actin"]},
        history={"elbo": [1.0]},
        split=False,
        seed=None,
        versions={"countvi": "0.1.0"},
        data_fingerprint=None,
        is_trained=True,
        created="2026-01-01T00:00:00+00:00",
        extra={"note": note},
    )


def make_tensors(value: float = 1.0) -> dict[str, torch.Tensor]:
    wide = torch.arange(12, dtype=torch.float32).view(3, 4) + value
    return {
        "strided": wide.t(),
        "slice": wide[:, 1],
        "shared": wide,
        "count": torch.tensor(17),
        "empty": torch.empty(0, 3),
        "flags": torch.tensor([True, False]),
        "double": torch.tensor([value], dtype=torch.float64),
        "half": torch.tensor([value], dtype=torch.bfloat16),
        "weight": torch.nn.Parameter(torch.full((2,), value)),
    }


def holds(path: Path) -> str:
    """Which model a folder holds: whole, or the reading raises."""
    manifest, tensors = read_model(path)
    note = manifest.extra["note"]
    assert float(tensors["double"]) == {"first": 1.0, "second": 2.0}[note]
    return note


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "model"
    write_model(path, make_manifest(), make_tensors())
    return path


def edit_manifest(path: Path, **changes) -> None:
    file = path / MANIFEST_FILE
    values = {**json.loads(file.read_text()), **changes}
    del values[DIGEST]  # as in folders that were written without
    file.write_text(json.dumps(values))


def test_round_trip(saved):
    manifest, tensors = read_model(saved)
    expected = make_tensors()
    assert set(tensors) == set(expected)
    for name, tensor in expected.items():
        assert tensors[name].dtype == tensor.dtype
        assert torch.equal(tensors[name], tensor.detach())
    assert manifest.extra == {"note": "first"}
    assert manifest.tensors["strided"] == {"dtype": "float32", "shape": [4, 3]}
    assert sorted(entry.name for entry in saved.iterdir()) == [MANIFEST_FILE, TENSORS_FILE]
    assert [entry.name for entry in saved.parent.iterdir()] == ["model"]


def test_tensors_can_be_written_to(saved):
    _, tensors = read_model(saved)
    tensors["shared"].add_(1)
    assert torch.equal(tensors["strided"], make_tensors()["strided"].detach())


def test_files_are_what_they_say(saved):
    (saved / MANIFEST_FILE).read_bytes().decode("ascii")
    plain = safetensors.torch.load_file(saved / TENSORS_FILE)
    assert float(plain["double"]) == 1.0


def test_no_tensors(tmp_path):
    write_model(tmp_path / "model", make_manifest(), {})
    assert read_model(tmp_path / "model")[1] == {}


def test_same_model_same_bytes(tmp_path):
    tensors = make_tensors()
    write_model(tmp_path / "a", make_manifest(), tensors)
    write_model(tmp_path / "b", make_manifest(), dict(reversed(tensors.items())))
    for name in (TENSORS_FILE, MANIFEST_FILE):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_folders_above_are_made(tmp_path):
    write_model(tmp_path / "x" / "y" / "model", make_manifest(), make_tensors())
    assert holds(tmp_path / "x" / "y" / "model") == "first"


@pytest.mark.skipif(os.name == "nt", reason="permissions of POSIX")
def test_permissions_are_those_of_any_new_folder(saved, tmp_path):
    (tmp_path / "plain").mkdir()
    assert stat.S_IMODE(saved.stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


# what may be replaced


def test_existing_folder_needs_overwrite(saved):
    with pytest.raises(OptionError, match="already exists: pass overwrite=True"):
        write_model(saved, make_manifest("second"), make_tensors(2.0))
    assert holds(saved) == "first"


def test_overwrite(saved):
    write_model(saved, make_manifest("second"), make_tensors(2.0), overwrite=True)
    assert holds(saved) == "second"
    assert [entry.name for entry in saved.parent.iterdir()] == ["model"]


def test_overwrite_through_a_link_keeps_the_link(saved, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(saved)
    write_model(link, make_manifest("second"), make_tensors(2.0), overwrite=True)
    assert link.is_symlink()
    assert holds(saved) == "second"


def test_empty_folder_with_overwrite(tmp_path):
    (tmp_path / "model").mkdir()
    with pytest.raises(OptionError, match="already exists"):
        write_model(tmp_path / "model", make_manifest(), make_tensors())
    write_model(tmp_path / "model", make_manifest(), make_tensors(), overwrite=True)
    assert holds(tmp_path / "model") == "first"


def test_users_files_are_never_deleted(tmp_path):
    thesis = tmp_path / "model" / "thesis.tex"
    thesis.parent.mkdir()
    thesis.write_text("years")
    with pytest.raises(OptionError, match=r"holds more than a countvi model \('thesis.tex'\)"):
        write_model(thesis.parent, make_manifest(), make_tensors(), overwrite=True)
    assert thesis.read_text() == "years"


def test_users_files_beside_a_model_are_never_deleted(saved):
    (saved / "notes.txt").write_text("mine")
    with pytest.raises(OptionError, match=r"notes\.txt"):
        write_model(saved, make_manifest("second"), make_tensors(2.0), overwrite=True)
    assert (saved / "notes.txt").read_text() == "mine"
    assert holds(saved) == "first"


def test_file_managers_litter_does_not_count(saved):
    (saved / ".DS_Store").write_text("x")
    write_model(saved, make_manifest("second"), make_tensors(2.0), overwrite=True)
    assert holds(saved) == "second"


@pytest.mark.parametrize("text", ["{}", '{"name": "a web app"}', "not JSON"])
def test_a_manifest_of_something_else_is_not_overwritten(tmp_path, text):
    other = tmp_path / "app" / MANIFEST_FILE
    other.parent.mkdir()
    other.write_text(text)
    with pytest.raises(OptionError, match="does not hold a countvi model"):
        write_model(other.parent, make_manifest(), make_tensors(), overwrite=True)
    assert other.read_text() == text


def test_a_file_is_not_overwritten(tmp_path):
    (tmp_path / "model").write_text("mine")
    with pytest.raises(OptionError, match="is a file"):
        write_model(tmp_path / "model", make_manifest(), make_tensors(), overwrite=True)
    assert (tmp_path / "model").read_text() == "mine"


@pytest.mark.parametrize("moved_aside", [False, True])
def test_users_files_under_the_hidden_name_are_never_deleted(saved, moved_aside):
    hidden = saved.with_name(".model.replaced")
    hidden.mkdir()
    (hidden / "thesis.tex").write_text("years")
    if moved_aside:
        shutil.rmtree(saved)
    with pytest.raises(OptionError):
        write_model(saved, make_manifest("second"), make_tensors(2.0), overwrite=True)
    assert [file.read_text() for file in saved.parent.rglob("thesis.tex")] == ["years"]


def test_manifest_that_json_cannot_hold_leaves_the_old_model(saved):
    with pytest.raises(FileFormatError, match="init_args"):
        manifest = make_manifest("second")
        manifest.init_args["x"] = {1, 2}
        write_model(saved, manifest, make_tensors(2.0), overwrite=True)
    assert holds(saved) == "first"
    assert [entry.name for entry in saved.parent.iterdir()] == ["model"]


# crashes


class Died(BaseException):
    """The process is gone: nothing that it would still do happens."""


class Disk:
    """Every operation on the disk that saving makes, failing from the n-th on (or only the n-th)."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fail_at: int | None, error: BaseException, forever: bool):
        self.calls = 0
        self._fail_at, self._error, self._forever = fail_at, error, forever
        for where, name in ((os, "mkdir"), (os, "rename"), (os, "fsync"), (shutil, "rmtree")):
            monkeypatch.setattr(where, name, self._wrap(getattr(where, name), name))

    def _wrap(self, function, name):
        def wrapped(*args, **kwargs):
            if name == "mkdir" and Path(args[0]).is_dir():  # pathlib only asks whether it is there
                return function(*args, **kwargs)
            if self.calls == self._fail_at or (self._forever and self.calls > (self._fail_at or 0)):
                self._half(name, args)
                self.calls += 1
                raise self._error
            self.calls += 1
            return function(*args, **kwargs)

        return wrapped

    def _half(self, name, args):
        if not self._forever or self.calls != self._fail_at:
            return
        if name == "fsync":  # a write that stopped halfway
            status = os.fstat(args[0])
            if stat.S_ISREG(status.st_mode):
                os.truncate(args[0], status.st_size // 2)
        if name == "rmtree":  # a deletion that stopped halfway
            for file in list(Path(args[0]).iterdir())[:1]:
                file.unlink()


def count_steps(path: Path, overwrite: bool) -> int:
    with pytest.MonkeyPatch.context() as patch:
        disk = Disk(patch, None, Died(), forever=False)
        write_model(path, make_manifest("second"), make_tensors(2.0), overwrite=overwrite)
    return disk.calls


def test_crash_at_any_step_while_replacing_leaves_one_whole_model(tmp_path):
    write_model(tmp_path / "probe", make_manifest(), make_tensors())
    steps = count_steps(tmp_path / "probe", overwrite=True)
    assert steps >= 8
    found = []
    for step in range(steps):
        path = tmp_path / f"run{step}" / "model"
        write_model(path, make_manifest(), make_tensors())
        with pytest.MonkeyPatch.context() as patch:
            Disk(patch, step, Died(), forever=True)
            with pytest.raises(Died):
                write_model(path, make_manifest("second"), make_tensors(2.0), overwrite=True)
        found.append(holds(path))
        write_model(path, make_manifest("second"), make_tensors(2.0), overwrite=True)
        assert holds(path) == "second"
        assert not path.with_name(".model.replaced").exists()
    assert found == sorted(found)
    assert set(found) == {"first", "second"}


def test_crash_between_the_two_renames_keeps_the_old_model_readable_and_protected(saved):
    saved.rename(saved.with_name(".model.replaced"))
    assert holds(saved) == "first"
    with pytest.raises(OptionError, match="already exists"):
        write_model(saved, make_manifest("second"), make_tensors(2.0))
    assert holds(saved) == "first"
    assert saved.exists()


def test_crash_at_any_step_of_a_first_save_leaves_nothing_or_the_model(tmp_path):
    steps = count_steps(tmp_path / "probe", overwrite=False)
    for step in range(steps):
        path = tmp_path / f"run{step}" / "model"
        path.parent.mkdir()
        with pytest.MonkeyPatch.context() as patch:
            Disk(patch, step, Died(), forever=True)
            with pytest.raises(Died):
                write_model(path, make_manifest("second"), make_tensors(2.0))
        if path.exists():
            assert holds(path) == "second"
        else:
            with pytest.raises(FileFormatError, match="does not exist"):
                read_model(path)


def test_error_at_any_step_leaves_one_whole_model_and_no_litter(tmp_path):
    write_model(tmp_path / "probe", make_manifest(), make_tensors())
    for step in range(count_steps(tmp_path / "probe", overwrite=True)):
        path = tmp_path / f"run{step}" / "model"
        write_model(path, make_manifest(), make_tensors())
        with pytest.MonkeyPatch.context() as patch:
            Disk(patch, step, OSError(28, "No space left on device"), forever=False)
            with pytest.raises(OSError, match="No space left"):
                write_model(path, make_manifest("second"), make_tensors(2.0), overwrite=True)
        assert holds(path) in ("first", "second")
        litter = {entry.name for entry in path.parent.iterdir()} - {"model"}
        assert not litter or (litter == {".model.replaced"} and holds(path) == "second")


# what cannot be read


def test_missing_folder(tmp_path):
    with pytest.raises(FileFormatError, match="does not exist: expected the folder"):
        read_model(tmp_path / "nowhere")


def test_a_file(saved):
    with pytest.raises(FileFormatError, match="is a file: expected the folder"):
        read_model(saved / TENSORS_FILE)


def test_folder_of_something_else(tmp_path):
    with pytest.raises(FileFormatError, match=r"is not a countvi model: it has no manifest.json\.$"):
        read_model(tmp_path)


def test_folder_of_scvi_tools(tmp_path):
    (tmp_path / "model.pt").write_bytes(b"PK")
    with pytest.raises(FileFormatError, match=r"use countvi\.io\.load_scvi_tools"):
        read_model(tmp_path)


def test_missing_tensors(saved):
    (saved / TENSORS_FILE).unlink()
    with pytest.raises(FileFormatError, match=f"{TENSORS_FILE} cannot be read.*not complete"):
        read_model(saved)


@pytest.mark.parametrize("keep", [0, 5, 8, 100, 0.5, -1])
def test_truncated_tensors(saved, keep):
    file = saved / TENSORS_FILE
    payload = file.read_bytes()
    file.write_bytes(payload[: int(keep * len(payload)) if isinstance(keep, float) else keep])
    with pytest.raises(FileFormatError, match="truncated or damaged"):
        read_model(saved)


def test_flipped_bit(saved):
    file = saved / TENSORS_FILE
    payload = bytearray(file.read_bytes())
    payload[-1] ^= 1
    file.write_bytes(payload)
    with pytest.raises(FileFormatError, match="checksum differs"):
        read_model(saved)


def replace_tensors(path: Path, change) -> None:
    tensors = {name: t.detach().clone().contiguous() for name, t in make_tensors().items()}
    change(tensors)
    safetensors.torch.save_file(tensors, path / TENSORS_FILE)


def test_missing_and_extra_tensors_are_named(saved):
    def change(tensors):
        tensors["stranger"] = tensors.pop("weight")

    replace_tensors(saved, change)
    with pytest.raises(FileFormatError, match=r"lacks 'weight' and has 'stranger' besides"):
        read_model(saved)


@pytest.mark.parametrize("other", [torch.ones(3), torch.ones(2, dtype=torch.float64)])
def test_tensor_of_another_kind_is_named(saved, other):
    replace_tensors(saved, lambda tensors: tensors.update(weight=other))
    with pytest.raises(FileFormatError, match=r"Tensor 'weight' .* says float32 of shape \[2\]"):
        read_model(saved)


def test_broken_manifest(saved):
    file = saved / MANIFEST_FILE
    file.write_text(file.read_text()[:-40])
    with pytest.raises(FileFormatError, match=r"manifest.json is not valid JSON"):
        read_model(saved)


def test_manifest_that_is_not_text(saved):
    (saved / MANIFEST_FILE).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(FileFormatError, match=r"manifest.json is not text"):
        read_model(saved)


def test_newer_format(saved):
    edit_manifest(saved, format_version=3, versions={"countvi": "4.5"})
    with pytest.raises(FileFormatError, match=r"written by countvi 4\.5, format 3; .* reads up to 2: upgrade"):
        read_model(saved)


def test_pickle_is_never_imported_by_the_folder():
    source = Path(folder.__file__).read_text()
    assert "pickle" not in source.replace("No pickle.", "")
    assert "torch.load" not in source.replace("safetensors.torch.load", "")


def test_numpy_history_survives(tmp_path):
    manifest = make_manifest()
    manifest.history["elbo"] = np.array([np.nan])  # pyright: ignore
    write_model(tmp_path / "model", manifest, make_tensors())
    assert read_model(tmp_path / "model")[0].history == {"elbo": [None]}
