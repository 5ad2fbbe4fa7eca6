"""Structured extraction over a list: every answer is a valid instance of the class."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from whiflash_agents import ChatWhiFlash

REVIEWS = [
    "The Blue Door: lovely soup, friendly staff, but we waited an hour.",
    "Never again. Casa Nova was dirty and the fish was cold.",
    "Green Table is my favourite place in town!",
]


class Review(BaseModel):
    """What a review says about a restaurant."""

    restaurant: str = Field(description="its name", max_length=40)
    mood: Literal["good", "mixed", "bad"]


def main() -> None:
    model = ChatWhiFlash(max_tokens=80).with_structured_output(Review)
    for review in model.batch([f"Extract from this review: {text}" for text in REVIEWS]):
        assert isinstance(review, Review)
        print(f"{review.restaurant}: {review.mood}")


if __name__ == "__main__":
    main()
