from __future__ import annotations

import torch
from torch.nn.functional import gelu

from engine.ops.quantize_rows import LARGEST, LONGEST_FUSED_ROW, quantize_rows


def test_each_row_uses_the_whole_range_of_its_format():
    torch.manual_seed(0)
    rows = torch.randn(5, 64) * torch.tensor([[1e-4], [1.0], [1e4], [3.0], [0.0]])
    codes, scale = quantize_rows(rows)
    assert (codes.float().abs().amax(dim=-1)[:4] == LARGEST).all()
    torch.testing.assert_close(codes.float() * scale, rows, rtol=0.07, atol=1e-6)


def test_factors_come_before_the_scale():
    torch.manual_seed(0)
    rows, factors = torch.randn(3, 32), torch.rand(32) * 100
    for ours, theirs in zip(quantize_rows(rows, factors), quantize_rows(rows * factors), strict=True):
        torch.testing.assert_close(ours.float(), theirs.float(), rtol=0, atol=0)


def test_a_compiler_cannot_look_into_it_where_there_are_factors_or_long_rows():
    """It would write the product with factors in float32, and go through long rows twice."""
    rows, factors = torch.randn(5, 48, dtype=torch.bfloat16), torch.rand(48)
    long = torch.randn(2, LONGEST_FUSED_ROW + 16, dtype=torch.bfloat16)
    seen = []

    def look(graph, inputs):
        seen.append([node.target for node in graph.graph.nodes if node.op == "call_function"])
        return graph

    def all_ways():
        return (*quantize_rows(rows, factors), *quantize_rows(rows), *quantize_rows(long))

    compiled = torch.compile(all_ways, backend=look, fullgraph=True)
    assert all(torch.equal(a.float(), b.float()) for a, b in zip(compiled(), all_ways(), strict=True))
    (targets,) = seen
    assert sum("musubi.quantize_rows" in str(target) for target in targets) == 2
    for laid_out in (rows, torch.randn(48, 5).t(), rows[:0], rows.expand(5, 48)):
        for given in ((factors,), (None,), (None, True)):
            torch.library.opcheck(torch.ops.musubi.quantize_rows.default, (laid_out, *given))


def test_the_gelu_of_rows_is_rounded_to_their_format_first():
    rows = torch.randn(5, 48, generator=torch.Generator().manual_seed(0)).mul(3).bfloat16()
    for ours, theirs in zip(quantize_rows(rows, gelu=True), quantize_rows(gelu(rows, approximate="tanh")), strict=True):
        assert torch.equal(ours.float(), theirs.float())
