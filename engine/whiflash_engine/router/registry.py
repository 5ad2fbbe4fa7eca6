"""The routers of an engine: one per configuration. What they have learned outlives a call."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

from whiflash_engine.config import ArmName, RouterConfig
from whiflash_engine.router.build import build_router, new_learner
from whiflash_engine.router.costs import CostModel
from whiflash_engine.router.memory import keep, recall
from whiflash_engine.router.neural import Learner, RouterNet
from whiflash_engine.router.perceptron import Perceptron
from whiflash_engine.router.router import Router

_KEEP_EVERY = 100
"""Rounds between two writings of the statistics."""


class Routers:
    """They share the measured costs and what is learned of drafts, for neither depends on how a
    configuration weighs it. What is learned may be kept in a file, whichever of them learns it."""

    def __init__(
        self,
        arms: Sequence[ArmName],
        default: RouterConfig,
        net: RouterNet | Perceptron | None,
        statistics: Path | None,
        model: str,
        turn: threading.Lock,
    ) -> None:
        """model: its name, for the statistics. turn: held by whoever uses a router. ConfigError
        as of `get` for the default."""
        self._arms, self._default, self._net = tuple(arms), default, net
        self._statistics, self._turn, self._unkept = statistics, turn, _KEEP_EVERY
        self._model = model
        self.costs = CostModel()
        self._building = threading.Lock()
        self._built: dict[RouterConfig, Router] = {}
        self._learner = new_learner(net)
        self._learns = False  # until a configuration that was asked for does
        self.get()

    def get(self, config: RouterConfig | None = None) -> Router:
        """None: the default. ConfigError for one that arms and network do not allow, and, if it
        learns, for a file that holds no statistics of this model."""
        config = config or self._default
        if config.name != "random":  # no other policy draws from the seed
            config = replace(config, seed=0)
        with self._building:
            if config not in self._built:
                self._built[config] = self._build(config)
            return self._built[config]

    def fresh(self, config: RouterConfig) -> Router:
        """One that has learned nothing yet and is nobody else's, with a copy of the costs. Not
        to be called in a round."""
        with self._turn:
            self._digest()
            costs = deepcopy(self.costs)
        return build_router(config, self._arms, costs, self._net)

    def _build(self, config: RouterConfig) -> Router:
        router = build_router(config, self._arms, self.costs, self._net, self._learner)
        if isinstance(router.policy, Learner) and not self._learns:
            if self._statistics is not None:
                recall(self._statistics, self._learner, self._model)
            self._learns = True
        return router

    def _digest(self) -> None:
        for router in list(self._built.values()):  # others may be built meanwhile
            router.digest()

    def ran(self, rounds: int) -> None:
        """To be told of every generation: writes the statistics after the first and then every
        hundred rounds, unless somebody else is in a round just now."""
        self._unkept += rounds
        if self._statistics is None or not self._learns or self._unkept < _KEEP_EVERY:
            return
        # never waits: an abandoned generator may be closed anywhere, even inside a round
        if self._turn.acquire(blocking=False):
            try:
                self._digest()
                keep(self._statistics, self._learner, self._model)
                self._unkept = 0
            except OSError as error:  # an answer is worth more than its statistics
                self._statistics = None
                warnings.warn(f"router statistics cannot be kept: {error}", stacklevel=2)
            finally:
                self._turn.release()
