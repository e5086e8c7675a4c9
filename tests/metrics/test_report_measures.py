"""Measures of reports and places, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from roentgen.metrics.statistics import Bootstrap
from roentgen.metrics.text import clinical
from roentgen.metrics.text.grounding import Case, cover, grounding_scores, matched, pointing, prior_boxes, radfact

FINDINGS = ["Effusion", "Pneumonia", "Cardiomegaly"]


def test_labels_are_read_with_negation() -> None:
    texts = ["No pleural effusion. Cardiomegaly.", "Left effusion and viral pneumonia.", clinical.NORMAL_REPORT]
    assert clinical.read_labels(texts, FINDINGS).tolist() == [[0, 0, 1], [1, 1, 0], [0, 0, 0]]
    assert clinical.read_sides(texts, FINDINGS)[1] == ["left", "", ""]


def test_f1_by_hand() -> None:
    # 20 images: effusion in 10, of which 5 are said, and 5 are said of the others; cardiomegaly known in 4 only.
    truth = np.full((20, 2), np.nan)
    truth[:, 0] = [1] * 10 + [0] * 10
    truth[:4, 1] = [1, 1, 0, 0]
    said = np.zeros((20, 2))
    said[5:15, 0] = 1
    said[:, 1] = 1
    found = clinical.clinical_scores(said, truth, FINDINGS[:2], range(20), bootstrap=Bootstrap(200))
    effusion, other = found["findings"]
    assert effusion["value"] == pytest.approx(0.5) and effusion["ci"][0] < 0.5 < effusion["ci"][1]
    assert effusion["precision"] == 0.5 and effusion["recall"] == 0.5
    assert other["value"] == pytest.approx(2 * 2 / (2 * 2 + 2)) and not other["in_macro"]  # too few cases
    assert found["macro"]["value"] == pytest.approx(0.5) == found["micro"]["value"]


def test_saying_nothing_and_saying_everything() -> None:
    rng = np.random.default_rng(0)
    truth = (rng.random((300, 3)) < 0.2).astype(float)
    nothing = clinical.clinical_scores(np.zeros((300, 3)), truth, FINDINGS, range(300), bootstrap=Bootstrap(50))
    assert nothing["macro"]["value"] == 0
    everything = clinical.clinical_scores(np.ones((300, 3)), truth, FINDINGS, range(300), bootstrap=Bootstrap(50))
    shares = truth.mean(0)
    assert everything["macro"]["value"] == pytest.approx(float((2 * shares / (1 + shares)).mean()))


def test_sides_and_kinds() -> None:
    true = [["left"], ["right"], ["bilateral"], [""]]
    found = clinical.side_scores([["left"], ["left"], [""], ["left"]], true, range(4))
    assert found["value"] == pytest.approx(1 / 3) and found["of_named"] == 0.5 and found["n"] == 3
    texts = [clinical.NORMAL_REPORT, "Left effusion.", clinical.NORMAL_REPORT]
    kinds = clinical.normal_and_abnormal(texts, [True, False, False])
    assert kinds["normal_called_normal"] == 1 and kinds["abnormal_called_abnormal"] == 0.5
    assert clinical.distinct_share(texts) == pytest.approx(2 / 3)


LEFT, RIGHT = (0.6, 0.2, 0.9, 0.8), (0.1, 0.2, 0.4, 0.8)


def test_boxes_pair_one_to_one() -> None:
    assert matched([LEFT, LEFT], [LEFT], 0.5) == 1  # the same box said twice finds one
    assert matched([LEFT], [LEFT, RIGHT], 0.5) == 1
    half = (0.6, 0.2, 0.9, 0.5)  # IoU .5 with LEFT
    assert matched([half], [LEFT], 0.4) == 1 and matched([half], [LEFT], 0.6) == 0


def test_grounding_by_hand() -> None:
    exact, wrong, none = Case((LEFT,), (LEFT,), 1), Case((RIGHT,), (LEFT,), 2), Case((), (LEFT, RIGHT), 3)
    assert [pointing(case) for case in (exact, wrong, none)] == [1, 0, 0]
    assert [cover(case) for case in (exact, wrong, none)] == [1, 0, 0]
    found = grounding_scores([exact, wrong, none], bootstrap=Bootstrap(50))
    assert found["precision"]["0.5"]["value"] == 0.5  # one of the two boxes that were said
    assert found["recall"]["0.5"]["value"] == 0.25  # one of four
    assert found["spatial"]["precision"]["value"] == 0.5 and found["boxes"] == 4


def test_prior_is_where_boxes_usually_are() -> None:
    prior = prior_boxes([LEFT, RIGHT, RIGHT])
    assert np.allclose(prior, [RIGHT, LEFT])
    heart = (0.3, 0.4, 0.8, 0.8)
    assert np.allclose(prior_boxes([heart, heart, LEFT]), [heart])


def test_radfact_by_rules() -> None:
    said = [{"Effusion": (LEFT,), "Nodule": ()}, {"Mass": ()}]
    true = [{"Effusion": (LEFT, RIGHT)}, {"Mass": (LEFT,), "Edema": ()}]
    found = radfact(said, true, [1, 2])
    assert found["logical_precision"]["value"] == pytest.approx(2 / 3)
    assert found["logical_recall"]["value"] == pytest.approx(2 / 3)
    assert found["spatial_precision"]["value"] == 1 and found["spatial_recall"]["value"] == 0.5
