"""Generate logic puzzles with known answers (capability reasoning)."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from random import Random

from engine.prompts.prompt import AnyCheck, MentionCheck, NumberCheck
from engine.prompts.variants.draft import Draft
from engine.prompts.variants.words import POOLS, draw

_Puzzle = tuple[str, AnyCheck]
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_ENDINGS = (
    "",
    " Explain.",
    " Think step by step.",
    " Give your reasons.",
    " Answer first, then explain.",
)


def _one_of(right: str, among: Sequence[str], given: str = "") -> MentionCheck:
    """The right one of several names; `given`: a name in the question, which any answer may use."""
    others = dict.fromkeys(name for name in among if name not in (right, given))
    return MentionCheck(any=(right,), others=tuple(others))


def _yes_or_no(right: bool) -> MentionCheck:
    return MentionCheck(any=("yes",) if right else ("no",), begins=True)


def _order(rng: Random) -> _Puzzle:
    names = rng.sample(POOLS["person"], 3)
    more, most, least = rng.choice((
        ("taller", "tallest", "shortest"), ("older", "oldest", "youngest"),
        ("faster", "fastest", "slowest"), ("richer", "richest", "poorest"),
    ))  # fmt: skip
    facts = [f"{names[0]} is {more} than {names[1]}", f"{names[1]} is {more} than {names[2]}"]
    rng.shuffle(facts)
    ask, right = rng.choice(((most, names[0]), (least, names[2])))
    text = f"{facts[0]}, and {facts[1]}. Who is the {ask}? Begin with the name."
    return text, _one_of(right, names)


def _queue(rng: Random) -> _Puzzle:
    names = rng.sample(POOLS["person"], rng.randint(3, 6))
    place = rng.choice(("bakery", "bus stop", "cinema", "post office", "museum", "ticket office"))
    pairs = [f"{b} stands right behind {a}" for a, b in itertools.pairwise(names)]
    rng.shuffle(pairs)
    first = rng.random() < 0.5
    text = f"In the queue at the {place}, {', '.join(pairs[:-1])} and {pairs[-1]}. Who is {'first' if first else 'last'}?"
    return text, _one_of(names[0] if first else names[-1], names)


def _day_after(rng: Random) -> _Puzzle:
    today, step = rng.randrange(7), rng.randint(2, 40)
    text = f"Today is {_DAYS[today]}. Which day of the week is it in {step} days?"
    return text, _one_of(_DAYS[(today + step) % 7], _DAYS, given=_DAYS[today])


def _day_before(rng: Random) -> _Puzzle:
    today, step = rng.randrange(7), rng.randint(2, 6)
    text = f"{draw('person', rng)} came back {step} days ago, and today is {_DAYS[today]}. On which weekday was that?"
    return text, _one_of(_DAYS[(today - step) % 7], _DAYS, given=_DAYS[today])


def _syllogism(rng: Random) -> _Puzzle:
    a, b, c = rng.sample(
        ("bloops", "razzies", "lazzies", "wugs", "zorks", "tovens", "mimps", "dralls"), 3
    )
    valid = rng.random() < 0.5
    second = f"all {b} are {c}" if valid else f"some {b} are {c}"
    text = f"If all {a} are {b} and {second}, are all {a} certainly {c}? Answer yes or no first."
    return text, _yes_or_no(valid)


def _modus(rng: Random) -> _Puzzle:
    who = draw("person", rng)
    if_, then, not_then = rng.choice((
        ("it rains", "the match is cancelled", "The match takes place"),
        ("the alarm rings", "the doors lock", "The doors are not locked"),
        ("the shop is open", "the lights are on", "The lights are off"),
        ("the water boils", "the kettle whistles", "The kettle does not whistle"),
        ("the battery is empty", "the lamp blinks", "The lamp does not blink"),
        ("the train is late", "the sign is red", "The sign is not red"),
    ))  # fmt: skip
    denied = rng.random() < 0.5
    fact = not_then if denied else then[0].upper() + then[1:]
    text = (
        f"{who} knows: if {if_}, then {then}. {fact}. Can {who} be sure whether it is true that "
        f"{if_}? Begin with 'yes' or 'no'."
    )
    return text, _yes_or_no(denied)


def _siblings(rng: Random) -> _Puzzle:
    girls, boys = rng.randint(2, 5), rng.randint(1, 5)
    who = rng.choice(("Anna", "Carla", "Elif", "Grace", "Ines", "Lena", "Rosa", "Tara"))
    text = f"{who} has {girls - 1} sister{'s' if girls > 2 else ''} and {boys} brother{'s' if boys > 1 else ''}. How many sisters does each of her brothers have?"
    return text, NumberCheck(value=girls)


def _both(rng: Random) -> _Puzzle:
    both, a, b, none = (rng.randint(2, 12) for _ in range(4))
    one, two = rng.sample(("tea", "coffee", "chess", "tennis", "jazz", "swimming", "football"), 2)
    total = both + a + b + none
    text = (
        f"Of {total} people, {a + both} like {one}, {b + both} like {two} and {both} like both. "
        "How many like neither?"
    )
    return text, NumberCheck(value=none)


def _handshakes(rng: Random) -> _Puzzle:
    n = rng.randint(4, 15)
    what = rng.choice(
        (
            "shakes hands with every other once",
            "plays every other once",
            "writes a letter to one another pairwise, one letter a pair",
        )
    )
    return f"{n} people meet and each {what}. How many are there in all, pairs counted once?", (
        NumberCheck(value=n * (n - 1) // 2)
    )


def _doubling(rng: Random) -> _Puzzle:
    day = rng.randint(8, 60)
    what, where = rng.choice(
        (("weed", "pond"), ("mould", "loaf"), ("stain", "cloth"), ("ivy", "wall"))
    )
    text = f"A patch of {what} doubles every day and covers the whole {where} on day {day}. On which day did it cover half?"
    return text, NumberCheck(value=day - 1)


def _snail(rng: Random) -> _Puzzle:
    up, days = rng.randint(3, 6), rng.randint(3, 9)
    down = rng.randint(1, up - 1)
    height = (up - down) * (days - 1) + up
    text = f"A snail climbs a wall of {height} m. By day it climbs {up} m, by night it slips back {down} m. On which day does it reach the top?"
    return text, NumberCheck(value=days)


def _race(rng: Random) -> _Puzzle:
    place = rng.randint(2, 9)
    who = draw("person", rng)
    names = {1: ("first", "1st", "1"), 2: ("second", "2nd", "2"), 3: ("third", "3rd", "3")}
    places = {n: names.get(n, (f"{n}th", str(n))) for n in range(1, 11)}
    others = (*places[place - 1], *places[place + 1])
    return (
        f"In a race {who} overtakes the runner in {places[place][0]} place. "
        f"In which place is {who} now?",
        MentionCheck(any=places[place], others=others),
    )


def _odd_out(rng: Random) -> _Puzzle:
    groups = {
        "fruit": ("apple", "pear", "plum", "cherry", "banana"),
        "bird": ("owl", "eagle", "sparrow", "stork", "robin"),
        "metal": ("iron", "copper", "gold", "zinc", "tin"),
        "colour": ("red", "blue", "green", "yellow", "purple"),
        "instrument": ("violin", "piano", "flute", "drum", "harp"),
        "tool": ("hammer", "saw", "drill", "wrench", "chisel"),
        "fish": ("salmon", "trout", "herring", "pike", "tuna"),
    }
    first, second = rng.sample(list(groups), 2)
    odd = rng.choice(groups[second])
    shown = [*rng.sample(groups[first], 3), odd]
    rng.shuffle(shown)
    return f"Which one does not belong with the others: {', '.join(shown)}?", _one_of(odd, shown)


def _truth(rng: Random) -> _Puzzle:
    a, b = rng.sample(POOLS["person"], 2)
    b_lies = rng.random() < 0.5
    says = f"'{b} is a liar'" if b_lies else f"'{b} tells the truth'"
    text = (
        f"On an island some always tell the truth and the others always lie. {a} always tells the "
        f"truth and says {says}. Then {b} says 'it is raining'. Is it raining? Begin with yes or no."
    )
    return text, _yes_or_no(not b_lies)


def _schedule(rng: Random) -> _Puzzle:
    start, way, food = (
        rng.randint(17, 21),
        rng.choice((10, 15, 20, 25)),
        rng.choice((30, 40, 45, 50)),
    )
    minutes = start * 60 + 30 - way - food
    what = rng.choice(("concert", "film", "play", "lecture", "match"))
    text = f"The {what} begins at {start}:30, the way there takes {way} minutes and supper {food} minutes. What is the latest time to sit down to supper?"
    clock = f"{minutes // 60}:{minutes % 60:02}"
    twelve = f"{minutes // 60 - 12}:{minutes % 60:02}"
    return text, MentionCheck(any=(clock, twelve))


def _coins(rng: Random) -> _Puzzle:
    a, b = rng.randint(2, 9), rng.randint(2, 9)
    who = draw("person", rng)
    text = f"{who} has {a + b} coins, some of 2 and some of 5, worth {2 * a + 5 * b} in all. How many coins of 5 are there?"
    return text, NumberCheck(value=b)


def _relation(rng: Random) -> _Puzzle:
    a, b, c = rng.sample(POOLS["person"], 3)
    chains = (
        (("mother", "mother"), "grandmother"), (("father", "mother"), "grandfather"),
        (("sister", "mother"), "aunt"), (("brother", "father"), "uncle"),
        (("daughter", "sister"), "niece"), (("son", "brother"), "nephew"),
        (("father", "father"), "grandfather"), (("son", "daughter"), "grandson"),
    )  # fmt: skip
    chain, right = rng.choice(chains)
    text = f"{a} is the {chain[0]} of {b}, and {b} is the {chain[1]} of {c}. What is {a} to {c}?"
    return text, _one_of(right, [*(name for _, name in chains), "cousin"])


def _compass(rng: Random) -> _Puzzle:
    points = ("north", "east", "south", "west")
    at, turns = (
        rng.randrange(4),
        [rng.choice(("left", "right", "around")) for _ in range(rng.randint(2, 3))],
    )
    end = (at + sum({"left": 3, "right": 1, "around": 2}[turn] for turn in turns)) % 4
    text = f"{draw('person', rng)} faces {points[at]} and turns {', then '.join(turns)}. Which way does that lead to?"
    return text, _one_of(points[end], points)


PUZZLES: tuple[Callable[[Random], _Puzzle], ...] = (
    _order, _queue, _day_after, _day_before, _syllogism, _modus, _siblings, _both, _handshakes,
    _doubling, _snail, _race, _odd_out, _truth, _schedule, _coins, _relation, _compass,
)  # fmt: skip


def draft(rng: Random) -> Draft:
    """A puzzle, sometimes with a request for the form of the answer."""
    puzzle = rng.choice(PUZZLES)
    text, check = puzzle(rng)
    return Draft(f"puzzle{puzzle.__name__}", text + rng.choice(_ENDINGS), check)
