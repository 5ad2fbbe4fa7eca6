"""Composed rows about dates, clocks and time zones."""

from __future__ import annotations

import json
import random
from datetime import date, datetime, timedelta
from zoneinfo import ZoneInfo

from whiflash_engine.training.composed_base import Loop, make_tool, tool_name_of
from whiflash_engine.training.composed_words import CITIES
from whiflash_engine.training.gold import Call
from whiflash_engine.training.rows import Json


def _spoken(rng: random.Random, day: date) -> str:
    month = day.strftime("%B")
    return rng.choice(
        [
            f"{day.day} {month} {day.year}",
            f"{month} {day.day}, {day.year}",
            f"the {day.day}{_ordinal(day.day)} of {month} {day.year}",
            day.isoformat(),
        ]
    )


def _ordinal(number: int) -> str:
    if 10 <= number % 100 <= 20:
        return "th"
    return {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")


def _day(rng: random.Random) -> date:
    return date(1950, 1, 1) + timedelta(days=rng.randint(0, 32000))


def time_now(rng: random.Random) -> Loop:
    city, zone = rng.choice(CITIES)
    key = rng.choice(["timezone"] * 3 + ["tz", "zone", "time_zone"])
    tool = make_tool(
        rng.choice(["get_current_time", "current_time", "time_now", "clock", "world_clock", "now"]),
        rng.choice(
            [
                "Current date and time in a time zone.",
                "Tells the time now in an IANA time zone such as Europe/Paris.",
                "Get the current local time.",
            ]
        ),
        {key: ("string", rng.choice(["IANA time zone", "for example America/Chicago", ""]))},
    )
    moment = datetime(2025, 1, 1, tzinfo=ZoneInfo("UTC")) + timedelta(
        minutes=rng.randint(0, 999999)
    )
    local = moment.astimezone(ZoneInfo(zone))
    result = rng.choice(
        [
            local.isoformat(timespec="minutes"),
            local.strftime("%Y-%m-%d %H:%M"),
            local.strftime("%A, %d %B %Y, %H:%M"),
            local.strftime("%H:%M"),
        ]
    )
    question = rng.choice(
        [
            f"What time is it in {city}?",
            f"What's the time in {city} right now?",
            f"Tell me the current time in {city}.",
            f"How late is it in {city} now?",
            f"I want to call a friend in {city}. What time is it there?",
            f"Do you know what time it is in {city}?",
        ]
    )
    clock = local.strftime("%H:%M")
    answer = rng.choice(
        [
            f"It is {clock} in {city}.",
            f"The time in {city} is {clock}.",
            f"In {city} it is {clock}.",
        ]
    )
    return Loop(question, (tool,), Call(tool_name_of(tool), {key: zone}), result, answer)


def days_between(rng: random.Random) -> Loop:
    first = _day(rng)
    second = first + timedelta(days=rng.randint(3, 1500))
    one, two = rng.choice(
        [("start", "end"), ("start_date", "end_date"), ("from_date", "to_date"), ("date1", "date2")]
    )
    hint = rng.choice(["YYYY-MM-DD", "ISO date", "as YYYY-MM-DD"])
    tool = make_tool(
        rng.choice(["days_between", "date_diff", "count_days", "date_difference", "day_count"]),
        rng.choice(["Number of days between two dates.", "How many days lie between two dates."]),
        {one: ("string", hint), two: ("string", hint)},
    )
    left, right = _spoken(rng, first), _spoken(rng, second)
    question = rng.choice(
        [
            f"How many days are there between {left} and {right}?",
            f"How many days is it from {left} to {right}?",
            f"Count the days from {left} until {right}.",
            f"My project runs from {left} to {right}. How many days is that?",
        ]
    )
    days = (second - first).days
    answer = rng.choice(
        [f"There are {days} days between them.", f"That is {days} days.", f"It is {days} days."]
    )
    arguments: Json = {one: first.isoformat(), two: second.isoformat()}
    result = rng.choice([str(days), f"{days} days", json.dumps({"days": days})])
    return Loop(question, (tool,), Call(tool_name_of(tool), arguments), result, answer)


def weekday(rng: random.Random) -> Loop:
    day = _day(rng)
    key = rng.choice(["date", "day", "date_string"])
    tool = make_tool(
        rng.choice(["day_of_week", "weekday", "get_weekday", "which_day"]),
        rng.choice(["Name of the weekday of a date.", "Which day of the week a date falls on."]),
        {key: ("string", rng.choice(["YYYY-MM-DD", "ISO date"]))},
    )
    spoken, name = _spoken(rng, day), day.strftime("%A")
    question = rng.choice(
        [
            f"What day of the week was {spoken}?",
            f"Which weekday is {spoken}?",
            f"I was born on {spoken}. What day of the week was that?",
        ]
    )
    answer = rng.choice([f"It was a {name}.", f"That is a {name}.", f"{spoken} is a {name}."])
    return Loop(question, (tool,), Call(tool_name_of(tool), {key: day.isoformat()}), name, answer)


def add_days(rng: random.Random) -> Loop:
    day, count = _day(rng), rng.randint(2, 400)
    one, two = rng.choice([("date", "days"), ("start", "days"), ("start_date", "num_days")])
    tool = make_tool(
        rng.choice(["add_days", "date_add", "shift_date"]),
        rng.choice(["Add a number of days to a date.", "The date some days after another date."]),
        {one: ("string", "YYYY-MM-DD"), two: ("integer", "how many days")},
    )
    spoken, later = _spoken(rng, day), (day + timedelta(days=count)).isoformat()
    question = rng.choice(
        [
            f"What date is {count} days after {spoken}?",
            f"Which date comes {count} days after {spoken}?",
            f"An invoice from {spoken} is due in {count} days. On which date?",
        ]
    )
    answer = rng.choice([f"That is {later}.", f"The date is {later}.", f"It falls on {later}."])
    arguments: Json = {one: day.isoformat(), two: count}
    return Loop(question, (tool,), Call(tool_name_of(tool), arguments), later, answer)


def convert_time(rng: random.Random) -> Loop:
    (city, zone), (other, other_zone) = rng.sample(CITIES, 2)
    clock = f"{rng.randint(0, 23):02d}:{rng.choice([0, 15, 30, 45]):02d}"
    one, two = rng.choice(
        [("from_timezone", "to_timezone"), ("source", "target"), ("from_tz", "to_tz")]
    )
    tool = make_tool(
        rng.choice(["convert_time", "timezone_convert", "convert_timezone"]),
        rng.choice(["Convert a time from one time zone to another.", "Translate a clock time."]),
        {"time": ("string", "HH:MM"), one: ("string", "IANA zone"), two: ("string", "IANA zone")},
    )
    hour, minute = map(int, clock.split(":"))
    there = datetime(2026, 2, 3, hour, minute, tzinfo=ZoneInfo(zone))
    shown = there.astimezone(ZoneInfo(other_zone)).strftime("%H:%M")
    question = rng.choice(
        [
            f"When it is {clock} in {city}, what time is it in {other}?",
            f"Convert {clock} {city} time to {other} time.",
            f"Our call is at {clock} in {city}. What time is that in {other}?",
        ]
    )
    answer = rng.choice([f"It is {shown} in {other}.", f"That is {shown} in {other}."])
    arguments: Json = {"time": clock, one: zone, two: other_zone}
    return Loop(question, (tool,), Call(tool_name_of(tool), arguments), shown, answer)
