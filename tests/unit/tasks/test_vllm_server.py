"""A server that scores: which model of it is the teacher, what its answers mean, and each refusal in one sentence."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from pydantic import ValidationError

from flows.checks import check_server
from flows.pipeline import pipeline
from flows.plan import Finder
from flows.recipe import Recipe
from infra.devices import Gpus
from infra.errors import ConfigurationError, TransientError
from infra.stage import Stage
from infra.store.artifacts import ArtifactRef
from tasks.engines import vllm_server
from tasks.engines.server import ServedModel, ServerEngine, connect
from tasks.engines.vllm_server import KEY, VLLMServer
from tasks.evaluate.benchmarks.settings import Benchmarks
from tasks.evaluate.settings import Evaluation
from tasks.fit.settings import Fit
from tasks.logits.parallel import scoring_engines, scoring_parallel
from tasks.logits.settings import Scoring
from tasks.logits.stage import ScoreTeacher
from tasks.models import ModelSource, resolve
from tasks.plan.plan import make_plan
from tasks.plan.problems import find
from tasks.tokens.rows import TokenisedRow
from tests.support.plan_known import known

URL = "http://gpu-1:8000"
AWAY = Scoring(engine="server", server=URL)
Answer = Callable[[str, dict[str, Any]], httpx.Response]


def _json(told: Any, status: int = 200, **headers: str) -> httpx.Response:
    return httpx.Response(status, json=told, headers=headers)


class Fake:
    """Stands in for a server elsewhere: a fault by path is answered, else as vLLM does with a flat distribution."""

    def __init__(self) -> None:
        self.faults: dict[str, Iterator[httpx.Response | Exception]] = {}
        self.models: list[dict[str, Any]] = [{"id": "demo", "root": "/models/demo", "max_model_len": 512}]
        self.logprob = -7.0
        self.asked: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request)
        if fault := next(self.faults.get(request.url.path, iter(())), None):
            if isinstance(fault, Exception):
                raise fault
            return fault
        if request.url.path == "/v1/models":
            return _json({"data": self.models})
        if request.url.path == "/v1/completions":
            return _json({"choices": [{"prompt_logprobs": self._logprobs(json.loads(request.content))}]})
        return _json({"detail": "Not Found"}, 404)

    def _logprobs(self, body: dict[str, Any]) -> list[Any]:
        def one(own: int) -> dict[str, Any]:
            others = range(1000, 1000 + body["prompt_logprobs"])
            best = {str(token): {"logprob": self.logprob, "rank": rank} for rank, token in enumerate(others, start=1)}
            return {str(own): {"logprob": -9999.0, "rank": 1200}, **best}

        return [None, *map(one, body["prompt"][1:])]

    def always(self, path: str, *answers: httpx.Response | Exception) -> None:
        self.faults[path] = itertools.cycle(answers)

    def once(self, path: str, *answers: httpx.Response | Exception) -> None:
        self.faults[path] = iter(answers)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    made = Fake()
    transport = httpx.MockTransport(made)
    monkeypatch.setattr(httpx.HTTPTransport, "handle_request", lambda _self, request: transport.handle_request(request))
    return made


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What was slept."""
    slept: list[float] = []
    monkeypatch.setattr(vllm_server.time, "sleep", slept.append)
    return slept


@pytest.fixture(scope="module")
def teacher() -> ModelSource:
    return resolve("demo", "teacher")


def _refused(teacher: ModelSource, k: int = 5, name: str | None = None) -> str:
    with pytest.raises(ConfigurationError) as told:
        connect(URL, name, teacher, k, 300)
    assert "\n" not in str(told.value)
    assert str(told.value).startswith(f"the server at {URL} ")
    return str(told.value)


def test_what_passes_is_tried_again_after_as_long_as_it_asks(fake: Fake, pauses: list[float]) -> None:
    broken = httpx.ReadError("connection reset")
    fake.once("/v1/models", broken, _json({}, 503), _json({"error": "slow down"}, 429, **{"Retry-After": "3"}))
    assert [model["id"] for model in VLLMServer(f"{URL}/v1/").models()] == ["demo"]
    assert pauses == [0.5, 1.0, 3.0]


@pytest.mark.parametrize(("patient", "tries"), [(True, 8), (False, 1)])
def test_a_server_that_stays_away_is_a_transient_error(
    fake: Fake, pauses: list[float], patient: bool, tries: int
) -> None:
    fake.always("/v1/models", httpx.ConnectError("Connection refused"))
    with pytest.raises(TransientError, match=f"^the server at {URL} cannot be reached .*refused.*: check scoring"):
        VLLMServer(URL, patient=patient).models()
    assert len(fake.asked) == tries


def test_what_is_no_vllm_is_told(fake: Fake, teacher: ModelSource) -> None:
    served, fake.models = fake.models, []
    assert "serves nothing, and not 'demo'" in _refused(teacher)
    fake.always("/v1/models", _json({"detail": "Not Found"}, 404))
    assert "lists no models: scoring.server has to be the address of a `vllm serve`" in _refused(teacher)
    fake.always("/v1/models", httpx.Response(200, text="<html>hello</html>"))
    assert "answers /v1/models with something else than JSON" in _refused(teacher)
    fake.once("/v1/models")
    fake.models = served
    fake.always("/v1/completions", _json({"choices": [{"text": "x", "logprobs": None}]}))
    assert "gives no prompt_logprobs: scoring.server has to be" in _refused(teacher)
    fake.always("/v1/completions", _json({"error": {"message": "prompt must be\na text"}}, 400))
    assert "refuses what it is asked: prompt must be a text" in _refused(teacher)


@pytest.mark.parametrize("logprob", [2.0, -0.5, -40.0])
def test_logits_in_the_place_of_log_probs_are_told(fake: Fake, teacher: ModelSource, logprob: float) -> None:
    fake.logprob = logprob
    assert "gives no log-probabilities" in _refused(teacher)
    assert "--logprobs-mode raw_logprobs" in _refused(teacher)


def test_which_of_its_models_is_the_teacher(fake: Fake) -> None:
    hub = ModelSource(name="72B", hub="Qwen/Qwen2.5-72B-Instruct", revision="0")
    demo = resolve("demo", "teacher")
    one = {"id": "prod", "root": "Qwen/Qwen2.5-7B-Instruct"}
    fake.models = [one]
    assert "serves 'prod', and not '72B': set scoring.server_model to what it calls the teacher" in _refused(hub)
    assert connect(URL, None, demo, 5, 300).name == "prod"  # the only one, and nobody knows of what
    assert connect(URL, "prod", demo, 5, 300).name == "prod"
    fake.models = [one, {"id": "adapter", "root": "/a", "parent": "prod"}]
    assert connect(URL, None, demo, 5, 300).name == "prod"
    fake.models = [one, {"id": "demo", "root": "/else"}]
    assert connect(URL, None, demo, 5, 300).name == "demo"
    fake.models = [one, {"id": "large", "root": str(demo.path)}]
    assert connect(URL, None, demo, 5, 300).name == "large"
    fake.models = [one, {"id": "large", "root": "/else"}]
    assert "serves 'prod', 'large', and not 'demo'" in _refused(demo)


def test_an_answer_becomes_a_scored_row(fake: Fake) -> None:
    engine = ServerEngine(ServedModel(VLLMServer(URL), "demo"))
    row = TokenisedRow("r", [5, 6, 7, 8], 2)
    (scored,) = engine.score([row], 3)
    assert scored.topk_ids_RK.tolist() == [[1000, 1001, 1002]] * 2
    assert scored.logprobs_RK.tolist() == [[-7.0] * 3] * 2
    assert np.isneginf(scored.actual_logprobs_R).all()
    assert json.loads(fake.asked[0].content)["prompt"] == [5, 6, 7, 8]
    many = [TokenisedRow(str(n), [5, 6, n], 2) for n in range(200)]
    assert [one.row_id for one in engine.score(many, 3)] == [one.row_id for one in many]
    engine.close()


def test_a_key_goes_with_every_request_and_into_no_message(
    fake: Fake, teacher: ModelSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY, "a0key0without0a0shape")
    connect(URL, None, teacher, 5, 300)
    assert {request.headers["Authorization"] for request in fake.asked} == {"Bearer a0key0without0a0shape"}
    fake.always("/v1/completions", _json({"error": "no"}, 403))
    assert "refuses the key in VLLM_API_KEY" in (told := _refused(teacher))
    assert "shape" not in told


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"engine": "server"}, "scoring.engine=server needs scoring.server: the address of a `vllm serve`"),
        ({"server": URL}, "scoring.server is for scoring.engine=server, and the engine is vllm"),
        ({"engine": "transformers", "server_model": "x"}, "scoring.server_model is for scoring.engine=server"),
        ({"engine": "server", "server": URL, "dtype": "bfloat16"}, "scoring.dtype is for a teacher that is loaded"),
        ({"engine": "server", "server": URL, "tensor_parallel": 2}, "scoring.tensor_parallel is for a teacher that"),
        ({"engine": "server", "server": "http://u:pa55word@h"}, "it holds a key or a password"),
        ({"engine": "server", "server": "gpu-1:8000"}, "scoring.server has to begin with http:// or https://"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words) as refused:
        Scoring(**given)
    assert "pa55word" not in str(refused.value)


def test_where_the_teacher_is_changes_no_store_and_takes_no_gpu(teacher: ModelSource) -> None:
    rows = ArtifactRef(kind="augment", uri="s3://b/a/", sha256="a", fingerprint="a")
    here, away = (ScoreTeacher(rows=rows, teacher=teacher, k=10, scoring=how) for how in (Scoring(), AWAY))
    assert away.workspace().fingerprint == here.workspace().fingerprint
    assert away.slots({}) == {}
    assert (needs := away.needs(Gpus(8, 79 * 2**30))) is not None
    assert needs.gpus == 0
    assert scoring_parallel(AWAY, teacher, Gpus(8)) == 0
    assert [scoring_engines(AWAY.model_copy(update={"engines": n}), 0, Gpus(2)) for n in (0, 3)] == [1, 3]


def test_only_the_teacher_is_asked_of_the_server(teacher: ModelSource) -> None:
    settings = {"scoring": AWAY, "fit": Fit(keep=0.5), "benchmarks": Benchmarks(harness=("gsm8k",))}
    recipe = Recipe.of({"student": "0.5B", **settings})
    scorings: dict[str, Scoring] = {}

    def look(stage: Stage[Any]) -> Any:
        if found := getattr(stage, "scoring", None):
            scorings[stage.title] = found
        return Finder().find(stage)

    pipeline(look, recipe, resolve("demo", "student"), teacher)
    assert {name: how.engine for name, how in scorings.items()} == {
        "student_scores": "vllm",
        "logits": "server",
        "lm_eval": "vllm",
    }


def test_a_plan_has_no_memory_and_no_devices_for_it() -> None:
    away = known(scoring=AWAY, evaluation=Evaluation(teacher="topk"), keep=0.5)
    plan = make_plan(away, find)
    stages = {stage.name: stage for stage in plan.stages}
    for name in ("logits", "heldout_scores"):
        stage = stages[name]
        assert (stage.memory_bytes, stage.devices, stage.device_hours, stage.hours) == (None, None, None, 0.0)
    assert stages["student_scores"].memory_bytes
    assert plan.problems == []
    assert not any("scoring.tensor_parallel" in chosen for chosen in plan.chosen)
    assert "the teacher scores on a server of its own, whose hours and money are not in it" in plan.assumptions
    assert make_plan(dataclasses.replace(away, scoring=Scoring()), find).assumptions != plan.assumptions


def test_the_most_that_will_be_asked_is_checked_before_the_first_stage(fake: Fake, teacher: ModelSource) -> None:
    fake.models = [{"id": "demo", "root": "/", "max_model_len": 385}]
    recipe = Recipe.of({"scoring": AWAY})
    problems, (told,) = check_server(teacher, recipe)
    assert problems == []
    assert told.startswith(
        "the server scores with demo, and evaluation loads it here to have its own answers, and once"
    )
    longer = Recipe.of({"scoring": AWAY, "evaluation": Evaluation(teacher="topk", max_length=500, top_k=20)})
    (told,), _remarks = check_server(teacher, longer)
    assert "takes 385 tokens, and rows have up to 500: start it with `--max-model-len 501`" in told
    fake.models[0]["max_model_len"] = 512
    fake.asked.clear()
    problems, (told,) = check_server(teacher, longer)
    assert problems == []
    assert told.endswith("to have its own answers")
    assert json.loads(fake.asked[-1].content)["prompt_logprobs"] == 20
    assert check_server(teacher, Recipe.of({})) == ([], [])
