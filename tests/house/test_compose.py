"""docker-compose.yml, read as YAML: closed to the outside, without secrets, looked after."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

from manylora.settings import Settings
from tests.house.sources import ROOT

TEXT = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
FILE: dict[str, Any] = yaml.safe_load(TEXT)
SERVICES: dict[str, dict[str, Any]] = FILE["services"]
OURS = ("migrate", "api", "scheduler", "worker-cpu", "worker-gpu")
EXAMPLE = (ROOT / ".env.example").read_text(encoding="utf-8")
SECRET = re.compile(r"PASSWORD|SECRET|ACCESS_KEY|PEPPER|_URL$")

every = pytest.mark.parametrize("name", SERVICES)


def test_it_is_the_whole_service() -> None:
    assert set(SERVICES) == {"postgres", "valkey", "seaweed", *OURS}
    assert SERVICES["postgres"]["image"] == "postgres:18"
    profiles = {name: part["profiles"] for name, part in SERVICES.items() if "profiles" in part}
    assert profiles == {"worker-cpu": ["cpu"], "worker-gpu": ["gpu"]}
    (device,) = SERVICES["worker-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert device["driver"] == "nvidia"
    assert device["capabilities"] == ["gpu"]


def test_only_the_api_and_s3_are_published_and_on_loopback() -> None:
    published = {name: part["ports"] for name, part in SERVICES.items() if "ports" in part}
    assert published == {
        "api": ["${BIND:-127.0.0.1}:${API_PORT:-8400}:8400"],
        "seaweed": ["${BIND:-127.0.0.1}:${S3_PORT:-8333}:8333"],
    }
    assert not [n for n, part in SERVICES.items() if "network_mode" in part or "privileged" in part]


@every
def test_a_secret_is_never_written_here_nor_on_a_command_line(name: str) -> None:
    part = SERVICES[name]
    for variable, value in part.get("environment", {}).items():
        if SECRET.search(variable) and variable != "MANYLORA_S3_PUBLIC_ENDPOINT":
            assert "${" in value, f"{name}: {variable} is a literal"
    argv = str([part.get("command"), part.get("entrypoint"), part["healthcheck"]])
    assert not re.search(r"(?<!\$)\$\{(?!SLOTS\b)", argv)


def test_what_is_asked_of_the_env_file_is_in_its_example() -> None:
    asked = dict(re.findall(r"(?<!\$)\$\{([A-Z0-9_]+)(:[?-])", TEXT))
    needed = {name for name, how in asked.items() if how == ":?"}
    assert needed == set(re.findall(r"^([A-Z0-9_]+)=$", EXAMPLE, re.MULTILINE))
    assert set(asked) == set(re.findall(r"^#?([A-Z0-9_]+)=", EXAMPLE, re.MULTILINE))
    # Ours would reach the CLI, too: it reads .env in the folder it is called in.
    assert "MANYLORA_" not in EXAMPLE


@every
def test_it_is_restarted_asked_for_its_health_and_given_time_to_stop(name: str) -> None:
    part = SERVICES[name]
    assert part["init"] is True
    assert part["security_opt"] == ["no-new-privileges:true"]
    if name == "migrate":
        assert part["restart"] == "no"
        return
    assert part["restart"] == "unless-stopped"
    assert part["healthcheck"]["test"]
    assert "stop_grace_period" in part


def test_the_service_waits_for_the_migration() -> None:
    for name in set(OURS) - {"migrate"}:
        wait = SERVICES[name]["depends_on"]
        assert wait["migrate"] == {"condition": "service_completed_successfully"}
        assert wait["valkey"] == {"condition": "service_healthy"}
    for server in ("postgres", "seaweed"):
        assert SERVICES["migrate"]["depends_on"][server] == {"condition": "service_healthy"}


def test_every_variable_of_ours_is_a_setting() -> None:
    known = {f"MANYLORA_{name}".upper() for name in Settings.model_fields}
    for name, part in SERVICES.items():
        ours = {v for v in part.get("environment", {}) if v.startswith("MANYLORA_")}
        assert ours <= known, name
        assert bool(ours) == (name in OURS), name


def test_only_the_migration_is_the_owner_and_no_worker_has_the_pepper() -> None:
    def having(variable: str) -> set[str]:
        return {n for n, part in SERVICES.items() if variable in part.get("environment", {})}

    assert having("MANYLORA_DATABASE_OWNER_URL") == {"migrate"}
    assert having("MANYLORA_KEY_PEPPER") == {"migrate", "api"}


def test_the_images_are_not_run_by_root_and_check_themselves() -> None:
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    stages = re.split(r"^FROM ", text, flags=re.MULTILINE)[1:]
    final = {}
    for stage in stages:
        name = stage.split()[2]
        if "ENTRYPOINT" in stage:
            final[name] = stage
    assert set(final) == {"service", "worker"}
    for name, stage in final.items():
        assert "\nUSER 10001" in stage, name
        assert "\nHEALTHCHECK" in stage, name
    assert "torch" not in final["service"]
    used = {SERVICES[name]["build"]["target"] for name in OURS}
    assert used == set(final)


def test_every_file_that_is_mounted_or_copied_is_there() -> None:
    mounted = re.findall(r"\./([\w./-]+):/", TEXT)
    assert len(mounted) == 3
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", (ROOT / "Dockerfile").read_text(), re.M)
    for path in [*mounted, *" ".join(copied).split()]:
        assert (ROOT / path).exists(), path
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert ignored[0] == "*"
    let_in = {line[1:].partition("/")[0] for line in ignored if line.startswith("!")}
    assert {path.partition("/")[0] for path in " ".join(copied).split()} <= let_in
