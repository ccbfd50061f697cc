"""What is counted is named alike, explained, and never by tenant, job or address."""

import pytest
from prometheus_client.parser import text_string_to_metric_families

from manylora import __version__
from manylora.metrics import ApiMetrics, SchedulerMetrics, WorkerMetrics

PARTS = {"api": ApiMetrics, "scheduler": SchedulerMetrics, "worker": WorkerMetrics}
#: what has a bound: a dozen values at most, or what operators register
LABELS = {"part", "version", "method", "route", "status", "code", "outcome", "base", "state"}


def value(metrics, name, **labels):
    """One sample of a part's metrics."""
    return metrics.registry.get_sample_value(f"manylora_{name}", labels)


@pytest.mark.parametrize("name", PARTS)
def test_every_metric_is_explained_and_its_labels_are_bounded(name):
    families = list(PARTS[name]().registry.collect())
    mine = [family for family in families if not family.name.startswith("process_")]
    assert len(mine) > 3
    for family in mine:
        assert family.name.startswith("manylora_")
        assert len(family.documentation) > 10
    for metric in vars(PARTS[name]()).values():
        assert set(getattr(metric, "_labelnames", ())) <= LABELS


@pytest.mark.parametrize("name", PARTS)
def test_two_of_a_part_in_one_process_share_nothing(name):
    one, other = PARTS[name](), PARTS[name]()
    assert one.registry is not other.registry
    families = {family.name for family in text_string_to_metric_families(one.text().decode())}
    assert "manylora_part_info" in families
    assert value(other, "part_info", part=name, version=__version__) == 1


def test_requests_are_counted_by_template_and_errors_by_code():
    api = ApiMetrics()
    api.answered("GET", "/v1/x/{id}", 200, 0.2, None)
    api.answered("GET", "/v1/x/{id}", 404, 0.01, "not_found")
    api.answered("BREW", None, 405, 0.01, "method_not_allowed")
    assert value(api, "api_requests_total", method="GET", route="/v1/x/{id}", status="200") == 1
    assert value(api, "api_requests_total", method="other", route="none", status="405") == 1
    assert value(api, "api_request_seconds_count", method="GET", route="/v1/x/{id}") == 2
    assert value(api, "api_request_seconds_bucket", method="GET", route="/v1/x/{id}", le="0.1") == 1
    assert value(api, "api_errors_total", code="not_found") == 1


def test_a_round_is_timed_and_one_that_fails_is_not_the_last_good_one():
    scheduler = SchedulerMetrics()
    scheduler._last_tick.set(1.0)
    with pytest.raises(ZeroDivisionError), scheduler.tick():
        raise ZeroDivisionError
    assert value(scheduler, "scheduler_last_tick_timestamp_seconds") == 1.0
    with scheduler.tick():
        pass
    assert value(scheduler, "scheduler_last_tick_timestamp_seconds") > 1e9
    assert value(scheduler, "scheduler_ticks_total", outcome="ok") == 1
    assert value(scheduler, "scheduler_ticks_total", outcome="failed") == 1
    assert value(scheduler, "scheduler_tick_seconds_count") == 2


def test_an_attempt_is_busy_while_it_lasts_and_ends_in_one_way():
    worker = WorkerMetrics()
    with worker.attempt() as ended:
        assert value(worker, "worker_slots_busy") == 1
        ended.append("succeeded")
    assert value(worker, "worker_slots_busy") == 0
    assert value(worker, "worker_attempts_total", outcome="succeeded") == 1
    with pytest.raises(ZeroDivisionError), worker.attempt():
        raise ZeroDivisionError
    assert value(worker, "worker_attempts_total", outcome="broke") == 1


def test_a_checkpoint_that_fails_is_counted_and_not_timed():
    worker = WorkerMetrics()
    with pytest.raises(ZeroDivisionError), worker.checkpoint():
        raise ZeroDivisionError
    with worker.checkpoint():
        pass
    assert value(worker, "worker_checkpoints_skipped_total") == 1
    assert value(worker, "worker_checkpoint_seconds_count") == 1
