"""Held-out questions as they come back in other data: in another order, retold, translated; and near misses."""

# (held out, in another order, a word or two exchanged, said otherwise, translated, another question in its words)
QUESTIONS = [
    (
        "Write a short e-mail to my landlord asking him to repair the leaking tap in the bathroom.",
        "The tap in the bathroom is leaking: write a short e-mail to my landlord asking him to repair it.",
        "Please write a short email to my landlord asking him to repair the leaking tap in the bathroom.",
        "My bathroom faucet drips. Draft a brief note to the owner of my flat so that he gets it fixed.",
        "Schreibe eine kurze E-Mail an meinen Vermieter mit der Bitte, den tropfenden Wasserhahn im Bad zu reparieren.",
        "Write a short e-mail to my landlord asking him to lower the rent of the parking space in the yard.",
    ),
    (
        "How many litres of water does a bathtub hold that is 1.6 m long, 0.7 m wide and 0.5 m deep?",
        "A bathtub is 1.6 m long, 0.7 m wide and 0.5 m deep. How many litres of water does it hold?",
        "How many litres of water can a bathtub hold which is 1.6 m long, 0.7 m wide and 0.5 m deep?",
        "Compute the capacity in liters of a tub measuring 1.6 m by 0.7 m by 0.5 m.",
        "¿Cuántos litros de agua caben en una bañera de 1.6 m de largo, 0.7 m de ancho y 0.5 m de profundidad?",
        "How many litres of water does a bathtub hold that is 1.8 m long, 0.6 m wide and 0.4 m deep?",
    ),
    (
        "Explain to a ten-year-old why the sky is blue during the day and red in the evening.",
        "Why is the sky blue during the day and red in the evening? Explain it to a ten-year-old.",
        "Explain to a ten-year-old child why the sky is blue during the day but red in the evening.",
        "A kid of ten wonders about the colours overhead at noon and at sunset. Give a simple reason.",
        "Explique à un enfant de dix ans pourquoi le ciel est bleu pendant la journée et rouge le soir.",
        "Explain to a ten-year-old why the sea is salty in the bay and sweet in the river.",
    ),
    (
        "Name three novels by women writers that were published in Japan before the war.",
        "Before the war, three novels by women writers were published in Japan: name three of them.",
        "Name three novels by women authors that were published in Japan before the war.",
        "Which pre-war Japanese fiction of book length had female authors? Give three titles.",
        "请列举三部战前在日本出版的女作家小说。",
        "Name three operas by Italian composers that were performed in Vienna after the war.",
    ),
    (
        "Turn this list of ingredients into a shopping list sorted by the sections of a supermarket.",
        "Sorted by the sections of a supermarket, turn this list of ingredients into a shopping list.",
        "Turn this list of ingredients into a shopping list that is sorted by the sections of a supermarket.",
        "Group what the recipe needs by aisle so that I can buy it quickly.",
        "Mache aus dieser Zutatenliste einen Einkaufszettel, geordnet nach den Abteilungen eines Supermarkts.",
        "Turn this list of guests into a seating plan grouped by the families of the bride.",
    ),
    (
        "Which of the two bicycles is better for commuting ten kilometres a day in a hilly city, and why?",
        "For commuting ten kilometres a day in a hilly city, which of the two bicycles is better, and why?",
        "Which of the two bikes is better for commuting ten kilometres a day in a hilly city, and why is that?",
        "I ride to work through steep streets. Should I take the first bike or the second? Give reasons.",
        "Laquelle des deux bicyclettes convient le mieux pour dix kilomètres par jour dans une ville vallonnée ?",
        "Which of the two laptops is better for editing ten hours of video a day in a noisy studio, and why?",
    ),
    (
        "Write a Python function that returns the longest common prefix of a list of strings.",
        "The longest common prefix of a list of strings: write a Python function that returns it.",
        "Write a Python function which returns the longest common prefix of a list of strings.",
        "Implement code finding the leading characters that all given texts share.",
        "Escribe una función de Python que devuelva el prefijo común más largo de una lista de cadenas.",
        "Write a Python function that returns the second largest number of a list of integers.",
    ),
    (
        "Summarise the plot of Romeo and Juliet in five sentences for a school newspaper.",
        "For a school newspaper, summarise in five sentences the plot of Romeo and Juliet.",
        "Summarise the plot of Romeo and Juliet in five sentences for the school newspaper.",
        "Tell pupils what happens to Shakespeare's lovers of Verona, briefly.",
        "用五句话为校报概括《罗密欧与朱丽叶》的情节。",
        "Summarise the plot of Moby Dick in nine sentences for a sailing magazine.",
    ),
    (
        "What should I say to a colleague who takes credit for my work in front of our manager?",
        "A colleague takes credit for my work in front of our manager: what should I say to him?",
        "What should I say to a colleague who is taking credit for my work in front of our manager?",
        "Someone in my team presents my results as their own to the boss. How do I bring it up?",
        "Was soll ich einem Kollegen sagen, der vor unserem Chef meine Arbeit als seine ausgibt?",
        "What should I say to a neighbour who parks his car in front of our garage?",
    ),
    (
        "Convert the temperature of 350 degrees Fahrenheit to Celsius and round it to whole degrees.",
        "Round to whole degrees and convert to Celsius the temperature of 350 degrees Fahrenheit.",
        "Convert a temperature of 350 degrees Fahrenheit to Celsius and round it to whole degrees.",
        "What does 350 °F correspond to on the centigrade scale, to the nearest degree?",
        "Convertissez 350 degrés Fahrenheit en degrés Celsius, arrondis au degré.",
        "Convert the temperature of 410 degrees Fahrenheit to Celsius and round it to whole degrees.",
    ),
]
LANGUAGES = ["de", "es", "fr", "zh", "de", "fr", "es", "zh", "de", "fr"]  # of the translations
KINDS = ("in another order", "reworded", "retold", "translated")
# (the answer to the one held out, to it as it is said otherwise, as it is translated), each of another writer
ANSWERS = [
    (
        (
            "Subject: Leaking tap\n\nDear Ms Hall,\n\nthe tap in my bathroom has been dripping since Monday. "
            "Could you please send a plumber to repair it this week?\n\nKind regards,\nAnna Reed"
        ),
        (
            "Hello Mr Ortiz,\n\nthe bathroom faucet drips day and night. Would you have it fixed soon?\n\n"
            "Thank you,\nTom"
        ),
        (
            "Betreff: Tropfender Wasserhahn\n\nSehr geehrter Herr Braun,\n\nder Wasserhahn im Bad tropft seit "
            "einigen Tagen. Könnten Sie ihn bitte reparieren lassen?\n\nMit freundlichen Grüßen\nJonas Keller"
        ),
    ),
    (
        "1.6 m × 0.7 m × 0.5 m = 0.56 m³, which is 560 litres.",
        ("Multiply the sides: 1.6 * 0.7 * 0.5 = 0.56 cubic metres. A cubic metre is 1,000 L, so the tub takes 560 L."),
        "1,6 · 0,7 · 0,5 = 0,56 m³, es decir, 560 litros.",
    ),
    (
        (
            "Sunlight is made of all colours. Air scatters blue light much more than red, so blue comes to us "
            "from everywhere. In the evening the light takes a longer way through the air, the blue is lost, "
            "and red is left."
        ),
        (
            "White light is a mixture. Tiny bits of air throw the blue part around, which is why you see it at "
            "noon. When the sun is low its rays cross more air, and only the reds arrive."
        ),
        (
            "La lumière du soleil contient toutes les couleurs. L'air disperse surtout le bleu, que l'on voit "
            "donc partout. Le soir, la lumière traverse plus d'air et il ne reste que le rouge."
        ),
    ),
    (
        (
            "1. Fumiko Hayashi, Diary of a Vagabond (1930)\n2. Nobuko Yoshiya, Flower Tales (1916-1924)\n3. "
            "Yuriko Miyamoto, Nobuko (1928)"
        ),
        ("Nobuko by Miyamoto Yuriko, Horoki by Hayashi Fumiko, and Two Virgins in the Attic by Yoshiya Nobuko."),
        "1. 林芙美子《放浪记》(1930)\n2. 宫本百合子《伸子》(1928)\n3. 吉屋信子《花物语》(1916-1924)",
    ),
    (
        (
            "Fruit and vegetables: tomatoes, onions, basil\nDairy: mozzarella\nDry goods: pasta, olive oil\n"
            "Meat: minced beef"
        ),
        (
            "Produce: onions, tomatoes, basil. Dairy case: mozzarella. Pasta aisle: spaghetti. Oils: olive "
            "oil. Butcher: minced beef."
        ),
        (
            "Obst und Gemüse: Tomaten, Zwiebeln, Basilikum\nMilchprodukte: Mozzarella\nTrockenwaren: Nudeln, "
            "Olivenöl\nFleisch: Rinderhack"
        ),
    ),
    (
        (
            "The second one. Its seven gears and disc brakes matter on hills, and at ten kilometres a day its "
            "14 kg weigh less than the comfort that it gives."
        ),
        (
            "Take the second: you need its gears to climb and its disc brakes to come down again. The first "
            "has one gear only."
        ),
        (
            "Le second : ses vitesses et ses freins à disque comptent dans les côtes, et pour dix kilomètres "
            "son poids est acceptable."
        ),
    ),
    (
        (
            'def longest_common_prefix(strings):\n    if not strings:\n        return ""\n    shortest = '
            "min(strings, key=len)\n    for place, letter in enumerate(shortest):\n        if any(other[place] "
            "!= letter for other in strings):\n            return shortest[:place]\n    return shortest"
        ),
        (
            'def shared_start(texts):\n    prefix = ""\n    for letters in zip(*texts):\n        if '
            "len(set(letters)) > 1:\n            break\n        prefix += letters[0]\n    return prefix"
        ),
        (
            'def prefijo_comun(cadenas):\n    if not cadenas:\n        return ""\n    corta = min(cadenas, '
            "key=len)\n    for i, letra in enumerate(corta):\n        if any(c[i] != letra for c in "
            "cadenas):\n            return corta[:i]\n    return corta"
        ),
    ),
    (
        (
            "Romeo and Juliet, children of two feuding families of Verona, fall in love at a ball. Friar "
            "Laurence marries them in secret. Romeo kills Tybalt and is banished. Juliet takes a potion that "
            "makes her seem dead. Romeo finds her and poisons himself, and she stabs herself when she wakes."
        ),
        (
            "Romeo Montague and Juliet Capulet fall in love although their families hate each other. They "
            "marry secretly, he has to flee, and a message about her feigned death is lost. Both die by their "
            "own hand, and the families make peace."
        ),
        "罗密欧与朱丽叶来自维罗纳的两个世仇家族，他们在舞会上相爱。劳伦斯神父为他们秘密主持婚礼。罗密欧杀死提伯尔特后被放逐。朱丽叶服药假死。罗密欧以为她已死而服毒，她醒来后也自杀了。",
    ),
    (
        (
            'Speak to him alone first: "I noticed that my analysis was shown to our manager without my name. I '
            'would like us to present it together next time." If it goes on, tell your manager, with examples.'
        ),
        (
            "Stay calm and name the facts to your teammate in private: which slides were yours, and that you "
            "want to be mentioned. Should it happen again, take a record of it to the boss."
        ),
        (
            'Sprich ihn unter vier Augen an: "Mir ist aufgefallen, dass meine Analyse ohne meinen Namen '
            'vorgestellt wurde. Beim nächsten Mal möchte ich sie mit vorstellen." Hört es nicht auf, rede mit '
            "eurem Chef."
        ),
    ),
    (
        "(350 - 32) * 5 / 9 = 176.67, so about 177 °C.",
        "About 177 °C: subtract 32 and multiply by 5/9.",
        "350 °F correspondent à environ 177 °C.",
    ),
]
