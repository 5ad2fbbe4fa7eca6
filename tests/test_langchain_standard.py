"""LangChain's own standard tests: the contract of a chat model, on the real default model."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_tests.integration_tests import ChatModelIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests

from whiflash_agents import ChatWhiFlash
from whiflash_engine.engine import Engine

pytestmark = pytest.mark.filterwarnings("ignore")


class TestUnit(ChatModelUnitTests):
    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatWhiFlash


@pytest.mark.model
class TestIntegration(ChatModelIntegrationTests):
    @pytest.fixture(autouse=True)
    def _share_the_engine(self, default_engine: Engine) -> None:
        type(self)._engine = default_engine

    _engine: Engine | None = None

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatWhiFlash

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"engine": self._engine, "max_tokens": 64}

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def supports_model_override(self) -> bool:
        return False

    @property
    def supports_anthropic_inputs(self) -> bool:
        return True

    @property
    def structured_output_kwargs(self) -> dict[str, Any]:
        return {"method": "json_schema"}
