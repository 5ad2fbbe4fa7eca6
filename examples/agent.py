"""A LangChain agent with a local tool, on the embedded default model.

pip install "whiflash-agents[agents]"; python examples/agent.py
"""

from __future__ import annotations

from langchain.agents import create_agent

from whiflash_agents import ChatWhiFlash


def calculate(expression: str) -> str:
    """Multiply two numbers.

    Args:
        expression: for example 12 * 7
    """
    left, _, right = expression.partition("*")
    return str(int(left) * int(right))


def main() -> None:
    agent = create_agent(ChatWhiFlash(), [calculate])
    state = agent.invoke({"messages": [{"role": "user", "content": "What is 1234 * 56?"}]})
    for message in state["messages"]:
        message.pretty_print()
    print(state["messages"][-1].response_metadata["whiflash"])


if __name__ == "__main__":
    main()
