"""`manylora tensorboard`: a job's curves as event files, from its metric points."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from manylora.cli import context, output
from manylora.cli.flags import command, folder, json_option

#: metric point -> TensorBoard's tag
TAGS = {
    "train_loss": "loss/train",
    "valid_loss": "loss/validation",
    "train_mean_token_accuracy": "accuracy/train",
    "valid_mean_token_accuracy": "accuracy/validation",
    "learning_rate": "learning_rate",
    "grad_norm": "grad_norm",
}


@command()
@click.argument("job_ids", metavar="JOB_ID...", nargs=-1, required=True)
@click.option("-o", "--output", "target", type=folder, required=True, help="A log folder.")
@json_option
def tensorboard(job_ids: tuple[str, ...], target: Path, as_json: bool) -> None:
    """Write the curves of jobs into DIR/<job>, one event file each; called again, it replaces them.

    \b
    Examples:
    $ manylora tensorboard ftjob-7f3k2m -o ./tb && tensorboard --logdir ./tb
    $ manylora tensorboard ftjob-7f3k2m ftjob-9q1x0c -o ./tb
    """
    from manylora.place import placed

    writer = context.load("tensorboardX.event_file_writer:EventsWriter", extra="tensorboard")
    client = context.connect()
    written = []
    for job_id in dict.fromkeys(job_ids):
        job, points = client.job(job_id), client.all_metrics(job_id)
        # One name for a job: a file that is written again takes the place of the old one.
        name = f"events.out.tfevents.{job['created_at']}.manylora"
        with placed(target / job["id"], last=name) as scratch:
            count = _write(writer, scratch, name, job, points)
        written.append({"job_id": job["id"], "points": count, "folder": str(target / job["id"])})
    if as_json:
        output.document({"object": "list", "data": written})
        return
    for one in written:
        output.data(f"{one['folder']}   {output.counted(one['points'], 'point')}")
    output.talk(f"tensorboard --logdir {output.quoted(target)}")


def _write(
    writer: Any, folder: Path, name: str, job: dict[str, Any], points: list[dict[str, Any]]
) -> int:
    """One event a step. A point's time is the job's start and the device time up to it."""
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.proto.summary_pb2 import Summary

    made = writer(str(folder / "part"))
    began = float((job.get("x") or {}).get("started_at") or job["created_at"])
    count = 0
    for point in points:
        began += float(point.get("seconds") or 0.0)
        values = [
            Summary.Value(tag=tag, simple_value=float(point[key]))
            for key, tag in TAGS.items()
            if point.get(key) is not None
        ]
        count += len(values)
        made.write_event(
            Event(wall_time=began, step=int(point["step"]), summary=Summary(value=values))
        )
    made.close()
    (part,) = folder.iterdir()
    part.rename(folder / name)
    return count
