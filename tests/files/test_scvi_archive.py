from __future__ import annotations

import collections
import sys
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from countvi.errors import FileFormatError
from countvi.files import read_scvi_archive

GENES = np.array(["g0", "β-actin"], dtype=object)


def make_content() -> dict:
    weight = torch.arange(6, dtype=torch.float32).view(2, 3)
    state = collections.OrderedDict(
        {
            "a.weight": weight,
            "a.transposed": weight.t(),
            "a.slice": weight[1],
            "double": torch.tensor([1.5], dtype=torch.float64),
            "half": torch.tensor([0.5], dtype=torch.float16),
            "int": torch.tensor([3], dtype=torch.int32),
            "long": torch.tensor(-7),
            "bool": torch.tensor([True, False]),
            "empty": torch.empty(0, 4),
            "pyro_param_store": {"params": {}, "constraints": {}},
        }
    )
    fields = collections.defaultdict(dict)
    fields["batch"]["mapping"] = np.array(["s1", "s2"], dtype=object)
    attributes = {
        "registry_": {"field_registries": fields, "setup_args": {"layer": None}},
        "levels_": {"a", "b"},
        "decoder_": collections.OrderedDict(w=torch.ones(2)),
        "history_": {"elbo": pd.DataFrame({"elbo": [1.0, 2.0]}, index=pd.Index([0, 1], name="epoch"))},
        "is_trained_": True,
    }
    return {"model_state_dict": state, "var_names": GENES, "attr_dict": attributes}


def save(folder: Path, content=None, name: str = "model.pt", **kwargs) -> Path:
    folder.mkdir(exist_ok=True)
    torch.save(make_content() if content is None else content, folder / name, **kwargs)
    return folder


def rewrite(file: Path, change, compression: int = zipfile.ZIP_STORED) -> None:
    """Change the members of an archive: ``change`` takes and returns ``{name: contents}``."""
    with zipfile.ZipFile(file) as archive:
        members = change({name: archive.read(name) for name in archive.namelist()})
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, contents in members.items():
            archive.writestr(name, contents)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save(tmp_path / "saved")


def check(archive) -> None:
    expected = make_content()["model_state_dict"]
    del expected["pyro_param_store"]
    assert set(archive.state) == set(expected)
    for name, tensor in expected.items():
        assert archive.state[name].dtype == tensor.dtype
        assert torch.equal(archive.state[name], tensor)
    assert archive.var_names == GENES.tolist()
    assert archive.attributes["levels_"] == {"a", "b"}
    assert archive.attributes["is_trained_"] is True


def test_reads_what_torch_wrote(folder):
    archive = read_scvi_archive(folder)
    check(archive)
    fields = archive.attributes["registry_"]["field_registries"]
    assert type(fields) is dict
    assert fields["batch"]["mapping"].tolist() == ["s1", "s2"]
    assert archive.attributes["decoder_"]["w"].tolist() == [1, 1]
    elbo = archive.attributes["history_"]["elbo"]
    assert {name: column.tolist() for name, column in elbo.items()} == {"epoch": [0, 1], "elbo": [1.0, 2.0]}


def test_file_folder_and_prefix(folder):
    check(read_scvi_archive(folder / "model.pt"))
    check(read_scvi_archive(str(folder)))
    (folder / "model.pt").rename(folder / "run1_model.pt")
    check(read_scvi_archive(folder, prefix="run1_"))
    with pytest.raises(
        FileFormatError,
        match=r"has no model.pt. It has models with the prefix 'run1_': give the file itself, '.*run1_model.pt'",
    ):
        read_scvi_archive(folder)


def test_other_pickle_protocols(tmp_path):
    check(read_scvi_archive(save(tmp_path / "saved", pickle_protocol=4)))


def test_tensors_own_their_memory(folder):
    state = read_scvi_archive(folder).state
    state["a.weight"].zero_()
    assert state["a.slice"].tolist() == [3, 4, 5]


def test_modalities(tmp_path):
    content = make_content() | {"var_names": {"rna": GENES, "protein": np.array(["CD3"], dtype=object)}}
    archive = read_scvi_archive(save(tmp_path / "saved", content))
    assert archive.var_names == {"rna": ["g0", "β-actin"], "protein": ["CD3"]}


def test_other_byte_order(folder):
    def swap(members):
        changed = dict(members)
        sizes = {b"little": "big", b"big": "little"}
        (order,) = (name for name in members if name.endswith("/byteorder"))
        changed[order] = sizes[members[order]].encode()
        reference = read_scvi_archive(folder)
        # every storage of the file holds elements of one size: swap each by the size of the tensors on it
        storages = {name: contents for name, contents in members.items() if "/data/" in name}
        wanted = [*reference.state.values(), reference.attributes["decoder_"]["w"]]
        for name, contents in storages.items():
            size = next(t.element_size() for t in wanted if t.contiguous().numpy().tobytes() == contents)
            changed[name] = np.frombuffer(contents, dtype=f"u{size}").byteswap().tobytes()
        return changed

    before = (folder / "model.pt").read_bytes()
    rewrite(folder / "model.pt", swap)
    assert (folder / "model.pt").read_bytes() != before
    check(read_scvi_archive(folder))


def test_byte_order_file_is_optional(folder):
    def drop(members):
        return {name: contents for name, contents in members.items() if not name.endswith("/byteorder")}

    if sys.byteorder == "little":
        rewrite(folder / "model.pt", drop)
        check(read_scvi_archive(folder))


class Evil:
    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("where", ["model_state_dict", "var_names", "attr_dict", "beside"])
def test_malicious_files_are_refused_and_not_run(tmp_path, where):
    import os

    witness = tmp_path / "witness"
    evil = Evil(os.mkdir, str(witness))
    content = make_content()
    content[where] = {"x": [evil]} if where != "attr_dict" else {**content["attr_dict"], "x_": evil}
    folder = save(tmp_path / "saved", content)
    with pytest.raises(FileFormatError, match=rf"asks to run '{os.mkdir.__module__}\.mkdir'; refused"):
        read_scvi_archive(folder)
    assert not witness.exists()
    torch.load(folder / "model.pt", weights_only=False)  # the file does what it says where pickles are run
    assert witness.exists()


def test_nested_torch_load_is_refused(tmp_path):
    content = make_content()
    content["model_state_dict"]["x"] = Evil(torch.load, "other.pt")
    with pytest.raises(FileFormatError, match=r"asks to run 'torch\.serialization\.load'; refused"):
        read_scvi_archive(save(tmp_path / "saved", content))


def test_missing(tmp_path):
    with pytest.raises(FileFormatError, match="does not exist: expected a folder saved by scvi-tools"):
        read_scvi_archive(tmp_path / "nowhere")
    with pytest.raises(FileFormatError, match=r"has no model\.pt\.$"):
        read_scvi_archive(tmp_path)


@pytest.mark.parametrize("name", ["model_params.pt", "attr.pkl", "var_names.csv"])
def test_folders_before_0_15(tmp_path, name):
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(FileFormatError, match=r"before 0\.15: convert it with scvi-tools' convert_legacy_save"):
        read_scvi_archive(tmp_path)


def test_torch_files_before_zip(tmp_path):
    folder = save(tmp_path / "saved", _use_new_zipfile_serialization=False)
    with pytest.raises(FileFormatError, match=r"not a zip archive.*torch\.save\(torch\.load\("):
        read_scvi_archive(folder)


@pytest.mark.parametrize("keep", [0, 3, 200, 0.3, 0.9, -1])
def test_truncated(folder, keep):
    file = folder / "model.pt"
    payload = file.read_bytes()
    file.write_bytes(payload[: int(keep * len(payload)) if isinstance(keep, float) else keep])
    with pytest.raises(FileFormatError, match=r"not a zip archive|truncated or damaged"):
        read_scvi_archive(folder)


def test_flipped_bits(folder):
    file = folder / "model.pt"
    payload = file.read_bytes()
    start = payload.index(b"a.weight")
    file.write_bytes(payload[:start] + b"b" + payload[start + 1 :])
    with pytest.raises(FileFormatError, match=r"data\.pkl' cannot be read"):
        read_scvi_archive(folder)


def drop_storage(members):
    return {name: contents for name, contents in members.items() if not name.endswith("/data/0")}


def shorten_storage(members):
    return {name: contents[:-1] if name.endswith("/data/0") else contents for name, contents in members.items()}


def odd_byte_order(members):
    return {name: b"middle" if name.endswith("/byteorder") else contents for name, contents in members.items()}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (drop_storage, "data/0' cannot be read"),
        (shorten_storage, "storage 0 has 23 bytes, expected 24"),
        (odd_byte_order, "unknown byte order 'middle'"),
        (lambda members: {"readme.txt": b"x"}, "not one of torch"),
        (lambda members: {**members, "other/data.pkl": b"N."}, "not one of torch"),
    ],
)
def test_damaged_or_other_zip(folder, change, says):
    rewrite(folder / "model.pt", change)
    with pytest.raises(FileFormatError, match=says):
        read_scvi_archive(folder)


def test_compressed_members_are_refused(folder):
    rewrite(folder / "model.pt", lambda members: members, zipfile.ZIP_DEFLATED)
    with pytest.raises(FileFormatError, match="compressed members"):
        read_scvi_archive(folder)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ([1, 2], "not an scvi-tools model: expected the entries 'model_state_dict'"),
        ({"state_dict": {}}, "not an scvi-tools model"),
        ({"model_state_dict": {"a": 3}, "var_names": GENES, "attr_dict": {}}, "'a' is a int"),
        ({"model_state_dict": [], "var_names": GENES, "attr_dict": {}}, "'model_state_dict' is a list"),
        ({"model_state_dict": {}, "var_names": None, "attr_dict": {}}, "'var_names'.*it is a NoneType"),
        ({"model_state_dict": {}, "var_names": GENES, "attr_dict": None}, "'attr_dict' is a NoneType"),
    ],
)
def test_other_torch_files(tmp_path, content, says):
    with pytest.raises(FileFormatError, match=says):
        read_scvi_archive(save(tmp_path / "saved", content))
