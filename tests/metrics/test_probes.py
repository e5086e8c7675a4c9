"""Probes: sides and severities that prompts ask for, by simple measures of painted images with known answers."""

from __future__ import annotations

import numpy as np
import pytest

from roentgen.metrics.adherence import severity
from roentgen.metrics.adherence.probes import SEVERITIES, SIDED, probe_rows


def chest(heart: float = 0.3, fluid: float = 0.0, size: int = 200) -> np.ndarray:
    """A thorax of 80 % of the width with dark lungs and a white heart of so much of it, and fluid from below."""
    image = np.full((size, size), 200, np.uint8)
    left, right = round(0.1 * size), round(0.9 * size)
    top, bottom = round(0.15 * size), round(0.95 * size)
    image[top:bottom, left:right] = 40
    half = heart * (right - left) / 2
    image[:, round(size / 2 - half) : round(size / 2 + half)] = 200
    image[round(bottom - fluid * (bottom - top)) : bottom, left:right] = 200
    return image


@pytest.mark.parametrize("heart", [0.3, 0.4, 0.5, 0.6])
def test_the_heart_is_measured_over_the_thorax(heart: float) -> None:
    assert severity.heart_to_thorax(chest(heart)[None])[0] == pytest.approx(heart, abs=0.03)
    brighter = (chest(heart) // 2 + 60)[None]
    assert severity.heart_to_thorax(brighter)[0] == pytest.approx(heart, abs=0.03)


def test_an_image_without_lungs_has_no_ratio() -> None:
    assert np.isnan(severity.heart_to_thorax(np.full((1, 128, 128), 90, np.uint8))[0])


def test_fluid_whitens_the_lower_zones() -> None:
    found = severity.lower_zone_white(np.stack([chest(fluid=share) for share in (0.0, 0.3, 0.4, 0.8)]))
    assert found[0] == 0 and found[3] == 1 and (np.diff(found) > 0).all()
    # Rows of 60 to 80 % of the height: fluid of 30 % reaches up to 95 - 24 = 71 %.
    assert found[1] == pytest.approx((0.80 - 0.71) / 0.20, abs=0.03)
    with pytest.raises(ValueError, match="expected uint8"):
        severity.lower_zone_white(np.zeros((2, 128, 128)))


def test_every_prompt_gets_the_same_seeds() -> None:
    rows = probe_rows(3, 7)
    texts = [text for probe in (*SIDED, *SEVERITIES) for text in probe.prompts.values()]
    assert len(texts) == len(set(texts)) == 10 and len(rows) == 30
    for text in texts:
        assert [row["seed"] for row in rows if row["text"] == text] == [7, 8, 9]
