"""Which engine is behind a chat model, and that copies of the model share it."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any, Self

from pydantic import PrivateAttr, model_validator

from whiflash_adapters.ports import TokenEngine
from whiflash_adapters.prompt import Prompter
from whiflash_adapters.settings import ChatSettings
from whiflash_adapters.slot import Origin, Slot, tell
from whiflash_adapters.values import router_config
from whiflash_engine.errors import ConfigError

LOADING = (
    "model", "ar_drafter", "diffusion_drafter", "neural_router", "statistics", "device", "dtype",
)  # fmt: skip
"""What an engine is loaded from. Routing and sampling are not: they are told with every call."""


class ChatSharing(ChatSettings):
    """Nothing is loaded before the engine is asked for, and no engine twice at a time."""

    _slot: Slot | None = PrivateAttr(default=None)

    @model_validator(mode="after")
    def _take_slot(self) -> Self:
        self._shared()
        return self

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """As pydantic's. A copy of another model loads that one and says so."""
        original = deepcopy(self) if deep else self
        copied = super(ChatSharing, original).model_copy(update=update)
        copied.__dict__.pop("_serialized", None)  # LangChain's words for the original
        copied._shared()
        if "profile" not in (update or {}) and self.profile == self._resolve_model_profile():
            copied.profile = copied._resolve_model_profile()
        return copied

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        """Weights are never copied, and whoever hears of answers goes on hearing."""
        memo = {} if memo is None else memo
        memo.update((id(shared), shared) for shared in (self.engine, self.on_trace))
        return super().__deepcopy__(memo)

    def __getstate__(self) -> dict[Any, Any]:
        if self.engine is not None:
            why = "cannot be pickled; a model that is told what to load can, and loads it again"
            raise ConfigError("engine", self.engine.model_name, why)
        return super().__getstate__()

    def _loaded(self) -> tuple[TokenEngine, Prompter]:
        return self._shared().get(self._load, self.tool_format)

    def _shared(self) -> Slot:
        """Held from now on; another one after a field that it goes by was changed."""
        slot = self._slot
        if slot is None or slot.origin != self._origin:
            slot = self._slot = Slot.of(self._origin)
        return slot

    @property
    def _origin(self) -> Origin:
        if self.engine is not None:
            return ("given", id(self.engine))
        fields = (getattr(self, name) for name in LOADING)
        return ("loaded", *(None if field is None else str(field) for field in fields))

    def _load(self) -> TokenEngine:
        if self.engine is not None:
            return self.engine
        from whiflash_engine.engine import Engine  # torch: only when a model is really used

        return Engine.load(
            **{name: getattr(self, name) for name in LOADING},
            router=router_config(self._routing()),  # what it lacks is told before weights are read
            report=tell,
        )
