import pytest
import torch
from safetensors.torch import save_file

from lora_core import Examples, FormatError, batches, total_steps
from lora_core.examples import batch


def test_batches_take_each_example_once_an_epoch_in_a_new_order():
    assert total_steps(10, 4, 2) == 6
    steps = list(batches(10, 4, 2, 1))
    assert [len(s) for s in steps] == [4, 4, 2] * 2
    epochs = [[i for step in part for i in step] for part in (steps[:3], steps[3:])]
    assert [sorted(e) for e in epochs] == [list(range(10))] * 2
    assert epochs[0] != epochs[1]
    assert steps == [batch(10, 4, 1, s) for s in range(1, 7)]
    assert steps != list(batches(10, 4, 2, 2))


def test_a_file_holds_what_was_saved(tmp_path):
    made = Examples.of([([5, 6, 7], [False, True, True]), ([8], [True])])
    made.save(tmp_path / "e.safetensors")
    read = Examples.load(tmp_path / "e.safetensors")
    assert len(read) == 2
    ids, mask = read[0]
    assert (ids.tolist(), mask.tolist()) == ([5, 6, 7], [False, True, True])
    assert read[1][0].tolist() == [8]
    assert (ids.dtype, mask.dtype, read.offsets.dtype) == (torch.int32, torch.bool, torch.int64)
    with pytest.raises(IndexError):
        read[2]


@pytest.mark.parametrize("offsets", [[0, 2], [1, 3], [0, 2, 1, 3], []])
def test_a_file_that_does_not_add_up_is_refused(offsets, tmp_path):
    path = tmp_path / "e.safetensors"
    ids, mask = torch.zeros(3, dtype=torch.int32), torch.ones(3, dtype=torch.bool)
    save_file({"input_ids": ids, "mask": mask, "offsets": torch.tensor(offsets).long()}, path)
    with pytest.raises(FormatError, match="do not fit"):
        Examples.load(path)


def test_other_files_are_refused(tmp_path):
    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(FormatError, match="has no"):
        Examples.load(tmp_path / "x.safetensors")
    (tmp_path / "y.safetensors").write_bytes(b"no tensors")
    with pytest.raises(FormatError, match="no file of examples"):
        Examples.load(tmp_path / "y.safetensors")
    with pytest.raises(FormatError, match="no file of examples"):
        Examples.load(tmp_path / "z.safetensors")
