"""How far it is from `main` to the attention call: the lines of the functions that a reader passes through.

docs/CONTRIBUTING.md tells about it; `python -m tests.test_distance` prints the way. The limit is the aim.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACK = Path(__file__).parents[1]
LIMIT = 450
TRUNK = [
    ("engine/__main__.py", ("main", "run", "lead")),
    ("engine/tasks/train.py", ("run", "_train", "_setup")),
    ("engine/tasks/trained_model.py", ("TrainedModel",)),
    ("engine/training/loop.py", (
        "train", "_Training.run", "_Training._run_epoch", "_Training._train_step", "_Training._loss")),
    ("engine/training/micro_batch.py", ("drawn_error",)),
    ("engine/training/step.py", ("flow_error",)),
]  # fmt: skip
BRANCHES = {
    "wan": [
        ("engine/families/wan/model.py", ("velocity", "WanModel.forward", "WanModel._through_blocks")),
        ("engine/families/wan/layers.py", ("WanAttentionBlock.forward", "WanAttentionBlock._attended")),
    ],
    "hunyuan_video": [
        ("engine/families/hunyuan_video/model.py", (
            "velocity", "HunyuanVideoModel.forward", "HunyuanVideoModel._through_blocks")),
        ("engine/parts/mmdit.py", ("DoubleStreamBlock.forward",)),
    ],
    "framepack": [
        ("engine/families/framepack/model.py", ("velocity", "FramePackModel.forward", "FramePackModel.run_blocks")),
        ("engine/parts/mmdit.py", ("DoubleStreamBlock.forward",)),
    ],
}  # fmt: skip
GOAL = [("engine/ops/attention.py", ("attention",))]


def lengths(path: Path) -> dict[str, int]:
    """Lines of each function and class of a file, and of each method as `Class.method`."""
    found = {}
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            inside = node.body if isinstance(node, ast.ClassDef) else []
            methods = {f"{node.name}.{one.name}": one for one in inside if isinstance(one, ast.FunctionDef)}
            for name, one in {node.name: node, **methods}.items():
                found[name] = one.end_lineno - one.lineno + 1
    return found


def way(family: str) -> list[tuple[str, str, int]]:
    """(file, function, its lines) from `main` to the attention call of this family's DiT in training."""
    return [
        (file, function, lengths(PACK / file)[function])
        for file, functions in [*TRUNK, *BRANCHES[family], *GOAL]
        for function in functions
    ]


def distance(family: str) -> int:
    return sum(lines for _, _, lines in way(family))


@pytest.mark.parametrize("family", BRANCHES)
def test_a_reader_is_at_the_attention_call_soon(family):
    assert distance(family) <= LIMIT, way(family)


if __name__ == "__main__":
    for family in BRANCHES:
        for file, function, lines in way(family):
            print(f"{lines:4}  {file}  {function}")
        print(f"{distance(family):4}  {family}\n")
