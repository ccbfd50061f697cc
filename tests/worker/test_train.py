"""`train`, `generate` and `compare`: the trainer without a service, on the tiny base."""

import json
import math

import pytest

from lora_core import Examples, LoraError, Trainer
from manylora.errors import BadSpecError, DatasetError
from manylora.storage.store import sha256_of
from worker.compare import compare
from worker.generate import generate
from worker.prepare import tokenizer_of, write_examples
from worker.train import train
from worker.trainer.load import load_base

WEIGHTS = "adapter_model.safetensors"
#: two habits a tiny model can learn: after a word comes always the same one
HABITS = {
    "cats": [{"prompt": w, "completion": " cat cat cat"} for w in "abcdefgh"],
    "dogs": [{"prompt": w, "completion": " dog dog dog"} for w in "abcdefgh"],
}


def run(base_folder, out, file, **changes):
    points = []
    options = dict(validation=None, seed=3, device="cpu", progress=points.append)
    hyper = {"lora_r": 8, "n_epochs": 15, "batch_size": 8, "learning_rate": 0.02}
    hyper |= changes.pop("hyperparameters", {})
    made = train(
        file=file, base_folder=base_folder, out=out, hyperparameters=hyper, **{**options, **changes}
    )
    return made, points


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("habits")
    for name, habit in HABITS.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(x) + "\n" for x in habit))
    return {name: folder / f"{name}.jsonl" for name in HABITS}


@pytest.fixture(scope="module")
def learned(tiny_base, files, tmp_path_factory):
    """{habit: adapter folder}"""
    folder = tmp_path_factory.mktemp("learned")
    return {n: run(tiny_base[1], folder / n, f) and folder / n for n, f in files.items()}


def test_it_trains_and_says_how_it_went(tiny_base, files, tmp_path):
    made, points = run(tiny_base[1], tmp_path / "out", files["cats"], validation=files["cats"])
    assert [p["step"] for p in points] == list(range(1, 16))
    assert {p["total_steps"] for p in points} == {15}
    assert points[-1]["train_loss"] < 0.95 * points[0]["train_loss"]
    assert points[-1]["valid_loss"] < 0.95 * points[0]["train_loss"]
    assert made == {"out": str(tmp_path / "out"), **points[-1]}
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (config["r"], config["base_model_name_or_path"]) == (8, "tiny")


def test_the_same_seed_gives_the_same_bytes(tiny_base, files, learned, tmp_path):
    run(tiny_base[1], tmp_path / "again", files["cats"])
    run(tiny_base[1], tmp_path / "other", files["cats"], seed=4)
    first, again, other = (
        sha256_of(f / WEIGHTS) for f in (learned["cats"], tmp_path / "again", tmp_path / "other")
    )
    assert first == again != other


@pytest.mark.parametrize(
    "wrong", [{"lora_r": 0}, {"lora_r": 4096}, {"target_modules": ["nothing_like_it"]}]
)
def test_what_cannot_be_built_is_refused_before_the_base_is_loaded(
    tiny_base, files, tmp_path, wrong
):
    with pytest.raises(BadSpecError):
        run(tiny_base[1], tmp_path / "out", files["cats"], hyperparameters=wrong)
    assert not (tmp_path / "out").exists()


def test_a_dataset_that_is_none_is_refused(tiny_base, tmp_path):
    (tmp_path / "bad.jsonl").write_text("not json\n")
    with pytest.raises(DatasetError):
        run(tiny_base[1], tmp_path / "out", tmp_path / "bad.jsonl")


def test_generate_answers_as_the_adapter_learned(tiny_base, learned):
    folder = tiny_base[1]
    assert generate(folder, learned["cats"], "a", 3).split() == ["cat"] * 3
    assert generate(folder, learned["dogs"], "a", 3).split() == ["dog"] * 3
    bare = generate(folder, None, "a", 3)
    assert bare == generate(folder, None, "a", 3)
    assert bare.split() not in (["cat"] * 3, ["dog"] * 3)


def test_generate_takes_no_folder_that_is_no_adapter(tiny_base, tmp_path):
    with pytest.raises(LoraError):
        generate(tiny_base[1], tmp_path, "a", 1)


def test_compare_puts_them_side_by_side_on_one_base(tiny_base, files, learned, tmp_path):
    found = compare(tiny_base[1], learned, files, "a", max_new_tokens=3)
    assert set(found.losses) == set(found.answers) == {"base", "cats", "dogs"}
    for mine, other in (("cats", "dogs"), ("dogs", "cats")):
        rivals = (found.losses["base"][mine], found.losses[other][mine])
        assert found.losses[mine][mine] < min(rivals)
        assert found.answers[mine] == generate(tiny_base[1], learned[mine], "a", 3).strip()
    # The bare base's loss is the one it has with no adapter anywhere near it.
    target = tmp_path / "cats.safetensors"
    write_examples(tokenizer_of(tiny_base[1], None), files["cats"], target, 1024)
    bare = Trainer(load_base(tiny_base[1], "cpu", None), slots=1)
    alone, _ = bare.evaluate(None, Examples.load(target))
    assert math.isclose(found.losses["base"]["cats"], alone, rel_tol=1e-5)
