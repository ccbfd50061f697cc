"""Rows as the wire shows them: OpenAI's objects, with what is ours in one extra object `x`."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from typing import Any, TypeVar

from manylora.advice import Room
from manylora.api.context import Context
from manylora.ledger.states import ON_THE_WIRE, JobState
from manylora.ledger.tables import (
    Adapter,
    Base,
    Checkpoint,
    Delivery,
    Event,
    File,
    Job,
    Share,
    Webhook,
)

Json = dict[str, Any]
Row = TypeVar("Row")


def seconds(at: dt.datetime | None) -> int | None:
    """Unix time in whole seconds."""
    return None if at is None else int(at.timestamp())


def listing(rows: list[Row], more: bool, show: Callable[[Row], Json]) -> Json:
    """A page as the client's cursor expects it."""
    data = [show(row) for row in rows]
    return {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
        "has_more": more,
    }


def file(row: File) -> Json:
    """A file object."""
    return {
        "id": row.id,
        "object": "file",
        "bytes": row.bytes,
        "created_at": seconds(row.created_at),
        "filename": row.filename,
        "purpose": row.purpose,
        "status": "processed",
        "status_details": None,
        "expires_at": None,
        "sha256": row.sha256,
    }


def job(row: Job, adapter: Adapter | None, tenant: str, parts: Context) -> Json:
    """A job object; every key of OpenAI's is always there."""
    hyper = row.hyperparameters
    asked = {key: row.asked.get(key, "auto") for key in _OPENAI_KEYS}
    shown = asked if row.started_at is None else {key: hyper[key] for key in _OPENAI_KEYS}
    error = None
    if row.error_code is not None:
        error = {
            "code": row.error_code,
            "message": row.error_message or row.error_code,
            "param": row.error_param,
        }
    return {
        "object": "fine_tuning.job",
        "id": row.id,
        "created_at": seconds(row.created_at),
        "model": row.base,
        "status": ON_THE_WIRE[JobState(row.state)],
        "fine_tuned_model": adapter.name if adapter else None,
        "finished_at": seconds(row.finished_at),
        "estimated_finish": None,
        "organization_id": tenant,
        "result_files": [],
        "training_file": row.training_file,
        "validation_file": row.validation_file,
        "trained_tokens": row.trained_tokens,
        "hyperparameters": shown,
        "method": {"type": "supervised", "supervised": {"hyperparameters": shown}},
        "seed": row.seed,
        "metadata": row.job_metadata,
        "integrations": [],
        "error": error,
        "user_provided_suffix": row.suffix,
        "x": {
            "step": row.step,
            "total_steps": row.total_steps,
            "priority": row.priority,
            "deadline": seconds(row.deadline),
            "attempt": row.attempt,
            "wish": row.wish,
            "failures": row.failures,
            "preemptions": row.preemptions,
            "waiting_for": None,
            "examples": row.examples,
            "base_fingerprint": row.base_fingerprint,
            "adapter_uri": parts.store.uri(adapter.prefix) if adapter else None,
            "manifest_sha256": adapter.manifest_sha256 if adapter else None,
            "device_seconds": round(row.device_seconds, 3),
            "cost": round(row.device_seconds / 3600 * parts.settings.device_hour_price, 6),
            "currency": parts.settings.currency,
            "queued_at": seconds(row.queued_at),
            "started_at": seconds(row.started_at),
            "hyperparameters": hyper,
        },
    }


_OPENAI_KEYS = ("n_epochs", "batch_size", "learning_rate_multiplier")


def event(row: Event) -> Json:
    """An event object."""
    return {
        "object": "fine_tuning.job.event",
        "id": row.id,
        "created_at": seconds(row.created_at),
        "level": row.level,
        "message": row.message,
        "type": row.type,
        "data": row.data,
    }


def checkpoint(row: Checkpoint, parts: Context) -> Json:
    """A checkpoint object: the adapter as it was after an epoch."""
    shown = ("train_loss", "train_mean_token_accuracy", "valid_loss", "valid_mean_token_accuracy")
    return {
        "object": "fine_tuning.job.checkpoint",
        "id": row.id,
        "created_at": seconds(row.created_at),
        "fine_tuned_model_checkpoint": row.name,
        "fine_tuning_job_id": row.job_id,
        "step_number": row.step,
        "metrics": {"step": row.step, **{k: row.metrics[k] for k in shown if k in row.metrics}},
        "x": {
            "adapter_uri": parts.store.uri(row.prefix),
            "manifest_sha256": row.manifest_sha256,
        },
    }


def model(name: str, created: dt.datetime, owner: str) -> Json:
    """A model object: a base, or an adapter of the tenant's."""
    return {"id": name, "object": "model", "created": seconds(created), "owned_by": owner}


def base(row: Base) -> Json:
    """A base, for the CLI."""
    room = Room.of(row.layers)
    return {
        "name": row.name,
        "fingerprint": row.fingerprint,
        "dtype": row.dtype,
        "quantization": row.quantization,
        "architecture": row.architecture,
        "source": row.source,
        "parameters": row.parameters,
        "hidden_size": row.hidden_size,
        "bytes": row.bytes,
        "chat_template": row.chat_template,
        "network": row.network,
        "numbers_per_rank": room.per_rank,
        "largest_rank": room.largest,
        "state": row.state,
        "created_at": seconds(row.created_at),
    }


def adapter(row: Adapter, of: Job | None, parts: Context) -> Json:
    """An adapter, for the CLI."""
    return {
        "name": row.name,
        "job_id": row.job_id,
        "suffix": of.suffix if of else None,
        "base": row.base,
        "base_fingerprint": row.base_fingerprint,
        "adapter_uri": parts.store.uri(row.prefix),
        "manifest_sha256": row.manifest_sha256,
        "weights_sha256": row.weights_sha256,
        "bytes": row.bytes,
        "created_at": seconds(row.created_at),
    }


def share(tenant: str, row: Share) -> Json:
    """A tenant's weight, quotas and use, for operators."""
    return {
        "tenant": tenant,
        "object": "tenant",
        "weight": row.weight,
        "max_queued": row.max_queued,
        "max_running": row.max_running,
        "max_device_hours": row.max_device_hours,
        "max_bytes": row.max_bytes,
        "max_requests": row.max_requests,
        "used_device_seconds": round(row.used, 1),
    }


def webhook(row: Webhook) -> Json:
    """An endpoint, without its secret."""
    return {
        "id": row.id,
        "object": "webhook",
        "url": row.url,
        "events": row.events,
        "created_at": seconds(row.created_at),
    }


def delivery(row: Delivery) -> Json:
    """A message to an endpoint, and what came of it so far."""
    return {
        "id": row.message_id,
        "object": "webhook.delivery",
        "type": row.type,
        "job_id": row.job_id,
        "state": row.state,
        "attempts": row.attempts,
        "last_status": row.last_status,
        "last_error": row.last_error,
        "created_at": seconds(row.created_at),
        "next_at": seconds(row.next_at) if row.state == "pending" else None,
        "settled_at": seconds(row.settled_at),
    }
