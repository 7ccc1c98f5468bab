"""Generate tool-calling prompts that need one call, two, one in the next turn, or none."""

from __future__ import annotations

from random import Random
from typing import Any

from engine.prompts.prompt import ToolCall, ToolCheck, is_reserved
from engine.prompts.tools import Request, Tool, load_tools, offer
from engine.prompts.variants.draft import Draft
from engine.prompts.variants.words import fill, substitute

# Needs no tool, whichever are on offer.
_NONE = (
    "Thank you, that was very helpful.",
    "Good morning! How are you today?",
    "What is the capital of {country}?",
    "Explain in one sentence what a glacier is.",
    "Do you prefer tea or coffee?",
    "Tell me a short joke about a {animal}.",
    "Why is the sky blue?",
    "I had a long day and just want to chat.",
    "Write a two-line poem about {topic}.",
    "What is the opposite of generous?",
    "Can you say that again in simpler words?",
    "What can you do for me?",
    "How many legs does a {animal} have?",
    "Is a tomato a fruit or a vegetable?",
    "Give me a synonym for happy.",
    "That's not what I meant, but never mind.",
    "What rhymes with moon?",
    "I think I will go for a walk now.",
    "My {animal} is called {person}. Isn't that a funny name?",
    "Which colour do you get from blue and yellow?",
    "Wish me luck, I start as a {job} on Monday!",
    "What does a {job} do all day?",
    "I have just eaten {food} and I am happy.",
    "What does the proverb 'haste makes waste' mean?",
    "Let's stop here, {person} is waiting for me.",
)
_JOINTS = (
    "{a} And then: {b}",
    "{a} Also, {b}",
    "Two things. {a} {b}",
    "{a} {b}",
    "First: {a} Second: {b}",
)
_FOLLOW_UPS = ("Thanks. {b}", "Good. Now something else: {b}", "{b}", "And this: {b}")


def draft(rng: Random) -> Draft:
    """A prompt with three to eight tools on offer."""
    tools = list(load_tools().values())
    kind = rng.choices(("one", "two", "next", "none"), (60, 15, 10, 15))[0]
    if kind == "none":
        place = rng.randrange(len(_NONE))
        text, _ = fill(_NONE[place], rng)
        return _draft(f"tool/none/{place}", text, [], rng)
    first, family, text, call = _request(rng.choice(tools), rng)
    if kind == "one":
        return _draft(family, text, [first], rng, calls=(call,))
    # The second request must be on the same side of the held-out split: a reserved request must not
    # be trained on as the second of two.
    while True:
        second, other, text2, call2 = _request(rng.choice(tools), rng)
        if text2 != text and is_reserved(other) == is_reserved(family):
            break
    needed = [first] if second is first else [first, second]
    if kind == "two":
        joined = substitute(rng.choice(_JOINTS), {"a": text, "b": text2})
        return _draft(family, joined, needed, rng, calls=(call, call2))
    follow = substitute(rng.choice(_FOLLOW_UPS), {"b": text2})
    return _draft(family, text, needed, rng, calls=(call2,), then=(follow,))


def _request(tool: Tool, rng: Random) -> tuple[Tool, str, str, ToolCall]:
    """(tool, family, text, call) of one of the tool's requests, with its slots filled."""
    place = rng.randrange(len(tool.requests))
    request = tool.requests[place]
    text, values = fill(request.text, rng)
    arguments = _arguments(request, values)
    call = ToolCall(tool=tool.name, arguments=arguments or None)
    return tool, f"tool/{tool.name}/{place}", text, call


def _arguments(request: Request, values: dict[str, Any]) -> dict[str, Any]:
    """The request's arguments, filled; one that is a single slot keeps the type of its value."""
    filled: dict[str, Any] = {}
    for name, value in request.arguments.items():
        if isinstance(value, str) and value[1:-1] in values:
            filled[name] = values[value[1:-1]]
        else:
            filled[name] = substitute(value, values) if isinstance(value, str) else value
    return filled


def _draft(
    family: str,
    user: str,
    needed: list[Tool],
    rng: Random,
    calls: tuple[ToolCall, ...] = (),
    then: tuple[str, ...] = (),
) -> Draft:
    names = {tool.name for tool in needed}
    others = [tool for tool in load_tools().values() if tool.name not in names]
    offered = needed + rng.sample(others, rng.randint(2, 6))
    rng.shuffle(offered)
    style = "schemas" if rng.random() < 0.25 else "signatures"
    check = ToolCheck(tools={tool.name: tool.parameters for tool in offered}, calls=calls)
    return Draft(family, user, check, offer(offered, style), then)
