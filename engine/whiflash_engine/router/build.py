"""The router that a configuration names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

from whiflash_engine.config import ArmName, RouterConfig, RouterName, require
from whiflash_engine.router.averages import AveragesPolicy
from whiflash_engine.router.costs import CostModel
from whiflash_engine.router.neural import (
    DeltaPolicy,
    Learner,
    NeuralPolicy,
    RouterNet,
)
from whiflash_engine.router.perceptron import Perceptron
from whiflash_engine.router.policies import RandomPolicy, StaticPolicy, ThresholdPolicy
from whiflash_engine.router.router import Router


def new_learner(net: RouterNet | Perceptron | None) -> Learner:
    """One that has learned nothing yet. A published router has nothing to go on learning in."""
    return NeuralPolicy(net) if isinstance(net, RouterNet) else AveragesPolicy()


def build_router(
    config: RouterConfig,
    arms: Sequence[ArmName],
    costs: CostModel | None = None,
    net: RouterNet | Perceptron | None = None,
    learner: Learner | None = None,
) -> Router:
    """The router that `config` names, over the arms that are loaded. net: a learned one.
    learner: made for that one, and has learned of these arms already; a router that learns goes on
    in it. ConfigError if the router needs what is not there."""
    for arm in arms:
        require(arm in get_args(ArmName), "arm", arm, f"must be one of {get_args(ArmName)}")
    name = config.name
    published = name == "neural" and isinstance(net, Perceptron)
    for arm in _needed(name, published):
        require(arm in arms, "router", name, f"needs the {arm} drafter, which is not loaded")
    if name == "ar" or name == "diffusion" or name == "retrieval" or name == "plain":
        return Router(
            StaticPolicy(name), balance=config.balance, whole_drafts=config.whole_drafts,
            costs=costs,
        )  # fmt: skip
    if name == "random":
        return Router(RandomPolicy(config.seed), hindsight=config.hindsight, costs=costs)
    if name == "entropy":
        rule = ThresholdPolicy(config.entropy_threshold)
        return Router(rule, span_bias=config.span_bias, costs=costs)
    if name == "neural":
        require(net is not None, "router", name, "needs a neural_router, and none is loaded")
        if isinstance(net, Perceptron):
            delta = DeltaPolicy(net, config.delta_threshold)
            return Router(delta, span_bias=config.span_bias, costs=costs)
    learned = config.learned or name == "neural"
    unused = learned and isinstance(net, Perceptron)  # one that was asked for, and says too little
    require(not unused, "router", name, 'the neural_router is a published one: it needs "neural"')
    policy = learner or new_learner(net)
    if isinstance(policy, NeuralPolicy) and not learned:
        policy = policy.averages
    return Router(
        policy,
        balance=config.balance,
        span_bias=config.span_bias,
        probed=arms,
        without=() if config.retrieval else ("retrieval",),
        whole_drafts=config.whole_drafts,
        hindsight=config.hindsight,
        lets_stand=not config.every_round,
        costs=costs,
    )


def _needed(name: RouterName, published: bool) -> tuple[ArmName, ...]:
    """Drafters without which a router would be another one."""
    if name == "entropy" or published:
        return ("ar", "diffusion")
    return (name,) if name == "ar" or name == "diffusion" else ()
