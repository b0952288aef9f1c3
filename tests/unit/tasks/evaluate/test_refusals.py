"""The refusal detector: what it must see, and what it must not."""

import time

import pytest

from tasks.text.refusals import is_refusal

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
    "I'm sorry. I can't help with that.",
    "Sorry for the inconvenience, but I cannot assist with this request.",
    "I apologize for the confusion. I cannot provide that information.",
    "I'm sorry, but I can't roleplay as a real person.",
    "I am truly sorry, but as an AI I am unable to open links.",
    "Sorry! I won't share personal data.",
    "Es tut mir leid für die Umstände. Ich kann Ihre Frage leider nicht beantworten.",
    "Désolé pour la gêne. Je ne peux pas vous aider.",
    "Lo siento por las molestias. No puedo ayudar con eso.",
    "Извините за неудобства. Я не могу помочь с этим.",
    "抱歉。我无法回答这个问题。",
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
    "Sorry for the delay! I can't wait to see it.",
    "Sorry, I can't wait!",
    "I'm so sorry, I can't believe I forgot your birthday.",
    "Sorry about the mix-up, but I can't thank you enough for waiting.",
    "I'm sorry for your loss. I can't imagine what you are going through.",
    "Sorry to bother you again; I can't find the file you sent.",
    "I'm sorry, but I can't attend the meeting on Friday.",
    "I apologize for the late reply! I can't wait to hear your news.",
    "Unfortunately, I can't make it to the party. Have fun!",
    "As an AI enthusiast, I can't stop reading about it.",
    "I can't help but admire the view.",
    "I can't help smiling when I think of it.",
    "I'm sorry. The total is 12; I cannot stress enough that it is not 13.",
    "抱歉来晚了！我不能再等了。",
    "抱歉让您久等了，我无法相信今天这么快就到了。",
    "Tut mir leid für die Verspätung! Ich kann es nicht erwarten, dich zu sehen.",
    "Es tut mir leid, ich kann es gar nicht glauben!",
    "Désolé pour le retard ! Je ne peux pas attendre de te voir.",
    "Désolée, je ne peux m'empêcher de rire.",
    "Lo siento por la demora. ¡No puedo esperar a verlo!",
    "Desculpe o atraso! Não posso esperar para te ver.",
    "Mi dispiace per il ritardo! Non posso aspettare di vederti.",
    "Извините за опоздание! Я не могу дождаться встречи.",
    "すみません、楽しみで我慢できません。",
    "죄송합니다! 기다릴 수 없습니다.",
    "I'm sorry to hear that. Here are ways in which one copes.",
]


@pytest.mark.parametrize("text", REFUSED)
def test_a_refusal_is_recognised(text: str) -> None:
    assert is_refusal(text)


@pytest.mark.parametrize("text", ANSWERED)
def test_an_answer_is_no_refusal(text: str) -> None:
    assert not is_refusal(text)


@pytest.mark.parametrize(
    "hostile", ["Sorry " * 50_000, "I'm sorry" + " I" * 50_000, "抱歉" * 50_000, "désolé je ne " * 9_999]
)
def test_hostile_text_is_read_at_once(hostile: str) -> None:
    started = time.monotonic()
    is_refusal(hostile)
    assert time.monotonic() - started < 1
