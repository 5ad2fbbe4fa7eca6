"""Measuring what README claims: losslessness and speed, on prompts of four kinds."""
