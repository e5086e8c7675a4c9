"""roentgen/training/estimate.py: what the meta device says against what real tensors do, and plain arithmetic."""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from recipe import load_script
from torch import Tensor, nn

from roentgen.errors import UserError
from roentgen.training import estimate as est
from roentgen.training import meta

MB = 1 << 20


class Wide(nn.Module):
    """Two linear layers with a ReLU between: every saved byte can be told by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 32)
        self.second = nn.Linear(32, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x)))


def saved_for_backward(forward: Callable[[], Any]) -> int:
    """Bytes that autograd keeps between ``forward()`` and its backward pass; a shared storage counts once.

    Parameters are counted too where autograd keeps them.
    """
    sizes: dict[Any, int] = {}

    def pack(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        sizes[weakref.ref(storage)] = storage.nbytes()
        return value

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        kept = forward()  # alive until the sum is made, so that no storage is freed and another counted as it
        total = sum(sizes.values())
    del kept
    return total


@pytest.fixture(scope="module")
def parts(tiny_pipeline: Path) -> dict[str, Any]:
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(tiny_pipeline, local_files_only=True)
    return {"unet": pipe.unet, "text_encoder": pipe.text_encoder, "vae": pipe.vae.requires_grad_(False)}


@pytest.fixture(scope="module")
def sd1() -> dict[str, Any]:
    """The modules of Stable Diffusion 1.x without weights."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768)
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
        )
        text_encoder = CLIPTextModel(
            CLIPTextConfig(
                hidden_size=768,
                intermediate_size=3072,
                num_hidden_layers=12,
                num_attention_heads=12,
                max_position_embeddings=77,
            )
        )
    return {"unet": unet, "text_encoder": text_encoder, "vae": vae.requires_grad_(False)}


def of_tiny(parts: dict[str, Any], **changes: Any) -> est.Estimate:
    given = {"batch_per_device": 4, "latent_shape": (4, 8, 8), "text_shape": (1, 24), "train_unet": True}
    return est.estimate(**parts, **{**given, "train_text_encoder": True, "images": 100, **changes})


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_saved_bytes_by_hand_and_on_both_devices() -> None:
    # Kept: the input and the ReLU's result, and the second weight for the gradient of its input.
    by_hand = 4 * (16 * 8 + 16 * 32 + 32 * 8)
    found = {}
    for device in ("cpu", "meta"):
        net, x = Wide().to(device), torch.zeros(16, 8, device=device)
        found[device] = saved_for_backward(lambda net=net, x=x: net(x))
    assert found == {"cpu": by_hand, "meta": by_hand}


def test_peak_by_hand() -> None:
    with meta.PeakMemory() as tracker:
        a = torch.zeros(MB)  # 4 MB
        b = a + 1  # 8
        a.add_(b)  # in place: nothing new
        view = b[10:]
        del b  # the view keeps it
        c = view * 2  # 12
        del view, c
        a.mul_(2)
    assert tracker.peak == 12 * MB - 4 * 10
    assert tracker.alive == 4 * MB


@pytest.mark.parametrize("checkpointing", [False, True])
def test_meta_walk_equals_real_tensors(parts: dict[str, Any], checkpointing: bool) -> None:
    """The U-Net's step on the CPU with real values and on meta: same saved bytes, same worst moment."""
    import copy

    peaks, saved = {}, {}
    for device in ("cpu", "meta"):
        net = copy.deepcopy(parts["unet"]).to(device).requires_grad_(True).train()
        if checkpointing:
            net.enable_gradient_checkpointing()
        given = (
            torch.zeros(4, 4, 8, 8, device=device),
            torch.zeros(4, dtype=torch.long, device=device),
            torch.zeros(4, 24, 16, device=device),
        )
        # Attention by its unfused form on both: the CPU's fused kernel pads, meta has another.
        from torch.nn.attention import SDPBackend, sdpa_kernel

        with sdpa_kernel(SDPBackend.MATH):
            saved[device] = saved_for_backward(lambda net=net, given=given: net(*given).sample)
            with meta.PeakMemory() as tracker:
                net(*given).sample.square().mean().backward()
        peaks[device] = tracker.peak
    assert saved["meta"] == saved["cpu"] > 0
    assert peaks["meta"] == pytest.approx(peaks["cpu"], rel=0.01)
    assert peaks["cpu"] > est._size(p for p in parts["unet"].parameters())  # gradients at the least


def test_items_of_memory_and_disk(parts: dict[str, Any]) -> None:
    unet, text = count(parts["unet"]), count(parts["text_encoder"])
    buffers = sum(b.numel() * b.element_size() for b in parts["text_encoder"].buffers())
    both = of_tiny(parts)
    assert both.memory["weights"] == 4 * (unet + text) + buffers
    assert both.memory["gradients"] == 4 * (unet + text) == both.memory["average (EMA)"]
    assert both.memory["optimiser"] == 8 * (unet + text)
    assert both.memory_total == sum(both.memory.values()) and both.disk_total == sum(both.disk.values())
    checkpoint = (4 + 12) * (unet + text)
    assert both.disk["2 checkpoints and one being written"] == 3 * checkpoint
    assert both.disk["latents"] == 100 * 2 * 4 * 8 * 8 * 2
    assert both.disk["pipeline"] == 4 * (unet + text + count(parts["vae"])) + buffers

    frozen = of_tiny(parts, train_text_encoder=False, text_online=False, texts=7, ema=False, processes=2)
    assert frozen.memory["weights"] == 4 * unet  # its states come from disk
    assert frozen.memory["gradient exchange (DDP)"] == 4 * unet
    assert "average (EMA)" not in frozen.memory
    assert frozen.disk["text states"] == 7 * 24 * 16 * 2

    online = of_tiny(parts, latents_online=True)
    assert "latents" not in online.disk
    assert online.memory["weights"] - both.memory["weights"] == 4 * count(parts["vae"])


def test_changes_go_the_right_way(parts: dict[str, Any]) -> None:
    base = of_tiny(parts, precision="no", batch_per_device=64)
    room = "activations beyond the gradients' room"
    assert of_tiny(parts, precision="bf16", batch_per_device=64).memory[room] < base.memory[room]
    assert of_tiny(parts, precision="no", batch_per_device=64, gradient_checkpointing=True).memory_total < (
        base.memory_total
    )
    assert of_tiny(parts, precision="no", batch_per_device=128).memory[room] > 1.7 * base.memory[room]
    assert of_tiny(parts, precision="no", batch_per_device=64, accumulate=2).memory_total > base.memory_total
    chunked = of_tiny(parts, precision="no", batch_per_device=64, text_shape=(3, 24))
    assert chunked.memory[room] > base.memory[room] and chunked.flops > base.flops
    # Operations are the model's: neither batch nor recomputation changes those of one image.
    assert of_tiny(parts, batch_per_device=4).flops == base.flops == of_tiny(parts, gradient_checkpointing=True).flops


def test_a_trained_decoder_counts(parts: dict[str, Any]) -> None:
    import copy

    vae = copy.deepcopy(parts["vae"]).requires_grad_(False)
    without = of_tiny({**parts, "vae": vae})
    vae.decoder.requires_grad_(True)
    found = of_tiny({**parts, "vae": vae})
    assert found.memory["gradients"] - without.memory["gradients"] == 4 * count(vae.decoder)
    assert found.memory["weights"] - without.memory["weights"] == 4 * count(vae)
    assert found.flops > without.flops and found.memory_total > without.memory_total


def test_modules_are_left_as_they_are(parts: dict[str, Any]) -> None:
    before = {key: [(p.device.type, p.requires_grad) for p in m.parameters()] for key, m in parts.items()}
    of_tiny(parts, gradient_checkpointing=True, train_text_encoder=False)
    assert before == {key: [(p.device.type, p.requires_grad) for p in m.parameters()] for key, m in parts.items()}
    assert not parts["unet"].is_gradient_checkpointing


def test_only_what_requires_gradients_is_trained(parts: dict[str, Any]) -> None:
    """As LoRA leaves it: a few parameters, whatever the module."""
    import copy

    unet = copy.deepcopy(parts["unet"]).requires_grad_(False)
    unet.conv_in.requires_grad_(True)
    text_encoder = copy.deepcopy(parts["text_encoder"]).requires_grad_(False)
    found = of_tiny({**parts, "unet": unet, "text_encoder": text_encoder}, train_unet=None, train_text_encoder=None)
    assert found.memory["gradients"] == 4 * count(unet.conv_in)
    with pytest.raises(ValueError, match="no parameter is trained"):
        of_tiny({**parts, "unet": unet.requires_grad_(False)}, train_unet=None, train_text_encoder=False)


def test_eight_bit_moments() -> None:
    assert est._moments(4095, "adamw8bit") == est._moments(4095, "adamw") == 8 * 4095
    assert est._moments(256 * 100, "adamw8bit") == 2 * (256 * 100 + 4 * 100)


def test_stable_diffusion_on_24_gb(sd1: dict[str, Any]) -> None:
    """SD 1.x U-Net + CLIP, 512 px, batch 8, bf16, EMA: the issue's memory goal, by this estimate."""
    given: dict[str, Any] = {"batch_per_device": 8, "latent_shape": (4, 64, 64), "text_shape": (1, 77)}
    given |= {"train_unet": True, "train_text_encoder": True, "gradient_checkpointing": True}
    full = est.estimate(**sd1, **given)
    small = est.estimate(**sd1, **given, optimizer="adamw8bit")
    card = 24 * 2**30
    assert small.memory_total < full.memory_total < card - 2e9  # room for the context and fragmentation
    # 859.5 M and 123.1 M parameters; about 0.8 TFLOP forward (published counts of multiply-adds, times two), thrice.
    assert full.memory["gradients"] == 4 * (859_520_964 + count(sd1["text_encoder"]))
    assert 2.2e12 < full.flops < 2.8e12


def write_rate(folder: Path, device: str, rate: float, flops: int = 1000) -> None:
    result = {
        "model": {"name": "mini"},
        "settings": {"resolution": 256},
        "details": {
            "machine": {"device": device},
            "flops_per_image": flops,
            "arms": {
                "peer": {"images_per_second": {"median": 99.0}},
                "ours-online": {"images_per_second": {"median": rate}},
                "ours-cached": {"images_per_second": {"median": 2 * rate}},
            },
        },
    }
    (folder / f"train-{device}.json").write_text(json.dumps(result))


def test_measured_rate(tmp_path: Path) -> None:
    assert est.measured_rate(tmp_path, device="cpu").images_per_second is None
    write_rate(tmp_path, "cpu", 3.0)
    write_rate(tmp_path, "gpu", 50.0)
    assert est.measured_rate(tmp_path, device="cpu").images_per_second == 6.0
    one = est.measured_rate(tmp_path, device="gpu", arm="ours-online", flops=4000, processes=2)
    assert one.images_per_second == 50.0 / 4 * 2
    for words in ("train-gpu.json", "mini at 256 px", "scaled", "2 processes"):
        assert words in one.origin
    other = est.measured_rate(tmp_path, device="tpu")
    assert other.images_per_second is None and "benchmarks/train.py" in other.origin and "2 result(s)" in other.origin
    (tmp_path / "train-aaa.json").write_text("{}")
    with pytest.raises(UserError, match=r"train-aaa\.json"):
        est.measured_rate(tmp_path, device="cpu")


def test_lines() -> None:
    found = est.Estimate({"weights": 3 * 10**9, "gradients": 10**9}, {"latents": 5 * 10**9}, 2 * 10**12)
    lines = est.describe(found, images=7200, rate=est.Rate(2.0, "made up"), device_memory=3 * 10**9)
    assert "4.00 GB: MORE THAN THE DEVICE'S 3.0" in lines[0] and "weights 3.00" in lines[0]
    assert "5.00 GB" in lines[1] and "2 TFLOP an image" in lines[2]
    assert lines[3] == "hours: 1.0 at 2 images/s a device; made up"
    assert "unknown" in est.describe(found, images=1, rate=est.Rate(None, "nothing"))[3]


def test_autocast_as_cuda_does_it() -> None:
    """Linear layers in bfloat16 with one cast a weight, norms in float32."""
    linear, norm = nn.Linear(8, 8, device="meta"), nn.LayerNorm(8, device="meta")
    x = torch.zeros(2, 8, device="meta")
    with meta.Autocast(torch.bfloat16) as mode:
        low = linear(x)
        assert low.dtype == torch.bfloat16 and len(mode._casts) == 2
        assert norm(low).dtype == torch.float32
        assert linear(low).dtype == torch.bfloat16 and len(mode._casts) == 2
    assert not mode._casts and linear(x).dtype == torch.float32
    with meta.Autocast(torch.float32):
        assert linear(x).dtype == torch.float32


def test_memory_table_is_that_of_its_result() -> None:
    root = Path(__file__).resolve().parents[2]
    memory = load_script("benchmarks/memory.py")
    result = json.loads((root / "benchmarks" / "results" / "memory-sd1.json").read_text())
    assert memory.table(result) in (root / "docs" / "training.md").read_text()
