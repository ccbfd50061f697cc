"""What a finished adapter is worth, found out in small parts between other jobs' steps: its losses
beside the base's, answers before and after, the spectrum of B A.

Reads the trainer and changes nothing of it. When the parts are taken, and what is told about them,
is the callers' business. T tokens of a prompt, V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lora_core.errors import LoraError
from lora_core.evaluation import Evaluation
from lora_core.inject import focus_of, layers
from lora_core.segments import cut
from lora_core.spectrum import effective_rank, rank_for, singular_values
from lora_core.trainer import Trainer

#: examples both losses are taken over at most, and the share of the energy a rank is named for
EXAMPLES, SHARE = 128, 0.99
_LAYERS_AT_ONCE = 8


@dataclass
class Quality:
    """A report in the making. `facts` are plain values; `cut` says why it is not whole."""

    trainer: Trainer
    job_id: str
    prompts: list[list[int]]
    #: device time for all of it, and the most tokens of an answer
    seconds: float = 20.0
    new_tokens: int = 32
    facts: dict[str, Any] = field(default_factory=dict)
    cut: str | None = None
    spent: float = 0.0

    def __post_init__(self) -> None:
        self._parts = self._all()

    def advance(self, seconds: float) -> bool:
        """Work for about `seconds`, at least one part; whether the report is done.

        What goes wrong ends the report and no job: `cut` has it.
        """
        began = time.perf_counter()
        done = False
        try:
            while not done:
                done = next(self._parts, "done") == "done"
                taken = time.perf_counter() - began
                if not done and self.spent + taken > self.seconds:
                    self.cut, done = f"cut short after {self.seconds:.0f} s", True
                elif taken >= seconds:
                    break
        except (LoraError, RuntimeError, MemoryError, TypeError, AttributeError) as error:
            self.cut, done = f"cut short: {type(error).__name__}: {error}", True
        self.spent += time.perf_counter() - began
        return done

    def _all(self) -> Iterator[None]:
        """The whole report; each `yield` is a place to let others go on."""
        active = self.trainer._get(self.job_id)
        yield from self._spectrum(active.slot)
        yield from self._heldout(active.slot)
        for slot, name in ((None, "base"), (active.slot, "adapter")):
            answers = self.facts.setdefault("answers", {}).setdefault(name, [])
            for ids in self.prompts:
                answers.append([])
                yield from self._answer(slot, ids, answers[-1])

    @torch.no_grad()
    def _spectrum(self, slot: str) -> Iterator[None]:
        found: dict[str, Tensor] = {}
        carriers = {n: one for n, one in layers(self.trainer.model).items() if slot in one.specs}
        for number, (name, layer) in enumerate(carriers.items()):
            a, b = (part.detach().cpu() for part in layer.effective(slot))
            found[name] = singular_values(a, b) * layer.specs[slot].scaling
            if number % _LAYERS_AT_ONCE == _LAYERS_AT_ONCE - 1:
                yield
        self.facts["spectrum"] = {
            "share": SHARE,
            "rank_needed": rank_for(found.values(), SHARE),
            "effective_rank": sum(map(effective_rank, found.values())) / max(1, len(found)),
            "layers": {
                name: {
                    "effective_rank": effective_rank(s),
                    "singular_values": [float(f"{value:.4g}") for value in s.tolist()],
                }
                for name, s in found.items()
            },
        }
        yield

    def _heldout(self, slot: str) -> Iterator[None]:
        """Both losses over the same examples: the first of the validation set, else of the
        training set."""
        active = self.trainer._get(self.job_id)
        job = active.job
        examples = job.validation or job.examples
        count = min(len(examples), EXAMPLES)
        sequences = [examples.sequence(index) for index in range(count)]
        told: dict[str, Any] = {
            "on": "validation" if job.validation else "training",
            "examples": count,
        }
        for name, which, held in (("base", None, {}), ("adapter", slot, {slot: active.weights})):
            evaluation = Evaluation(which, cut(which, sequences))
            while evaluation.left:
                self.trainer._advance(evaluation, held)
                yield
            told["label_tokens"] = evaluation.tally.labels
            told[name] = {"loss": evaluation.loss, "token_accuracy": evaluation.accuracy}
        if told["label_tokens"]:
            self.facts["heldout"] = told

    def _answer(self, slot: str | None, ids: list[int], answer: list[int]) -> Iterator[None]:
        """Greedily, one token a part, with the model's own key-value cache."""
        model: Any = self.trainer.model
        ends = _ends(model)
        device = next(model.parameters()).device
        fresh, past = torch.tensor([ids], device=device), None
        while len(answer) < self.new_tokens:
            out = self._forward(slot, fresh, past)
            token = int(out.logits[0, -1].argmax())
            if token in ends:
                return
            answer.append(token)
            past = getattr(out, "past_key_values", None)
            seen = [token] if past is not None else [*ids, *answer]
            fresh = torch.tensor([seen], device=device)
            yield

    @torch.no_grad()
    def _forward(self, slot: str | None, ids: Tensor, past: Any) -> Any:
        """input_ids [1, T] to what the model makes of them, logits [1, T, V], with one slot at
        work meanwhile."""
        model: Any = self.trainer.model
        focus = focus_of(model)
        assert focus is not None
        before, focus.slot = focus.slot, slot
        try:
            return model(input_ids=ids, past_key_values=past, use_cache=True)
        finally:
            focus.slot = before


def _ends(model: Any) -> set[int]:
    """The tokens that end a text."""
    found: set[int] = set()
    for config in (getattr(model, "generation_config", None), getattr(model, "config", None)):
        end = getattr(config, "eos_token_id", None)
        found |= set(end if isinstance(end, list) else [end] if end is not None else [])
    return found
