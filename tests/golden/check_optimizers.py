"""The engine's own optimizers against the packages that they are known from: a small problem, 24 steps."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from engine.training.optimizers import choose_optimizer
from tests.golden.kit import Golden, Row, row


def check_optimizers(golden: Golden) -> Iterable[Row]:
    for number, case in enumerate(golden.info["cases"]):
        yield from check_case(golden, number, case)


def check_case(golden: Golden, number: int, case: dict[str, Any]) -> Iterable[Row]:
    tensors, name = golden.tensors, case["optimizer"]
    groups = golden.info["groups"]
    parameters = {key: torch.nn.Parameter(tensors[f"start.{key}"].clone()) for group in groups for key in group}
    arguments = [f"{key}={value}" for key, value in case["arguments"].items()]
    rate = case["learning_rate"]
    chosen = choose_optimizer(name, arguments, lr=rate)
    built = chosen.build([{"params": [parameters[key] for key in group], "lr": rate} for group in groups])
    built.train()
    estimates = []
    for step in range(golden.info["steps"]):
        for group in built.optimizer.param_groups:
            group["lr"] = rate * (case["rates"][step] if case["rates"] else 1.0)
        for key, parameter in parameters.items():
            slope = tensors[f"curvature.{key}"] * (parameter.detach() - tensors[f"target.{key}"])
            parameter.grad = slope + tensors[f"noise.{key}"][step]
        built.optimizer.step()
        estimates.append(built.optimizer.param_groups[0].get("d", 0.0))
    label = f"case {number} {name}"
    for key, parameter in parameters.items():
        yield row(f"{label} {key}", parameter.detach(), tensors[f"c{number}.{key}"])
    if f"c{number}.d" in tensors:
        yield row(f"{label} d", torch.tensor(estimates, dtype=torch.float64), tensors[f"c{number}.d"])
    built.eval()
    for key, parameter in parameters.items():
        if f"c{number}.eval.{key}" in tensors:
            yield row(f"{label} {key} shown", parameter.detach(), tensors[f"c{number}.eval.{key}"])


CHECKS = {"optimizers": check_optimizers}
