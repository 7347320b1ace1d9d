"""What is told about a LoRA file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from engine.lora.files import LoraFile
from engine.lora.info import describe, lines
from engine.lora.pieces import Assembled
from engine.lora.weights import LokrWeights, LoraWeights


def file(**modules) -> LoraFile:
    found = {name.replace("__", "."): weights for name, weights in modules.items()}
    return LoraFile(Path("a"), found, unmatched=("x",))


ONE = LoraWeights(torch.ones(1, 3), torch.ones(4, 1), 1.0)
TWO = LoraWeights(torch.ones(2, 3, dtype=torch.bfloat16), 2 * torch.ones(4, 2, dtype=torch.bfloat16), 1.0)


def test_facts_are_counted_and_norms_measured() -> None:
    seen: list[int] = []
    info = describe(
        file(blocks__0__q=ONE, blocks__0__k=ONE, blocks__1__q=TWO, head=LokrWeights(torch.eye(2), torch.eye(2), 2.0)),
        on_module=lambda: seen.append(1),
    )
    assert info.kinds == {"LoRA": 3, "LoKr": 1} and info.ranks == {1: 2, 2: 2} and info.alphas == {1.0: 3, 2.0: 1}
    assert info.modules == 4 and info.parameters == 7 + 7 + 14 + 8 and info.dtypes == {"float32": 22, "bfloat16": 14}
    assert info.norms == pytest.approx({"blocks.0": 24**0.5, "blocks.1": 48**0.5, "head": 2.0})
    assert info.norm == pytest.approx((24 + 48 + 4) ** 0.5) and len(seen) == 4 and info.unmatched == 1
    assert info.values()["norm/blocks.0"] == info.norms["blocks.0"] and info.values()["rank/highest"] == 2


def test_blocks_are_in_the_order_of_the_model() -> None:
    """Files have block 10 before block 2."""
    info = describe(file(a__10__q=ONE, a__2__q=ONE, b__0__q=ONE, a__0__q=ONE, head=ONE))
    assert list(info.norms) == ["a.0", "a.2", "a.10", "b.0", "head"]


def test_a_person_reads_lines() -> None:
    info = describe(file(blocks__0__q=ONE, blocks__10__q=TWO))
    said = lines(info, {"ss_steps": "1600", "ss_network_args": json.dumps({"factor": 8}), "ss_seed": "None"})
    assert said[0].split() == ["kind", "LoRA"] and said[1].endswith("1 (1 modules), 2 (1 modules)")
    assert any(line.split() == ["steps", "1600"] for line in said) and not any("seed" in line for line in said)
    assert any(line.endswith("factor=8") for line in said)
    assert said[-1].startswith("  blocks.10") and said[-1].count("█") == 30
    assert said[-2].count("█") == 15


def test_dora_and_pieces_are_named() -> None:
    dora = LoraWeights(torch.ones(1, 3), torch.ones(4, 1), 1.0, dora=torch.ones(4, 1))
    info = describe(file(a=dora, b=Assembled(((ONE, 1, 3), (None, 0, 2)))))
    assert info.kinds == {"LoRA with DoRA": 1, "assembled": 1} and info.norms["b"] == pytest.approx(6**0.5)
