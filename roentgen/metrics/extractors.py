"""Feature extractors: images in, features and scores out, each with the exact chain from pixels to network.

A Frechet distance without its resize chain means nothing, so every extractor names its own (``chain``), and the hash
of its weights. Images are grey uint8 (H, W) of any sizes, as ``roentgen.images.read_image`` gives them; networks made
for colour get the grey value three times. Weights that are not on this disk are one sentence that says which file,
from where, and where to put it: nothing is measured with another network instead.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from roentgen.errors import UserError, install
from roentgen.files import explained, file_hash, file_sha256, read_json, reason, tensors_hash, user_path
from roentgen.images import resize_center_crop, to_xrv
from roentgen.metrics.extractor import Extractor, Grey, LastInput, require_file
from roentgen.metrics.resizing import resize_clean, resize_tf1
from roentgen.models import hub, loading
from roentgen.models.classifier import SHIPPED, load_classifier
from roentgen.models.pickles import check_pickle
from roentgen.reports.finding_net import load_net, squash
from roentgen.reports.load import MINI_REPORT, find_reporter


def load_extractor(name: str, *, device: str = "cpu") -> Extractor:
    """The extractor ``name`` of ``EXTRACTORS``, else a hub id or a folder of a transformers vision model.

    Raises:
        UserError: when it is unknown, its package is not installed, or its weights are not on this disk.
    """
    if name in EXTRACTORS:
        return EXTRACTORS[name](device=device)
    config = Path(name) / "config.json"
    # Written by roentgen train classifier, or another model's.
    if config.is_file() and "blocks" in read_json(config, advice=loading.ADVICE):
        return classifier_extractor(name, device=device)
    if Path(name).is_dir() or "/" in name:
        return hub_extractor(name, device=device)
    raise UserError(
        f"extractor {name!r} does not exist; choose from {', '.join(EXTRACTORS)}, a hub id such as "
        "facebook/dinov2-base, or a folder"
    )


# ------------------------------------------------------------------------------- the classifier that ships


def classifier_extractor(path: str | Path | None = None, *, device: str = "cpu") -> Extractor:
    """The classifier that ships (None), or a folder made by roentgen train classifier: the offline default."""
    judge = load_classifier(path)
    net, size = judge.net.to(device), judge.size
    given = LastInput(net.image)  # one pass for both: the features are what the image head is given

    def prepare(image: Grey) -> NDArray[np.float32]:
        return resize_center_crop(image, size)[None].astype(np.float32) / 127.5 - 1

    def forward(batch: Tensor) -> dict[str, Tensor]:
        logits, sides = net(batch)
        return {"features": given.last(), "probabilities": logits.sigmoid(), "sides": sides.sigmoid()}

    return Extractor(
        name="classifier" if path is None else Path(path).resolve().name,
        chain=f"grey uint8; shorter side to {size} px by antialiased bicubic (PIL, uint8), centre crop; [-1, 1]",
        dim=4 * net.width,
        hash=file_hash(SHIPPED if path is None else Path(path)),
        outputs=("features", "probabilities", "sides"),
        findings=tuple(judge.findings),
        device=device,
        prepare=prepare,
        forward=forward,
    )


def judge_extractor(*, device: str = "cpu") -> Extractor:
    """The network of the reporter that ships: findings and sides, no features.

    `mini`'s decoder was trained to look right to an ImageNet network, and this one started from the same weights: a
    distance in its features would flatter `mini`.
    """
    folder = find_reporter(MINI_REPORT)
    net, info = load_net(folder)
    net, size = net.to(device), int(info["size"])

    def prepare(image: Grey) -> NDArray[np.float32]:
        return squash(image, size)[None].astype(np.float32) / 127.5 - 1

    def forward(batch: Tensor) -> dict[str, Tensor]:
        found = net(batch)
        return {"probabilities": found.image.sigmoid(), "sides": found.sides.sigmoid()}

    return Extractor(
        name="judge",
        chain=f"grey uint8; squashed to {size} x {size} px by antialiased bicubic (PIL, uint8); [-1, 1]",
        dim=0,
        hash=file_hash(folder),
        outputs=("probabilities", "sides"),
        findings=tuple(info["findings"]),
        device=device,
        prepare=prepare,
        forward=forward,
    )


# --------------------------------------------------------------------------------------------- Inception-v3

INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"
INCEPTION_URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{INCEPTION_FILE}"
INCEPTION_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
INCEPTION_SIDE = 299


def inception_extractor(*, weights: Path | None = None, resize: str = "tf1", device: str = "cpu") -> Extractor:
    """The FID network (Heusel et al. 2017): torch-fidelity's class and weights, 2048 features of the last pooling.

    Args:
        weights: its .pth file; None: where torch.hub keeps it.
        resize: "tf1", as torch-fidelity does it, or "clean", as clean-fid does it.
        device: of the network.
    """
    name = "inception" if resize == "tf1" else f"inception-{resize}"
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ImportError:
        raise UserError(f"extractor {name} needs torch-fidelity: {install('eval')}") from None
    file = Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_FILE if weights is None else weights
    require_file(file, INCEPTION_URL, f"extractor {name}: its weights")
    if weights is None and file_sha256(file) != INCEPTION_SHA256:
        raise UserError(
            f"extractor {name}: {file} is not the published file (its SHA-256 differs); fetch {INCEPTION_URL} again"
        )
    with explained(f"extractor {name}: {file} cannot be loaded", f"fetch {INCEPTION_URL} again"):
        torch.load(file, map_location="cpu", weights_only=True)  # torch-fidelity would run what a pickle asks for
        whole = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], feature_extractor_weights_path=str(file))
    net = fused(nn_sequence(whole)).to(device)
    chains = {
        "tf1": (resize_tf1, "bilinear without antialiasing as TensorFlow 1 (torch-fidelity)"),
        "clean": (resize_clean, "antialiased bicubic by PIL in float32, clipped to [0, 255] (clean-fid)"),
    }
    resizer, words = chains[resize]

    def prepare(image: Grey) -> NDArray[np.float32]:
        return (resizer(image, INCEPTION_SIDE)[None] - np.float32(128)) / np.float32(128)

    def forward(batch: Tensor) -> dict[str, Tensor]:
        colour = batch.expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)
        return {"features": net(colour).flatten(1)}

    return Extractor(
        name=name,
        chain=f"grey uint8 three times; to {INCEPTION_SIDE} x {INCEPTION_SIDE} without regard to the aspect, {words}; "
        "(x - 128) / 128",
        dim=2048,
        hash=file_hash(file),
        outputs=("features",),
        findings=(),
        device=device,
        prepare=prepare,
        forward=forward,
    )


def nn_sequence(whole: torch.nn.Module) -> torch.nn.Sequential:
    """The layers of torch-fidelity's Inception-v3 up to the last pooling, without its resize (ours runs in workers)."""
    stem = ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "MaxPool_1")
    middle = ("Conv2d_3b_1x1", "Conv2d_4a_3x3", "MaxPool_2")
    mixed = tuple(f"Mixed_{name}" for name in ("5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e", "7a", "7b", "7c"))
    return torch.nn.Sequential(*(whole.get_submodule(name) for name in (*stem, *middle, *mixed, "AvgPool")))


def fused(net: torch.nn.Module) -> torch.nn.Module:
    """``net`` in evaluation mode with each batch norm folded into the convolution before it, channels last.

    The same function to rounding (1e-6), a third faster on a CPU.
    """
    from torch.nn.utils.fusion import fuse_conv_bn_eval

    net = net.eval().requires_grad_(False)
    for module in list(net.modules()):
        children = dict(module.named_children())
        conv, norm = children.get("conv"), children.get("bn")
        if isinstance(conv, torch.nn.Conv2d) and isinstance(norm, torch.nn.BatchNorm2d):
            module.add_module("conv", fuse_conv_bn_eval(conv, norm))
            module.add_module("bn", torch.nn.Identity())
    return net.to(memory_format=torch.channels_last)


# ------------------------------------------------------------------------------------------- torchxrayvision

XRV_CLASSES = ("torchxrayvision.models.", "torch.nn.", "torchvision.models.")
XRV_WEIGHTS = "densenet121-res224-all"
XRV_SHA256 = "56524913dd16a906422e8d8b66a7a5c46be1d82eb7ac012d8103776f1aa68899"
"""Of its file of release v1, 28,382,008 bytes. The package publishes no sums; many who use the file do, and agree."""
XRV_SIDE = 224
XRV_CHAINS = {
    "xrv": "to 299 x 299 without regard to the aspect, antialiased bicubic by PIL in float32, clipped to [0, 255]; "
    "RGB to grey (weights 0.2989, 0.587, 0.114); [-1024, 1024]; to 224 x 224 by antialiased bilinear (torch): "
    "RoentGen's script with torchvision 0.17 or later",
    "xrv-2022": "as xrv, but to 224 x 224 by bilinear without antialiasing (torch): RoentGen's script with the "
    "torchvision of its time",
    "xrv-native": "[-1024, 1024]; centre crop to a square; to 224 x 224 by antialiased bilinear (torch)",
}


def xrv_net(who: str, *, missing: str, instead: str = "", folder: Path | None = None) -> tuple[Any, Path]:
    """torchxrayvision's DenseNet-121 for inference, and its file; UserError, which begins with ``who``, without it.

    The package unpickles a whole network, not tensors alone: from its own cache only the published file is taken, and
    from a ``folder`` one that names nothing but parts of networks.
    """
    try:
        import torchxrayvision as xrv
    except ImportError:
        raise UserError(f"{who} needs torchxrayvision: {install('eval')}") from None
    url = str(xrv.models.model_urls[XRV_WEIGHTS]["weights_url"])
    file = (user_path("~/.torchxrayvision/models_data") if folder is None else folder) / url.rpartition("/")[2]
    require_file(file, url, f"{who}: {missing}", instead)
    if folder is None and file_sha256(file) != XRV_SHA256:
        raise UserError(f"{who}: {file} is not the published file (its SHA-256 differs); fetch {url} again")
    check_pickle(file, XRV_CLASSES, who)
    with explained(f"{who}: {file} cannot be loaded", f"fetch {url} again"):
        net = xrv.models.DenseNet(weights=XRV_WEIGHTS, cache_dir=str(file.parent)).eval().requires_grad_(False)
    return net, file


def xrv_extractor(chain: str = "xrv", *, folder: Path | None = None, device: str = "cpu") -> Extractor:
    """torchxrayvision's DenseNet-121 (``densenet121-res224-all``): 1024 features and 18 findings.

    Args:
        chain: a key of ``XRV_CHAINS``. RoentGen's own script also crops, but on the wrong axes of a square image,
            which changes nothing; and it takes "antialias" from the torchvision that happens to be installed.
        folder: where the weights lie; None: torchxrayvision's own ~/.torchxrayvision/models_data.
        device: of the network.
    """
    net, file = xrv_net(f"extractor {chain}", folder=folder, missing="its weights")
    net = net.to(device)
    given = LastInput(net.classifier)

    def prepare(image: Grey) -> NDArray[np.float32]:
        if chain == "xrv-native":
            side = min(image.shape)
            top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
            scaled = to_xrv(image[None, top : top + side, left : left + side])
        else:
            grey = resize_clean(image, INCEPTION_SIDE) * np.float32(0.2989 + 0.587 + 0.114)
            scaled = torch.from_numpy(2048 * (grey / 255) - 1024)[None, None]
        size = (XRV_SIDE, XRV_SIDE)
        if scaled.shape[-2:] != size:
            scaled = F.interpolate(scaled, size, mode="bilinear", align_corners=False, antialias=chain != "xrv-2022")
        return scaled[0].numpy()

    def forward(batch: Tensor) -> dict[str, Tensor]:
        probabilities = net(batch)  # first: it is what gives the features
        return {"features": given.last(), "probabilities": probabilities}

    return Extractor(
        name=chain,
        chain=f"grey uint8; {XRV_CHAINS[chain]}",
        dim=1024,
        hash=file_hash(file),
        outputs=("features", "probabilities"),
        findings=tuple(net.targets),
        device=device,
        prepare=prepare,
        forward=forward,
    )


# ---------------------------------------------------------------------------- any vision model of transformers

HUB = {"clip": "openai/clip-vit-base-patch32", "rad-dino": "microsoft/rad-dino"}


def hub_extractor(model: str, *, name: str | None = None, device: str = "cpu") -> Extractor:
    """A vision model of transformers with its own processor: a folder, a hub id in the cache, or downloaded.

    Features are the image embedding of a dual encoder (CLIP), else the pooled output (DINOv2, RAD-DINO: the class
    token), else the mean of the last hidden states.
    """
    from transformers import AutoImageProcessor, AutoModel

    processor = _from_hub(AutoImageProcessor, model, name or model)
    net, said = _from_hub(AutoModel, model, name or model, output_loading_info=True)
    text = ("text_model.", "text_projection.", "logit_scale")
    loading.nothing_missing((net, said), f"extractor {name or model}", unused=("pooler.", *text))
    if any(key.startswith("pooler.") for key in said["missing_keys"]):  # as in files of classifiers
        net.pooler = None
    # Only the text tower of a model that has one needs tokens.
    embed = net.get_image_features if hasattr(net, "get_image_features") else net
    net = net.eval().requires_grad_(False).to(device)

    def prepare(image: Grey) -> NDArray[np.float32]:
        colour = Image.fromarray(image).convert("RGB")
        return np.asarray(processor(images=colour, return_tensors="np")["pixel_values"][0], dtype=np.float32)

    def forward(batch: Tensor) -> dict[str, Tensor]:
        found = embed(pixel_values=batch)
        if not isinstance(found, Tensor):
            found = found.last_hidden_state.mean(1) if found.get("pooler_output") is None else found["pooler_output"]
        return {"features": found.flatten(1)}

    with torch.inference_mode():
        probe = prepare(np.zeros((64, 64), np.uint8))
        dim = forward(torch.from_numpy(probe[None]).to(device))["features"].shape[1]
    settings = {key: value for key, value in processor.to_dict().items() if value is not None}
    words = json.dumps(settings, default=str, sort_keys=True)
    return Extractor(
        name=name or (Path(model).resolve().name if Path(model).is_dir() else model),
        chain=f"grey uint8 three times; {type(processor).__name__} {words}",
        dim=dim,
        hash=tensors_hash(net.state_dict().items()),
        outputs=("features",),
        findings=(),
        device=device,
        prepare=prepare,
        forward=forward,
    )


def _from_hub(loader: Any, model: str, name: str, **options: Any) -> Any:
    """``loader.from_pretrained(model, ...)``: this disk first, then the network; one sentence if neither has it."""
    folder = hub.local(model)
    try:
        folder = folder or hub.fetch(model, hub.model_files)
    except Exception as error:  # hub, HTTP and OS errors
        raise UserError(
            f"extractor {name}: {model} is neither on this disk nor can it be fetched ({reason(error)}); run "
            f"`hf download {model}` where there is a network and copy the Hugging Face cache here, or give its folder"
        ) from None
    with explained(f"extractor {name}: {folder} cannot be loaded", f"fetch {model} again"):
        return loader.from_pretrained(folder, **loading.SAFE, **options)


EXTRACTORS: dict[str, Callable[..., Extractor]] = {
    "judge": judge_extractor,
    "classifier": classifier_extractor,
    "inception": inception_extractor,
    "inception-clean": lambda **given: inception_extractor(resize="clean", **given),
    **{name: lambda name=name, **given: xrv_extractor(name, **given) for name in XRV_CHAINS},
    **{name: lambda name=name, **given: hub_extractor(HUB[name], name=name, **given) for name in HUB},
}
