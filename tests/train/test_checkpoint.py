"""A run that was killed and resumed gives the bytes of one that was not."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import countvi
from countvi.errors import FileFormatError, OptionError, TrainingWarning

FILE = "checkpoint.safetensors"
OVERFIT = {"schedule": "constant", "lr": 0.2, "kl_warmup_fraction": 0.1}
RUNS = {
    "plain": {"max_epochs": 8},
    "early stopping": {
        "max_epochs": 40,
        "plan_kwargs": OVERFIT,
        "early_stopping": True,
        "early_stopping_patience": 4,
    },
    "plateau": {"max_epochs": 8, "plan_kwargs": OVERFIT | {"reduce_lr_on_plateau": True, "lr_patience": 0}},
    "AdamW and clipping": {"max_epochs": 8, "plan_kwargs": {"optimizer": "AdamW", "gradient_clip_val": 1.0}},
    "double precision": {"max_epochs": 8, "precision": "64-true"},
    "half precision": {"max_epochs": 8, "precision": "bf16-mixed"},
    "sparse validation": {"max_epochs": 8, "check_val_every_n_epoch": 3},
}


def history(model: countvi.SCVI):
    return model.history.drop(columns="seconds")


@pytest.mark.parametrize("killed_after", [1, 2, 7])
@pytest.mark.parametrize("arguments", RUNS.values(), ids=RUNS)
def test_resumed_equals_uninterrupted(tiny, saved, tmp_path, arguments, killed_after):
    whole = tiny.train(tiny.make(), **arguments)
    with pytest.raises(tiny.Killed):
        tiny.train(tiny.make(), **arguments, checkpoint_dir=tmp_path / "run", callbacks=[tiny.kill(killed_after)])
    resumed = tiny.train(tiny.make(), **arguments, checkpoint_dir=tmp_path / "run", resume=True)
    assert saved(resumed) == saved(whole)
    assert history(resumed).equals(history(whole))


def test_keeping_checkpoints_changes_nothing(tiny, saved, tmp_path):
    with_checkpoints = tiny.train(tiny.make(), checkpoint_dir=str(tmp_path / "run"))
    assert saved(with_checkpoints) == saved(tiny.train(tiny.make()))
    assert [path.name for path in (tmp_path / "run").iterdir()] == [FILE]


def test_killed_twice(tiny, saved, tmp_path):
    for epochs in (3, 6):
        with pytest.raises(tiny.Killed):
            tiny.train(tiny.make(), 8, checkpoint_dir=tmp_path, callbacks=[tiny.kill(epochs)], resume=True)
    assert saved(tiny.train(tiny.make(), 8, checkpoint_dir=tmp_path, resume=True)) == saved(tiny.train(tiny.make(), 8))


def test_a_finished_run_is_not_run_again(tiny, saved, tmp_path):
    stopping = {**RUNS["early stopping"], "checkpoint_dir": tmp_path / "run", "resume": True}
    for arguments in ({"max_epochs": 4, "checkpoint_dir": tmp_path / "other", "resume": True}, stopping):
        first = tiny.train(tiny.make(), **arguments)
        second = tiny.train(tiny.make(), **arguments, callbacks=[tiny.kill(len(first.history) + 1)])
        assert saved(first) == saved(second)
        assert second.history.equals(first.history)


def test_a_second_run_can_be_resumed_too(tiny, saved, tmp_path):
    def after_one_run():
        return tiny.train(tiny.make(), 3)

    whole = tiny.train(after_one_run(), 4, seed=5)
    with pytest.raises(tiny.Killed):
        tiny.train(after_one_run(), 4, seed=5, checkpoint_dir=tmp_path / "run", callbacks=[tiny.kill(2)])
    resumed = tiny.train(after_one_run(), 4, seed=5, checkpoint_dir=tmp_path / "run", resume=True)
    assert saved(resumed) == saved(whole) and history(resumed).equals(history(whole))


def test_without_resume_a_run_starts_anew(tiny, saved, tmp_path):
    with pytest.raises(tiny.Killed):
        tiny.train(tiny.make(), 5, seed=1, checkpoint_dir=tmp_path / "run", callbacks=[tiny.kill(3)])
    again = tiny.train(tiny.make(), 5, checkpoint_dir=tmp_path / "run")
    assert len(again.history) == 5 and saved(again) == saved(tiny.train(tiny.make(), 5))


@pytest.mark.parametrize(
    ("other", "named"),
    [
        ({"max_epochs": 6}, "max_epochs"),
        ({"seed": 3}, "seed"),
        ({"batch_size": 16}, "batches of"),
        ({"plan_kwargs": {"lr": 1e-3}}, r"plan_kwargs\['lr'\]"),
        ({"early_stopping": True}, "early_stopping"),
        ({"check_val_every_n_epoch": 2}, "check_val_every_n_epoch"),
        ({"train_size": 0.5}, "other settings"),
        ({"shuffle_set_split": False}, "other settings"),
        ({"precision": "64-true"}, "precision"),
        ({"precision": "bf16-mixed"}, "precision"),
    ],
    ids=str,
)
def test_other_settings_are_refused(tiny, tmp_path, other, named):
    tiny.train(tiny.make(), 2, checkpoint_dir=tmp_path)
    with pytest.raises(OptionError, match=named):
        tiny.train(tiny.make(), **{"max_epochs": 2, "checkpoint_dir": tmp_path, "resume": True, **other})


@pytest.mark.parametrize("options", [{"n_hidden": 12}, {"n_layers": 2}, {"gene_likelihood": "nb"}], ids=str)
def test_another_model_is_refused(tiny, tmp_path, options):
    tiny.train(tiny.make(), 2, checkpoint_dir=tmp_path)
    with pytest.raises(OptionError, match=r"checkpoint\.safetensors"):
        tiny.train(tiny.make(**options), 2, checkpoint_dir=tmp_path, resume=True)


def test_other_data_are_refused(tiny, tmp_path):
    tiny.train(tiny.make(), 2, checkpoint_dir=tmp_path)
    adata = tiny.simulate()
    adata.X[3, 3] += 1
    countvi.SCVI.setup_anndata(adata, batch_key="batch")
    model = countvi.SCVI(adata, n_hidden=8, n_latent=3)
    with pytest.raises(OptionError, match="other settings"):
        tiny.train(model, 2, checkpoint_dir=tmp_path, resume=True)


def test_resume_needs_a_folder(tiny):
    with pytest.raises(OptionError, match="checkpoint_dir"):
        tiny.train(tiny.make(), 2, resume=True)


def truncated(path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def empty(path) -> None:
    path.write_bytes(b"")


def garbage(path) -> None:
    path.write_bytes(b"\x00\xff not a checkpoint " * 100)


def without_metadata(path) -> None:
    save_file({"model/x": torch.zeros(2)}, path)


def _rewrite(path, change) -> None:
    with safe_open(path, framework="pt") as file:
        metadata, tensors = dict(file.metadata()), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    change(metadata, tensors)
    save_file(tensors, path, metadata)


def without_a_weight(path) -> None:
    _rewrite(path, lambda metadata, tensors: tensors.pop("model/rho.weight"))


def with_another_state(path) -> None:
    def change(metadata, tensors) -> None:
        metadata["state"] = json.dumps({"epochs": 3})

    _rewrite(path, change)


def without_state(path) -> None:
    _rewrite(path, lambda metadata, tensors: metadata.pop("state"))


@pytest.mark.parametrize(
    "damage", [truncated, empty, garbage, without_metadata, without_a_weight, with_another_state, without_state]
)
def test_a_damaged_checkpoint(tiny, tmp_path, damage):
    tiny.train(tiny.make(), 2, checkpoint_dir=tmp_path)
    damage(tmp_path / FILE)
    model = tiny.make()
    before = tiny.weights(model)
    with pytest.raises(FileFormatError, match="checkpoint"):
        tiny.train(model, 2, checkpoint_dir=tmp_path, resume=True)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.module.state_dict().items())


def test_a_crash_while_writing_leaves_the_previous_checkpoint(tiny, saved, tmp_path, monkeypatch):
    from countvi.train import checkpoint

    written = []

    def crash(tensors, path, metadata):
        written.append(path)
        if len(written) < 3:
            return save_file(tensors, path, metadata)
        path.write_bytes(b"half a file")
        raise tiny.Killed

    monkeypatch.setattr(checkpoint, "save_file", crash)
    with pytest.raises(tiny.Killed):
        tiny.train(tiny.make(), 6, checkpoint_dir=tmp_path / "run")
    monkeypatch.undo()
    resumed = tiny.train(tiny.make(), 6, checkpoint_dir=tmp_path / "run", resume=True)
    assert saved(resumed) == saved(tiny.train(tiny.make(), 6))


@pytest.mark.parametrize("step", [5, 11], ids=["before", "after"])
def test_a_rollback_beside_a_resumed_run(tiny, saved, tmp_path, step):
    """A step that fails goes back to the same state and halves the rate for good, resumed or not."""

    def failing_at(step: int):
        model, seen = tiny.make(), []

        def poison(module, inputs, out):
            if module.training:
                seen.append(None)
            return out * float("nan") if module.training and len(seen) == step else out

        model.module.rho.register_forward_hook(poison)
        return model

    # Three steps per epoch. Killed before the third is checkpointed, the run resumes with step 7.
    whole = tiny.train(failing_at(step), 6)
    with pytest.raises(tiny.Killed):
        tiny.train(failing_at(step), 6, checkpoint_dir=tmp_path / "run", callbacks=[tiny.kill(3)])
    resumed = tiny.train(failing_at(step - 6), 6, checkpoint_dir=tmp_path / "run", resume=True)
    assert whole.history["n_rollbacks"].tolist() == [int(step <= 3 * (epoch + 1)) for epoch in range(6)]
    assert history(resumed).equals(history(whole))
    assert saved(resumed) == saved(whole)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"dropout_rate": 0.5}, r"the option dropout_rate \(0\.1 then, 0\.5 now\)"),
        ({"latent_distribution": "ln"}, r"the option latent_distribution \('normal' then, 'ln' now\)"),
        ({"log_variational": False}, r"the option log_variational \(True then, False now\)"),
    ],
    ids=str,
)
def test_other_options_of_the_same_shapes_are_refused(tiny, tmp_path, options, named):
    tiny.train(tiny.make(), 2, checkpoint_dir=tmp_path)
    with pytest.raises(OptionError, match=named):
        tiny.train(tiny.make(**options), 2, checkpoint_dir=tmp_path, resume=True)


def test_other_covariates_are_refused(tiny, tmp_path):
    tiny.train(tiny.make(), 2, checkpoint_dir=tmp_path)
    adata = tiny.simulate()
    adata.obs["batch"] = adata.obs["batch"].to_numpy()[::-1]
    countvi.SCVI.setup_anndata(adata, batch_key="batch")
    with pytest.raises(OptionError, match=r"other settings: the covariates\. Call"):
        tiny.train(countvi.SCVI(adata, n_hidden=8, n_latent=3), 2, checkpoint_dir=tmp_path, resume=True)


def test_flipped_bits_are_refused(tiny, tmp_path):
    tiny.train(tiny.make(), 2, checkpoint_dir=tmp_path)
    whole = (tmp_path / FILE).read_bytes()
    for at in (*range(9, len(whole), len(whole) // 12), len(whole) - 1):
        (tmp_path / FILE).write_bytes(whole[:at] + bytes([whole[at] ^ 16]) + whole[at + 1 :])
        with pytest.raises(FileFormatError, match="checkpoint"):
            tiny.train(tiny.make(), 2, checkpoint_dir=tmp_path, resume=True)


def test_a_checkpoint_of_an_earlier_version_says_so(tiny, tmp_path):
    tiny.train(tiny.make(), 2, checkpoint_dir=tmp_path)
    _rewrite(tmp_path / FILE, lambda metadata, tensors: metadata.pop("sha256"))
    with pytest.raises(FileFormatError, match="did not record the options"):
        tiny.train(tiny.make(), 2, checkpoint_dir=tmp_path, resume=True)


def test_a_full_disk_does_not_end_the_run(tiny, saved, tmp_path, monkeypatch):
    from safetensors import SafetensorError

    from countvi.train import checkpoint

    for number, error in enumerate((SafetensorError("No space left on device"), OSError(30, "Read-only file system"))):

        def refuse(tensors, path, metadata, error=error):
            path.write_bytes(b"half")
            raise error

        monkeypatch.setattr(checkpoint, "save_file", refuse)
        folder = tmp_path / str(number)
        with pytest.warns(TrainingWarning, match="No checkpoint could be written.*Training goes on") as said:
            model = tiny.train(tiny.make(), 4, checkpoint_dir=folder)
        assert len([w for w in said if "No checkpoint" in str(w.message)]) == 1
        assert list(folder.iterdir()) == []
        assert saved(model) == saved(tiny.train(tiny.make(), 4))


@pytest.mark.parametrize(
    "change",
    [{"epochs_done": -5}, {"epochs_done": "x"}, {"epochs_done": 10**9}, {"lr_scale": float("nan")}, {"rows": [5, 5]}],
    ids=str,
)
def test_a_position_that_no_run_has(tiny, tmp_path, change, monkeypatch):
    from countvi.train import checkpoint

    tiny.train(tiny.make(), 2, checkpoint_dir=tmp_path)

    def edit(metadata, tensors) -> None:
        metadata["state"] = json.dumps(json.loads(metadata["state"]) | change)

    _rewrite(tmp_path / FILE, edit)
    monkeypatch.setattr(checkpoint, "_digest", lambda metadata, tensors: metadata["sha256"])
    with pytest.raises(FileFormatError, match="none that a run can have"):
        tiny.train(tiny.make(), 2, checkpoint_dir=tmp_path, resume=True)
