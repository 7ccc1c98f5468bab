"""Generate JSON tasks: extract a record from a text, follow a schema, convert CSV (capability json)."""

from __future__ import annotations

import json
from random import Random
from typing import Any

from engine.prompts.prompt import JsonCheck
from engine.prompts.variants.draft import Draft
from engine.prompts.variants.words import draw, fill

SYSTEM = "Answer with valid JSON only."

# A sentence with slots and the record that it contains: each value is a slot (or a list of slots).
_TEXTS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("{person} is {n18_80} years old and lives in {city}.", {"name": "person", "age": "n18_80", "city": "city"}),
    ("Invoice from {company}, {date}, total {money} euros.", {"sender": "company", "date": "date", "amount": "money"}),
    ("{person} works as a {job} at {company}.", {"name": "person", "job": "job", "company": "company"}),
    ("Please send {n2_9} of the {product} to {person} in {city}.", {"quantity": "n2_9", "product": "product", "recipient": "person", "city": "city"}),
    ("The train to {city} leaves at {time} from platform {n1_9}.", {"destination": "city", "departure": "time", "platform": "n1_9"}),
    ("On {date} {person} paid {money} euros for a {product}.", {"date": "date", "buyer": "person", "price": "money", "product": "product"}),
    ("Meeting about the {subject} with {person}, {date}, {time}, room {n1_9}.", {"topic": "subject", "person": "person", "date": "date", "time": "time", "room": "n1_9"}),
    ("The {animal} is called {person}, weighs {n2_90} kg and is {n1_9} years old.", {"animal": "animal", "name": "person", "weight_kg": "n2_90", "age": "n1_9"}),
    ("Ticket {id5}: {bug}. Reported by {person}.", {"ticket": "id5", "problem": "bug", "reporter": "person"}),
    ("In {city} it was {n16_24} degrees on {date}, with {n10_90} percent humidity.", {"city": "city", "temperature": "n16_24", "date": "date", "humidity": "n10_90"}),
    ("{person} speaks {language} and {language2} and comes from {country}.", {"name": "person", "languages": ["language", "language2"], "country": "country"}),
    ("Booked: {restaurant}, {date} at {time}, table for {n2_9}, name {person}.", {"restaurant": "restaurant", "date": "date", "time": "time", "guests": "n2_9", "name": "person"}),
    ("Order {id5} holds a {product} and a {product2}; it goes to {city}.", {"order_id": "id5", "items": ["product", "product2"], "city": "city"}),
    ("{person} (e-mail {email}) would like to be called on {day}.", {"name": "person", "email": "email", "day": "day"}),
    ("The server {host} runs {service} and was restarted on {date}.", {"host": "host", "service": "service", "restarted": "date"}),
    ("Flight {id4} from {city} to {city2} is {minutes} minutes late.", {"flight": "id4", "origin": "city", "destination": "city2", "delay_minutes": "minutes"}),
    ("A share of {symbol} cost {money} dollars on {date}.", {"symbol": "symbol", "price": "money", "date": "date"}),
    ("{person} sold {n2_90} tickets in {city} and {n2_902} in {city2}.", {"seller": "person", "tickets": "sum"}),
    ("Lost in {city}: a {colour} {thing}. Finder, please write to {email}.", {"city": "city", "colour": "colour", "object": "thing", "contact": "email"}),
    ("{artist} plays in {city} on {date}; tickets are {money} euros.", {"artist": "artist", "city": "city", "date": "date", "price": "money"}),
)  # fmt: skip

_ASKS = (
    'Read {keys} out of this text: "{text}"',
    "Extract {keys} as a JSON object from: {text}",
    "{text} Turn this into an object with {keys}.",
    "Make a record with {keys} of this sentence: {text}",
)

# Schemas to be filled freely: keys with a type, [item type], or a tuple of allowed values.
_SHAPES: dict[str, dict[str, Any]] = {
    "book": {"title": "string", "author": "string", "year": "integer", "genres": ["string"]},
    "recipe": {"name": "string", "minutes": "integer", "ingredients": ["string"], "vegetarian": "boolean"},
    "person": {"name": "string", "age": "integer", "email": "string", "married": "boolean"},
    "film": {"title": "string", "year": "integer", "genre": ("comedy", "drama", "thriller"), "cast": ["string"]},
    "weather report": {"city": "string", "celsius": "number", "sky": ("clear", "cloudy", "rain", "snow")},
    "pet": {"name": "string", "kind": ("dog", "cat", "bird", "fish"), "age": "number", "vaccinated": "boolean"},
    "task": {"id": "integer", "title": "string", "done": "boolean", "priority": ("low", "medium", "high")},
    "country": {"name": "string", "capital": "string", "population": "integer", "languages": ["string"]},
    "product": {"name": "string", "price": "number", "in_stock": "boolean", "tags": ["string"]},
    "song": {"title": "string", "artist": "string", "seconds": "integer"},
    "server": {"host": "string", "port": "integer", "debug": "boolean", "origins": ["string"]},
    "city": {"name": "string", "country": "string", "sights": ["string"]},
    "quiz question": {"question": "string", "options": ["string"], "answer": "integer"},
    "flight": {"number": "string", "origin": "string", "destination": "string", "seats": "integer"},
    "plant": {"name": "string", "height_cm": "number", "needs_sun": "boolean", "colours": ["string"]},
    "course": {"subject": "string", "teacher": "string", "hours": "integer", "level": ("beginner", "advanced")},
    "house": {"address": "string", "rooms": "integer", "garden": "boolean", "rent": "number"},
    "football match": {"home": "string", "guest": "string", "goals_home": "integer", "goals_guest": "integer"},
    "planet": {"name": "string", "moons": "integer", "has_rings": "boolean"},
    "error message": {"code": "integer", "message": "string", "retry": "boolean"},
}  # fmt: skip
_SHAPE_ASKS = (
    "Make up a {what} that fits this schema:\n{schema}",
    "Write one {what} as JSON. It must be valid against this JSON Schema:\n{schema}",
    "Here is a JSON Schema for a {what}:\n{schema}\nGive an example.",
)


def draft(rng: Random) -> Draft:
    """A record to extract, a schema to follow or a line of CSV to convert."""
    kind = rng.choices(("read", "shape", "csv"), (60, 25, 15))[0]
    return {"read": _read, "shape": _shape, "csv": _csv}[kind](rng)


def _read(rng: Random) -> Draft:
    place = rng.randrange(len(_TEXTS))
    template, record = _TEXTS[place]
    text, values = fill(template, rng)
    if "sum" in record.values():
        values["sum"] = values["n2_90"] + values["n2_902"]
    expected = {
        key: [values[s] for s in slot] if isinstance(slot, list) else values[slot]
        for key, slot in record.items()
    }
    keys = list(expected)
    named = f"{', '.join(keys[:-1])} and {keys[-1]}"
    if "sum" in record.values():
        named = "the keys seller and tickets (the sum)"
    ask = rng.choice(_ASKS).replace("{keys}", named).replace("{text}", text)
    return Draft(
        f"json/read/{place}", ask, JsonCheck(schema=schema_of(expected), values=expected), SYSTEM
    )


def _shape(rng: Random) -> Draft:
    what = rng.choice(list(_SHAPES))
    shape = _SHAPES[what]
    # A random subset of the keys, so that the schema must be read.
    keys = rng.sample(list(shape), rng.randint(2, len(shape)))
    properties = {key: _property(shape[key]) for key in keys}
    schema = {
        "type": "object",
        "properties": properties,
        "required": keys,
        "additionalProperties": False,
    }
    ask = rng.choice(_SHAPE_ASKS).replace("{what}", what)
    if rng.random() < 0.5:
        name, city = draw("person", rng), draw("city", rng)
        ask += rng.choice(
            (f" It is for {name}.", f" Think of {city}.", f" {name} from {city} asks for it.")
        )
    return Draft(
        f"json/shape/{what}",
        ask.replace("{schema}", json.dumps(schema)),
        JsonCheck(schema=schema),
        SYSTEM,
    )


def _property(kind: Any) -> dict[str, Any]:
    if isinstance(kind, tuple):
        return {"enum": list(kind)}
    if isinstance(kind, list):
        return {"type": "array", "items": {"type": kind[0]}, "minItems": 1}
    return {"type": kind}


_COLUMNS = {
    "id": "id4", "name": "person", "city": "city", "age": "n18_80", "product": "product",
    "price": "money", "date": "date", "time": "time", "job": "job", "country": "country",
}  # fmt: skip


def _csv(rng: Random) -> Draft:
    columns = rng.sample(list(_COLUMNS), rng.randint(3, 5))
    values = {column: draw(_COLUMNS[column], rng) for column in columns}
    line = ",".join(str(values[column]) for column in columns)
    ask = rng.choice(
        (
            "Convert this line of CSV to an object, with the header '{head}': {line}",
            "CSV header: {head}\nCSV line: {line}\nWrite the line as a JSON object. Numbers are numbers.",
        )
    )
    text = ask.replace("{head}", ",".join(columns)).replace("{line}", line)
    return Draft("json/csv", text, JsonCheck(schema=schema_of(values), values=values), SYSTEM)


def schema_of(record: dict[str, Any]) -> dict[str, Any]:
    """The JSON Schema of records with the keys and types of this one."""

    def kind(value: Any) -> dict[str, Any]:
        if isinstance(value, bool):
            return {"type": "boolean"}
        if isinstance(value, int | float):
            return {"type": "number"}
        if isinstance(value, list):
            return {"type": "array", "items": kind(value[0])}
        return {"type": "string"}

    return {
        "type": "object",
        "properties": {key: kind(value) for key, value in record.items()},
        "required": list(record),
    }
