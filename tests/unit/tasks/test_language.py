"""A change of language is told where it is sure, and nothing is told of what a text quotes."""

import time

import pytest

from tasks.text.language import language_change, language_of

ENGLISH = "Explain in a few sentences how a bicycle stays upright while somebody rides it."
GERMAN = "Erkläre in ein paar Sätzen, wie ein Fahrrad beim Fahren aufrecht bleibt und warum."
FRENCH = "Explique en quelques phrases simples pourquoi un vélo reste debout quand on roule."
CHINESE = "请用几句简单的话解释自行车在骑行时为什么不会倒下。"


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        (ENGLISH, GERMAN, "from en to de"),
        (GERMAN, ENGLISH, "from de to en"),
        (ENGLISH, FRENCH, "from en to fr"),
        (ENGLISH, CHINESE, "from en to zh"),
        (CHINESE, ENGLISH, "from zh to en"),
        (f"{ENGLISH} Think of “{GERMAN}”.", f"{GERMAN} Denke an „{ENGLISH}“.", "from en to de"),
    ],
)
def test_a_sure_change_is_told(before: str, after: str, told: str) -> None:
    assert language_change(before, after) == told


TRANSLATIONS = [
    ("Übersetze den folgenden Satz ins Französische.", "Traduis la phrase suivante en allemand, s'il te plaît."),
    (f"Translate into French: {GERMAN}", f"Traduis en allemand : {FRENCH}"),
    (f"Translate to German: {ENGLISH}", f"Translate to English: {GERMAN}"),
    (f"将下面的句子翻译成英文：{CHINESE}", f"Please turn the following into Chinese: {ENGLISH}"),
    (CHINESE + "请译成英文。", f"How would one say this in Chinese? {ENGLISH}"),
    ("Wie sagt man auf Französisch, dass man müde ist?", "Comment dit-on en allemand que l'on est fatigué ?"),
    (f"Переведи на русский: {ENGLISH}", f"Translate into Russian: {GERMAN}"),
]
UNSURE = [
    (f"Summarize this: {GERMAN}", f"Summarize this: {ENGLISH}"),
    (f"What does “{GERMAN}” mean?", f"What does “{ENGLISH}” mean?"),
    (f"Correct the mistakes in the text:\n\n{GERMAN}", f"Correct the mistakes in the text:\n\n{FRENCH}"),
    (f"Classify the review.\n「{CHINESE}」", f"Classify the review.\n「{ENGLISH}」"),
    (f"{ENGLISH} {GERMAN}", GERMAN),
    (f"{GERMAN}\n{FRENCH}\nIn welcher Sprache steht der erste Satz?", FRENCH),
    ("Count.", "Zähle sie alle zusammen auf, bitte."),
    ("SELECT name FROM employees WHERE city = 'Berlin'", "Welche Angestellten wohnen in Berlin und wie heißen sie?"),
    (f"Fix the code:\n```python\n# {GERMAN}\nprint(1)\n```", f"Fix the code:\n```python\n# {ENGLISH}\nprint(1)\n```"),
    ("Solve for x: 3x + 4 = 10", "Löse die Gleichung nach x auf: 3x + 4 = 10"),
    ("Who wrote “Die Leiden des jungen Werthers”?", "Wer hat “The Old Man and the Sea” geschrieben?"),
    ("", GERMAN),
]


@pytest.mark.parametrize(("before", "after"), [*TRANSLATIONS, *UNSURE])
def test_what_is_not_sure_is_no_change(before: str, after: str) -> None:
    assert language_change(before, after) is None
    assert language_change(after, before) is None


def test_the_same_language_is_no_change() -> None:
    for text in (ENGLISH, GERMAN, FRENCH, CHINESE):
        assert language_change(text, text + " " + text) is None


@pytest.mark.parametrize("hostile", ["„" * 100_000, '"' * 99_999, "<" * 100_000, "'x" * 50_000, "：" * 100_000, "\x00"])
def test_hostile_text_is_read_at_once(hostile: str) -> None:
    started = time.monotonic()
    language_change(hostile, GERMAN)
    assert time.monotonic() - started < 1
    assert language_of(hostile)
