"""Files of arrays: what fits a base is read exactly, and whatever is wrong is told, not raised."""

import io
import re
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from manylora.datasets.arrays import (
    is_arrays,
    load_arrays,
    reads_arrays,
    require_kind,
    validate_arrays,
)
from manylora.datasets.limits import Limits
from manylora.datasets.problems import ARRAY_CODES
from manylora.errors import DatasetError

DOCS = Path(__file__).parents[3] / "docs" / "datasets.md"
REGRESSION = {
    "task": "regression", "factory": "a:b", "args": {},
    "input": {"shape": [2, 3], "dtype": "float32", "below": None}, "output": [4],
}  # fmt: skip
IDS = {
    "task": "classification", "factory": "a:b", "args": {},
    "input": {"shape": [5], "dtype": "int64", "below": 9}, "output": [3],
}  # fmt: skip


class Tripwire:
    """Unpickling it raises."""

    def __reduce__(self):
        return (pytest.fail, ("unpickled",))


def npz(path, **arrays):
    np.savez_compressed(path, **arrays)
    return path


def good(kind="regression", count=6, **changes):
    draw = np.random.default_rng(1)
    if kind == "ids":
        held = {"x": draw.integers(0, 9, (count, 5)), "y": draw.integers(0, 3, count)}
    else:
        held = {"x": draw.normal(size=(count, 2, 3)), "y": draw.normal(size=(count, 4))}
    return {name: array for name, array in (held | changes).items() if array is not None}


def bad(array, value):
    array = array.copy()
    array.reshape(-1)[7] = value
    return array


CASES = [
    ("missing_array", REGRESSION, good(y=None)),
    ("unknown_array", REGRESSION, good(z=np.zeros(2))),
    ("object_array", REGRESSION, good(x=np.array([Tripwire()] * 6, dtype=object))),
    ("bad_dtype", REGRESSION, good(x=np.zeros((6, 2, 3), complex))),
    ("bad_dtype", IDS, good("ids", x=np.zeros((6, 5)))),
    ("bad_shape", REGRESSION, good(x=np.zeros((6, 3, 2)))),
    ("bad_shape", REGRESSION, good(y=np.zeros(6))),
    ("bad_shape", REGRESSION, good(x=np.float32(1))),
    ("counts_differ", REGRESSION, good(y=np.zeros((5, 4)))),
    ("too_few_examples", REGRESSION, good(count=0)),
    ("not_finite", REGRESSION, good(x=bad(good()["x"], np.nan))),
    ("not_finite", REGRESSION, good(y=bad(good()["y"], np.inf))),
    ("not_finite", REGRESSION, good(y=bad(good()["y"], 1e300))),
    ("out_of_range", IDS, good("ids", y=np.array([0, 1, 2, 3, 0, 0]))),
    ("out_of_range", IDS, good("ids", y=np.array([0, 1, 2, -1, 0, 0]))),
    ("out_of_range", IDS, good("ids", x=np.full((6, 5), 9))),
]


@pytest.mark.filterwarnings("ignore:.*pickle")
@pytest.mark.parametrize(("code", "network", "arrays"), CASES)
def test_what_is_wrong_is_told(code, network, arrays, tmp_path):
    report = validate_arrays(npz(tmp_path / "a.npz", **arrays), Limits(), network)
    (problem,) = report.problems
    assert problem.code == code
    assert problem.message
    assert problem.fix
    assert report.bad_lines == 0
    with pytest.raises(DatasetError, match="cannot be used"):
        load_arrays(tmp_path / "a.npz", Limits(), network)


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_what_fits_is_read_exactly(suffix, tmp_path):
    for kind, network in (("regression", REGRESSION), ("ids", IDS)):
        held = good(kind)
        path = tmp_path / f"{kind}{suffix}"
        if suffix == ".npz":
            npz(path, **held | {"x": np.asfortranarray(held["x"])})
        else:
            save_file({name: np.ascontiguousarray(a) for name, a in held.items()}, str(path))
        for known in (None, network):
            report = validate_arrays(path, Limits(), known)
            assert (report.kind, report.examples, report.problems) == ("arrays", 6, [])
        x, y = load_arrays(path, Limits(), network)
        assert x.dtype == (np.int64 if kind == "ids" else np.float32)
        np.testing.assert_array_equal(x, held["x"].astype(x.dtype))
        np.testing.assert_array_equal(y, held["y"].astype(y.dtype))


def test_a_bomb_is_not_unpacked(tmp_path):
    path = npz(tmp_path / "a.npz", **good(x=np.zeros((200_000, 2, 3))))
    assert path.stat().st_size < 100_000
    (problem,) = validate_arrays(path, Limits(max_file_bytes=1_000_000), REGRESSION).problems
    assert problem.code == "file_too_large"


def header(shape):
    out = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        out, {"descr": "<f8", "fortran_order": False, "shape": shape}
    )
    return out.getvalue()


@pytest.mark.parametrize("shape", [(10**15, 2, 3), (-6, 2, 3), (6, 2, 4)])
def test_a_header_that_lies_is_not_believed(shape, tmp_path):
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", header(shape) + bytes(6 * 6 * 8))
        archive.writestr("y.npy", header((6, 4)) + bytes(6 * 4 * 8))
    (problem,) = validate_arrays(path, Limits(), REGRESSION).problems
    assert problem.code == "not_arrays"


def test_a_pickle_by_that_name_is_not_opened(tmp_path):
    for suffix in (".npz", ".safetensors"):
        (tmp_path / f"a{suffix}").write_bytes(b"\x80\x04]\x94.")
        (problem,) = validate_arrays(tmp_path / f"a{suffix}", Limits()).problems
        assert problem.code == "not_arrays"


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_no_bytes_make_it_raise(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "fuzzed.npz"
    npz(path, **good())
    held = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(held) - 1))
        held[at] = data.draw(st.integers(0, 255))
    path.write_bytes(held[: data.draw(st.integers(0, len(held)))])
    validate_arrays(path, Limits(), REGRESSION)
    torn = path.with_suffix(".safetensors")
    torn.write_bytes(struct.pack("<Q", data.draw(st.integers(0, 2**63))) + bytes(held))
    validate_arrays(torn, Limits(), REGRESSION)


def test_lines_and_arrays_are_told_apart():
    assert is_arrays("A.NPZ")
    assert not is_arrays("npz.jsonl")
    assert not reads_arrays(None)
    assert not reads_arrays({"task": "causal-lm"})
    require_kind("a.jsonl", None, "training_file")
    require_kind("a.npz", REGRESSION, "training_file")
    with pytest.raises(DatasetError, match="the base reads arrays") as found:
        require_kind("a.jsonl", REGRESSION, "training_file")
    assert found.value.error_code == "wrong_kind"
    with pytest.raises(DatasetError, match="the base reads text"):
        require_kind("a.npz", None, "training_file")


def test_the_page_and_the_cases_cover_every_code():
    told = set(re.findall(r"^\| `(\w+)` +\|", DOCS.read_text(encoding="utf-8"), re.MULTILINE))
    assert told >= ARRAY_CODES
    tried = {code for code, _, _ in CASES} | {"not_arrays", "wrong_kind"}
    assert tried - {"too_few_examples"} == ARRAY_CODES
