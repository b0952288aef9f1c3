"""The Kubernetes pools' templates, rendered by Prefect's own worker, and the manifests, against Kubernetes' schemas."""

import asyncio
import copy
import json
import re
import uuid
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from jsonschema import Draft202012Validator
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import FlowRun
from prefect.utilities.schema_tools.validation import ValidationError, is_valid_schema, validate
from prefect.utilities.templating import find_placeholders
from prefect_kubernetes.worker import KubernetesWorkerJobConfiguration

from infra.devices import Gpus
from infra.errors import ConfigurationError
from infra.needs import Needs
from infra.orchestration.job_variables import OF_NEEDS
from infra.stage import Stage
from infra.store.artifacts import ArtifactRef
from tasks.evaluate.settings import Evaluation
from tasks.evaluate.stage import Evaluate
from tasks.logits.settings import Scoring
from tasks.logits.stage import ScoreTeacher
from tasks.models import ModelSource
from tasks.plan.sizes import QWEN2_5
from tasks.train.settings import Training, TrainingRun
from tasks.train.stage import Train

FOLDER = Path(__file__).parents[3] / "infra/kubernetes"
POOLS = ("cpu", "gpu")
VERSIONS = ("1.30", "1.34", "1.37")
MANIFESTS = [
    (path.name, document) for path in sorted(FOLDER.glob("*.yaml")) for document in yaml.safe_load_all(path.read_text())
]
EVERYTHING = {
    "image": "registry.example.com/team/distilflow-vllm:0.1.0",
    "image_pull_policy": "Always",
    "namespace": "research",
    "service_account_name": "somebody",
    "config_map_name": "settings",
    "secret_name": "keys",
    "scratch": "1Ti",
    "cpu_request": "500m",
    "memory_request": "2Gi",
    "memory_limit": "4Gi",
    "node_selector": {"zone": "a"},
    "tolerations": [{"key": "spot", "operator": "Exists"}],
    "active_deadline_seconds": 3600,
    "finished_job_ttl": 60,
    "termination_grace_seconds": 40,
    "pod_watch_timeout_seconds": 30,
    "env": {"NCCL_DEBUG": "INFO"},
    "command": "prefect flow-run execute",
    "name": "a-job",
    "labels": {"team": "nlp"},
}
ONLY_CPU = {"providers_secret_name": "llm-keys"}
ONLY_GPU = {"gpus": 4, "shared_memory": "32Gi", "model_cache": {"claimName": "models"}}


def _template(pool: str) -> dict[str, Any]:
    template: dict[str, Any] = json.loads((FOLDER / f"{pool}-pool.json").read_text())
    return template


def _variables(pool: str) -> dict[str, Any]:
    properties: dict[str, Any] = _template(pool)["variables"]["properties"]
    return properties


def _job(pool: str, values: dict[str, Any]) -> dict[str, Any]:
    """The Job that Prefect's Kubernetes worker would create, less the two fields that it wants in a wrong place."""

    async def rendered() -> dict[str, Any]:
        nobody = PrefectClient("http://127.0.0.1:9/api")  # asked only for blocks and variables, of which there are none
        configuration = await KubernetesWorkerJobConfiguration.from_template_and_values(
            _template(pool), values, client=nobody
        )
        configuration.prepare_for_flow_run(FlowRun(flow_id=uuid.uuid4(), name="swift-fox"))
        return configuration.job_manifest

    job = copy.deepcopy(asyncio.run(rendered()))
    pod = job["spec"]["template"]["spec"]
    assert (pod.pop("parallelism"), pod.pop("completions")) == (1, 1)
    return job


def _container(job: dict[str, Any]) -> dict[str, Any]:
    (container,) = job["spec"]["template"]["spec"]["containers"]
    found: dict[str, Any] = container
    return found


def _all_values(pool: str) -> dict[str, Any]:
    return EVERYTHING | (ONLY_GPU if pool == "gpu" else ONLY_CPU)


@pytest.mark.parametrize("pool", POOLS)
def test_a_pools_variables_are_a_schema_that_its_defaults_fit(pool: str) -> None:
    schema = _template(pool)["variables"]
    Draft202012Validator.check_schema(schema)
    is_valid_schema(schema)
    validate({name: of["default"] for name, of in schema["properties"].items() if "default" in of}, schema, True)
    assert all(of.get("title") and of.get("description") for of in schema["properties"].values())


@pytest.mark.parametrize("pool", POOLS)
def test_every_variable_is_used_and_every_placeholder_is_a_variable(pool: str) -> None:
    placeholders = {found.name for found in find_placeholders(_template(pool)["job_configuration"])}
    assert placeholders == _variables(pool).keys()


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("pool", POOLS)
def test_the_job_is_valid_with_defaults_and_with_everything_set(pool: str, version: str) -> None:
    kubernetes_validate.validate(_job(pool, {}), version, strict=True)
    assert _all_values(pool).keys() == _variables(pool).keys()
    validate(_all_values(pool), _template(pool)["variables"], raise_on_error=True)
    kubernetes_validate.validate(_job(pool, _all_values(pool)), version, strict=True)


def test_gpus_and_shared_memory_reach_the_pod() -> None:
    job = _job("gpu", _all_values("gpu"))
    assert _container(job)["resources"]["limits"] == {"nvidia.com/gpu": 4, "memory": "4Gi"}
    volumes = {volume["name"]: volume for volume in job["spec"]["template"]["spec"]["volumes"]}
    mounts = {mount["mountPath"]: volumes[mount["name"]] for mount in _container(job)["volumeMounts"]}
    assert mounts["/dev/shm"]["emptyDir"] == {"medium": "Memory", "sizeLimit": "32Gi"}
    assert mounts["/var/cache/huggingface"]["persistentVolumeClaim"] == {"claimName": "models"}


def test_the_pod_of_a_stage_has_what_the_stage_needs(tmp_path: Path) -> None:
    """A 72B teacher, which four 80 GB GPUs hold, twice on eight; a 7B student with a rank on each."""
    teacher, student = (_qwen(tmp_path, name) for name in ("72B", "7B"))
    rows = ArtifactRef(kind="augment", uri="s3://b/a/", sha256="a", fingerprint="a")
    run, offered = TrainingRun(zero_stage=2, offload="none"), Gpus(8, 79 * 2**30)
    stages: dict[str, Stage[Any]] = {
        "logits": ScoreTeacher(rows=rows, teacher=teacher, k=10, scoring=Scoring()),
        "sft": Train(name="sft", model=student, data=rows, training=Training(), run=run, seed=0),
        "evaluate": Evaluate(
            models={"base": student, "teacher": teacher}, teacher=teacher, seeds=rows, evaluation=Evaluation(engines=1)
        ),
        "evaluate on all": Evaluate(models={"base": student}, teacher=student, seeds=rows, evaluation=Evaluation()),
    }
    pods = {}
    for name, stage in stages.items():
        needs = stage.needs(offered)
        assert needs is not None
        job = _job("gpu", {name: of(needs) for name, of in OF_NEEDS.items()})
        kubernetes_validate.validate(job, VERSIONS[-1], strict=True)
        resources = _container(job)["resources"]
        (shared,) = (v["emptyDir"] for v in job["spec"]["template"]["spec"]["volumes"] if v["name"] == "shared-memory")
        pods[name] = (resources["limits"], resources["requests"], shared["sizeLimit"])
    half = ({"nvidia.com/gpu": 4}, {"cpu": "16", "memory": "64Gi"}, "32Gi")
    assert pods["evaluate"] == half
    assert pods["evaluate on all"][0] == {"nvidia.com/gpu": 8}  # a student answers on each
    assert pods["logits"] == ({"nvidia.com/gpu": 8}, {"cpu": "32", "memory": "128Gi"}, "64Gi")
    assert pods["sft"] == ({"nvidia.com/gpu": 8}, {"cpu": "32", "memory": "242Gi"}, "64Gi")


def test_what_nobody_knows_is_left_to_the_pool_and_what_somebody_set_is_not(tmp_path: Path) -> None:
    rows = ArtifactRef(kind="augment", uri="s3://b/a/", sha256="a", fingerprint="a")
    teacher = _qwen(tmp_path, "72B")
    stage = ScoreTeacher(rows=rows, teacher=teacher, k=10, scoring=Scoring())
    assert stage.needs(None) is None
    with pytest.raises(ConfigurationError, match="72B .*135 GiB of weights"):
        stage.needs(Gpus(1, 79 * 2**30))
    set_by_hand = stage.model_copy(update={"scoring": Scoring(tensor_parallel=8)})
    assert set_by_hand.needs(None) == Needs.of_engine(8)
    one = stage.model_copy(update={"scoring": Scoring(engines=1)})
    assert one.needs(Gpus(8, 79 * 2**30)) == Needs.of_engine(4)
    sft = Train(name="sft", model=teacher, data=rows, training=Training(), run=TrainingRun(), seed=0)
    assert sft.needs(None) is None


def _qwen(folder: Path, name: str) -> ModelSource:
    (folder / name).mkdir()
    (folder / name / "config.json").write_text(json.dumps({"model_type": "qwen2", **QWEN2_5[name]}))
    return ModelSource(name=name, path=str(folder / name))


def test_a_cpu_job_asks_for_no_gpu() -> None:
    assert "nvidia.com" not in json.dumps(_job("cpu", {}))


@pytest.mark.parametrize("pool", POOLS)
def test_secrets_come_from_kubernetes_and_stand_in_no_job(pool: str) -> None:
    container = _container(_job(pool, _all_values(pool)))
    providers = [{"secretRef": {"name": "llm-keys", "optional": True}}] if pool == "cpu" else []  # no GPU Job asks one
    assert container["envFrom"] == [
        *({"configMapRef": {"name": "settings"}}, {"secretRef": {"name": "keys"}}),
        *providers,
    ]
    ours = [each for each in container["env"] if not each["name"].startswith("PREFECT")]
    assert ours == [{"name": "NCCL_DEBUG", "value": "INFO"}]


@pytest.mark.parametrize("pool", POOLS)
def test_the_job_runs_prefects_command_in_the_images_entrypoint_as_the_images_user(pool: str) -> None:
    job = _job(pool, {})
    assert _container(job)["args"] == ["prefect", "flow-run", "execute"]
    assert "command" not in _container(job)
    assert job["spec"]["template"]["spec"]["securityContext"]["runAsUser"] == 10001


@pytest.mark.parametrize("pool", POOLS)
def test_deadline_and_clean_up_reach_the_job(pool: str) -> None:
    spec = _job(pool, {"active_deadline_seconds": 5, "finished_job_ttl": 7, "termination_grace_seconds": 31})["spec"]
    assert (spec["activeDeadlineSeconds"], spec["ttlSecondsAfterFinished"], spec["backoffLimit"]) == (5, 7, 0)
    assert spec["template"]["spec"]["terminationGracePeriodSeconds"] == 31
    assert "activeDeadlineSeconds" not in _job(pool, {})["spec"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"gpus": -1},
        {"gpus": "two"},
        {"shared_memory": "lots"},
        {"gpu": 1},
        {"model_cache": {"claim": "x"}},
        {"image": ""},
    ],
    ids=str,
)
def test_prefect_refuses_wrong_job_variables(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        validate(wrong, _template("gpu")["variables"], raise_on_error=True)


def test_both_pools_mean_the_same_by_a_variable() -> None:
    cpu, gpu = _variables("cpu"), _variables("gpu")
    assert gpu.keys() - cpu.keys() == ONLY_GPU.keys()
    assert cpu.keys() - gpu.keys() == ONLY_CPU.keys()
    for name in cpu.keys() & gpu.keys():
        differs = {key for key in cpu[name] | gpu[name] if cpu[name].get(key) != gpu[name].get(key)}
        assert differs <= {"default", "description"}, name


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(("_file", "manifest"), MANIFESTS, ids=[f"{f}-{m['kind']}" for f, m in MANIFESTS])
def test_a_manifest_is_valid(_file: str, manifest: dict[str, Any], version: str) -> None:
    kubernetes_validate.validate(manifest, version, strict=True)
    assert manifest["metadata"]["namespace"] == _variables("gpu")["namespace"]["default"]


def _manifest(file: str, kind: str, name: str) -> dict[str, Any]:
    (found,) = (m for f, m in MANIFESTS if f == file and m["kind"] == kind and m["metadata"]["name"] == name)
    return found


def test_the_workers_serve_both_pools_with_the_rights_that_they_need() -> None:
    pod = _manifest("worker.yaml", "Deployment", "distilflow-worker")["spec"]["template"]["spec"]
    commands = {container["name"]: " ".join(container["args"]) for container in pod["containers"]}
    assert commands.keys() == {"kubernetes-cpu", "kubernetes-gpu"}
    for pool, command in commands.items():
        assert f"prefect worker start --type kubernetes --pool {pool} --with-healthcheck" in command
    ports = [container["livenessProbe"]["httpGet"]["port"] for container in pod["containers"]]
    assert ports == [8080, 8081]
    assert "PREFECT_WORKER_WEBSERVER_PORT=8081" in commands["kubernetes-gpu"]

    role = _manifest("worker.yaml", "Role", "distilflow-worker")
    allowed = {(resource, verb) for rule in role["rules"] for resource in rule["resources"] for verb in rule["verbs"]}
    # what prefect_kubernetes calls: create and delete Jobs, follow them and their pods, fetch a crashed pod's log
    needed = {("jobs", verb) for verb in ("create", "delete", "get", "list", "watch")}
    needed |= {("pods", "list"), ("pods", "watch"), ("pods", "get"), ("pods/log", "get")}
    assert needed <= allowed
    subject = _manifest("worker.yaml", "RoleBinding", "distilflow-worker")["subjects"][0]
    assert subject["name"] == pod["serviceAccountName"]
    _manifest("worker.yaml", "ServiceAccount", _variables("gpu")["service_account_name"]["default"])


def test_each_kind_of_pod_is_told_its_own_secrets() -> None:
    """Prefect's password is the workers', which pass it to a Job by its name; providers' keys are the CPU Jobs'."""
    pod = _manifest("worker.yaml", "Deployment", "distilflow-worker")["spec"]["template"]["spec"]
    for container in pod["containers"]:
        named = {of["valueFrom"]["secretKeyRef"]["name"] for of in container["env"] if "secretKeyRef" in str(of)}
        passed = {of["value"] for of in container["env"] if of["name"].endswith("_SECRET_NAME")}
        assert named == passed == {"distilflow-prefect"}
        assert "envFrom" not in container


def test_nobody_talks_to_a_pod_but_the_nodes_of_one_training_to_each_other() -> None:
    nobody = _manifest("network.yaml", "NetworkPolicy", "distilflow-nobody-in")["spec"]
    assert nobody == {"podSelector": {}, "policyTypes": ["Ingress"]}
    job = _manifest("two-node-training.yaml", "Job", "distilflow-two-nodes")
    nodes = {"podSelector": {"matchLabels": {"job-name": job["metadata"]["name"]}}}
    two = _manifest("network.yaml", "NetworkPolicy", "distilflow-two-nodes")["spec"]
    assert (two["podSelector"], two["ingress"]) == (nodes["podSelector"], [{"from": [nodes]}])
    (out,) = _manifest("network.yaml", "NetworkPolicy", "distilflow-no-metadata")["spec"]["egress"]
    assert "169.254.0.0/16" in str(out)  # where clouds give out a node's credentials


def test_the_two_nodes_hostfile_names_the_pods_and_their_gpus() -> None:
    file = "two-node-training.yaml"
    job = _manifest(file, "Job", "distilflow-two-nodes")
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    service = _manifest(file, "Service", pod["subdomain"])
    assert (service["spec"]["clusterIP"], service["spec"]["publishNotReadyAddresses"]) == ("None", True)
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}

    nodes = job["spec"]["completions"]
    assert (job["spec"]["completionMode"], job["spec"]["parallelism"]) == ("Indexed", nodes)
    gpus = container["resources"]["limits"]["nvidia.com/gpu"]
    (mounted,) = (volume["configMap"]["name"] for volume in pod["volumes"] if "configMap" in volume)
    hostfile = _manifest(file, "ConfigMap", mounted)["data"]["hostfile"].splitlines()
    name = f"{job['metadata']['name']}-{{}}.{pod['subdomain']}"
    assert hostfile == [f"{name.format(index)} slots={gpus}" for index in range(nodes)]

    (folder,) = (mount["mountPath"] for mount in container["volumeMounts"] if mount["name"] == "hostfile")
    assert f"--run.hostfile={folder}/hostfile" in container["args"]
    assert "--run.launcher=each_node" in container["args"]


def test_no_manifest_holds_a_secret() -> None:
    assert "Secret" not in {manifest["kind"] for _, manifest in MANIFESTS}
    for path in FOLDER.iterdir():
        assert not re.search(r"(?i)(password|secret_access_key|token|api_key)\W+value\W+\w", path.read_text()), (
            path.name
        )
