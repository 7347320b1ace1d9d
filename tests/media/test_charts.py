"""Loss curves."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from engine.media.charts import loss_curve, smooth


def test_a_curve_is_drawn(tmp_path):
    steps = list(range(1, 200))
    path = loss_curve(steps, [1 / step for step in steps], tmp_path / "loss.png", lr=[1e-4] * len(steps), title="t")
    image = np.asarray(Image.open(path).convert("RGB")).astype(int)
    assert image.shape[1] > 800
    blue = (image[..., 2] > image[..., 0] + 100).sum()
    assert blue > 500
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("losses", [[], [0.5], [0.5, 0.5], [math.nan, 1.0, math.inf], [math.nan]])
def test_odd_losses_still_give_a_chart(tmp_path, losses):
    assert loss_curve(list(range(len(losses))), losses, tmp_path / "loss.png").exists()


def test_smoothing_has_no_start_bias_and_passes_over_what_is_not_finite():
    assert smooth([2.0] * 50) == pytest.approx([2.0] * 50)
    averages = smooth([1.0, math.nan, 1.0, math.inf])
    assert averages == pytest.approx([1.0] * 4)
    assert math.isnan(smooth([math.nan])[0])


def test_matplotlib_is_imported_only_when_drawing():
    code = "import sys, engine.media.charts; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
