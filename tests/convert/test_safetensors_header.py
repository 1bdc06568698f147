"""The header of a safetensors file: what we read of a good one, and that we are never laxer than the library."""

import struct

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, deserialize
from safetensors.torch import load_file, save

from trillion_convert.safetensors_header import ITEM_BYTES, read_header
from trillion_model.errors import CheckpointError

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.int8, torch.bool, torch.float8_e4m3fn)
GOOD = save({"b": torch.arange(6.0).view(2, 3), "a": torch.ones(3, dtype=torch.int8), "none": torch.zeros(0, 4)})


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("header") / "x.safetensors"


def refused(path) -> list[str]:
    """Everything that is said against a file."""
    problems: list[str] = []
    try:
        read_header(path, lambda error: problems.append(str(error)))
    except CheckpointError as error:
        problems.append(str(error))
    return problems


@settings(max_examples=40, deadline=None)
@given(
    st.dictionaries(st.text(min_size=1), st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 5), max_size=3)))
)
def test_places_are_where_the_numbers_are(path, tensors):
    tensors = {name: value for name, value in tensors.items() if name != "__metadata__"}
    content = save({name: torch.ones(shape).to(dtype) for name, (dtype, shape) in tensors.items()})
    path.write_bytes(content)
    header = read_header(path)
    assert header.unsound == () and header.tensors.keys() == tensors.keys()
    for name, tensor in load_file(path).items():
        place = header.tensors[name]
        assert place.shape == tuple(tensor.shape)
        assert place.end - place.begin == tensor.numel() * ITEM_BYTES[place.dtype] == tensor.nbytes
        assert content[place.begin : place.end] == tensor.reshape(-1).view(torch.uint8).numpy().tobytes()


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_whatever_the_library_refuses_we_refuse_and_nothing_else_is_raised(path, data):
    content = bytearray(GOOD)
    for _ in range(data.draw(st.integers(0, 3))):
        content[data.draw(st.integers(0, len(GOOD) - 1))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(0, len(GOOD)) | st.just(len(GOOD)))]
    path.write_bytes(content)
    problems = refused(path)
    try:
        deserialize(bytes(content))
    except SafetensorError:
        assert problems
    assert all("x.safetensors" in problem for problem in problems)


def test_all_problems_of_a_file_are_told(path):
    path.write_bytes(GOOD.replace(b'"F32"', b'"F33"').replace(b'"shape":[3]', b'"shape":[4]'))
    assert [problem.split(":")[0] for problem in refused(path)] == ["b", "none", "a"]


def test_a_header_as_long_as_a_pickles_first_bytes_read_as_a_number(path):
    content = save({"x": torch.ones(3)})
    (length,) = struct.unpack("<Q", content[:8])
    header = content[8 : 8 + length].ljust(0x0280)
    path.write_bytes(struct.pack("<Q", len(header)) + header + content[8 + length :])
    assert path.read_bytes().startswith(b"\x80\x02")
    assert read_header(path).tensors["x"].shape == (3,)
    assert torch.equal(load_file(path)["x"], torch.ones(3))
