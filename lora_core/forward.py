"""Segments through a causal LM: one forward of the base for all slots of a micro-batch, and the
loss of every label row.

Knows transformers' conventions by duck typing; knows nothing of jobs, optimizers or budgets. A
model is tried out once: where packing sequences on one axis gives what each gives alone, to the
last bit on a CPU, forwards are fused; where not (its attention is not ours, it mixes tokens in
other ways, it routes tokens to experts), each sequence goes through the base by itself.

N rows, D width, V vocabulary, M label rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lora_core import attention, loss
from lora_core.arrays import ArrayExamples
from lora_core.decoder import Decoder, recognise
from lora_core.decoder.decoder import Head
from lora_core.errors import LoraError, SpecError
from lora_core.examples import Examples
from lora_core.group import find_groups
from lora_core.inject import carry_all, focus_of
from lora_core.layer import LoraLinear
from lora_core.native import Kernels
from lora_core.ops import norm
from lora_core.segments import Layout, Segment, Sequence, Spans, cut
from lora_core.weights import SlotWeights
from lora_core.work import Pass

#: together they need more than one tile of rows
_PROBE_LENGTHS = (5, 40, 230)


@dataclass(frozen=True)
class Found:
    """What a forward made of its segments: their layout, the losses float32 [M] of the label rows,
    which may be taken backward, and `hits(rows)`, whether the likeliest token is the label, bool
    of that many rows. `hits` is `cheap` where it is known already, None where nothing is right or
    wrong."""

    layout: Spans
    losses: Tensor
    hits: Callable[[slice], Tensor] | None
    cheap: bool


class Forward:
    """A model made ready: every linear layer carries slots and belongs to a group.

    `fused` says whether sequences share a forward, `passes` counts the base's forwards; with
    `kernels` a model they suit takes its forwards and backwards by hand (`native`). Raises:
    LoraError for a model whose logits are not softcap(scale (h W^T + b)).
    """

    def __init__(
        self, model: nn.Module, head: nn.Module | None = None, kernels: Kernels | None = None
    ) -> None:
        self.model: Any = model
        getter = getattr(model, "get_output_embeddings", None)
        self.head: Any = head or (getter() if callable(getter) else None)
        config: Any = getattr(model, "config", None)
        text = config.get_text_config() if hasattr(config, "get_text_config") else config
        self.softcap: float | None = getattr(text, "final_logit_softcapping", None)
        self.device = next(model.parameters()).device
        self.passes = 0
        self.native: Decoder | None = None
        self._head_rows = loss.MOST_ROWS
        self.scale = self._head_scale()
        #: what the model as it came, with its own attention, makes of the probe's sequences
        ours = self._attention() == attention.NAME
        if ours:
            model.set_attn_implementation("eager")  # type: ignore[operator]
        self._before = [self._plain(sequence.ids) for sequence in self._probe()]
        states = self._states(self._probe()[1].ids) if kernels is not None else []
        if ours:
            model.set_attn_implementation(attention.NAME)  # type: ignore[operator]
        self.carriers: list[LoraLinear] = carry_all(model, embeddings=False)
        with attention.recorded() as asked:
            find_groups(model, self.carriers, lambda: self._plain(torch.arange(4)), kernels)
        norm.take_over(model)
        self._anchor = torch.zeros((), device=self.device, requires_grad=True)
        self._widths = tuple(
            sorted({w for c in self.carriers for w in (c.in_features, c.out_features)})
        )
        self.native = self._by_hand(kernels, asked, states)
        self.fused = self._can_fuse()
        if ours and not self.fused:
            model.set_attn_implementation("eager")  # type: ignore[operator]
        if self.native is None:
            self._head_rows = self._rows_at_once()

    def __call__(
        self, segments: list[Segment], slots: dict[str, SlotWeights], *, training: bool = True
    ) -> Found:
        """The segments through the model with the weights of every slot they name (`slots`). Taken
        backward, the losses leave their gradients there."""
        if self.native is not None:
            self.passes += 1
            layout = self._layout(segments, training)
            losses, hits = self.native.losses(layout, slots, self._anchor)
            return Found(layout, losses, hits.__getitem__, cheap=True)
        if self.fused:
            layout = self._layout(segments, training)
            hidden = self._hidden(layout, slots).index_select(0, layout.label_rows)
        else:
            layout, hidden = self._apart(segments, slots, training)
        losses = loss.row_loss(
            hidden,
            self.head.weight,
            layout.labels,
            bias=getattr(self.head, "bias", None),
            softcap=self.softcap,
            scale=self.scale,
            most=self._head_rows,
        )
        states = hidden.detach()
        return Found(
            layout, losses, lambda rows: self._hits(states[rows], layout.labels[rows]), cheap=False
        )

    def rehearse(self, segments: list[Segment]) -> None:
        """A forward and a backward without adapters, to no effect but the time and memory."""
        losses = self(segments, {}).losses
        torch.autograd.backward(losses, torch.ones_like(losses))

    def probe_segments(self, count: int, length: int) -> list[Segment]:
        """`count` sequences of `length` tokens (or as many as the model has positions for), all of
        them labels, in no slot."""
        length = min(length, self.longest())
        ids = torch.arange(length) % self.head.weight.shape[0]
        one = Sequence(ids, torch.ones(length, dtype=torch.bool))
        return cut(None, [one] * count)

    def admit(self, names: list[str]) -> None:
        """Raises: SpecError for layers no slot of a fused step can sit on."""
        taken = {carrier.name for carrier in self.carriers}
        other = next((name for name in names if name not in taken), None)
        if other is not None:
            raise SpecError(f"the trainer of a causal LM trains no embedding ({other})")

    def largest(self, examples: Examples | ArrayExamples, at_once: int) -> list[Segment]:
        """The segment that takes most memory; `at_once` examples make a step. Raises: SpecError
        for examples the model cannot read."""
        if not isinstance(examples, Examples):
            raise SpecError("the base reads text, and the examples are arrays")
        ids, longest = examples.input_ids, self.longest()
        if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < self.vocabulary:
            raise SpecError(
                f"an example holds the token {int(ids.max())}, and the base knows {self.vocabulary}"
            )
        lengths = examples.offsets.diff()
        at = int(lengths.argmax())
        if int(lengths[at]) > longest:
            raise SpecError(
                f"an example has {int(lengths[at])} tokens, and the base has positions for "
                f"{longest}: lower context_length"
            )
        return cut(None, [examples.sequence(at)])

    def _hits(self, hidden: Tensor, labels: Tensor) -> Tensor:
        return loss.right(
            hidden,
            self.head.weight,
            labels,
            bias=getattr(self.head, "bias", None),
            softcap=self.softcap,
        )

    def _apart(
        self, segments: list[Segment], slots: dict[str, SlotWeights], training: bool
    ) -> tuple[Layout, Tensor]:
        """Every sequence through the base by itself; the layout is that of all together."""
        layout = Layout(segments, padded=False, training=training, device=self.device)
        states = []
        for segment in segments:
            for sequence in segment.sequences:
                alone = Layout(
                    [Segment(segment.slot, (sequence,))],
                    padded=False,
                    training=training,
                    device=self.device,
                )
                states.append(self._hidden(alone, slots).index_select(0, alone.label_rows))
        return layout, torch.cat(states)

    def _hidden(self, layout: Layout, slots: dict[str, SlotWeights]) -> Tensor:
        """Last hidden states [N, D]."""
        self.passes += 1
        with self._at_work(Pass(layout, slots, self._anchor)), attention.over(layout):
            decoder = getattr(self.model, self.model.base_model_prefix)
            out = decoder(
                input_ids=layout.ids[None], position_ids=layout.positions[None], use_cache=False
            )
        hidden: Tensor = out.last_hidden_state
        return hidden[0]

    @contextmanager
    def _at_work(self, work: Pass) -> Iterator[None]:
        focus = focus_of(self.model)
        if focus is None:
            raise LoraError("the model has no linear layer an adapter could sit on")
        focus.work = work
        try:
            yield
        finally:
            focus.work = None
            for carrier in self.carriers:
                if carrier.group is not None:
                    carrier.group.forget()

    @contextmanager
    def _bare(self) -> Iterator[None]:
        """The base without adapters, gradients or fused steps."""
        focus = focus_of(self.model)
        slot = focus.slot if focus is not None else None
        if focus is not None:
            focus.slot = None
        try:
            with torch.no_grad():
                yield
        finally:
            if focus is not None:
                focus.slot = slot

    def _plain(self, ids: Tensor) -> Tensor:
        """The model's own last hidden states [T, D] of one sequence."""
        with self._bare():
            decoder = getattr(self.model, self.model.base_model_prefix)
            out = decoder(input_ids=ids.to(self.device)[None], use_cache=False)
        hidden: Tensor = out.last_hidden_state[0]
        return hidden

    def _states(self, ids: Tensor) -> list[Tensor]:
        """What enters and leaves each layer [T, D], the last one's after the last norm; nothing for
        a model that does not tell."""
        with self._bare():
            decoder = getattr(self.model, self.model.base_model_prefix)
            out = decoder(
                input_ids=ids.to(self.device)[None], use_cache=False, output_hidden_states=True
            )
        return [state[0] for state in getattr(out, "hidden_states", None) or ()]

    @torch.no_grad()
    def _head_scale(self) -> float:
        """What the model multiplies its logits with: tried out on four tokens."""
        weight = getattr(self.head, "weight", None)
        prefix = getattr(self.model, "base_model_prefix", "")
        if weight is None or not prefix or not hasattr(self.model, prefix):
            raise LoraError("the model has no output head over a decoder")
        ids = torch.arange(4) % weight.shape[0]
        hidden = self._plain(ids)
        with self._bare():
            out = self.model(input_ids=ids.to(self.device)[None], use_cache=False)
        own = out.logits[0].float()
        if hidden.shape[-1] != weight.shape[1] or own.shape[-1] != weight.shape[0]:
            raise LoraError("the output head does not read the decoder's last hidden state")
        made = F.linear(hidden, weight, getattr(self.head, "bias", None)).float()
        uncapped = own if self.softcap is None else self.softcap * torch.atanh(own / self.softcap)
        scale = float((uncapped * made).sum() / (made * made).sum())
        scale = 1.0 if abs(scale - 1.0) < 0.01 else scale
        guess = made * scale
        if self.softcap is not None:
            guess = self.softcap * torch.tanh(guess / self.softcap)
        slack = 1e-3 if weight.dtype == torch.float32 else 3e-2
        if not bool((own - guess).abs().max() <= slack * own.abs().max()):
            raise LoraError("the model does more to its logits than scale, bias and soft cap")
        return scale

    def _layout(self, segments: list[Segment], training: bool = True) -> Layout:
        widths = self._widths if self.native is None else ()
        return Layout(segments, widths=widths, training=training, device=self.device)

    def _attention(self) -> str | None:
        config = getattr(self.model, "config", None)
        return getattr(config, "_attn_implementation", None)

    def _rows_at_once(self) -> int:
        return loss.rows_at_once(self.head.weight)

    @property
    def kernels(self) -> Kernels | None:
        """What the model runs on, if it is native."""
        return self.native.kernels if self.native is not None else None

    @property
    def vocabulary(self) -> int:
        """Token ids the model knows."""
        return int(self.model.get_input_embeddings().weight.shape[0])

    def longest(self) -> int:
        """Positions the model has; none it tells of is as many as one likes."""
        config = getattr(self.model, "config", None)
        return getattr(config, "max_position_embeddings", None) or 1 << 30

    def _probe(self) -> list[Sequence]:
        """A few sequences of odd tokens, as long as the model has positions."""
        vocabulary = self.head.weight.shape[0]
        return [
            Sequence((torch.arange(n) * 7 + n) % vocabulary, torch.ones(n, dtype=torch.bool))
            for n in (min(length, self.longest()) for length in _PROBE_LENGTHS)
        ]

    def _by_hand(
        self, kernels: Kernels | None, asked: dict[int, attention.Asked], states: list[Tensor]
    ) -> Decoder | None:
        """The model on native kernels, if they know its pattern and it computes nothing else.
        `states` are the probe's second sequence's, before and after each of the model's layers."""
        weight, bias = self.head.weight, getattr(self.head, "bias", None)
        plan = recognise(self.model, asked) if kernels is not None else None
        if plan is None or kernels is None or bias is not None:
            return None
        if weight.dtype != torch.bfloat16 or not weight.is_contiguous():
            return None
        made = Decoder(plan, Head(weight, self.scale, self.softcap), kernels)
        second = Segment(None, (self._probe()[1],))
        if not made.agrees(Layout([second], device=self.device), states):
            return None
        return made if self._alike(lambda layout: made.hidden(layout, {})) else None

    def _can_fuse(self) -> bool:
        """Whether sequences packed on one axis come out as each does by itself."""
        if self.native is not None:
            return True
        if self._attention() != attention.NAME or self._routes():
            return False
        return self._alike(lambda layout: self._hidden(layout, {}))

    def _routes(self) -> bool:
        """Whether tokens are handed to experts: how many rows a product has is then the
        neighbours' doing, too, and a try-out that agrees proves little."""
        if any(parameter.dim() > 2 for parameter in self.model.parameters()):
            return True
        ids, seen = self._probe()[1].ids, set[int]()
        note = lambda _, x: seen.add(x[0].shape[:-1].numel())  # noqa: E731
        hooks = [carrier.register_forward_pre_hook(note) for carrier in self.carriers]
        self._plain(ids)
        for hook in hooks:
            hook.remove()
        return seen != {len(ids)}

    @torch.no_grad()
    def _alike(self, hidden: Callable[[Layout], Tensor]) -> bool:
        """Whether `hidden` gives each of the probe's sequences, packed, what the model as it came
        gave it, and on a CPU to the last bit what it gives it alone."""
        sequences = self._probe()
        many = [Segment(None, (each,)) for each in sequences]
        packed = hidden(self._layout(many))
        slack = 1e-3 if self.head.weight.dtype == torch.float32 else 0.1
        start = 0
        for segment, sequence, own in zip(many, sequences, self._before, strict=True):
            mine = packed[start : start + len(sequence.ids)]
            start += segment.rows
            near = bool((mine - own).float().norm() <= slack * own.float().norm())
            alone = hidden(self._layout([segment]))[: len(sequence.ids)]
            same = bool(torch.equal(mine, alone)) or self.device.type != "cpu"
            if not (near and same):
                return False
        return True
