"""How a family of models writes tool calls: how to ask for them, force them, read them."""
