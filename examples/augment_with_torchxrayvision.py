"""Train torchxrayvision's DenseNet on real images with and without a synthetic set, by torchxrayvision's conventions.

    roentgen export --like data/sample/manifest.csv --count 500 --out out/synthetic
    python examples/augment_with_torchxrayvision.py --real data/sample/manifest.csv --synthetic out/synthetic

Both networks take the same number of steps from the same weights, and are judged on the real test patients. This shows
how the parts fit; the defaults are far too short to tell whether synthetic images help. ``eval/augmentation_gain.py``
measures that: several sizes, seeds, controls, intervals.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import torchxrayvision as xrv
from torch.utils.data import DataLoader
from torchvision.transforms import Compose

from roentgen import errors
from roentgen.data.manifest import finding_columns, read_manifest
from roentgen.images import read_image
from roentgen.metrics.adherence.auroc import auroc

PATHOLOGIES = ["Atelectasis", "Cardiomegaly", "Consolidation", "Effusion", "Infiltration", "Pneumothorax"]


class ManifestDataset(xrv.datasets.Dataset):
    """A split of a roentgen manifest as torchxrayvision has data: images (1, H, W) in [-1024, 1024]; NaN is unknown.

    For data in a layout that torchxrayvision knows, take its own class instead (NIH_Dataset, CheX_Dataset, ...).
    """

    def __init__(self, manifest: Path, split: str, transform: Any) -> None:
        super().__init__()
        self.csv = read_manifest(manifest, splits=(split,), allow_empty_text=True).reset_index(drop=True)
        self.pathologies = list(finding_columns(self.csv))
        self.labels = self.csv[self.pathologies].to_numpy(np.float32, na_value=np.nan)
        self.transform = transform

    def __len__(self) -> int:
        return len(self.csv)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image = xrv.datasets.normalize(read_image(self.csv["image"][index]), maxval=255)[None]
        sample = {"idx": index, "lab": self.labels[index], "img": image}
        found: dict[str, Any] = xrv.datasets.apply_transforms(sample, self.transform)
        return found

    def string(self) -> str:
        return f"{type(self).__name__} num_samples={len(self)}"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--real", type=Path, required=True, metavar="MANIFEST", help="with train and test images")
    parser.add_argument("--synthetic", type=Path, required=True, metavar="DIR", help="made by roentgen export")
    parser.add_argument("--size", type=int, default=64, help="side of the images in pixels; 224 for real work")
    parser.add_argument("--steps", type=int, default=20, help="of each network")
    parser.add_argument("--batch-size", type=int, default=16)
    args = parser.parse_args(argv)
    table = args.synthetic / "Data_Entry_synthetic.csv"
    if not table.is_file():
        raise errors.UserError(f"--synthetic {args.synthetic}: no {table.name} in it; name a folder of roentgen export")

    # torchxrayvision's own transforms and, for the exported folder, its own class: it is in NIH's layout.
    transform = Compose([xrv.datasets.XRayCenterCrop(), xrv.datasets.XRayResizer(args.size)])
    real, test = (ManifestDataset(args.real, split, transform) for split in ("train", "test"))
    synthetic = xrv.datasets.NIH_Dataset(
        imgpath=str(args.synthetic / "images"), csvpath=str(table), views=["*"], transform=transform
    )
    for dataset in (real, test, synthetic):
        xrv.datasets.relabel_dataset(PATHOLOGIES, dataset, silent=True)
    both = xrv.datasets.MergeDataset([real, synthetic])
    print(both)

    found = {}
    for name, dataset in {"real": real, "real + synthetic": both}.items():
        net = train(dataset, steps=args.steps, batch_size=args.batch_size)
        found[name] = aurocs(net, test, batch_size=args.batch_size)
    print(f"{'AUROC on real test images':28}" + "".join(f"{name:>18}" for name in found))
    for pathology in PATHOLOGIES:
        print(f"{pathology:28}" + "".join(f"{values[pathology]:18.3f}" for values in found.values()))
    print(f"{'mean':28}" + "".join(f"{np.nanmean(list(values.values())):18.3f}" for values in found.values()))
    return 0


def train(dataset: Any, *, steps: int, batch_size: int) -> torch.nn.Module:
    """A DenseNet-121 from random weights after ``steps`` batches of ``dataset``. No flips: left is left."""
    torch.manual_seed(0)
    net = xrv.models.DenseNet(num_classes=len(PATHOLOGIES), in_channels=1).train()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3, weight_decay=1e-5, amsgrad=True)
    # The datasets reseed torch for every image, so the order needs a generator of its own.
    order = torch.Generator().manual_seed(0)
    loader = DataLoader(dataset, batch_size, shuffle=True, drop_last=True, generator=order)
    done = 0
    while done < steps:
        for batch in loader:
            labels = batch["lab"].float()
            known = ~labels.isnan()
            loss = F.binary_cross_entropy_with_logits(net(batch["img"].float())[known], labels[known])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            done += 1
            if done == steps:
                break
    return net


@torch.inference_mode()
def aurocs(net: torch.nn.Module, dataset: Any, *, batch_size: int) -> dict[str, float]:
    """AUROC of each pathology over the images where it is known; NaN where only one class is."""
    net.eval()
    scores = np.concatenate([net(batch["img"].float()).numpy() for batch in DataLoader(dataset, batch_size)])
    found = {}
    for column, pathology in enumerate(PATHOLOGIES):
        known = ~np.isnan(dataset.labels[:, column])
        found[pathology] = auroc(scores[known, column].astype(np.float64), dataset.labels[known, column])
    return found


if __name__ == "__main__":
    sys.exit(errors.run(main, prog="examples/augment_with_torchxrayvision.py"))
