"""Messages above, tokens below: the engine as a LangChain chat model, and tool-call formats."""
