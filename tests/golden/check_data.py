"""Golden checks of the data path: buckets, frame windows, frame-rate conversion, resizing to a bucket."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from engine.data import buckets, frames
from engine.media.resize import resize_to_bucket
from tests.golden.kit import Golden, Row, row, same

# The frame rate that each architecture's videos are brought to plays no part here: the reference's `per_video` lists
# are made without conversion, and `fps_conversion` names both rates.


def _buckets(golden: Golden) -> Iterable[Row]:
    sizes = [tuple(size) for size in golden.info["image_sizes"]]
    for case in golden.info["selectors"]:
        resolution, step = tuple(case["resolution"]), case["reso_steps"]
        label = f"{case['arch']} {resolution[0]}x{resolution[1]} bucket={case['enable_bucket']} " + (
            "no_upscale" if case["no_upscale"] else ""
        )
        table = buckets.bucket_sizes(resolution, step) if case["enable_bucket"] else [resolution]
        yield same(f"{label.strip()}: sizes", [list(size) for size in table], case["buckets"])
        picks, exempt = [], 0
        for size, theirs in zip(sizes, case["picks"], strict=True):
            ours = list(
                buckets.choose_bucket(
                    size,
                    resolution=resolution,
                    enable_bucket=case["enable_bucket"],
                    no_upscale=case["no_upscale"],
                    step=step,
                )
            )
            # The reference floors a side below one step to zero; ours is one step then, on purpose, and only then.
            if min(theirs) == 0 and ours == [max(side, step) for side in theirs]:
                ours, exempt = theirs, exempt + 1
            picks.append(ours)
        note = f" ({exempt} zero-sided picks of the reference exempt: ours is {step})" if exempt else ""
        yield same(f"{label.strip()}: picks{note}", picks, case["picks"])
    rows = golden.info["calculate_bucket_resolution"]["rows"]
    crashed = [result for _, _, result in rows if isinstance(result, str)]
    sized = [(limit, size, result) for limit, size, result in rows if not isinstance(result, str)]
    ours = [list(buckets.fit_size(tuple(limit), tuple(size))) for limit, size, _ in sized]
    note = f" ({len(crashed)} more exempt: the reference divides by zero)" if crashed else ""
    yield same(f"fit_size, {len(sized)} sizes{note}", ours, [result for _, _, result in sized])


def _frames(golden: Golden) -> Iterable[Row]:
    for case in golden.info["extraction"]:
        ours, theirs = {}, {}
        for length, cuts in case["per_video"].items():
            windows = frames.windows(
                int(length),
                mode=case["mode"],
                target_frames=case["target_frames_rounded"],
                stride=case["frame_stride"],
                sample=case["frame_sample"],
                max_frames=case["max_frames"],
            )
            ours[length] = sorted(map(list, windows))
            theirs[length] = sorted([start, count] for start, count, _ in cuts)
        settings = f"{case['mode']} {case['target_frames']} stride {case['frame_stride']} sample {case['frame_sample']}"
        yield same(f"{case['arch']} {settings} max {case['max_frames']}", ours, theirs)
        rounded = sorted({frames.floor_frames(count) for count in case["target_frames"]})
        yield same(f"{case['arch']} {settings}: 4n+1", rounded, case["target_frames_rounded"])
    count = 100  # the reference's folder of images, see the file's "reference"
    for case in golden.info["fps_conversion"]:
        rates = {"source_fps": case["source_fps"], "target_fps": case["target_fps"]}
        span = {"start": case["start_frame"], "end": case["end_frame"]}
        label = f"{case['source_fps']:g} to {case['target_fps']:g} fps, frames {span['start']}..{span['end']}"
        yield same(label, frames.kept_by_index(count, **rates, **span), case["kept"])
        if span["start"] is None and rates["source_fps"] >= rates["target_fps"]:
            times_s = [index / rates["source_fps"] for index in range(count)]
            ours = frames.kept_frames(times_s, **rates)
            yield same(f"{label}, from presentation times", ours or list(range(count)), case["kept"])


def _resize(golden: Golden) -> Iterable[Row]:
    for case in golden.info["cases"]:
        image, theirs = golden.tensors[f"img{case['i']}"], golden.tensors[f"out{case['i']}"]
        ours = resize_to_bucket(image.numpy(), tuple(case["bucket_wh"]))
        label = f"{case['in_hw'][1]}x{case['in_hw'][0]} to {case['bucket_wh'][0]}x{case['bucket_wh'][1]}"
        # In 0..1, exact where the libraries are those of the file; their versions may differ by one of 255 levels.
        yield row(label, image.new_tensor(ours) / 255, theirs / 255, limit=_resize_limit(golden))


def _resize_limit(golden: Golden) -> float:
    import cv2
    import PIL

    same_libraries = golden.info["libs"] == {"cv2": cv2.__version__, "PIL": PIL.__version__}
    return 1e-5 if same_libraries else 1.01 / 255


CHECKS: dict[str, Callable[[Golden], Iterable[Row]]] = {
    "musubi_buckets*": _buckets,
    "musubi_frames*": _frames,
    "musubi_resize*": _resize,
}
