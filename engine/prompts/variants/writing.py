"""Generate prompts for free text (capability fluency) and instructions with a checkable format
(capability instructions).
"""

from __future__ import annotations

from random import Random

from engine.prompts.prompt import AnyCheck, FormatCheck
from engine.prompts.variants.draft import Draft
from engine.prompts.variants.words import POOLS, draw, fill

_NUMBERS = {2: "two", 3: "three", 4: "four", 5: "five", 6: "six", 7: "seven", 8: "eight"}

# Kinds of text to write, with slots; each is a family.
_FORMS = (
    "Write a short story about {a} that takes place in {city}.",
    "Describe {topic} to somebody who has never heard of it.",
    "Write a friendly letter from {person} to {person2}, who has moved to {city}.",
    "Write a dialogue between a {job} and a {job2} who wait for the same bus in {city}.",
    "Tell a bedtime story about a {animal} and {topic}.",
    "Write a product description for a {colour} {product}.",
    "Write the first paragraph of a novel that begins in {city} on a {colour} {vehicle}.",
    "Describe {place} of {city} early in the morning.",
    "Write a diary entry of a {job} after a long day in {city}.",
    "Write a poem of eight lines about {topic}.",
    "Write a speech for {person}, a {job}, who retires today.",
    "Explain {topic} in a warm and simple way, as to a child.",
    "Write a postcard from {city} to {person}.",
    "Write a review of {restaurant}, where {food} was served.",
    "Write a short news report: a {animal} was found in the {room} of a {job}.",
    "Continue the story: {person} opened the {colour} door and saw",
    "Describe the smell and the taste of {food}.",
    "Write an invitation: {person} cooks {food} for the neighbours.",
    "Write a monologue of an old {product} that was left behind in {city}.",
    "Compare {city} and {city2} in a few vivid sentences.",
    "Write a fable with a {animal} and a {animal2}. End with its moral.",
    "Write an apology from {person} to {person2} about a broken {product}.",
    "Describe a market in {country} with all five senses.",
    "Write a toast for the wedding of {person} and {person2}.",
    "Tell how {person} learnt to cook {food}.",
    "Write a mystery in miniature: the {product} vanished from the {place}.",
    "Describe {person}, a {job} from {country}, so that one would recognise them in a crowd.",
    "Write a thank-you note to the {job} who found the lost {thing}.",
    "Retell an ordinary day in {city} as if it were an epic.",
    "Write a calm description of {topic} for a magazine.",
)
_WISHES = (
    "", "", "", " Keep it short.", " Make it cheerful.", " Let it be a little sad.",
    " Use plain words.", " Write in the present tense.", " Write about a hundred words.",
    " Add a touch of humour.", " Address the reader directly.", " End with a question.",
)  # fmt: skip
_MORE = (
    "Now make it shorter.", "Write it once more, in the past tense.", "Give it a title.",
    "And how does it go on?", "Make it more formal.", "Now the same for children, please.",
    "Which sentence of it do you like best, and why?", "Rewrite the beginning.",
)  # fmt: skip


def fluent(rng: Random) -> Draft:
    """A text to write; one in six has a second turn."""
    place = rng.randrange(len(_FORMS))
    text = _fill(_FORMS[place], rng) + rng.choice(_WISHES)
    then = (rng.choice(_MORE),) if rng.random() < 1 / 6 else ()
    return Draft(f"fluency/form/{place}", text, FormatCheck(words=(8, 1000)), then=then)


def _fill(template: str, rng: Random) -> str:
    """The filled template; `{a}` is a pair of characters, `{vehicle}` a means of transport."""
    somebody = f"a {draw('job', rng)} and a {draw('animal', rng)}"
    vehicle = rng.choice(("bicycle", "tram", "ferry", "night train", "bus", "rowing boat"))
    ready = template.replace("{a}", somebody).replace("{vehicle}", vehicle)
    return fill(ready.replace("Describe {place} of", "Describe the {place} of"), rng)[0]


def instruct(rng: Random) -> Draft:
    """A task with one rule about its format, or two."""
    rule = rng.choice(_RULES)
    text, check = rule(rng)
    return Draft(f"rule{rule.__name__}", text, check)


def _topic(rng: Random) -> str:
    return draw("topic", rng)


def _few(rng: Random, low: int = 2, high: int = 6) -> tuple[int, str]:
    n = rng.randint(low, high)
    return n, rng.choice((_NUMBERS[n], str(n)))


_Rule = tuple[str, AnyCheck]


def _sentences(rng: Random) -> _Rule:
    n, word = _few(rng)
    text = rng.choice(
        (
            f"Write exactly {word} sentences about {_topic(rng)}.",
            f"Tell me something about {_topic(rng)} in {word} sentences, no more and no fewer.",
        )
    )
    return text, FormatCheck(sentences=n)


def _bullets(rng: Random) -> _Rule:
    n, word = _few(rng, 3, 7)
    what = rng.choice(
        ("facts about", "reasons to learn about", "questions about", "words that go with")
    )
    return f"Give a bulleted list of {word} {what} {_topic(rng)}.", FormatCheck(items=n)


def _steps(rng: Random) -> _Rule:
    n, word = _few(rng, 3, 6)
    task = rng.choice(
        (
            f"cook {draw('food', rng)}",
            f"pack for a trip to {draw('city', rng)}",
            f"clean a {draw('product', rng)}",
            f"prepare a talk on {_topic(rng)}",
        )
    )
    return f"Explain how to {task} in {word} numbered steps.", FormatCheck(numbered=n)


def _at_most(rng: Random) -> _Rule:
    most = rng.choice((12, 15, 20, 25, 30, 40, 50))
    return f"Describe {_topic(rng)} in at most {most} words.", FormatCheck(words=(3, most))


def _one_word(rng: Random) -> _Rule:
    pairs = (
        ("cold", ("hot", "warm")), ("early", ("late",)), ("heavy", ("light",)), ("empty", ("full",)),
        ("loud", ("quiet", "silent", "soft")), ("deep", ("shallow",)), ("begin", ("end", "finish", "stop")),
        ("rich", ("poor",)), ("brave", ("cowardly", "timid", "afraid", "fearful")), ("dark", ("light", "bright")),
        ("wet", ("dry",)), ("win", ("lose",)), ("friend", ("enemy", "foe")), ("buy", ("sell",)),
        ("narrow", ("wide", "broad")), ("ancient", ("modern", "new")), ("arrive", ("leave", "depart")),
    )  # fmt: skip
    word, right = rng.choice(pairs)
    ask = rng.choice(
        (
            f"Answer with one word only: what is the opposite of {word}?",
            f"The opposite of {word}, in a single word, please.",
            f"One word, nothing else: the contrary of '{word}'.",
        )
    )
    return ask, FormatCheck(exact=right)


def _sorted(rng: Random) -> _Rule:
    words = rng.sample(
        [w for w in POOLS["fruit"] + POOLS["animal"] + POOLS["colour"] if w.isalpha()],
        rng.randint(4, 6),
    )
    return f"Sort these words alphabetically: {', '.join(words)}.", FormatCheck(
        order=tuple(sorted(words))
    )


def _backwards(rng: Random) -> _Rule:
    n = rng.randint(5, 15)
    numbers = [str(i) for i in range(n, 0, -1)]
    return f"Count down from {n} to 1, separated by commas, and write nothing else.", (
        FormatCheck(exact=(", ".join(numbers), ",".join(numbers)))
    )


def _upper(rng: Random) -> _Rule:
    return f"Write one sentence about {_topic(rng)} in capital letters only.", FormatCheck(
        upper=True, sentences=1
    )


def _lower(rng: Random) -> _Rule:
    return f"Write two sentences about {_topic(rng)} without a single capital letter.", FormatCheck(
        lower=True
    )


def _include(rng: Random) -> _Rule:
    words = rng.sample(
        (
            "lantern",
            "whisper",
            "bridge",
            "copper",
            "winter",
            "garden",
            "letter",
            "river",
            "silver",
            "window",
            "promise",
            "mountain",
        ),
        3,
    )
    return f"Use the words {words[0]}, {words[1]} and {words[2]} in one sentence.", (
        FormatCheck(contains=tuple(words), sentences=1)
    )


def _avoid(rng: Random) -> _Rule:
    word = rng.choice(("very", "is", "the", "and", "it", "are"))
    return f"Describe {_topic(rng)} in two or three sentences without the word '{word}'.", (
        FormatCheck(without=(word,), words=(6, 100))
    )


def _no_letter(rng: Random) -> _Rule:
    letter = rng.choice("zqxkvwb")
    return f"Write a sentence about {_topic(rng)} that does not contain the letter {letter}.", (
        FormatCheck(without_letter=letter, words=(4, 60))
    )


def _starts(rng: Random) -> _Rule:
    begin = rng.choice(
        (
            "Long ago",
            "In my opinion",
            "Most people",
            "Strangely enough",
            "If you ask me",
            "On a quiet day",
        )
    )
    return (
        f"Write a short paragraph about {_topic(rng)} that begins with the words '{begin}'.",
        FormatCheck(starts=begin),
    )


def _ends(rng: Random) -> _Rule:
    end = rng.choice(
        ("That is all.", "The end.", "Who knows?", "And so it goes.", "Think about it.")
    )
    return f"Write three sentences about {_topic(rng)}. The last one must be: {end}", FormatCheck(
        ends=end, sentences=3
    )


def _paragraphs(rng: Random) -> _Rule:
    n, word = _few(rng, 2, 4)
    return (
        f"Write {word} short paragraphs about {_topic(rng)}, with an empty line between them.",
        FormatCheck(paragraphs=n),
    )


def _language(rng: Random) -> _Rule:
    name, code = rng.choice(
        (
            ("French", "fr"),
            ("German", "de"),
            ("Spanish", "es"),
            ("Italian", "it"),
            ("Dutch", "nl"),
            ("Portuguese", "pt"),
        )
    )
    return f"Write two or three simple sentences in {name} about {_topic(rng)}.", FormatCheck(
        language=code, words=(5, 120)
    )


def _title(rng: Random) -> _Rule:
    most = rng.randint(4, 8)
    return (
        f"Suggest one title of at most {most} words for an article about {_topic(rng)}. Write only the title.",
        FormatCheck(words=(1, most)),
    )


def _choice(rng: Random) -> _Rule:
    things = rng.sample(POOLS["animal"] + POOLS["food"][:6], 3)
    return f"Choose one of these and answer with its name alone: {', '.join(things)}.", FormatCheck(
        exact=tuple(things)
    )


def _repeat(rng: Random) -> _Rule:
    phrase = draw("phrase", rng)
    return f"Repeat this sentence word for word and add nothing: {phrase}", FormatCheck(
        exact=(phrase,)
    )


def _list_line(rng: Random) -> _Rule:
    n, word = _few(rng, 3, 6)
    what = rng.choice(
        (
            "animals that live in",
            "things one can buy in",
            "foods that people eat in",
            "reasons to visit",
        )
    )
    return f"Name {word} {what} {draw('country', rng)}, one on each line.", FormatCheck(items=n)


def _acrostic(rng: Random) -> _Rule:
    person = rng.choice([p for p in POOLS["person"] if p.isalpha() and len(p) == 4])
    return (
        f"Write {len(person)} lines about {_topic(rng)}; write nothing but the lines, and no empty ones.",
        FormatCheck(items=len(person)),
    )


def _question(rng: Random) -> _Rule:
    return f"Ask me one single question about {_topic(rng)} and write nothing else.", FormatCheck(
        sentences=1, ends="?"
    )


def _range_words(rng: Random) -> _Rule:
    low = rng.choice((20, 30, 40))
    return f"Write between {low} and {low + 20} words about {_topic(rng)}.", FormatCheck(
        words=(low, low + 20)
    )


def _two_rules(rng: Random) -> _Rule:
    n, word = _few(rng, 2, 4)
    begin = rng.choice(("Listen", "Today", "Well", "Imagine", "Remember"))
    return (
        f"Write {word} sentences about {_topic(rng)} and let the first word be '{begin}'.",
        FormatCheck(sentences=n, starts=begin),
    )


_RULES = (
    _sentences, _bullets, _steps, _at_most, _one_word, _sorted, _backwards, _upper, _lower,
    _include, _avoid, _no_letter, _starts, _ends, _paragraphs, _language, _title, _choice, _repeat,
    _list_line, _acrostic, _question, _range_words, _two_rules,
)  # fmt: skip
