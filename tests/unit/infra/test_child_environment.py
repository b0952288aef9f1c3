"""Who is told which variables: a key goes where it is used, and to nobody else."""

from __future__ import annotations

import os

import pytest

from infra.processes.environment import PASS, for_engine, for_flow, for_provider, for_server

PROVIDERS = {name: f"secret of {name}" for name in ("OPENAI_API_KEY", "DASHSCOPE_API_KEY", "AZURE_API_KEY", "MY_VAULT")}
STORAGE = {"AWS_ACCESS_KEY_ID": "AKIA", "AWS_SECRET_ACCESS_KEY": "s3", "AWS_CA_BUNDLE": "/ca.pem"}
PREFECT = {"PREFECT_API_AUTH_STRING": "admin:pass", "PREFECT_API_KEY": "pnu_1"}
NOTIFY = {"DISTILFLOW_NOTIFY_URL": "https://hooks.slack.com/services/T/B/x"}
HUB = {"HF_TOKEN": "hf_1", "HF_HOME": "/hub"}
SYSTEM = {
    "PATH": "/usr/bin",
    "LD_LIBRARY_PATH": "/cuda/lib64",
    "https_proxy": "http://proxy:3128",
    "NO_PROXY": "127.0.0.1",
    "LC_ALL": "C.UTF-8",
    "SSL_CERT_FILE": "/ca.pem",
    "DISTILFLOW_HOME": "/home/x/.distilflow",
}
DEVICES = {
    "CUDA_VISIBLE_DEVICES": "0,1",
    "NCCL_SOCKET_IFNAME": "ib0",
    "VLLM_ATTENTION_BACKEND": "FLASHINFER",
    "OMP_NUM_THREADS": "8",
    "SLURM_NODEID": "1",
    "HSA_OVERRIDE_GFX_VERSION": "11.0.0",
}
ALL = PROVIDERS | STORAGE | PREFECT | NOTIFY | HUB | SYSTEM | DEVICES


@pytest.fixture(autouse=True)
def _whole(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        monkeypatch.delenv(name)
    for name, value in ALL.items():
        monkeypatch.setenv(name, value)


def _without_pytest(told: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in told.items() if not name.startswith("PYTEST_")}


def test_an_engine_is_told_of_devices_storage_and_the_hub_and_no_other_key() -> None:
    assert for_engine() == STORAGE | HUB | SYSTEM | DEVICES


def test_a_server_of_ours_is_told_of_the_machine_alone() -> None:
    assert for_server() == SYSTEM
    assert for_server("PREFECT_*") == SYSTEM | PREFECT


def test_a_provider_process_has_the_providers_keys_and_those_of_aws_only_for_models_there() -> None:
    assert _without_pytest(for_provider(["openai/gpt-x", "dashscope/qwen"])) == PROVIDERS | HUB | SYSTEM | DEVICES
    assert for_provider(["openai/gpt-x", "bedrock/claude"]).items() >= (PROVIDERS | STORAGE).items()


def test_a_worker_has_what_its_runs_ask_with_but_not_the_address_of_notifications() -> None:
    assert _without_pytest(for_flow()) == {name: value for name, value in ALL.items() if name not in NOTIFY}


def test_what_an_engine_lacks_can_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PASS, "MY_VAULT, ACME_*")
    monkeypatch.setenv("ACME_FABRIC", "on")
    assert for_engine().items() >= {"MY_VAULT": PROVIDERS["MY_VAULT"], "ACME_FABRIC": "on"}.items()
    assert "DASHSCOPE_API_KEY" not in for_engine()
