"""Composed rows whose answer is a JSON document although tools are on offer.

As an agent with tools and a response format sees them: the schema stands in the system prompt, and
either the request itself says all that the document holds, or a tool's result does.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, replace

from whiflash_engine.training import composed
from whiflash_engine.training.composed_base import Loop
from whiflash_engine.training.composed_words import CITIES
from whiflash_engine.training.lessons import Lesson, distinct, loop_lesson, user
from whiflash_engine.training.model_files import JsonValue
from whiflash_engine.training.rows import Json

ASKED = "Answer with a JSON object that matches this schema:\n{schema}"
"""What the chat model adds to the system prompt (`whiflash_adapters.structured.with_schema`)."""

_NAMES = ("Amira", "Jonas", "Mei", "Carlos", "Priya", "Olu", "Hannah", "Tomasz", "Yuki", "Nadia")
_THINGS = ("lamp", "notebook", "kettle", "chair", "keyboard", "blanket", "mug", "bicycle pump")
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_TOPICS = ("the budget", "the new website", "hiring", "the garden", "the test results", "travel")
_TITLES = ("The Long Field", "Harbour Lights", "A Short History of Salt", "Winter Maps")
_ENDS = (
    "",
    "",
    " Please note that.",
    " What do you make of it?",
    " Put that down.",
    " Sum that up.",
)


@dataclass(frozen=True)
class Stated:
    """A request that says everything, the system prompt, and the document."""

    question: str
    system: str
    document: str


def document_lessons(rng: random.Random, count: int) -> list[Lesson]:
    """Half are answered at once by a document, half after a call."""
    found: list[Lesson] = []
    for number in range(count):
        families = rng.sample(composed.FAMILIES, rng.randint(1, 3))
        loops = [family(rng) for family in families]
        tools = distinct(rng, [loop.tools[0] for loop in loops])
        if number % 2:
            loop, system = documented(rng, loops[0])
            found.append(loop_lesson("documented", loop, tools, system))
        else:
            one = stated(rng)
            told: Json = {"role": "system", "content": one.system}
            reply = ((one.document, ()),)
            found.append(Lesson("stated", (told, user(one.question)), tools, reply))
    return found


def stated(rng: random.Random) -> Stated:
    """A fact, its schema and the document that holds it."""
    title, sentence, values = rng.choice(_FACTS)(rng)
    keys = list(values)
    if rng.random() < 0.3:
        rng.shuffle(keys)
    if len(keys) > 2 and rng.random() < 0.3:
        keys.pop()
    chosen = {key: values[key] for key in keys}
    return Stated(sentence + rng.choice(_ENDS), _system(rng, title, chosen), json.dumps(chosen))


def documented(rng: random.Random, loop: Loop) -> tuple[Loop, str]:
    """The loop with a document for its answer, and the system prompt."""
    title, key = rng.choice(
        (("Answer", "answer"), ("Reply", "text"), ("Result", "result"), ("Response", "message"))
    )
    document: Json = {key: loop.answer}
    return replace(loop, answer=json.dumps(document)), _system(rng, title, document)


def _system(rng: random.Random, title: str, document: Json) -> str:
    """The schema of a document, in the words of the chat model and the form of Pydantic."""
    kinds: dict[type, JsonValue] = {str: "string", bool: "boolean", int: "integer"}
    properties: Json = {}
    for key, value in document.items():
        words = key.replace("_", " ").title()
        properties[key] = {"title": words, "type": kinds[type(value)]}
    schema: Json = {
        "title": title, "type": "object", "properties": properties, "required": [*document],
    }  # fmt: skip
    if rng.random() < 0.4:
        schema = {"description": f"The {title.lower()}.", **schema}
    asked = ASKED.format(schema=json.dumps(schema))
    return rng.choice(("", "", "You are a helpful assistant.\n\n")) + asked


Fact = tuple[str, str, Json]
"""Title, sentence, and what the sentence says."""


def _clock(rng: random.Random) -> str:
    return f"{rng.randint(6, 21)}:{rng.choice(('00', '15', '30', '45'))}"


def _person(rng: random.Random) -> Fact:
    name, age, city = rng.choice(_NAMES), rng.randint(18, 90), rng.choice(CITIES)[0]
    said = rng.choice((f"{name} is {age} years old and lives in {city}.",
                       f"My colleague {name}, {age}, has moved to {city}."))  # fmt: skip
    return "Person", said, {"name": name, "age": age, "city": city}


def _order(rng: random.Random) -> Fact:
    thing, count, city = rng.choice(_THINGS), rng.randint(2, 40), rng.choice(CITIES)[0]
    said = rng.choice((f"I would like {count} of the {thing}, sent to {city}.",
                       f"Order {count} times the {thing} for our office in {city}."))  # fmt: skip
    return "Order", said, {"item": thing, "quantity": count, "destination": city}


def _meeting(rng: random.Random) -> Fact:
    day, clock, topic = rng.choice(_DAYS), _clock(rng), rng.choice(_TOPICS)
    said = f"Let us meet on {day} at {clock} to talk about {topic}."
    return "Meeting", said, {"day": day, "time": clock, "topic": topic}


def _task(rng: random.Random) -> Fact:
    name, day, urgent = rng.choice(_NAMES), rng.choice(_DAYS), rng.random() < 0.5
    said = f"{name} wants an answer by {day}, and it is {'' if urgent else 'not '}urgent."
    return "Task", said, {"person": name, "due": day, "urgent": urgent}


def _reading(rng: random.Random) -> Fact:
    name, pages, book = rng.choice(_NAMES), rng.randint(3, 400), rng.choice(_TITLES)
    said = f"{name} has read {pages} pages of {book}."
    return "Reading", said, {"reader": name, "title": book, "pages": pages}


_FACTS: tuple[Callable[[random.Random], Fact], ...] = (_person, _order, _meeting, _task, _reading)
