"""Generate Python programming tasks with tests (capability code).

The task is composed of parts; a reference composed of the same parts computes the tests.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any, NamedTuple

from engine.prompts.prompt import CodeCheck
from engine.prompts.variants.draft import Draft


class _Part(NamedTuple):
    words: str
    apply: Callable[..., Any]


_NAMES = ("solve", "work", "compute", "process", "f", "run", "calculate", "transform", "handle")


def _numbers(rng: Random) -> list[int]:
    return [rng.randint(-9, 30) for _ in range(rng.randint(3, 7))]


def _keeps(rng: Random) -> _Part:
    n = rng.randint(2, 9)
    return rng.choice((
        _Part("the even numbers", lambda xs: [x for x in xs if x % 2 == 0]),
        _Part("the odd numbers", lambda xs: [x for x in xs if x % 2 == 1]),
        _Part("the positive numbers", lambda xs: [x for x in xs if x > 0]),
        _Part(f"the numbers greater than {n}", lambda xs: [x for x in xs if x > n]),
        _Part(f"the numbers below {n}", lambda xs: [x for x in xs if x < n]),
        _Part(f"the multiples of {n}", lambda xs: [x for x in xs if x % n == 0]),
        _Part("all numbers", lambda xs: list(xs)),
        _Part(f"the first {n} numbers", lambda xs: xs[:n]),
    ))  # fmt: skip


def _maps(rng: Random) -> _Part:
    n = rng.randint(2, 9)
    return rng.choice((
        _Part("squares them", lambda xs: [x * x for x in xs]),
        _Part("doubles them", lambda xs: [2 * x for x in xs]),
        _Part(f"adds {n} to each", lambda xs: [x + n for x in xs]),
        _Part(f"multiplies each by {n}", lambda xs: [x * n for x in xs]),
        _Part("takes their absolute values", lambda xs: [abs(x) for x in xs]),
        _Part("changes their signs", lambda xs: [-x for x in xs]),
    ))  # fmt: skip


def _ends(rng: Random) -> _Part:
    return rng.choice((
        _Part("returns their sum", sum),
        _Part("returns how many there are", len),
        _Part("returns them as a list", list),
        _Part("returns them as a sorted list", sorted),
        _Part("returns the largest, or None when there is none", lambda xs: max(xs, default=None)),
        _Part("returns the smallest, or None when there is none", lambda xs: min(xs, default=None)),
        _Part("returns them in reverse order", lambda xs: xs[::-1]),
    ))  # fmt: skip


def _chain(rng: Random) -> Draft:
    keep, change, end, name = _keeps(rng), _maps(rng), _ends(rng), rng.choice(_NAMES)
    frames = (
        ("code/chain/write", "Write a Python function {name}(numbers) that takes {keep} of a list, {change} and {end}."),
        ("code/chain/need", "I have a list of integers. I need {name}(numbers) in Python: it keeps only {keep}, {change}, then {end}."),
        ("code/chain/def", "Complete this Python function:\ndef {name}(numbers):\n    # selects {keep}, {change} and {end}"),
    )  # fmt: skip
    family, frame = rng.choice(frames)
    text = frame.format(name=name, keep=keep.words, change=change.words, end=end.words)
    cases = [_numbers(rng), _numbers(rng), []]
    tests = [
        f"assert {name}({xs!r}) == {end.apply(change.apply(keep.apply(xs)))!r}" for xs in cases
    ]
    return Draft(family, text, CodeCheck(tests=tuple(tests)))


_WORDS = ("apple", "Level", "tree house", "banana", "Otto", "x", "queue", "Hello World", "noon")


def _strings(rng: Random) -> Draft:
    letter, n = rng.choice("aeiounrst"), rng.randint(2, 5)
    tasks: tuple[_Part, ...] = (
        _Part(f"counts how often the letter {letter!r} occurs in a text", lambda s: s.count(letter)),
        _Part(f"replaces every {letter!r} in a text by '*'", lambda s: s.replace(letter, "*")),
        _Part(f"returns the text repeated {n} times", lambda s: s * n),
        _Part(f"returns the first {n} characters of a text in capitals", lambda s: s[:n].upper()),
        _Part(f"returns the text without its last {n} characters", lambda s: s[:-n]),
        _Part(f"returns every character at an index that {n} divides", lambda s: s[::n]),
        _Part(f"says (True or False) whether a text has more than {n} characters", lambda s: len(s) > n),
        _Part(f"puts {letter!r} before and after a text", lambda s: letter + s + letter),
        _Part(f"returns the index of the first {letter!r} in a text, or -1", lambda s: s.find(letter)),
        _Part(f"fills a text with spaces on the left up to a length of {n + 6}", lambda s: s.rjust(n + 6)),
        _Part(f"removes all {letter!r} from a text and turns it around", lambda s: s.replace(letter, "")[::-1]),
        _Part(f"returns a list of the words of a text that have at least {n} letters", lambda s: [w for w in s.split() if len(w) >= n]),
    )  # fmt: skip
    place = rng.randrange(len(tasks))
    name = rng.choice(_NAMES)
    frame = rng.choice(
        (
            "Write a Python function {name}(text) that {task}.",
            "In Python, define {name}(text). It {task}.",
            "Give me Python code for {name}(text), which {task}.",
        )
    )
    text = frame.format(name=name, task=tasks[place].words)
    cases = rng.sample(_WORDS, 4)
    tests = tuple(f"assert {name}({s!r}) == {tasks[place].apply(s)!r}" for s in cases)
    return Draft(f"code/text/{place}", text, CodeCheck(tests=tests))


def _digits(n: int) -> int:
    return sum(int(d) for d in str(n))


def _is_prime(n: int) -> bool:
    return n > 1 and all(n % d for d in range(2, int(n**0.5) + 1))


def _collatz(n: int) -> int:
    steps = 0
    while n != 1:
        n, steps = (n // 2 if n % 2 == 0 else 3 * n + 1), steps + 1
    return steps


def _integers(rng: Random) -> Draft:
    k, m = rng.randint(2, 9), rng.randint(2, 9)
    tasks: tuple[_Part, ...] = (
        _Part(f"returns the sum of all multiples of {k} up to and including n", lambda n: sum(range(k, n + 1, k))),
        _Part(f"returns how many numbers from 1 to n are divisible by {k} or {m}", lambda n: sum(i % k == 0 or i % m == 0 for i in range(1, n + 1))),
        _Part(f"returns n to the power of {k}", lambda n: n**k),
        _Part(f"returns the sum of the digits of n, times {k}", lambda n: _digits(n) * k),
        _Part(f"returns a list of the first n multiples of {k}", lambda n: [k * i for i in range(1, n + 1)]),
        _Part(f"returns 'yes' when n is divisible by both {k} and {m}, else 'no'", lambda n: "yes" if n % k == 0 and n % m == 0 else "no"),
        _Part(f"returns the remainder of n divided by {k}, plus {m}", lambda n: n % k + m),
        _Part(f"returns how many primes there are from 2 to n, plus {k}", lambda n: sum(map(_is_prime, range(2, n + 1))) + k),
        _Part(f"counts down from n in steps of {k} and returns the numbers above 0 as a list", lambda n: list(range(n, 0, -k))),
        _Part(f"returns how many steps n needs to reach 1 when even numbers are halved and odd ones become 3n + 1, times {k}", lambda n: _collatz(n) * k),
        _Part(f"returns the n-th number of the sequence that begins with {k} and grows by {m} each time (n begins at 1)", lambda n: k + (n - 1) * m),
        _Part(f"returns n as text with {k} zeros behind it", lambda n: str(n) + "0" * k),
    )  # fmt: skip
    place = rng.randrange(len(tasks))
    name = rng.choice(_NAMES)
    frame = rng.choice(
        (
            "Write a Python function {name}(n) that {task}.",
            "Python: define {name}(n) so that it {task}.",
            "Please write {name}(n) in Python. It takes a positive integer and {task}.",
        )
    )
    text = frame.format(name=name, task=tasks[place].words)
    cases = rng.sample(range(1, 60), 4)
    tests = tuple(f"assert {name}({n}) == {tasks[place].apply(n)!r}" for n in cases)
    return Draft(f"code/integer/{place}", text, CodeCheck(tests=tests))


def _dictionaries(rng: Random) -> Draft:
    k = rng.randint(2, 40)
    tasks: tuple[_Part, ...] = (
        _Part(f"returns the keys whose value is above {k}, sorted", lambda d: sorted(key for key, v in d.items() if v > k)),
        _Part(f"returns a new dictionary with {k} added to every value", lambda d: {key: v + k for key, v in d.items()}),
        _Part(f"returns the sum of the values that are at least {k}", lambda d: sum(v for v in d.values() if v >= k)),
        _Part(f"returns how many values are equal to or below {k}", lambda d: sum(v <= k for v in d.values())),
        _Part(f"returns a dictionary without the entries whose value is below {k}", lambda d: {key: v for key, v in d.items() if v >= k}),
        _Part(f"returns True when any value is exactly {k}, else False", lambda d: k in d.values()),
    )  # fmt: skip
    place = rng.randrange(len(tasks))
    name = rng.choice(_NAMES)
    text = rng.choice((
        "Write a Python function {name}(prices) for a dictionary of names and numbers that {task}.",
        "prices is a dictionary like {{'tea': 3, 'bread': 5}}. Write {name}(prices) in Python; it {task}.",
    )).format(name=name, task=tasks[place].words)  # fmt: skip
    goods = ("tea", "bread", "salt", "milk", "rice", "oil")
    tests = []
    for _ in range(3):
        prices = {good: rng.randint(1, 50) for good in rng.sample(goods, rng.randint(2, 5))}
        tests.append(f"assert {name}({prices!r}) == {tasks[place].apply(prices)!r}")
    return Draft(f"code/dictionary/{place}", text, CodeCheck(tests=tuple(tests)))


def draft(rng: Random) -> Draft:
    """A task about a list, a text, an integer or a dictionary."""
    return rng.choices((_chain, _strings, _integers, _dictionaries), (40, 25, 20, 15))[0](rng)
