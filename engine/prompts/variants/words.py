"""Fill the slots of prompt templates with words from pools and random values."""

from __future__ import annotations

import re
from collections.abc import Callable
from random import Random
from typing import Any


def _words(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.strip().split(","))


def _lines(text: str) -> tuple[str, ...]:
    return tuple(line.strip() for line in text.strip().splitlines())


POOLS: dict[str, tuple[str, ...]] = {
    "person": _words(
        "Anna, Ben, Carla, David, Elif, Farid, Grace, Hiro, Ines, Jonas, Kemal, Lena, Mateo, Nadia,"
        "Oskar, Priya, Quentin, Rosa, Samir, Tara, Umar, Vera, Walid, Ximena, Yuki, Zoe, Adaeze,"
        "Bogdan, Chiara, Dmitri, Eun-ji, Freya, Gaurav, Halima, Ivan, Jelena, Kofi, Leila, Marek,"
        "Noor, Olga, Pavel, Rania, Stefan, Thandi, Ursula, Viktor, Wren, Yasmin, Zoltan"
    ),
    "city": _words(
        "Lisbon, Oslo, Kyoto, Nairobi, Toronto, Lima, Prague, Seville, Tallinn, Hanoi, Accra,"
        "Bergen, Cork, Denver, Edinburgh, Florence, Ghent, Helsinki, Istanbul, Jakarta, Krakow,"
        "Lyon, Montevideo, Naples, Osaka, Porto, Quito, Riga, Sofia, Turin, Utrecht, Valencia,"
        "Warsaw, Zagreb, Adelaide, Boston, Cusco, Dakar, Graz, Halifax, Izmir, Leipzig, Malmö,"
        "Nice, Odense, Perth, Rabat, Salzburg, Tampere, Vilnius"
    ),
    "country": _words(
        "Portugal, Norway, Japan, Kenya, Canada, Peru, Vietnam, Ghana, Ireland, Italy, Poland,"
        "Croatia, Senegal, Morocco, Chile, Iceland, India, Greece, Mexico, New Zealand, Egypt,"
        "Estonia, Brazil, Nepal, Finland"
    ),
    "food": _words(
        "lentil soup, lasagne, mushroom risotto, pancakes, pad thai, goulash, ratatouille, paella,"
        "falafel, apple pie, ramen, dumplings, hummus, chili, bread, rice pudding, couscous,"
        "vegetable curry, pizza, borscht, tacos, gnocchi, quiche, miso soup, potato salad,"
        "banana bread, shakshuka, moussaka, spring rolls, omelette"
    ),
    "topic": _words(
        "bees, glaciers, the history of paper, solar panels, octopuses, medieval bridges, coral"
        " reefs, the Silk Road, volcanoes, urban gardens, origami, migrating birds, lighthouses,"
        "tea ceremonies, electric buses, sleep, space telescopes, sourdough, wind power, chess"
        " openings, bamboo, honey, deep sea fish, old maps, the printing press, rainforests,"
        "marathon training, whales, Roman roads, mushrooms, tidal energy, clocks, desert plants,"
        "wool, canals, jazz, the human heart, recycling, northern lights, cocoa, kites, salt,"
        "dinosaurs, public libraries, penguins, bridges, the Moon, rivers, board games, cinnamon"
    ),
    "product": _words(
        "desk lamp, kettle, pair of running shoes, wool blanket, bicycle helmet, tent, rucksack,"
        "coffee grinder, keyboard, raincoat, bookshelf, frying pan, yoga mat, wall clock, headset,"
        "alarm clock, garden hose, suitcase, toaster, umbrella, camping stove, office chair,"
        "water bottle, hair dryer, tool box"
    ),
    "thing": _words(
        "bicycle, umbrella, passport, library card, blue jacket, film, tea, password book, plant,"
        "camera, holiday, birthday cake, spare key, violin, recipe book, lamp, rug, tyre"
    ),
    "place": _words(
        "station, museum, harbour, town hall, library, hospital, market, university, stadium,"
        "opera, old bridge, botanical garden, airport, castle, swimming pool, art gallery"
    ),
    "room": _words(
        "kitchen, bedroom, bathroom, living room, hall, office, cellar, guest room, nursery, attic"
    ),
    "channel": _words(
        "general, releases, support, music, random, design, on-call, introductions, events, help"
    ),
    "table": _words(
        "customers, orders, employees, invoices, suppliers, products, patients, members, visits,"
        "shipments, books, tickets"
    ),
    "subject": _words(
        "budget review, welcome party, garden plan, annual report, team photo, safety training,"
        "book club, moving day, choir rehearsal, interview, parents' evening, spring sale"
    ),
    "phrase": _lines("""
        The train leaves at nine.
        See you tomorrow.
        The release is out.
        I would like a table by the window.
        Happy birthday!
        The key is under the mat.
        We need two more volunteers.
        Please bring your own cup.
        Thank you for the flowers.
        Where is the nearest pharmacy?
        The tests are green again.
        I will be a little late.
        The lake is frozen.
        Dinner is ready.
        Can you help me with the luggage?
        It was a pleasure to meet you.
        The shop closes at six.
        My phone is broken.
        Good luck with the exam.
        There is snow on the roof."""),
    "language": _words(
        "French, Spanish, German, Italian, Portuguese, Dutch, Swedish, Polish, Turkish, Japanese,"
        "Greek, Finnish, Korean, Arabic"
    ),
    "currency": _words("EUR, USD, GBP, JPY, CHF, SEK, CAD, AUD, INR, BRL, NOK, PLN, MXN, ZAR"),
    "symbol": _words("MSFT, AAPL, NVDA, SAP, SONY, TSLA, IBM, ORCL, INTC, NFLX, ADBE, SHEL, NKE"),
    "day": _words(
        "Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday, the first of May,"
        "next Monday, next Friday"
    ),
    "reldate": _words("today, tomorrow, on the weekend, this evening, next week"),
    "rareword": _words(
        "serendipity, ephemeral, petrichor, laconic, gregarious, sonder, quixotic, ubiquitous,"
        "mellifluous, perfidious, taciturn, lucid, verbose, candid, arduous, nebulous"
    ),
    "misspelt": _words(
        "definately, accomodate, recieve, seperate, occured, neccessary, wierd, embarass, untill,"
        "goverment, adress, beleive, calender, tommorow, grammer, rythm"
    ),
    "restaurant": _words(
        "The Blue Spoon, Trattoria Lucia, Golden Lotus, Old Mill, Chez Odile, The Copper Pot,"
        "Sakura Garden, La Paloma, Harbour House, Olive and Thyme"
    ),
    "door": _words("front, back, garage, cellar"),
    "artist": _words(
        "Miles Davis, Nina Simone, Bach, Radiohead, Miriam Makeba, Björk, The Beatles, Chopin,"
        "Cesária Évora, Kraftwerk, Ella Fitzgerald, Queen, Vivaldi, Buena Vista Social Club"
    ),
    "genre": _words("comedy, drama, thriller, animation, documentary"),
    "podcast": _words(
        "Daily Science, The History Hour, Small Talk, Code and Coffee, Wild Gardens, Night Maps"
    ),
    "path": _words(
        "README.md, src/main.py, notes/todo.txt, config/app.toml, docs/index.md, data/cities.csv,"
        "Makefile, tests/test_api.py, scripts/backup.sh, letters/draft.txt, web/style.css"
    ),
    "folder": _words(
        "src, tests/unit, docs, data/raw, tests/integration, scripts, web/images, lib/parser,"
        "backup, notes"
    ),
    "ext": _words("Python, JSON, CSV, text, image, Markdown"),
    "bug": _words(
        "the login page stays blank, dates are shown a day early, the search ignores umlauts,"
        "exports lose the last line, the app forgets the theme, the cart counts twice,"
        "the map is upside down, sounds play after muting, tooltips hide the button"
    ),
    "branch": _words("main, develop, release-2, feature/login, hotfix, docs, staging"),
    "service": _words("billing, auth, search-api, mailer, gateway, image-resizer, scheduler, cart"),
    "environment": _words("test, staging, production"),
    "host": _words("web-1, web-2, db-main, cache-3, build-7, mail.example.org, gpu-node-4"),
    "logtext": _words("timeout, disk full, connection refused, out of memory, invalid token, 502"),
    "kind": _words("bar, line, pie, scatter"),
    "column": _words("sales, temperature, visitors, price, rainfall, votes, errors, weight"),
    "symptom": _words(
        "headache, back pain, hay fever, a sore throat, sunburn, dizziness, insomnia, heartburn"
    ),
    "invention": _words(
        "zip, telescope, bicycle, paper clip, refrigerator, radio, piano, lightning rod, barometer"
    ),
    "company": _words(
        "Nordlicht GmbH, Helio Labs, Blue Harbor Ltd, Fernandez & Sons, Kumo Systems, Tulip BV,"
        "Redwood Tools, Atlas Freight, Pine Street Bakery, Vega Optics"
    ),
    "job": _words(
        "nurse, baker, software engineer, teacher, carpenter, pilot, librarian, architect, chef,"
        "electrician, journalist, biologist, bus driver, translator, tailor"
    ),
    "animal": _words(
        "dog, cat, horse, rabbit, parrot, tortoise, goat, hamster, owl, fox, hedgehog, otter"
    ),
    "fruit": _words("apples, pears, plums, oranges, lemons, peaches, mangoes, kiwis, figs"),
    "colour": _words("red, blue, green, yellow, black, white, purple, orange, grey, brown"),
}
POOLS["subject2"] = _words(
    "astronomy, chemistry, world history, algebra, music theory, biology, geography, statistics,"
    "photography, economics, art history, first aid, drawing, creative writing"
)
POOLS["column2"] = _words("month, city, year, product, age, country, hour, team")


def _date(rng: Random) -> str:
    return f"{rng.choice((2026, 2027))}-{rng.randint(1, 12):02}-{rng.randint(1, 28):02}"


_RANDOM_VALUES: dict[str, Callable[[Random], Any]] = {
    "date": _date,
    "time": lambda rng: f"{rng.randint(6, 22):02}:{rng.choice((0, 15, 30, 45)):02}",
    "minutes": lambda rng: rng.choice((5, 10, 12, 15, 20, 25, 30, 40, 45, 50, 60, 75, 90)),
    "money": lambda rng: rng.choice(
        (rng.randint(3, 99), rng.randint(100, 999), 25 * rng.randint(4, 80))
    ),
    "year": lambda rng: rng.randint(1960, 2024),
    "id4": lambda rng: rng.randint(1000, 9999),
    "id5": lambda rng: rng.randint(10000, 99999),
    "id8": lambda rng: str(rng.randint(10_000_000, 99_999_999)),
    "email": lambda rng: (
        f"{_ascii(rng.choice(POOLS['person']))}@{rng.choice(('example.com', 'example.org', 'mail.test'))}"
    ),
    "url": lambda rng: (
        f"https://example.org/{rng.choice(('news', 'blog', 'guide'))}/"
        f"{rng.choice(POOLS['topic']).lower().replace(' ', '-')}"
    ),
}


def _ascii(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isascii() and letter.isalpha())


def draw(slot: str, rng: Random) -> Any:
    """A value for a slot: a word of its pool, a random date, price and so on, or for `n3_20` an
    integer from 3 to 20."""
    if (bounds := re.fullmatch(r"n(\d+)_(\d+)", slot)) is not None:
        return rng.randint(int(bounds[1]), int(bounds[2]))
    if slot in _RANDOM_VALUES:
        return _RANDOM_VALUES[slot](rng)
    return rng.choice(POOLS[slot])


def fill(template: str, rng: Random) -> tuple[str, dict[str, Any]]:
    """The filled template and the values of its slots; `{city}` and `{city2}` get different values."""
    values: dict[str, Any] = {}
    for slot in dict.fromkeys(re.findall(r"{(\w+)}", template)):
        known = slot in POOLS or slot in _RANDOM_VALUES or re.fullmatch(r"n\d+_\d+", slot)
        pool = slot if known else slot[:-1]
        value = draw(pool, rng)
        while any(value == other for name, other in values.items() if name.startswith(pool)):
            value = draw(pool, rng)
        values[slot] = value
    return _articles(substitute(template, values)), values


def _articles(text: str) -> str:
    """Correct `a owl` to `an owl`, but not `a university`."""
    return re.sub(r"\b([Aa]) (?=(?!uni|use|eu|one)[aeiou])", r"\1n ", text)


def substitute(template: str, values: dict[str, Any]) -> str:
    """The template with its slots replaced by these values."""
    return re.sub(r"{(\w+)}", lambda match: str(values[match[1]]), template)
