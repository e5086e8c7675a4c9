"""Batches: the same whatever was made before; weights, texts and rewards of their samples."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from parts import objective_of

from roentgen.prompts import Labels
from roentgen.training import batches, reward
from roentgen.training.order import Order


def test_balanced_weights_lift_the_rare() -> None:
    table = pd.DataFrame({"No Finding": [1, 1, 1, 1, 0], "Hernia": [0, 0, 0, 0, 1]})
    weights = batches.balanced_weights(table, 1.0)
    assert weights is not None
    assert weights[4] / weights[0] == pytest.approx(4.0)
    assert batches.balanced_weights(table, 0.0) is None


def test_texts_depend_on_their_own_seed() -> None:
    rows = [Labels(findings=("Effusion",), sides={"Effusion": "left"}, view="PA", sex="F", age=50.0)] * 4
    texts = ["as written"] * 4
    both = batches.batch_texts(rows, texts, [0, 1], seeds=[5, 6], composed=1.0, dropout=0.3)
    alone = batches.batch_texts(rows, texts, [1], seeds=[6], composed=1.0, dropout=0.3)
    assert both[1:] == alone
    assert batches.batch_texts(rows, texts, [2], seeds=[1], composed=0.0, dropout=0.0) == ["as written"]
    seeds = [random.Random(0).randrange(10**9) + i for i in range(400)]
    dropped = batches.batch_texts(rows * 100, texts * 100, range(400), seeds=seeds, composed=1.0, dropout=0.1)
    assert 20 < dropped.count("") < 65


def test_reward_targets_ask_only_for_what_the_text_says() -> None:
    row = Labels(findings=("Effusion", "Mass"), sides={"Effusion": "left"}, view=None, sex=None, age=None)
    target, mask, sides, side_mask = reward.reward_targets(
        ["left pleural effusion", ""], [row, row], ["Effusion", "Mass", "Hernia"]
    )
    assert target[0].tolist() == [1, 0, 0]
    assert mask[0].tolist() == [1, 0, 1]  # the mass is there, unmentioned: no demand
    assert sides[0, 0].tolist() == [0, 1] and side_mask[0, 0].tolist() == [1, 1]
    assert mask[1].sum() == 0 and side_mask[1].sum() == 0


def test_reward_falls_when_the_right_side_wins() -> None:
    def net(margin: float):
        sides = torch.tensor([[[-margin, margin]]])
        return lambda latents: (torch.zeros(1, 1), sides)

    args = [torch.ones(1, 1), torch.ones(1, 1), torch.tensor([[[0.0, 1.0]]]), torch.ones(1, 1, 2)]
    low, high = (reward.reward_loss(net(m), torch.zeros(1), *args, positive_weight=4.0) for m in (2.0, -2.0))
    assert low < high


def test_the_preview_is_exact_where_latents_are_linear_in_pixels() -> None:
    images = torch.rand(20, 1, 8, 8) * 2 - 1
    mixing = torch.randn(4, 4)
    cells = torch.nn.functional.pixel_unshuffle(images, 2)
    latents = torch.einsum("ij,njhw->nihw", mixing, cells) + 0.3
    preview = reward.fit_preview(latents, images)
    assert torch.allclose(preview(latents), images, atol=1e-4)


@pytest.fixture(scope="module")
def make_maker(tiny_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., batches.BatchMaker]:
    """A maker over 10 images that reads pixels and gives tokens; keywords replace fields."""
    from recipe import few_rows

    from roentgen.data.images import open_source
    from roentgen.generators.diffusion.build import start
    from roentgen.generators.diffusion.objective import Loss

    manifest = few_rows(tmp_path_factory.mktemp("feed"), train=10, val=2)
    source = open_source(manifest, splits=("train", "val"), size=32)
    rows = np.flatnonzero(source.table["split"] == "train")
    model = start(model=str(tiny_pipeline))

    def make(*, noise_offset: float = 0.2, **changes: Any) -> batches.BatchMaker:
        fields: dict[str, Any] = {
            "source": source,
            "rows": torch.from_numpy(rows),
            "order": Order(len(rows), weights=None, groups=None, seed=1),
            "labels": batches.manifest_labels(source.table.iloc[rows]),
            "weights": torch.arange(len(rows)).float(),
            "reader": model.reader,
            "latents": None,
            "states": None,
            "draw": objective_of(model, Loss(noise_offset=noise_offset)).draw,
            "batch_size": 8,
            "share": slice(0, 8),
            "composed": 0.5,
            "dropout": 0.3,
            "seed": 1,
            "pin": False,
        }
        return batches.BatchMaker(**(fields | changes))

    return make


def tensors_of(batch: batches.Batch) -> list[torch.Tensor]:
    text = batch.text
    assert not isinstance(text, torch.Tensor)
    words = [text.ids, text.attention, text.used]
    return [batch.rows, *batch.images, *words, batch.used, *batch.draws.values(), batch.weight]


def test_a_batch_is_the_same_in_shares_and_in_parts(make_maker: Callable[..., batches.BatchMaker]) -> None:
    whole = make_maker().make(6)
    assert whole.number == 6 and "" in whole.texts and len(set(whole.texts)) > 3
    shares = [make_maker(share=slice(start, start + 4)).make(6) for start in (0, 4)]
    for pieces in (shares, list(whole.parts(4)), [p for share in shares for p in share.parts(2)]):
        assert [text for piece in pieces for text in piece.texts] == whole.texts
        for together, alone in zip(zip(*map(tensors_of, pieces), strict=True), tensors_of(whole), strict=True):
            assert torch.equal(torch.cat(together), alone)


def test_a_batch_does_not_depend_on_those_before(make_maker: Callable[..., batches.BatchMaker]) -> None:
    maker, late = make_maker(), make_maker()
    made = [maker.make(number) for number in range(4)]
    assert all(torch.equal(x, y) for x, y in zip(tensors_of(made[3]), tensors_of(late.make(3)), strict=True))
    assert not torch.equal(made[2].draws["noise"], made[3].draws["noise"])
    assert torch.equal(made[3].weight, made[3].rows.float())  # each row has its own weight


def test_only_the_offset_differs_with_its_strength(make_maker: Callable[..., batches.BatchMaker]) -> None:
    with_, without = make_maker().make(0), make_maker(noise_offset=0.0).make(0)
    assert torch.equal(with_.draws["t"], without.draws["t"]) and with_.texts == without.texts
    moved = with_.draws["noise"] - without.draws["noise"]
    assert torch.allclose(moved, moved.mean((2, 3), keepdim=True).expand_as(moved), atol=1e-5)
    assert 0.1 < moved.std() < 0.3


def test_loss_weights_have_mean_one_and_lift_the_rare() -> None:
    table = pd.DataFrame({"No Finding": [1, 1, 1, 1, 0], "Hernia": [0, 0, 0, 0, 1]})
    weights = batches.balanced_loss_weights(table, 1.0)
    assert weights.mean().item() == pytest.approx(1) and (weights[4] / weights[0]).item() == pytest.approx(4)
    assert batches.balanced_loss_weights(table, 0.0).tolist() == [1] * 5


def test_data_is_known_by_its_content(tmp_path: Path) -> None:
    table = pd.DataFrame({"image": ["/here/a.png"], "text": ["x"], "split": ["train"]})
    key = batches.content_key(table)
    assert batches.content_key(table.assign(image="C:\\there\\a.png")) == key
    for column, value in (("image", "/here/b.png"), ("text", "y"), ("split", "val")):
        assert batches.content_key(table.assign(**{column: value})) != key


def test_rows_weigh_what_their_manifest_says() -> None:
    import pandas as pd

    table = pd.DataFrame({"Effusion": [1.0, 0.0, 0.0, 0.0], "weight": [1.0, 1.0, 0.5, 1.0]})
    plain = batches.balanced_weights(table, 0.0)
    assert plain is not None and plain.tolist() == [1.0, 1.0, 0.5, 1.0]
    balanced = batches.balanced_weights(table, 1.0)
    assert balanced is not None and balanced.tolist() == pytest.approx([4.0, 4 / 3, 2 / 3, 4 / 3])
    assert batches.balanced_weights(table.drop(columns="weight"), 0.0) is None
    # Loss weights are not sampling weights: an image that is drawn less often counts in full where it is drawn.
    assert batches.balanced_loss_weights(table, 0.0).tolist() == [1.0] * 4
