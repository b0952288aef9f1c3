"""The compose file: valid by the compose specification, healthy in order, and without a secret in it."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

FOLDER = Path(__file__).parents[3] / "infra"
TEXT = (FOLDER / "compose.yaml").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load(TEXT)
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
SECRET = re.compile("PASSWORD|SECRET|TOKEN|KEY|AUTH")


def test_the_file_is_what_the_compose_specification_allows() -> None:
    checker = Path(sys.executable).parent / "check-jsonschema"
    command = [str(checker), "--builtin-schema", "vendor.compose-spec", str(FOLDER / "compose.yaml")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_service_starts_after_those_that_it_needs_are_healthy() -> None:
    for name, service in SERVICES.items():
        assert service["healthcheck"]["test"][0] == "CMD", name
        for needed, how in service.get("depends_on", {}).items():
            assert how == {"condition": "service_healthy"}, (name, needed)
            assert needed in SERVICES
    assert SERVICES["prefect"]["depends_on"].keys() == {"postgres"}
    for worker in ("cpu-worker", "gpu-worker"):
        assert SERVICES[worker]["depends_on"].keys() == {"prefect", "seaweedfs"}


def test_every_secret_is_asked_for_and_none_is_written_down() -> None:
    secrets = {
        (name, variable): str(value)
        for name, service in SERVICES.items()
        for variable, value in service.get("environment", {}).items()
        if SECRET.search(variable)
    }
    assert {variable for _, variable in secrets} >= {"POSTGRES_PASSWORD", "AWS_SECRET_ACCESS_KEY"}
    for where, value in secrets.items():
        assert re.fullmatch(r"\$\{[A-Z_]+:\?[^}]+\}", value), where
    assert not re.search(r"://[^/\s]*:[^/\s{}]+@", TEXT)


def test_the_example_names_every_variable_and_fills_in_no_secret() -> None:
    example = (FOLDER / ".env.example").read_text()
    required = set(re.findall(r"\$\{([A-Z_]+):\?", TEXT))
    optional = set(re.findall(r"\$\{([A-Z_]+):-", TEXT))
    assert required == set(re.findall(r"^([A-Z_]+)=$", example, re.M))
    assert optional == set(re.findall(r"^# ([A-Z_]+)=\S+$", example, re.M))


def test_what_holds_data_is_a_volume() -> None:
    used = {volume.split(":")[0] for service in SERVICES.values() for volume in service.get("volumes", [])}
    assert used == COMPOSE["volumes"].keys()


def test_each_service_is_on_the_networks_of_those_that_it_talks_to() -> None:
    on = {name: set(service["networks"]) for name, service in SERVICES.items()}
    assert on == {
        "postgres": {"database"},
        "prefect": {"database", "api"},
        "seaweedfs": {"storage"},
        "cpu-worker": {"api", "storage"},
        "gpu-worker": {"api", "storage"},
    }
    assert COMPOSE["networks"]["database"] == {"internal": True}


def test_providers_keys_are_for_the_worker_that_asks_them() -> None:
    files = {name: [file["path"] for file in service.get("env_file", [])] for name, service in SERVICES.items()}
    assert {name for name, paths in files.items() if "providers.env" in paths} == {"cpu-worker"}
    assert {name for name, paths in files.items() if "hub.env" in paths} == {"cpu-worker", "gpu-worker"}


def test_ports_are_for_this_machine_unless_said_otherwise() -> None:
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert len(ports) == 2
    assert all(port.startswith("${BIND_ADDRESS:-127.0.0.1}:") for port in ports)


@pytest.mark.parametrize("pool", ["cpu", "gpu"])
def test_each_process_pool_has_its_worker(pool: str) -> None:
    command = " ".join(SERVICES[f"{pool}-worker"]["command"])
    assert command.startswith(f"prefect worker start --pool {pool} --type process")


def test_only_the_gpu_worker_reserves_gpus_and_only_when_asked_for() -> None:
    reserved = {name: service["deploy"] for name, service in SERVICES.items() if "deploy" in service}
    (device,) = reserved.pop("gpu-worker")["resources"]["reservations"]["devices"]
    assert not reserved
    assert device == {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}
    assert [name for name, service in SERVICES.items() if service.get("profiles")] == ["gpu-worker"]
    assert "shm_size" in SERVICES["gpu-worker"]
