"""What is predicted against what an H100 took: six blocks of Wan 14B forward and backward, LoRA of rank 32, batch 1.

GiB as PyTorch counts them. Whole jobs are compared in tests/tasks/test_plan_measured.py.
"""

from __future__ import annotations

import dataclasses
import itertools

import pytest

from engine.memory.activations import BLOCKS, COMPILED
from engine.memory.estimate import (
    CONTEXT,
    GIB,
    SETTLED_SLACK,
    SLACK,
    How,
    VaeWork,
    Weights,
    denoising,
    largest,
    training,
    vae_stage,
)
from engine.parts.workload import BlockRun, Work
from tests.memory.measured import WIDE, WRITTEN_OUT

BLOCK_NUMBERS = 351_288_320
ROW_SCALES = 4 * (8 * 5120 + 13824 + 5120)
ADAPTER = 32 * (8 * 2 * 5120 + 2 * (5120 + 13824))
F33, F81 = 14_040, 32_760  # tokens of 480 x 832 at 33 and 81 frames
KEEP = {"gradient_checkpointing_attention": "keep"}
OFFLOAD = {**KEEP, "gradient_checkpointing_cpu_offload": True}
MEASURED = [
    (F33, "bf16", {}, 9.59),
    (F33, "bf16", KEEP, 10.27),
    (F33, "fp8", {}, 7.62),
    (F33, "fp8", KEEP, 8.30),
    (F33, "fp8", {**KEEP, "compile": True}, 8.51),
    (F33, "fp8", {**OFFLOAD, "compile": True}, 7.57),
    (F81, "bf16", KEEP, 17.9),
    (F81, "fp8", {"compile": True}, 14.75),
    (F81, "fp8", {**KEEP, "compile": True}, 16.34),
    (F81, "fp8", {**OFFLOAD, "compile": True}, 14.13),
]


def weights(blocks=6, *, fp8=False, adapters=True):
    each = BLOCK_NUMBERS + ROW_SCALES if fp8 else 2 * BLOCK_NUMBERS
    return Weights(outside=int(0.43 * GIB), blocks=(each,) * blocks, adapters=(ADAPTER,) * blocks if adapters else ())


def work(tokens=F33, blocks=6):
    run = BlockRun(kind="cross", prefix="blocks", count=blocks, ffn_dim=13824)
    return Work(dim=5120, tokens=tokens, text_tokens=512, runs=(run,))


@pytest.mark.parametrize(("tokens", "numbers", "how", "measured"), MEASURED)
def test_a_step_takes_what_was_measured(monkeypatch, tokens, numbers, how, measured):
    for numbers_of, then in ((BLOCKS, WIDE), (COMPILED, WRITTEN_OUT)):  # as blocks were
        for kind in then:
            monkeypatch.setitem(numbers_of, kind, then[kind])
    stage = training(weights(fp8=numbers == "fp8"), work(tokens), How(optimizer_bytes=0, **how))
    assert stage.device_bytes / GIB == pytest.approx(measured, rel=0.03)


@pytest.mark.parametrize("how", [How(), How(**KEEP), How(**OFFLOAD), How(gradient_checkpointing=False)], ids=str)
def test_more_streamed_blocks_never_need_more(how):
    found = [
        training(weights(40), work(blocks=40), dataclasses.replace(how, blocks_to_swap=count)) for count in range(41)
    ]
    card = [stage.device_bytes for stage in found]
    # the first two take as much in buffers as they leave
    assert all(after <= before for before, after in itertools.pairwise(card)) and card[40] < card[2] == card[0]
    assert all(after.main_bytes >= before.main_bytes for before, after in itertools.pairwise(found))


def test_main_memory_holds_as_many_of_the_blocks_on_disk_as_the_card_has_buffers():
    found = [
        training(weights(40), work(blocks=40), How(blocks_to_swap=count, block_swap_from_disk=True, **slots))
        for count in range(1, 41)
        for slots in ({}, {"block_swap_ring_size": 1})
    ]
    block = 2 * BLOCK_NUMBERS
    buffers = {stage.main["buffers of streamed blocks"] for stage in found}
    assert buffers == {block, 2 * block} and max(stage.main_bytes for stage in found) < 6 * GIB
    in_main_memory = training(weights(40), work(blocks=40), How(blocks_to_swap=20))
    on_disk = training(weights(40), work(blocks=40), How(blocks_to_swap=20, block_swap_from_disk=True))
    assert on_disk.device == in_main_memory.device


@pytest.mark.parametrize(("less", "more"), [
    (How(), How(**KEEP)),
    (How(**OFFLOAD), How(**KEEP)),
    (How(), How(gradient_checkpointing=False)),
    (How(blocks_to_swap=6, block_swap_ring_size=1), How(blocks_to_swap=6)),
    (How(shared_by=2), How()),
    (How(shared_by=4), How(shared_by=2)),
    (How(shared_by=2, block_swap_ring_size=1), How(shared_by=2)),
    (How(), How(batch=2)),
    (How(compile=True), How()),
    (How(), How(gradient_accumulation_steps=2)),
    (How(optimizer_bytes=2), How()),
    (How(), How(plain_quantizing=True)),
])  # fmt: skip
def test_what_saves_memory_is_predicted_to(less, more):
    assert training(weights(), work(), less).device_bytes < training(weights(), work(), more).device_bytes


GRADIENTS = 4 * ADAPTER  # of one block's adapters


def test_gradients_add_up_while_inputs_go():
    """As the last block is differentiated all inputs are there, as the third is, three and nearly all gradients."""
    resident = training(weights(40), work(blocks=40), How(**KEEP)).device
    offloaded = training(weights(40), work(blocks=40), How(**OFFLOAD)).device
    assert resident["block inputs"] == 40 * offloaded["block inputs"] / 3 and resident["gradients"] == GRADIENTS
    assert offloaded["gradients"] == 38 * GRADIENTS
    fused = training(weights(40), work(blocks=40), How(**OFFLOAD, fused_backward_pass=True)).device
    assert fused["gradients"] == GRADIENTS
    added_up = training(weights(40), work(blocks=40), How(gradient_accumulation_steps=2)).device
    assert added_up["gradients"] == 40 * GRADIENTS


def test_what_the_optimizer_needs_waits_in_main_memory_and_comes_back_for_its_step():
    plain, away = (training(weights(40), work(blocks=40), How(**OFFLOAD, optimizer_cpu_offload=on)) for on in (0, 1))
    state = 2 * 40 * GRADIENTS
    assert plain.device["optimizer state"] == state and away.device["gradients"] == GRADIENTS
    assert plain.device_bytes - away.device_bytes == state + 37 * GRADIENTS
    assert away.main_bytes - plain.main_bytes == 2 * state + 40 * GRADIENTS, "a copy of the state is what is saved"
    few = training(weights(40), work(80, blocks=40), How(**OFFLOAD, optimizer_cpu_offload=True)).device
    assert few["optimizer state"] == state and few["gradients"] == 40 * GRADIENTS, "then the step takes most"


def test_whole_tiles_are_copied_where_there_is_room_and_need_none_to_spare():
    pieces = How(**OFFLOAD, ffn_chunks=8)
    whole = training(weights(40), work(14_080, blocks=40), pieces)  # 110 tiles
    copied = training(weights(40), work(14_079, blocks=40), pieces)
    size = 14_079 * 5120 * 2
    assert whole.spare == 0 and copied.device_bytes - whole.device_bytes == pytest.approx(5 * size, rel=0.01)
    assert copied.spare == pytest.approx((10 - 6.25) * size, rel=0.01)
    short = training(weights(40), work(14_079, blocks=40), pieces, room=copied.needed_bytes - 39 * 2 * BLOCK_NUMBERS)
    assert short.spare == 0 and short.device_bytes == copied.device_bytes - copied.spare
    assert short.needed_bytes == copied.needed_bytes
    never = dataclasses.replace(pieces, whole_tiles="never")
    assert training(weights(40), work(14_079, blocks=40), never).device_bytes < short.device_bytes
    kept = dataclasses.replace(pieces, whole_tiles="kept")
    assert training(weights(40), work(14_079, blocks=40), kept).device_bytes == copied.device_bytes


@pytest.mark.parametrize("pieces", [1, 2, 4, 8])
@pytest.mark.parametrize("tokens", [14_079, F81])
@pytest.mark.parametrize("way", [OFFLOAD, KEEP])
def test_what_is_needed_covers_every_moment(pieces, tokens, way):
    """Where there is room for copies of whole tiles as the last block is differentiated, and none as the first is,
    when gradients of all the others are there: copies can be done without, gradients cannot."""
    how = How(**way, ffn_chunks=pieces, compile=True)
    tight = training(weights(40), work(tokens, blocks=40), how, room=0)
    for room in range(CONTEXT + tight.device_bytes - GIB, CONTEXT + tight.device_bytes + 10 * GIB, GIB // 8):
        stage = training(weights(40), work(tokens, blocks=40), how, room=room)
        assert stage.device_bytes - stage.spare == tight.device_bytes and stage.needed_bytes == tight.needed_bytes


def test_attention_in_8_bits_has_codes_of_half_the_size_and_none_for_few_keys():
    bare = weights(adapters=False)
    for tokens, sizes in ((F33, 1.5), (2047, 0)):
        plain, codes = (denoising(bare, work(tokens), How(eight_bit=on)).device_bytes for on in (False, True))
        assert codes - plain == sizes * tokens * 5120 * 2


def test_gradients_of_attention_in_8_bits_take_as_much_for_any_tokens_and_room_unless_it_is_short():
    pieces = How(**OFFLOAD, ffn_chunks=8)
    number = 1 / 64  # one more for each token and head is kept
    for tokens, more in ((14_080, 6.1 + number - 5), (14_079, 6.1 + number - 10)):
        exact, codes, tight = (
            training(weights(40), work(tokens, blocks=40), dataclasses.replace(pieces, eight_bit=on), room=room)
            for on, room in ((False, None), (True, None), (True, 0))
        )
        assert codes.device_bytes - exact.device_bytes == pytest.approx(more * tokens * 5120 * 2, rel=0.01)
        assert codes.spare == 0 and tight.device_bytes == codes.device_bytes
    exact, short = (
        training(weights(40), work(2047, blocks=40), dataclasses.replace(pieces, eight_bit=on)) for on in (False, True)
    )
    assert short == exact


def test_pieces_save_memory_without_checkpoints_too():
    whole, two, eight = (
        training(weights(40), work(blocks=40), How(gradient_checkpointing=False, ffn_chunks=count)).device_bytes
        for count in (1, 2, 8)
    )
    assert eight < two < whole / 2


def test_longer_clips_and_fp8_the_same_way_in_generation():
    bare, small = weights(adapters=False), weights(fp8=True, adapters=False)
    assert denoising(bare, work(F33), How()).device_bytes < denoising(bare, work(F81), How()).device_bytes
    assert denoising(small, work(), How()).device_bytes < denoising(bare, work(), How()).device_bytes
    assert denoising(bare, work(), How()).device_bytes < training(weights(), work(), How()).device_bytes


def test_attention_is_kept_on_a_card_that_has_room_for_it():
    auto = How(gradient_checkpointing_attention="auto")
    kept, not_kept = (
        training(weights(), work(), How(gradient_checkpointing_attention=a)) for a in ("keep", "recompute")
    )
    assert training(weights(), work(), auto, room=80 * GIB).device == kept.device
    assert training(weights(), work(), auto, room=10 * GIB).device == not_kept.device
    assert training(weights(), work(), auto).device == kept.device, "nothing is known of the card"


@pytest.mark.parametrize("processes", [2, 4, 8])
def test_a_shared_base_is_its_part_of_every_block_and_the_buffers(processes):
    found = weights(40)
    for stage in (
        training(found, work(), How(shared_by=processes)),
        denoising(found, work(), How(shared_by=processes)),
    ):
        assert stage.device["DiT weights"] == found.outside + 40 * found.blocks[0] // processes
        assert stage.device["buffers of shared blocks"] == 2 * found.blocks[0]


def test_a_small_step_needs_the_optimizers_moment():
    stage = training(weights(40), work(64, blocks=40), How())
    assert stage.device["optimizer step"] and "block inputs" not in stage.device


def test_tiles_and_pieces_bound_what_a_vae_takes():
    def decoded(kind, frames, **how):
        return vae_stage(0, VaeWork(kind=kind, **how), width=960, height=544, frames=frames, decoding=True).device_bytes

    assert decoded("chunks", 17) == decoded("chunks", 129)
    assert decoded("chunks", 17, past_on_cpu=True) < decoded("chunks", 17)
    assert decoded("tiles", 129, tile=256) == decoded("tiles", 257, tile=256) < decoded("tiles", 129)
    assert decoded("tiles", 129, tile=128) < decoded("tiles", 129, tile=256)


def test_a_clip_that_is_encoded_is_on_the_device():
    short, long = (
        vae_stage(0, VaeWork(kind="chunks"), width=832, height=480, frames=frames, decoding=False, batch=2)
        for frames in (17, 81)
    )
    assert long.device_bytes - short.device_bytes == 2 * 64 * 480 * 832 * 3 * 2


def test_more_has_to_be_free_than_tensors_take():
    stage = training(weights(), work(), How())
    assert stage.needed_bytes > CONTEXT + stage.device_bytes
    assert largest([stage, denoising(weights(), work(), How())]) is stage


def test_what_settles_needs_less_room_for_gaps():
    """Blocks that keep what they compute: in each step the same, where an allocator joins what is freed."""
    kept = How(gradient_checkpointing_blocks=10, compile=True, **KEEP)
    loose = training(weights(40), work(blocks=40), kept)
    settled = training(weights(40), work(blocks=40), dataclasses.replace(kept, settles=True))
    assert settled.device == loose.device and loose.settled == 0 < settled.settled < settled.passing
    assert loose.needed_bytes - settled.needed_bytes == pytest.approx((SLACK - SETTLED_SLACK) * settled.settled, abs=2)
    eager = training(weights(40), work(blocks=40), dataclasses.replace(kept, compile=False, settles=True))
    assert eager.settled == 0
