"""The first settings that fit, in the order of what they cost; and what was asked for stays."""

from __future__ import annotations

import pytest

from engine.memory.choosing import Limits, Needs, choose, generation_rows, training_rows

ASKED = {
    "gradient_checkpointing": False, "gradient_checkpointing_blocks": None, "gradient_checkpointing_cpu_offload": False,
    "gradient_checkpointing_attention": "auto", "compile": False, "fp8_scaled": False, "blocks_to_swap": None,
    "use_pinned_memory_for_block_swap": False, "block_swap_ring_size": 2, "ffn_chunks": 1,
    "optimizer_cpu_offload": False, "fused_backward_pass": False, "block_swap_from_disk": False,
}  # fmt: skip
BLOCKS = 40


def each(rows):
    """All settings of some rows, one by one."""
    return [options for row in rows for options in row]


def measure(options):
    """A model of 40 blocks of 10, whose activations are 400, 100 with checkpoints; less with what else saves."""
    now = {**ASKED, **options}
    block = 5 if now["fp8_scaled"] else 10
    streamed = now["blocks_to_swap"] or 0
    card = block * (BLOCKS - streamed) + block * min(now["block_swap_ring_size"], streamed)
    if not now["gradient_checkpointing"]:
        return Needs(card=card + 400, main=0)
    if (now["gradient_checkpointing_blocks"] or BLOCKS) < BLOCKS:
        return Needs(card=card + 400 - 6 * now["gradient_checkpointing_blocks"], main=0)
    offload, keep = now["gradient_checkpointing_cpu_offload"], now["gradient_checkpointing_attention"] != "recompute"
    card += (40 if offload else 100 + 50 * keep) - {1: 0, 2: 4, 4: 5, 8: 6}[now["ffn_chunks"]]
    card += 0 if now["optimizer_cpu_offload"] else 2
    waits = 20 if now["block_swap_from_disk"] else block * streamed
    return Needs(card=card, main=waits + offload * (60 + 60 * keep))


def chosen(card, main=None, **asked):
    rows = training_rows({**ASKED, **asked}, blocks=BLOCKS)
    return choose(lambda options: measure({**asked, **options}), rows, Limits(card=card, main=main))


@pytest.mark.parametrize(("card", "words"), [
    (800, set()),
    (550, {"gradient_checkpointing", "gradient_checkpointing_attention"}),
    (400, {"blocks_to_swap", "use_pinned_memory_for_block_swap"}),
    (100, {"gradient_checkpointing_cpu_offload", "blocks_to_swap"}),
    (55, {"fp8_scaled", "gradient_checkpointing_cpu_offload"}),
    (46, {"fp8_scaled", "ffn_chunks"}),
    (42, {"fp8_scaled", "ffn_chunks", "block_swap_ring_size"}),
])  # fmt: skip
def test_the_cheapest_that_fits_is_taken(card, words):
    choice = chosen(card)
    assert choice.fits and choice.needs.card <= card and words <= choice.options.keys()
    assert ("fp8_scaled" in choice.options) == (card < 60), "numbers are changed last"
    assert ("ffn_chunks" in choice.options) == (card < 50), "only where it is needed"


def test_as_few_checkpoints_as_will_do():
    """Each has its block computed twice."""
    counts = [chosen(card).options.get("gradient_checkpointing_blocks") for card in (800, 799, 795, 793, 566, 565)]
    assert counts == [None, 1, 1, 2, 39, None] and chosen(565).options["gradient_checkpointing"]
    assert chosen(799, compile=True).options["gradient_checkpointing_blocks"] == 1
    asked = {"gradient_checkpointing": True, "gradient_checkpointing_blocks": 10}
    counts = [chosen(card, **asked).options.get("gradient_checkpointing_blocks") for card in (740, 739, 566, 560)]
    assert counts == [None, 11, 39, 40], "more than was asked for, up to all, where that is too much"
    all_asked = {**ASKED, "gradient_checkpointing": True}
    assert all(
        "gradient_checkpointing_blocks" not in options for options in each(training_rows(all_asked, blocks=BLOCKS))
    )


@pytest.mark.parametrize("main", [None, 500, 230, 60])
@pytest.mark.parametrize("asked", [{}, {"gradient_checkpointing": True}, {"fp8_scaled": True}])
def test_it_is_the_one_that_measuring_all_of_them_finds(main, asked):
    every = each(training_rows({**ASKED, **asked}, blocks=BLOCKS))
    for card in range(40, 820, 13):
        limits, choice = Limits(card=card, main=main), chosen(card, main, **asked)
        fitting = (options for options in every if limits.allow(measure({**asked, **options})))
        assert (choice.options if choice.fits else None) == next(fitting, None)


def test_what_the_optimizer_needs_goes_before_numbers_are_changed():
    assert "optimizer_cpu_offload" not in chosen(62).options
    assert chosen(60).options["optimizer_cpu_offload"] and "fp8_scaled" not in chosen(60).options
    assert all(
        "optimizer_cpu_offload" not in o
        for o in each(training_rows({**ASKED, "optimizer_cpu_offload": True}, blocks=4))
    )


def test_it_stays_where_each_step_is_taken_within_backward():
    rows = each(training_rows({**ASKED, "fused_backward_pass": True}, blocks=4))
    assert not any(options.get("optimizer_cpu_offload") for options in rows)


def test_few_streamed_blocks_may_take_more_than_none():
    """Buffers are for the largest block: HunyuanVideo's first three would take 108 MiB more than they leave."""

    def measure_unequal(options):
        streamed = options.get("blocks_to_swap", 0)
        return Needs(card=100 - 2 * streamed + (8 if streamed else 0), main=30 * bool(streamed))

    for rows in (training_rows(ASKED, blocks=BLOCKS), generation_rows(ASKED, blocks=BLOCKS)):
        choice = choose(measure_unequal, rows, Limits(card=100))
        assert choice.fits and choice.options == {}
    fewer = choose(measure_unequal, generation_rows(ASKED, blocks=BLOCKS), Limits(card=99))
    assert fewer.options["blocks_to_swap"] == 5


def test_few_settings_are_measured():
    """Each takes a millisecond and more, and there are hundreds."""
    asked = []
    choose(
        lambda options: asked.append(options) or measure(options), training_rows(ASKED, blocks=BLOCKS), Limits(card=10)
    )
    assert len(asked) < 0.06 * len(each(training_rows(ASKED, blocks=BLOCKS)))


def test_as_few_pieces_as_will_do():
    """Each costs time."""
    assert [chosen(card).options["ffn_chunks"] for card in (46, 45, 44)] == [2, 4, 8]


def test_attention_is_kept_as_long_as_anything_else_will_do():
    """Computing it again costs more than pieces, streaming or inputs in main memory: a smaller card never keeps what a
    larger one gives up."""

    def dear(options):
        now = {**ASKED, **options}
        kept = 3 * (now["gradient_checkpointing_attention"] == "keep")
        return Needs(card=measure(options).card + kept, main=0)

    rows = [row for row in training_rows(ASKED, blocks=BLOCKS) if "block_swap_ring_size" not in row[0]]
    found = [choose(dear, rows, Limits(card=card)).options for card in range(400, 43, -1)]
    kept = [one["gradient_checkpointing_attention"] == "keep" for one in found]
    assert True in kept and False in kept and kept == sorted(kept, reverse=True)
    pieces = {one.get("ffn_chunks", 1) for one, keeps in zip(found, kept, strict=True) if keeps}
    assert pieces == {1, 2, 4, 8}


def test_as_few_blocks_as_will_do():
    count = chosen(400).options["blocks_to_swap"]
    assert measure(chosen(400).options).card <= 400 < measure({**chosen(400).options, "blocks_to_swap": count - 1}).card


def test_little_main_memory_is_kept_to():
    choice = chosen(100, main=400)
    assert not choice.fits or choice.needs.main <= 400
    assert chosen(170, main=230).options.get("fp8_scaled"), "streamed in 16 bits it would take 400"


def test_what_main_memory_has_no_room_for_stays_on_disk():
    assert not any("block_swap_from_disk" in chosen(card, main=400).options for card in range(100, 800, 20))
    choice = chosen(100, main=90)
    assert choice.fits and choice.options["block_swap_from_disk"] and choice.needs.main <= 90
    assert "use_pinned_memory_for_block_swap" not in choice.options and "fp8_scaled" not in choice.options
    asked = {
        "blocks_to_swap": 38, "gradient_checkpointing": True, "gradient_checkpointing_attention": "recompute",
        "fp8_scaled": True,
    }  # fmt: skip
    assert chosen(170, main=90, **asked).options == {"block_swap_from_disk": True}
    rows = each(training_rows({**ASKED, **asked, "block_swap_from_disk": True}, blocks=BLOCKS))
    assert not any("block_swap_from_disk" in options for options in rows)


def test_how_many_wait_on_disk_may_be_left_open():
    assert not chosen(800, block_swap_from_disk=True).options, "none where all fits"
    few = chosen(400, block_swap_from_disk=True)
    assert few.fits and few.needs.main == 20 and few.options["blocks_to_swap"] > 0
    assert not {"block_swap_from_disk", "use_pinned_memory_for_block_swap"} & few.options.keys()


def test_a_disk_that_is_too_small_for_what_is_written_there():
    def measured(options):
        now = {**ASKED, **options}
        written = 2 * (now["blocks_to_swap"] or 0) if now["fp8_scaled"] and now["block_swap_from_disk"] else 0
        return Needs(card=measure(options).card, main=measure(options).main, disk=written)

    def found(disk, card=55):
        return choose(measured, training_rows(ASKED, blocks=BLOCKS), Limits(card=card, main=90, disk=disk))

    assert found(None).fits and found(80).options == found(None).options
    assert found(None).needs.disk > 10 and found(10).fits and "fp8_scaled" not in found(10).options
    assert found(None, card=42).fits and not found(10, card=42).fits


def test_what_the_disk_has_room_for_counts_where_nothing_fits():
    """Of a row whose end the disk has no room for, the last place that it has room for takes least."""

    def measured(options):
        streamed = options.get("blocks_to_swap", 0)
        on_disk = bool(options.get("block_swap_from_disk"))
        card = 10 * (BLOCKS - streamed) + 5
        return Needs(card=card, main=0 if on_disk else 10 * streamed, disk=on_disk * 2 * streamed)

    rows = list(generation_rows(ASKED, blocks=BLOCKS, may_fp8=False))
    for disk, streamed in ((30, 15), (41, 20), (1000, 40)):
        choice = choose(measured, rows, Limits(card=1, main=50, disk=disk))
        assert not choice.fits and choice.options["blocks_to_swap"] == streamed
        assert choice.needs.card == min(
            found.card for found in map(measured, each(rows)) if found.main <= 50 and found.disk <= disk
        )


def test_where_more_streamed_blocks_leave_less_to_wait_enough_of_them_are_streamed():
    """An expert that waits in main memory leaves its streamed blocks on disk too."""

    def two_experts(options):
        streamed = options.get("blocks_to_swap", 0)
        on_disk = bool(options.get("block_swap_from_disk"))
        return Needs(card=10 * (BLOCKS - streamed), main=10 * (BLOCKS - streamed) + 20 if on_disk else 1000)

    rows = list(generation_rows(ASKED, blocks=BLOCKS))
    for main, streamed in ((320, 20), (200, 22), (20, 40)):
        assert choose(two_experts, rows, Limits(card=200, main=main)).options["blocks_to_swap"] == streamed
    assert not choose(two_experts, rows, Limits(card=200, main=19)).fits


def test_what_does_not_fit_gives_the_least():
    choice = chosen(10)
    assert not choice.fits and choice.needs.card == min(
        measure(o).card for o in each(training_rows(ASKED, blocks=BLOCKS))
    )
    assert measure(choice.options) == choice.needs


def test_what_was_asked_for_is_not_taken_back():
    asked = {"blocks_to_swap": 20, "gradient_checkpointing_attention": "recompute", "fp8_scaled": True}
    for options in each(training_rows({**ASKED, **asked}, blocks=BLOCKS)):
        assert options.get("blocks_to_swap", 20) >= 20
        assert not {"fp8_scaled", "gradient_checkpointing_attention"} & options.keys()


def test_a_base_that_is_shared_out_is_not_streamed_as_well():
    rows = each(training_rows({**ASKED, "shard_base": True}, blocks=BLOCKS))
    assert not any("blocks_to_swap" in options for options in rows)
    assert {"block_swap_ring_size", "fp8_scaled"} <= {name for options in rows for name in options}


def test_nothing_is_added_that_is_there_already():
    asked = {**ASKED, "gradient_checkpointing": True, "use_pinned_memory_for_block_swap": True}
    assert all("gradient_checkpointing" not in options for options in each(training_rows(asked, blocks=BLOCKS)))
    assert all(
        "use_pinned_memory_for_block_swap" not in options for options in each(generation_rows(asked, blocks=BLOCKS))
    )


def test_blocks_on_disk_are_not_pinned():
    asked = {**ASKED, "blocks_to_swap": 4, "block_swap_from_disk": True}
    for rows in (training_rows, generation_rows):
        found = each(rows(asked, blocks=BLOCKS))
        assert any("blocks_to_swap" in options for options in found)
        assert not any("use_pinned_memory_for_block_swap" in options for options in found)


def test_a_file_in_plain_fp8_is_not_rounded_again():
    rows = each([*training_rows(ASKED, blocks=4, may_fp8=False), *generation_rows(ASKED, blocks=4, may_fp8=False)])
    assert rows and all("fp8_scaled" not in options for options in rows)
