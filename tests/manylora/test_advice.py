import math

from manylora import hyperparameters as hp
from manylora.advice import Room, Size, advise

LAYERS = {f"layers.{i}.q_proj": [640, 1024] for i in range(100)}
ROOM = Room.of(LAYERS)


def told(examples, tokens):
    return {name: value for name, (value, _) in advise(Size(examples, tokens), ROOM, 5e-4).items()}


def test_the_rank_holds_the_data():
    assert ROOM.per_rank == 100 * 1664
    ranks = [told(1000, tokens)["lora_r"] for tokens in (10**5, 2 * 10**6, 3 * 10**6, 10**9)]
    assert ranks == [8, 8, 16, 128]
    assert advise(Size(9, 10**9), Room(10, 12), 5e-4)["lora_r"][0] == 12


def test_small_data_gets_small_batches_and_about_100_steps():
    for examples in (5, 12, 40, 72, 300, 1000, 10**5):
        found = told(examples, examples * 100)
        steps = math.ceil(examples / found["batch_size"]) * found["n_epochs"]
        assert steps >= 100 or found["n_epochs"] == 10
        assert found["learning_rate"] == (5e-4 if steps >= 100 else 7.5e-4)
    assert (told(5, 500)["batch_size"], told(10**5, 10**7)["batch_size"]) == (1, 16)
    assert told(10**5, 10**7)["n_epochs"] == 1


def test_every_value_has_its_reason_and_is_one_the_wire_takes():
    found = advise(Size(72, 9000), ROOM, 5e-4)
    assert all(why for _, why in found.values())
    hp.parse({name: value for name, (value, _) in found.items()})


def test_auto_is_as_it_was_unless_the_size_is_known():
    asked = hp.parse({"n_epochs": "auto"})
    plain = hp.resolve(asked, hidden_size=640, layers=LAYERS)
    assert (plain.n_epochs, plain.batch_size, plain.lora_r, plain.lora_alpha) == (3, 4, 32, 32)
    sized = hp.resolve(asked, hidden_size=640, layers=LAYERS, size=Size(20, 2000))
    assert (sized.batch_size, sized.lora_r, sized.lora_alpha) == (1, 8, 32)
    assert sized.n_epochs == 5
    chosen = hp.parse({"lora_r": 4, "n_epochs": 2, "learning_rate": 1e-3})
    mine = hp.resolve(chosen, hidden_size=640, layers=LAYERS, size=Size(20, 2000))
    assert (mine.lora_r, mine.lora_alpha, mine.n_epochs) == (4, 4, 2)
    assert mine.learning_rate == 1e-3
