"""Converting a folder: what is in it now counts, not what was in it last time."""

import shutil

from worker.bases.register import prepare


def test_a_folder_that_has_changed_is_converted_anew(tiny_model_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_model_folder, "model")
    made = []
    for dropped in (None, "tokenizer_config.json"):
        if dropped:
            (tmp_path / "model" / dropped).unlink()
        card, folder = prepare(
            "mine", "./model", tmp_path / "cache", dtype="float32", progress=lambda _: None
        )
        assert folder.name == card.fingerprint
        made.append(card.fingerprint)
    assert made[0] != made[1]
    assert not list((tmp_path / "cache").glob(".making-*"))
