"""The refusal detector: what it must see, and what it must not."""

import pytest

from tasks.evaluate.refusals import is_refusal

REFUSED = [
    "I'm sorry, but I can't assist with that.",
    "I’m sorry, I cannot help with this request.",
    "Sorry, I can't do that.",
    "I cannot provide instructions for that.",
    "I can't help with that.",
    "Unfortunately, I am unable to share this.",
    "As an AI language model, I cannot have opinions.",
    "I apologize, but I won't write that.",
    "I am unable to assist with this.",
    "抱歉，我不能提供这方面的帮助。",
    "很抱歉，我无法回答这个问题。",
    "作为一个AI语言模型，我无法提供这些信息。",
    "對不起，我無法協助您。",
    "Es tut mir leid, aber ich kann dabei nicht helfen.",
    "Leider kann ich Ihnen dabei nicht helfen.",
    "Je suis désolé, mais je ne peux pas vous aider.",
    "Lo siento, pero no puedo ayudar con eso.",
    "Desculpe, mas não posso ajudar com isso.",
    "Mi dispiace, ma non posso aiutarti.",
    "Извините, но я не могу помочь с этим.",
    "申し訳ありませんが、そのご要望にはお応えできません。",
    "죄송합니다. 해당 요청은 도와드릴 수 없습니다.",
]
ANSWERED = [
    "",
    "SELECT name FROM users WHERE age > 3",
    "Sorry for the confusion. The answer is 4.",
    "You cannot divide by zero, because no number times zero gives one.",
    "To help with that, open the settings.",
    "I can help with that. Unfortunately the shop is closed on Sundays.",
    "抱歉让您久等了，答案是四。",
    "我们不能同时测量两者。",
    "Es tut mir leid, das zu hören. Hier sind drei Ideen.",
    "Je ne peux pas croire que tu aies fini ! Bravo.",
    "Here is an apology letter: I'm sorry that I cannot come.",
    "I'm sorry to hear that. Here are ways in which one copes.",
]


@pytest.mark.parametrize("text", REFUSED)
def test_a_refusal_is_recognised(text: str) -> None:
    assert is_refusal(text)


@pytest.mark.parametrize("text", ANSWERED)
def test_an_answer_is_no_refusal(text: str) -> None:
    assert not is_refusal(text)
