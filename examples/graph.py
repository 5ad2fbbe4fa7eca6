"""A LangGraph graph with a memory: the second question goes on from the first.

pip install "whiflash-agents[agents]"; python examples/graph.py
"""

from __future__ import annotations

from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph

from whiflash_agents import ChatWhiFlash


def main() -> None:
    model = ChatWhiFlash(max_tokens=60)

    def answer(state: MessagesState) -> MessagesState:
        return {"messages": [model.invoke(state["messages"])]}

    builder = StateGraph(MessagesState)
    builder.add_node("answer", answer)
    builder.add_edge(START, "answer")
    graph = builder.compile(checkpointer=InMemorySaver())
    config: RunnableConfig = {"configurable": {"thread_id": "sea"}}
    for question in ("Write one sentence about the sea.", "Now one about the sky."):
        state = graph.invoke({"messages": [HumanMessage(question)]}, config)
        reply = state["messages"][-1]
        assert isinstance(reply, AIMessage) and reply.usage_metadata is not None
        read = reply.usage_metadata["input_token_details"]["cache_read"]
        print(f"{question}\n  {reply.text}\n  {read} prompt tokens were still there")


if __name__ == "__main__":
    main()
