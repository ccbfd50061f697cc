"""`queue`, `tenants` and `simulate` as they are typed."""

import json

QUEUE = {
    "object": "list",
    "data": [
        {
            "base": "tiny", "queued": 3, "held": 1, "running": 2, "position": 4,
            "ahead": {"yours": 0, "others": 3}, "reason": "your running quota of 2 is used",
            "share": {"weight": 1.0, "entitled": 0.5, "has": 0.25},
            "start": {"p50": 90.0, "p90": 300.0}, "finish": {"p50": 200.0, "p90": 700.0},
        }
    ],
}  # fmt: skip
TENANT = {
    "tenant": "acme", "object": "tenant", "weight": 2.0, "max_queued": None, "max_running": 8,
    "max_device_hours": None, "max_bytes": None, "max_requests": None,
    "used_device_seconds": 7200.0,
}  # fmt: skip


def known(service):
    return {"MANYLORA_API_URL": service.url, "MANYLORA_API_KEY": "k"}


def test_the_queue_says_what_waits_and_why(shell, service):
    service.answers["GET", "/v1/manylora/queue"] = 200, json.dumps(QUEUE).encode()
    shown = shell("queue", **known(service))
    assert shown.returncode == 0, shown.stderr
    for part in ("tiny", "25.0%", "50.0%", "1 min 30 s", "5 min 0 s 9 times out of 10",
                 "your running quota of 2 is used"):  # fmt: skip
        assert part in shown.stdout
    assert json.loads(shell("queue", "--json", **known(service)).stdout) == QUEUE


def test_quotas_are_set_and_taken_away(shell, service):
    service.answers["PATCH", "/v1/manylora/tenants/acme"] = 200, json.dumps(TENANT).encode()
    done = shell(
        "tenants", "set", "acme", "--weight", "2", "--max-running", "8", "--no-bound", "bytes",
        **known(service),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(service.asked[-1][3]) == {"weight": 2.0, "max_running": 8, "max_bytes": None}
    assert "weight 2.0, max_running 8" in done.stderr
    service.answers["GET", "/v1/manylora/tenants"] = (
        200,
        json.dumps({"object": "list", "data": [TENANT]}).encode(),
    )
    assert "acme" in shell("tenants", "list", **known(service)).stdout


def test_a_pool_is_simulated_without_a_service(shell, tmp_path):
    few = ("--tenants", "5", "--jobs", "50", "--days", "0.1", "--devices", "2")
    shown = shell("simulate", *few, "--plot")
    assert shown.returncode == 0, shown.stderr
    assert "fair, 2 devices" in shown.stdout
    told = json.loads(shell("simulate", *few, "--policy", "fair", "--json").stdout)
    assert [row["policy"] for row in told["data"]] == ["fair"]
    trace = tmp_path / "jobs.csv"
    trace.write_text("time,tenant,seconds\n1,a,30\n2,,30\n")
    refused = shell("simulate", "--trace", str(trace))
    assert refused.returncode == 2
    assert "line 3: tenant is missing" in refused.stderr
