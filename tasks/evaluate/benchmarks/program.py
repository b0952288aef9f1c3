"""The program that lets variants answer the benchmarks' questions: one engine a variant, all its turns in it.

python -m tasks.evaluate.benchmarks.program FOLDER

A variant's answers are published as soon as it has given them, so a kill costs the variant under way.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from infra import devices
from infra.processes import child
from infra.store.artifacts import Workspace, digest_of
from tasks.engines.generation import Ends, Generator, Prompt, Sampling, TransformersGenerator, vllm_generator
from tasks.evaluate.benchmarks import artifacts, questions
from tasks.evaluate.benchmarks.questions import Question
from tasks.evaluate.benchmarks.settings import Benchmarks
from tasks.evaluate.heldout.scoring import load_model
from tasks.evaluate.parallel import generation_parallel
from tasks.evaluate.settings import Evaluation
from tasks.models import ModelSource, load_tokenizer
from tasks.rows import Message
from tasks.tokens.rows import holds_control_tokens, rendered_prompt


def main(spec: dict[str, Any], reporter: child.Reporter) -> dict[str, Any]:
    """The references of all answers, by variant and benchmark ("kd/alpaca_eval")."""
    options = Benchmarks.model_validate(spec["options"])
    evaluation = Evaluation.model_validate(spec["evaluation"])
    asked = {name: artifacts.load(name, options) for described in spec["variants"] for name in described["workspaces"]}
    turns = {name: sum(len(question.turns) for question in of) for name, of in asked.items()}
    total = sum(turns[name] for described in spec["variants"] for name in described["workspaces"])
    done = 0
    refs: dict[str, Any] = {}
    for described in spec["variants"]:
        works = {name: Workspace.from_description(work) for name, work in described["workspaces"].items()}

        def advance(by: int, variant: str = described["name"]) -> None:
            nonlocal done
            done += by
            reporter.progress(done, total, variant=variant)

        variant = AnsweringVariant(
            ModelSource.model_validate(described["model"]),
            [question for name in works for question in asked[name]],
            options.max_new_tokens,
            evaluation,
            reporter,
            described["name"],
            advance,
        )
        answered = artifacts.answer(works, options, variant.generate)
        variant.close()
        refs |= {f"{described['name']}/{name}": ref.model_dump() for name, ref in answered.items()}
    return {"refs": refs}


class AnsweringVariant:
    """One model at the questions. Its engine starts with the first prompt and lives until `close`."""

    def __init__(
        self,
        source: ModelSource,
        asked: Sequence[Question],
        max_new_tokens: int,
        evaluation: Evaluation,
        reporter: child.Reporter,
        name: str,
        advance: Callable[[int], None],
    ):
        self._source = source
        self._asked = asked
        self._evaluation = evaluation
        self._reporter = reporter
        self._name = name
        self._advance = advance
        self._tokenizer = load_tokenizer(source)
        self._context = source.context()
        self._max_new_tokens = min(max_new_tokens, self._context - 1)
        self._generator: Generator | None = None

    def generate(self, prompts: Sequence[questions.ConversationPrompt]) -> list[str]:
        """An answer to each conversation, greedy where its temperature is 0.

        The answer is empty where the conversation leaves no room in the model's context, or holds a control token of
        the chat template, which would let a question speak as the model.
        """
        ids = [self._ids(prompt.messages) for prompt in prompts]
        texts = [""] * len(prompts)
        places = defaultdict(list)
        for place, prompt in enumerate(prompts):
            if 0 < len(ids[place]) < self._context:
                places[prompt.temperature].append(place)
        self._advance(len(prompts) - sum(map(len, places.values())))
        for temperature, at in sorted(places.items()):
            given = [Prompt(digest_of(prompts[place].model_dump(mode="json")), ids[place]) for place in at]
            sampling = Sampling(1, temperature, 1.0, self._evaluation.seed) if temperature else None
            generator = self._started()
            with child.abort_if_a_child_dies(self._reporter.folder, "the engine that generates"):
                for place, [answer] in zip(at, generator.answers(given, sampling), strict=True):
                    texts[place] = answer.text
                    self._advance(1)
        return texts

    def close(self) -> None:
        if self._generator is not None:
            self._generator.close()

    def _started(self) -> Generator:
        if self._generator is None:
            with self._reporter.loading(f"{self._evaluation.engine} with {self._name}"):
                self._generator = self._loaded()
        return self._generator

    def _loaded(self) -> Generator:
        how, ends = self._evaluation, Ends.of(self._source, self._tokenizer)
        if how.engine == "transformers":
            return TransformersGenerator(
                load_model(self._source, how.dtype), ends, self._max_new_tokens, how.batch_rows
            )
        length = min(self._context, max(map(self._longest, self._asked)) + self._max_new_tokens)
        parallel = generation_parallel(how, self._source, length, devices.here(), self._reporter.note)
        return vllm_generator(self._source, ends, length, self._max_new_tokens, how.dtype, parallel, how.gpu_memory)

    def _longest(self, question: Question) -> int:
        """Tokens of a question's last prompt, with the longest answers before it."""
        answers = [""] * (len(question.turns) - 1)
        messages = tuple(questions.messages(question, answers))
        return len(self._ids(messages)) + len(answers) * self._max_new_tokens

    def _ids(self, messages: Sequence[Message]) -> list[int]:
        """The prompt's tokens; none where a message holds a control token."""
        if holds_control_tokens(messages, self._tokenizer):
            return []
        text = rendered_prompt(messages, self._tokenizer)
        return list(self._tokenizer.encode(text, add_special_tokens=False))


if __name__ == "__main__":
    child.run(main, Path(sys.argv[-1]))
