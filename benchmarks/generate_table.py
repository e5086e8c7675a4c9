"""The tables of benchmarks/generate.py, and what share of a GPU's peak its rates come to."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from train_table import utilisation

from roentgen.metrics.report.tables import table as markdown
from roentgen.provenance import in_words

EXPORT, REFERENCE, ROENTGEN = "roentgen export", "diffusers, batches", "diffusers, RoentGen's sampling"
MEASURES = {
    "cold": ("one image, cold start (s)", "{:.1f}"),
    "further": ("each further image (s)", "{:.2f}"),
    "memory": ("largest resident set (GB)", "{:.2f}"),
}


def share_of_peak(folder: Path, settings: Mapping[str, Any], arms: Mapping[str, Any], gpu: str | None) -> float | None:
    """MFU of ``roentgen export``, by ``operations``; None on a CPU and where the peak is unknown."""
    if gpu is None:
        return None
    return utilisation(1 / arms[EXPORT]["seconds_per_image"]["median"], operations(folder, settings), gpu)


def operations(folder: Path, settings: Mapping[str, Any]) -> int:
    """Operations of an image: the U-Net at every step, twice where there is guidance, and the decoder."""
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(folder / "unet"))
        vae = AutoencoderKL.from_config(AutoencoderKL.load_config(folder / "vae"))
        side, channels = unet.config.sample_size, unet.config.in_channels
        latents, text = torch.empty(1, channels, side, side), torch.empty(1, 77, unet.config.cross_attention_dim)
        with torch.no_grad(), FlopCounterMode(display=False) as step:
            unet(latents, torch.zeros(()), encoder_hidden_states=text)
        with torch.no_grad(), FlopCounterMode(display=False) as decoding:
            vae.decode(latents)
    calls = settings["steps"] * (1 if settings["guidance"] == 1 else 2)
    return int(calls * step.get_total_flops() + decoding.get_total_flops())


def table(result: dict[str, Any]) -> str:
    """The Markdown table of a result, with its conditions below."""
    rows = []
    for name, (words, form) in measures(result).items():
        cells = [form.format(result[side][name]["median"]) for side in ("roentgen", "diffusers")]
        rows.append([words, *cells, f"{result['ratio'][name]:.2f}"])
    rows.append(["`roentgen --help` (s)", f"{result['help']['min']:.2f}", "", ""])
    sets = result["sets"]
    of_sets = [
        [name, arm["dtype"], seconds(arm["seconds_per_image"]["median"]), f"{arm['ratio']:.2f}",
         f"{arm['memory']['median']:.2f}", f"{arm['difference']:.2f}" if "difference" in arm else "other sampling"]
        for name, arm in sets["arms"].items()
    ]  # fmt: skip
    settings, facts = result["settings"], result["machine"]
    published = sets["published"]
    auto = "float16 on a GPU" if "device" in facts else "bfloat16 on a CPU that computes in it"
    mfu = "" if result.get("mfu") is None else f" {EXPORT} takes {result['mfu']:.0%} of the device's peak in bfloat16."
    packages = [f"{name} {result['versions'][name]}" for name in ("torch", "diffusers")]
    return markdown(
        ["", "roentgen", "stock diffusers", "stock : roentgen"], rows,
        markdown(
            ["a data set, prompt by prompt", "numbers", "s an image", "times ours", "memory (GB)", "grey levels apart"],
            of_sets,
        ),
        f"`{result['model']}` ({result['model_hash']}), {settings['steps']} steps of {settings['sampler']}, "
        f"guidance {settings['guidance']:g}, {settings['dtype']}, on "
        f"{hardware(facts)}; {', '.join(packages)}; medians of {settings['repeats']} runs each, one process a "
        f"run, taking turns; the help is the best of {result['help']['n']}. Data sets: what {sets['long']} images take "
        f"more than {sets['short']}, in batches of {sets['batch']}, prompts and seeds alike; auto is {auto}; the last "
        f"column is the mean absolute difference, of 255, to the images of {REFERENCE}; "
        f"RoentGen's sampling is {published['steps']} steps of {published['sampler']} at guidance "
        f"{published['guidance']:g}.{mfu}{in_words(result.get('conditions'))}",
    )  # fmt: skip


def summary_table(result: dict[str, Any]) -> str:
    """Six rows of a result for a front page; the whole is ``table``."""
    rows = []
    for name, (words, form) in measures(result).items():
        ours, theirs = (form.format(result[side][name]["median"]) for side in ("roentgen", "diffusers"))
        rows.append([words, ours, theirs])
    arms = result["sets"]["arms"]
    float32, half = "roentgen export, float32", next(name for name in arms if name.startswith(f"{REFERENCE}, "))
    kind = half.rpartition(" ")[2]
    for words, *sides in (
        ("an image of a data set, float32 (s)", [float32], [REFERENCE]),
        (f"the same, float32 or {kind}, whichever is faster (s)", [float32, EXPORT], [REFERENCE, half]),
        ("the same beside RoentGen's published sampling (s)", [float32, EXPORT], [ROENTGEN]),
    ):
        cells = [seconds(min(arms[name]["seconds_per_image"]["median"] for name in names)) for names in sides]
        rows.append([words, *cells])
    facts = result["machine"]
    return markdown(
        ["", "roentgen", "stock diffusers"], rows,
        f"`{result['model']}` ({result['model_hash']}), {result['settings']['steps']} steps of "
        f"{result['settings']['sampler']}, on {hardware(facts)}{'' if 'device' in facts else ', without a GPU'}."
        f"{in_words(result.get('conditions'))}",
    )  # fmt: skip


def measures(result: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """What a result has measured: the memory of a GPU, where it has one."""
    return MEASURES | ({"memory": ("GPU memory (GB)", "{:.2f}")} if "device" in result["machine"] else {})


def seconds(value: float) -> str:
    """Two digits that count, at least two behind the point: a GPU's images take hundredths of a second."""
    return f"{value:.2f}" if value >= 0.095 else f"{value:.2g}"


def hardware(facts: Mapping[str, Any]) -> str:
    """What a result was measured on."""
    return facts.get("device") or f"{facts['cores']} cores of {facts['cpu']}"
