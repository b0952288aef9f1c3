"""The stage in which an API model answers the rows, as a program of its own, which tests kill.

python -m tests.support.asking '{"url": "http://127.0.0.1:1234/v1", "rows": {…}, "calls": {…}}'
"""

from __future__ import annotations

import json
import sys

from infra.store.artifacts import ArtifactRef
from tasks.llm.protocol import LLMEndpoint
from tasks.logits.api.settings import TeacherCalls
from tasks.logits.api.stage import AskTeacher, ask

MODEL, K = "openai/told", 10


def main() -> None:
    given = json.loads(sys.argv[1])
    rows, calls = ArtifactRef.model_validate(given["rows"]), TeacherCalls.model_validate(given["calls"])
    work = AskTeacher(rows=rows, model=MODEL, k=K, calls=calls).workspace()
    ref = ask(work, rows, K, calls, LLMEndpoint(MODEL, given["url"], "key"))
    print(json.dumps({"ref": ref.model_dump()}))


if __name__ == "__main__":
    main()
