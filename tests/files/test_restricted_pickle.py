from __future__ import annotations

import collections
import contextlib
import io
import pickle
import struct

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from countvi.errors import FileFormatError
from countvi.files.restricted_pickle import restricted_load


class Storage:
    """Pickled as torch pickles a storage: by reference."""

    def __init__(self, kind: str, key: str, length: int):
        self.kind, self.key, self.length = kind, key, length


class Call:
    """Pickled as a call of a named function."""

    def __init__(self, function, *args, state=None):
        self.function, self.args, self.state = function, args, state

    def __reduce__(self):
        return (self.function, self.args) if self.state is None else (self.function, self.args, self.state)


class Pickler(pickle.Pickler):
    def persistent_id(self, obj):
        if isinstance(obj, Storage):
            return ("storage", getattr(torch, obj.kind), obj.key, "cpu", obj.length)
        return None


def dumps(value, protocol=2) -> bytes:
    stream = io.BytesIO()
    Pickler(stream, protocol=protocol).dump(value)
    return stream.getvalue()


def read_storage(key, dtype, length):
    return torch.arange(length).to(dtype)


def load(payload: bytes):
    return restricted_load(payload, read_storage, "model.pt")


def tensor(size, stride, offset=0, length=12, kind="FloatStorage") -> Call:
    arguments = (Storage(kind, "0", length), offset, size, stride, False, collections.OrderedDict())
    return Call(torch._utils._rebuild_tensor_v2, *arguments)


keys = st.text() | st.integers() | st.booleans()
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.tuples(inner, inner) | st.dictionaries(keys, inner, max_size=3) | st.sets(keys)
    ),
    max_leaves=10,
)


@given(plain, st.sampled_from([2, 3, 4]))
def test_plain_values_survive(value, protocol):
    assert load(pickle.dumps(value, protocol=protocol)) == value


def test_dictionaries_become_plain():
    nested = collections.defaultdict(dict, {"X": collections.OrderedDict(a=1), "s": frozenset([1]), "e": set()})
    value = load(pickle.dumps(nested, protocol=2))
    assert value == {"X": {"a": 1}, "s": frozenset([1]), "e": set()}
    assert type(value) is dict
    assert type(value["X"]) is dict


def test_shared_and_cyclic_objects():
    shared = [1]
    value = {"a": shared, "b": shared}
    value["self"] = value
    back = load(pickle.dumps(value, protocol=2))
    assert back["a"] is back["b"]
    assert back["self"] is back


def test_nested_sharing_costs_linear_time():
    value = ()
    for _ in range(200):
        value = (value, value)
    assert len(load(pickle.dumps(value, protocol=2))) == 2


ARRAYS = [
    np.arange(6, dtype=np.int64).reshape(2, 3),
    np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
    np.arange(3, dtype=">i4"),
    np.array([], dtype=np.int64),
    np.zeros((0, 4)),
    np.array(3.5),
    np.array([True, False]),
    np.array(["β-actin", "x"]),
    np.array([b"ab", b"c"]),
    np.array(["β-actin", None, 3, 2.5], dtype=object),
    np.array([["a", "b"], ["c", "d"]], dtype=object),
    np.asfortranarray(np.array([["a", "b"], ["c", "d"]], dtype=object)),
]


@pytest.mark.parametrize("array", ARRAYS, ids=lambda array: f"{array.dtype}{array.shape}")
@pytest.mark.parametrize("protocol", [2, 4])
def test_arrays(array, protocol):
    back = load(pickle.dumps({"a": array}, protocol=protocol))["a"]
    assert back.dtype == array.dtype.newbyteorder("=")
    assert back.shape == array.shape
    np.testing.assert_array_equal(back, array)
    back[...] = back  # writable


def test_arrays_inside_object_arrays():
    outer = np.empty(2, dtype=object)
    outer[0], outer[1] = np.arange(3), {"k": np.array(["x"], dtype=object)}
    back = load(pickle.dumps(outer, protocol=2))
    np.testing.assert_array_equal(back[0], np.arange(3))
    assert back[1]["k"].tolist() == ["x"]


@pytest.mark.parametrize("scalar", [np.int64(-3), np.float32(0.5), np.bool_(True), np.str_("β")])
def test_numpy_scalars(scalar):
    back = load(pickle.dumps([scalar], protocol=2))[0]
    assert back == scalar
    assert back.dtype == scalar.dtype


def test_older_numpy_names():
    payload = pickle.dumps(np.arange(3), protocol=2)
    assert b"numpy._core" in payload
    assert load(payload.replace(b"numpy._core", b"numpy.core")).tolist() == [0, 1, 2]


@pytest.mark.parametrize("spec", ["V8", "M8[D]", "i4,O", "O,O", "c16", "f16", [("a", "O")]])
def test_other_array_types_are_refused(spec):
    with pytest.raises(FileFormatError, match="damaged"):
        load(dumps([Call(np.dtype, spec, False, True)]))


def test_flags_of_a_dtype_are_ignored():
    # a dtype whose flags deny that it holds objects would make numpy read bytes as pointers
    dtype = Call(np.dtype, "O8", False, True, state=(3, "|", None, None, None, -1, -1, 0))
    fake = Call(np._core.multiarray._reconstruct, np.ndarray, (0,), b"b", state=(1, (1,), dtype, False, b"\x01" * 8))
    with pytest.raises(FileFormatError, match="damaged"):
        load(dumps(fake))


@pytest.mark.parametrize("shape", [(4,), (-1,), (-3, -1), (3, 0)])
def test_array_of_wrong_size(shape):
    dtype = Call(np.dtype, "i8", False, True)
    state = (1, shape, dtype, False, b"\0" * 24)
    with pytest.raises(FileFormatError, match="damaged"):
        load(dumps(Call(np._core.multiarray._reconstruct, np.ndarray, (0,), b"b", state=state)))


@pytest.mark.parametrize(
    ("size", "stride", "offset", "expected"),
    [
        ((3, 4), (4, 1), 0, np.arange(12.0).reshape(3, 4)),
        ((4, 3), (1, 4), 0, np.arange(12.0).reshape(3, 4).T),
        ((2,), (1,), 10, [10.0, 11.0]),
        ((), (), 5, 5.0),
        ((0, 3), (3, 1), 12, np.zeros((0, 3))),
    ],
)
def test_tensors(size, stride, offset, expected):
    back = load(dumps([tensor(size, stride, offset)]))[0]
    assert type(back) is torch.Tensor
    assert back.is_contiguous()
    np.testing.assert_array_equal(back.numpy(), expected)


@pytest.mark.parametrize(
    ("size", "stride", "offset"),
    [
        ((13,), (1,), 0),
        ((2,), (1,), 11),
        ((2,), (12,), 0),
        ((1,), (1,), -1),
        ((2,), (-1,), 5),
        ((-1,), (1,), 0),
        ((2, 2), (1,), 0),
        ((10**12,), (0,), 0),
    ],
)
def test_tensors_outside_their_storage_are_refused(size, stride, offset):
    with pytest.raises(FileFormatError, match="damaged"):
        load(dumps(tensor(size, stride, offset)))


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        ("FloatStorage", torch.float32),
        ("DoubleStorage", torch.float64),
        ("HalfStorage", torch.float16),
        ("LongStorage", torch.int64),
        ("IntStorage", torch.int32),
        ("BoolStorage", torch.bool),
    ],
)
def test_storage_types(kind, dtype):
    back = load(dumps(tensor((2,), (1,), kind=kind)))
    assert back.dtype == dtype
    assert back.tolist() == [0, 1]


def test_parameters_are_tensors():
    back = load(dumps(Call(torch._utils._rebuild_parameter, tensor((2,), (1,)), True, collections.OrderedDict())))
    assert type(back) is torch.Tensor
    assert not back.requires_grad


def refuse(payload: bytes, name: str) -> None:
    with pytest.raises(FileFormatError, match=f"model.pt asks to run '{name}'; refused"):
        load(payload)


def test_os_system_is_refused_and_not_run(tmp_path):
    import os

    witness = tmp_path / "run"
    payload = pickle.dumps(Call(os.system, f"touch {witness}"), protocol=2)
    assert pickle.loads(payload) == 0  # the payload does what it says
    assert witness.exists()
    witness.unlink()
    refuse(payload, f"{os.system.__module__}.system")
    assert not witness.exists()


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (eval, "(builtins|__builtin__).eval"),
        (exec, "(builtins|__builtin__).exec"),
        (getattr, "(builtins|__builtin__).getattr"),
        (open, "(_?io|builtins|__builtin__).open"),
        (__import__, "(builtins|__builtin__).__import__"),
        (torch.load, "torch.serialization.load"),
        (pickle.loads, "_?pickle.loads"),
        (np.load, "numpy.load"),
        (np.frombuffer, "numpy.*frombuffer"),
        (collections.Counter, "collections.Counter"),
    ],
)
@pytest.mark.parametrize("protocol", [2, 4])
def test_functions_are_refused(function, name, protocol):
    refuse(pickle.dumps({"a": [Call(function, "print(1)")]}, protocol=protocol), name)


def test_refused_inside_a_tensor():
    arguments = (Storage("FloatStorage", "0", 12), 0, (2,), (1,), False, Call(eval, "1/0"))
    refuse(dumps(Call(torch._utils._rebuild_tensor_v2, *arguments)), ".*eval")


def test_refused_inside_a_storage_reference():
    evil = b"\x80\x02(X\x07\x00\x00\x00storagecbuiltins\neval\nX\x03\x00\x00\x001/0\x85RX\x01\x00\x00\x000K\x01tQ."
    refuse(evil, "builtins.eval")


def test_refused_inside_a_pandas_object():
    import pandas as pd

    refuse(dumps(Call(pd.DataFrame, Call(eval, "1/0"))), ".*eval")


@pytest.mark.parametrize("name", [b"dict.fromkeys", b"OrderedDict.__init__", b"__class__"])
def test_dotted_names_are_refused(name):
    short = bytes([0x8C, len(b"collections")]) + b"collections" + bytes([0x8C, len(name)]) + name
    refuse(b"\x80\x04" + short + b"\x93.", f"collections.{name.decode()}")


def test_modules_that_only_begin_like_an_allowed_one_are_refused():
    refuse(b"\x80\x02cpandas_evil\nDataFrame\n)R.", "pandas_evil.DataFrame")


def test_other_encodings_are_not_looked_up():
    import codecs

    with pytest.raises(FileFormatError, match="bytes in encoding 'rot13'"):
        load(pickle.dumps(Call(codecs.encode, "abc", "rot13"), protocol=2))


def test_bytes_cannot_be_asked_for_memory():
    with pytest.raises(FileFormatError, match="damaged"):
        load(pickle.dumps(Call(bytes, 10**13), protocol=2))


@pytest.mark.parametrize(
    "target",
    [
        b"cnumpy\ndtype\n",
        b"c_codecs\nencode\n",
        b"cbuiltins\ndict\n",
        b"ctorch\nFloatStorage\n",
        b"ctorch._utils\n_rebuild_tensor_v2\n",
        b"cnumpy._core.multiarray\n_reconstruct\n",
        b"cpandas\nDataFrame\n",
    ],
)
@pytest.mark.parametrize("attribute", [b"_function", b"__call__", b"dtype", b"__setstate__", b"name", b"fromkeys"])
def test_attributes_set_on_names_do_not_outlive_the_file(target, attribute):
    key = b"X" + struct.pack("<I", len(attribute)) + attribute
    payload = (
        b"\x80\x02" + target + b"N}" + key + b"ccollections\nOrderedDict\ns\x86b0N."
    )  # BUILD with (None, {key: X})
    with contextlib.suppress(FileFormatError):
        load(payload)
    test_dictionaries_become_plain()
    test_arrays(ARRAYS[0], 2)
    test_tensors((2,), (1,), 10, [10.0, 11.0])
    test_history_frames()


@pytest.mark.parametrize("payload", [b"\x80\x02Nr\xff\xff\xff\x7f.", b"\x80\x02Np2000000000\n."])
def test_a_memo_cannot_be_larger_than_the_pickle(payload):
    with pytest.raises(FileFormatError, match=r"memo of at most [0-9]+ entries"):
        load(payload)


@pytest.mark.parametrize("operation", [b"\x80\x05\x96", b"\x80\x04\x8e", b"\x80\x04\x8d"])
def test_text_and_bytes_cannot_be_longer_than_the_pickle(operation):
    with pytest.raises(FileFormatError, match=r"model\.pt is damaged"):
        load(operation + struct.pack("<Q", 2**40) + b"abc.")


def test_names_left_as_values_are_refused():
    with pytest.raises(FileFormatError, match="stands where a value should be"):
        load(pickle.dumps({"a": np.ndarray}, protocol=2))


@given(st.binary(max_size=60))
def test_garbage_is_a_sentence(payload):
    try:
        load(b"\x80\x02" + payload)
    except FileFormatError as error:
        assert "model.pt" in str(error)


def test_truncated():
    payload = pickle.dumps({"a": np.arange(3), "b": ["x"] * 3}, protocol=2)
    for stop in range(len(payload)):
        with pytest.raises(FileFormatError, match=r"model\.pt is damaged"):
            load(payload[:stop])


def test_history_frames():
    import pandas as pd

    epochs = pd.Index([0, 1], name="epoch")
    frames = {
        "elbo": pd.DataFrame({"elbo": [1.5, np.nan]}, index=epochs),
        "objects": pd.DataFrame({"o": np.array([1.5, None], dtype=object)}, index=epochs),
        "mixed": pd.DataFrame({"a": [1, 2], "b": [0.5, 1.5], "c": [3, 4]}),
        "text": pd.DataFrame({"t": pd.Categorical(["x", "y"])}),
        "series": pd.Series([1, 2]),
        "none": pd.DataFrame(),
    }
    back = load(pickle.dumps(frames, protocol=2))
    assert list(back["elbo"]) == ["epoch", "elbo"]
    np.testing.assert_array_equal(back["elbo"]["elbo"], [1.5, np.nan])
    assert back["elbo"]["epoch"].tolist() == [0, 1]
    assert back["objects"]["o"].tolist() == [1.5, None]
    assert {name: column.tolist() for name, column in back["mixed"].items()} == {
        "index": [0, 1],
        "a": [1, 2],
        "b": [0.5, 1.5],
        "c": [3, 4],
    }
    assert back["series"] is None
    for value in (back["text"], back["none"]):
        assert value is None or all(isinstance(v, np.ndarray | None) for v in value.values())


def test_index_alone_is_an_array():
    import pandas as pd

    back = load(pickle.dumps({"i": pd.Index([3, 5]), "r": pd.RangeIndex(3)}, protocol=2))
    assert back["i"].tolist() == [3, 5]
    assert back["r"].tolist() == [0, 1, 2]
