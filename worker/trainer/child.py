"""The trainer child: one loop that owns the device, the base and every slot.

Started as `python -m worker.trainer.child FD`; talks JSON lines over that socket (see link.py),
reads jobs from the folders it is told, writes adapters and checkpoints there, and knows no
credentials. It ends when the socket closes, and when its parent dies.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import queue
import signal
import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any

import structlog

from lora_core import (
    AdapterSpec,
    ArrayExamples,
    Examples,
    LoraError,
    SpecError,
    State,
    StepReport,
    Trainer,
    TrainingJob,
    weights_digest,
)
from lora_core.quality import Quality
from manylora.logs import configure
from worker.bases.card import read
from worker.bases.network import task_of
from worker.trainer.load import calibrate, kernels_in, load_base, numerics

log = structlog.get_logger(__name__)
Message = dict[str, Any]
_PR_SET_PDEATHSIG = 1
#: a report's turn between two steps of the others, seconds
_TURN = 0.1


def training_job(key: str, order: Message, arrays: bool = False) -> TrainingJob:
    """A job as the trainer takes it, from resolved hyperparameters and a folder of examples,
    which are `arrays` or texts.

    Raises: LoraError for a spec that cannot be.
    """
    hyper = order["hyperparameters"]
    folder = Path(order["folder"])
    targets = hyper["target_modules"]
    validation = folder / "validation.safetensors"
    read_examples = ArrayExamples.load if arrays else Examples.load
    examples = read_examples(folder / "train.safetensors")
    return TrainingJob(
        job_id=key,
        spec=AdapterSpec(
            r=hyper["lora_r"],
            alpha=hyper["lora_alpha"],
            dropout=hyper["lora_dropout"],
            target_modules=targets if isinstance(targets, str) else tuple(targets),
            rslora=hyper["use_rslora"],
            seed=order["seed"],
            # A job that was recorded by an earlier version has none of these.
            dora=hyper.get("use_dora", False),
            learnable_scaling=hyper.get("learnable_scaling", False),
            qalora_group_size=hyper.get("qalora_group_size"),
            loraplus_lr_ratio=hyper.get("loraplus_lr_ratio", 1.0),
            train_norms=hyper.get("train_norms", False),
            trainable_tokens=_tokens(examples) if hyper.get("train_embeddings") else (),
        ),
        examples=examples,
        validation=read_examples(validation) if validation.exists() else None,
        epochs=hyper["n_epochs"],
        batch_size=hyper["batch_size"],
        learning_rate=hyper["learning_rate"],
        schedule=hyper["lr_schedule"],
        warmup_ratio=hyper["warmup_ratio"],
        weight_decay=hyper["weight_decay"],
        max_grad_norm=hyper["max_grad_norm"],
        seed=order["seed"],
        accumulation=hyper["gradient_accumulation_steps"],
        eval_every=hyper["eval_every"],
        patience=hyper["early_stopping_patience"],
        min_delta=hyper["early_stopping_min_delta"],
        shift_group=hyper.get("longlora_group_size"),
    )


def _tokens(examples: Examples | ArrayExamples) -> tuple[int, ...]:
    """Every token there is: the vectors of others would have no gradient. Raises: SpecError for
    examples that are no tokens."""
    if isinstance(examples, ArrayExamples):
        raise SpecError("train_embeddings: the examples of this base are no tokens")
    return tuple(sorted(set(examples.input_ids.tolist())))


@dataclass
class _Held:
    folder: Path
    base_name: str
    #: optimizer steps of one epoch
    epoch: int
    #: {prompts, seconds} where a quality report is wished
    quality: Message | None = None
    #: the last step's message, which waits for the report, and the report
    done: Message | None = None
    report: Quality | None = None


class Child:
    """The loop. One thread; a second one only reads the socket."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._inbox: queue.Queue[Message | None] = queue.Queue()
        self._held: dict[str, _Held] = {}
        self._stopping = False

    def run(self) -> None:
        """Load what the first order says, then train until the socket closes."""
        Thread(target=self._listen, daemon=True).start()
        order = self._inbox.get()
        if order is None:
            return
        _die_with(order["parent"])
        base = Path(order["base"])
        try:
            model = load_base(base, order["device"], order["threads"], order["factories"])
            self._arrays = task_of(read(base).network)
            self._digest = weights_digest(model)
            kernels = kernels_in(order["kernels"], order["device"])
            self._trainer = Trainer(
                model,
                slots=order["slots"],
                kernels=kernels,
                token_budget=order["token_budget"],
                memory_limit=order["memory_limit"],
                arrays=self._arrays,
            )
            held = numerics(order["device"], kernels if self._trainer.native else None)
            calibrate(self._trainer, base, held)
        except Exception as error:
            # Whatever it was, the supervisor is told before this process ends of it.
            self._send({"ev": "broken", "message": f"the base cannot be loaded: {error}"})
            raise
        facts = {**held, "fused": self._trainer.fused}
        self._send({"ev": "ready", "numerics": facts, "digest": self._digest})
        while not self._stopping:
            self._take_orders()
            if self._held and not self._stopping:
                for report in self._trainer.step():
                    self._report(report)
                for key in self._trainer.evaluating:
                    self._send({"ev": "evaluates", "key": key})  # no step, and no hang either
                self._go_on_reporting()

    def _listen(self) -> None:
        with self._channel.makefile("rb") as lines:
            for line in lines:
                self._inbox.put(json.loads(line))
        self._inbox.put(None)

    def _take_orders(self) -> None:
        """Everything that lies in the inbox; waits for something when no job is held."""
        while True:
            try:
                order = self._inbox.get(block=not self._held)
            except queue.Empty:
                return
            if order is None:
                self._stopping = True
                return
            self._obey(order)

    def _obey(self, order: Message) -> None:
        key, op = order["key"], order["op"]
        try:
            if op == "join":
                job = training_job(key, order, self._arrays is not None)
                resume = order.get("resume")
                self._trainer.join(job, State.load(Path(resume)) if resume else None)
                self._held[key] = _Held(
                    Path(order["folder"]),
                    order["base_name"],
                    job.total_steps // job.epochs,
                    order.get("quality"),
                )
                self._send({"ev": "joined", "key": key})
            elif key not in self._held:
                self._send({"ev": "left", "key": key})
            elif self._held[key].report is not None:
                if op == "leave":  # it is trained: what is lost is the rest of a report
                    self._finish(key)
            elif op == "checkpoint":
                self._try_checkpoint(key)
            elif op == "leave":
                if order.get("checkpoint"):
                    self._try_checkpoint(key)
                self._leave(key)
                self._send({"ev": "left", "key": key})
        except (LoraError, OSError) as error:
            self._fail(key, error)

    def _checkpoint(self, key: str) -> None:
        began = time.monotonic()
        state = self._trainer.state(key)
        folder = self._held[key].folder / f"ckpt-{state.step:08d}"
        state.save(folder)
        told = {"step": state.step, "folder": str(folder), "seconds": time.monotonic() - began}
        self._send({"ev": "checkpoint", "key": key, **told})

    def _try_checkpoint(self, key: str) -> None:
        """Checkpoint a job; where the disk does not take it, the job goes on without."""
        try:
            self._checkpoint(key)
        except OSError as error:
            self._send({"ev": "unsaved", "key": key, "message": str(error)})

    def _keep_last(self, key: str) -> None:
        """Checkpoint a job that is about to fail, as it was after its last good step."""
        if self._trainer.state(key).step > 0:
            self._try_checkpoint(key)

    def _keep_epoch(self, key: str, step: int) -> None:
        """Write the adapter as it is after an epoch."""
        held = self._held[key]
        folder = held.folder / f"epoch-{step:08d}"
        try:
            self._trainer.export(key, folder, base_model_name=held.base_name)
        except OSError as error:
            self._send({"ev": "unsaved", "key": key, "message": str(error)})
            return
        self._send({"ev": "epoch", "key": key, "step": step, "folder": str(folder)})

    def _leave(self, key: str) -> None:
        del self._held[key]
        self._trainer.leave(key)

    def _fail(self, key: str, error: Exception) -> None:
        if key in self._held:
            self._leave(key)
        code = "disk_full" if _disk_full(error) else getattr(error, "code", "training_failed")
        self._send({"ev": "failed", "key": key, "code": code, "message": str(error)})

    def _report(self, report: StepReport) -> None:
        key = report.job_id
        if report.error is not None:
            self._keep_last(key)
            self._fail(key, report.error)
            return
        point: dict[str, float | None] = {
            "train_loss": report.loss,
            "learning_rate": report.learning_rate,
            "grad_norm": report.grad_norm,
            "tokens": report.tokens,
            "input_tokens": report.input_tokens,
            "seconds": report.seconds,
        }
        if report.token_accuracy is not None:
            point["train_mean_token_accuracy"] = report.token_accuracy
        if report.validation_loss is not None:
            point["valid_loss"] = report.validation_loss
            point["valid_mean_token_accuracy"] = report.validation_accuracy
        self._send(
            {
                "ev": "step",
                "key": key,
                "step": report.step,
                "total_steps": report.total_steps,
                "point": point,
                "stopped_early": report.stopped_early,
                "best_step": report.best_step,
            }
        )
        if not report.finished and report.step % self._held[key].epoch == 0:
            self._keep_epoch(key, report.step)
        if report.finished:
            held = self._held[key]
            out = held.folder / "adapter"
            try:
                self._trainer.export(key, out, base_model_name=held.base_name)
            except OSError as error:
                self._fail(key, error)
                return
            state = self._trainer.state(key)
            tokens = state.counters["tokens"]
            held.done = {"folder": str(out), "step": report.step, "tokens": tokens}
            held.done["gains"] = state.gains()
            if held.quality is None:
                self._finish(key)
                return
            ids = [each["ids"] for each in json.loads(Path(held.quality["prompts"]).read_bytes())]
            held.report = Quality(self._trainer, key, ids, seconds=held.quality["seconds"])

    def _go_on_reporting(self) -> None:
        """A turn for each quality report; those that are done end their jobs."""
        for key, held in list(self._held.items()):
            if held.report is not None:
                self._send({"ev": "evaluates", "key": key})
                if held.report.advance(_TURN):
                    self._finish(key)

    def _finish(self, key: str) -> None:
        """Let a trained job go, with its report so far if it has one."""
        held = self._held[key]
        self._leave(key)
        found = held.report and {
            "facts": held.report.facts,
            "cut": held.report.cut,
            "seconds": held.report.spent,
        }
        self._send({"ev": "finished", "key": key, **(held.done or {}), "quality": found})

    def _send(self, message: Message) -> None:
        try:
            self._channel.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            self._stopping = True  # nobody listens any more


def _disk_full(error: Exception) -> bool:
    """Whether it is the disk's fault; safetensors has only words for it."""
    full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
    return full or f"os error {errno.ENOSPC}" in str(error)


def _die_with(parent: int) -> None:
    """Have the kernel end this process when its parent is gone, however that happened."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            sys.exit(1)


def main() -> None:
    """The process's entry."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    configure(*sys.argv[2:4])
    Child(socket.socket(fileno=int(sys.argv[1]))).run()


if __name__ == "__main__":
    main()
