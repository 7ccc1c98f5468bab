"""Generate sums and word problems with computed results (capability math)."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from random import Random

from engine.prompts.prompt import NumberCheck
from engine.prompts.variants.draft import Draft
from engine.prompts.variants.words import draw

_Problem = tuple[str, float]
_ENDINGS = ("", "", " Show the steps.", " Explain briefly.", " Give the result at the end.")


def _plus(rng: Random) -> _Problem:
    a, b = rng.randint(11, 999), rng.randint(11, 999)
    return f"What is {a} + {b}?", a + b


def _minus(rng: Random) -> _Problem:
    a, b = sorted((rng.randint(11, 999), rng.randint(11, 999)), reverse=True)
    return f"Subtract {b} from {a}.", a - b


def _times(rng: Random) -> _Problem:
    a, b = rng.randint(3, 99), rng.randint(3, 40)
    return f"Multiply {a} by {b}.", a * b


def _divide(rng: Random) -> _Problem:
    a, b = rng.randint(3, 25), rng.randint(6, 60)
    return f"How often does {a} go into {a * b}?", b


def _mixed(rng: Random) -> _Problem:
    a, b, c = rng.randint(2, 30), rng.randint(2, 12), rng.randint(2, 12)
    return f"Compute {a} + {b} * {c}.", a + b * c


def _brackets(rng: Random) -> _Problem:
    a, b, c = rng.randint(2, 12), rng.randint(2, 30), rng.randint(2, 30)
    return f"Evaluate {a} * ({b} + {c}).", a * (b + c)


def _percent(rng: Random) -> _Problem:
    share, whole = rng.choice((5, 10, 15, 20, 25, 30, 40, 60, 75, 80)), 20 * rng.randint(2, 60)
    return f"How much is {share}% of {whole}?", share * whole / 100


def _discount(rng: Random) -> _Problem:
    price, off = 20 * rng.randint(1, 25), rng.choice((5, 10, 15, 20, 25, 30, 40, 50))
    thing = draw("product", rng)
    text = f"A {thing} costs {price} euros. It is reduced by {off}%. What does it cost now?"
    return text, price * (100 - off) / 100


def _raise(rng: Random) -> _Problem:
    pay, more = 100 * rng.randint(15, 60), rng.choice((2, 3, 4, 5, 10))
    who, job = draw("person", rng), draw("job", rng)
    return (
        f"{who} works as a {job} for {pay} a month and gets {more}% more. What is the new pay?",
        (pay * (100 + more) / 100),
    )


def _shopping(rng: Random) -> _Problem:
    fruit, other = rng.sample(
        ("apples", "pears", "plums", "lemons", "kiwis", "figs", "rolls", "eggs"), 2
    )
    a, b, p, q = (rng.randint(2, 9) for _ in range(4))
    who = draw("person", rng)
    text = f"{who} buys {a} {fruit} at {p} cents each and {b} {other} at {q} cents each. How many cents is that?"
    return text, a * p + b * q


def _left(rng: Random) -> _Problem:
    who, food = draw("person", rng), rng.choice(("cookies", "marbles", "stickers", "cards", "nuts"))
    start, give, get = rng.randint(30, 90), rng.randint(3, 25), rng.randint(3, 25)
    text = (
        f"{who} has {start} {food}, gives away {give} and finds {get} more. How many are there now?"
    )
    return text, start - give + get


def _share(rng: Random) -> _Problem:
    friends, each = rng.randint(3, 12), rng.randint(3, 20)
    rest = rng.randint(0, friends - 1)
    text = (
        f"{friends * each + rest} sweets are shared among {friends} children, as many as possible "
        f"for each and the same for all. How many sweets does each child get?"
    )
    return text, each


def _remainder(rng: Random) -> _Problem:
    size, boxes = rng.randint(4, 24), rng.randint(3, 30)
    rest = rng.randint(1, size - 1)
    return (
        f"{size * boxes + rest} eggs are packed in boxes of {size}. How many eggs are left over "
        "when all boxes are full?",
        rest,
    )


def _speed(rng: Random) -> _Problem:
    speed, hours = 5 * rng.randint(8, 30), rng.choice((2, 3, 4, 5, 1.5, 2.5))
    a, b = rng.sample(("a train", "a car", "a coach", "a motorbike"), 1)[0], draw("city", rng)
    return (
        f"On the way to {b}, {a} drives {speed} km/h for {hours:g} hours. How many kilometres is that?",
        (speed * hours),
    )


def _time_needed(rng: Random) -> _Problem:
    speed, hours = 10 * rng.randint(4, 12), rng.randint(2, 9)
    return (
        f"{draw('person', rng)} has {speed * hours} km to go and drives at {speed} km/h. "
        "How many hours does the trip take?",
        hours,
    )


def _rectangle(rng: Random) -> _Problem:
    a, b = rng.randint(3, 40), rng.randint(3, 40)
    what = rng.choice(("garden", "field", "room", "carpet", "wall", "pool"))
    return f"A {what} is {a} m long and {b} m wide. How many square metres is it?", a * b


def _fence(rng: Random) -> _Problem:
    a, b = rng.randint(4, 60), rng.randint(4, 60)
    who = draw("person", rng)
    return (
        f"{who} wants a fence around a meadow of {a} m by {b} m. How many metres of fence are needed?",
        (2 * (a + b)),
    )


def _triangle(rng: Random) -> _Problem:
    a, b = rng.randint(20, 100), rng.randint(20, 70)
    return f"Two angles of a triangle are {a} and {b} degrees. How many degrees has the third?", (
        180 - a - b
    )


def _linear(rng: Random) -> _Problem:
    a, x, b = rng.randint(2, 12), rng.randint(2, 20), rng.randint(1, 40)
    name = rng.choice("xyznt")
    return f"Solve {a}{name} + {b} = {a * x + b} for {name}.", x


def _linear_minus(rng: Random) -> _Problem:
    a, x, b = rng.randint(2, 9), rng.randint(5, 30), rng.randint(1, 9)
    return f"Which number x makes {a}x - {b} equal to {a * x - b}?", x


def _guess(rng: Random) -> _Problem:
    x, a, b = rng.randint(3, 40), rng.randint(2, 9), rng.randint(2, 30)
    return (
        f"I think of a number, multiply it by {a}, add {b} and get {x * a + b}. What was my number?",
        x,
    )


def _ages(rng: Random) -> _Problem:
    young, gap = rng.randint(4, 30), rng.randint(2, 25)
    a, b = draw("person", rng), rng.choice(("sister", "brother", "cousin", "aunt", "neighbour"))
    text = f"{a} is {gap} years younger than {a}'s {b}. Together they are {2 * young + gap}. How old is {a}?"
    return text, young


def _average(rng: Random) -> _Problem:
    numbers = [rng.randint(1, 30) for _ in range(rng.choice((3, 4, 5)))]
    numbers.append(len(numbers) + 1 - sum(numbers) % (len(numbers) + 1))
    return f"Find the mean of {', '.join(map(str, numbers))}.", sum(numbers) / len(numbers)


def _median(rng: Random) -> _Problem:
    numbers = rng.sample(range(1, 60), rng.choice((5, 7)))
    return f"What is the median of {', '.join(map(str, numbers))}?", sorted(numbers)[
        len(numbers) // 2
    ]


def _gcd(rng: Random) -> _Problem:
    g, a, b = rng.randint(2, 15), rng.randint(2, 12), rng.randint(2, 12)
    return f"What is the greatest common divisor of {g * a} and {g * b}?", math.gcd(g * a, g * b)


def _lcm(rng: Random) -> _Problem:
    a, b = rng.sample(range(3, 25), 2)
    return f"Find the least common multiple of {a} and {b}.", math.lcm(a, b)


def _fraction_sum(rng: Random) -> _Problem:
    b, d = rng.sample((2, 3, 4, 5, 6, 8, 10), 2)
    a, c = rng.randint(1, b - 1), rng.randint(1, d - 1)
    total = Fraction(a, b) + Fraction(c, d)
    return f"Add {a}/{b} and {c}/{d}.", float(total)


def _fraction_of(rng: Random) -> _Problem:
    b, k = rng.randint(3, 9), rng.randint(4, 30)
    a = rng.randint(1, b - 1)
    who, what = draw("person", rng), rng.choice(("pages", "kilometres", "metres of rope", "bricks"))
    return f"{who} has done {a}/{b} of {b * k} {what}. How many is that?", a * k


def _power(rng: Random) -> _Problem:
    base, up = rng.choice(
        (
            (2, rng.randint(3, 12)),
            (3, rng.randint(2, 6)),
            (rng.randint(4, 20), 2),
            (rng.randint(4, 10), 3),
        )
    )
    return f"What is {base} to the power of {up}?", base**up


def _root(rng: Random) -> _Problem:
    n = rng.randint(4, 40)
    return f"What is the square root of {n * n}?", n


def _binary(rng: Random) -> _Problem:
    n = rng.randint(5, 127)
    return f"Which decimal number is {n:b} in binary?", n


def _sequence(rng: Random) -> _Problem:
    start, step, n = rng.randint(1, 30), rng.randint(2, 15), rng.randint(4, 6)
    shown = ", ".join(str(start + step * i) for i in range(n))
    return f"Which number comes next: {shown}?", start + step * n


def _sum_to(rng: Random) -> _Problem:
    n = rng.randint(8, 200)
    return f"Add up all whole numbers from 1 to {n}.", n * (n + 1) // 2


def _choose(rng: Random) -> _Problem:
    n, k = rng.randint(4, 10), rng.randint(2, 3)
    what = rng.choice(("books", "players", "colours", "friends", "songs", "tickets"))
    return (
        f"In how many ways can one choose {k} out of {n} {what}, when the order does not matter?",
        (math.comb(n, k)),
    )


def _minutes(rng: Random) -> _Problem:
    hour, minute, lasts = (
        rng.randint(7, 19),
        rng.choice((0, 10, 15, 20, 30, 45)),
        rng.randint(2, 9) * 15,
    )
    end = hour * 60 + minute + lasts
    text = f"A film starts at {hour}:{minute:02} and ends at {end // 60}:{end % 60:02}. How many minutes is it long?"
    return text, lasts


def _recipe(rng: Random) -> _Problem:
    people, each, guests = rng.choice((2, 4, 5)), 10 * rng.randint(3, 15), rng.randint(3, 12)
    food = draw("food", rng)
    text = f"For {food}, {people * each} g of flour are enough for {people} people. How many grams do {guests} people need?"
    return text, each * guests


def _interest(rng: Random) -> _Problem:
    capital, rate = 100 * rng.randint(5, 80), rng.choice((1, 2, 3, 4, 5))
    return (
        f"{draw('person', rng)} puts {capital} euros into an account at {rate}% a year. How many euros of interest come after one year?",
        (capital * rate / 100),
    )


def _two_steps(rng: Random) -> _Problem:
    buses, seats, free = rng.randint(2, 9), 5 * rng.randint(6, 11), rng.randint(1, 25)
    text = f"{buses} buses with {seats} seats each bring visitors to {draw('city', rng)}; {free} seats stay empty. How many visitors come?"
    return text, buses * seats - free


def _work(rng: Random) -> _Problem:
    people, days = rng.randint(2, 6), rng.randint(3, 12)
    factor = rng.choice((2, 3))
    return (
        f"{people} painters need {days * factor} days for a house. How many days do "
        f"{people * factor} painters need, at the same pace?",
        days,
    )


def _bottles(rng: Random) -> _Problem:
    litres, size = rng.randint(3, 30), rng.choice((0.25, 0.5, 0.75))
    count = math.ceil(litres / size - 1e-9)
    return (
        f"How many bottles of {size:g} litres are needed for {litres} litres of {rng.choice(('juice', 'milk', 'oil', 'water'))}?",
        count,
    )


PROBLEMS: tuple[Callable[[Random], _Problem], ...] = (
    _plus, _minus, _times, _divide, _mixed, _brackets, _percent, _discount, _raise, _shopping,
    _left, _share, _remainder, _speed, _time_needed, _rectangle, _fence, _triangle, _linear,
    _linear_minus, _guess, _ages, _average, _median, _gcd, _lcm, _fraction_sum, _fraction_of,
    _power, _root, _binary, _sequence, _sum_to, _choose, _minutes, _recipe, _interest, _two_steps,
    _work, _bottles,
)  # fmt: skip


def draft(rng: Random) -> Draft:
    """A problem, sometimes with a request for the form of the answer."""
    problem = rng.choice(PROBLEMS)
    text, value = problem(rng)
    check = NumberCheck(value=float(value))
    return Draft(f"sum{problem.__name__}", text + rng.choice(_ENDINGS), check)
