"""``roentgen data shard``, as a function of its flags; nothing heavy is imported until it runs."""

from __future__ import annotations

import sys
from pathlib import Path

from roentgen.errors import UserError


def shard(
    manifest: str,
    *,
    out: str,
    size: int | None = None,
    shard_mb: float = 256.0,
    seed: int = 0,
    keep_order: bool = False,
    overwrite: bool = False,
) -> int:
    """Write the images, texts and labels of a manifest as WebDataset tar files, which training reads in sequence.

    Run the same command again after it was broken off: finished shards are checked and kept. It also writes damaged
    ones again. The shards hold what the manifest and the images hold, patient identifiers too.

    Args:
        manifest: The manifest, .csv or .parquet.
        out: Folder for the shards.
        size: Store images resized to this shorter side, centre-cropped, 8-bit PNG; left out, the files as they are.
        shard_mb: Megabytes of a shard, about.
        seed: Seed of the order of rows, so that each shard is a random sample of its split.
        keep_order: Write rows in the manifest's order instead.
        overwrite: Replace shards of another manifest or of other options.

    Returns:
        Exit code 0; the folder is printed.
    """
    from roentgen.data.shards import write_shards

    if size is not None and size < 8:
        raise UserError(f"--size {size} is too small for an image; choose 64 or more")
    if not shard_mb > 0:
        raise UserError(f"--shard-mb {shard_mb:g} must be above 0")
    folder = Path(out)
    counts = write_shards(
        Path(manifest),
        folder,
        size=size,
        shard_mb=shard_mb,
        seed=None if keep_order else seed,
        overwrite=overwrite,
    )
    for split, (shards, images) in counts.items():
        print(f"{split}: {images} images in {shards} shard(s)", file=sys.stderr)
    print("rows in the manifest's order" if keep_order else f"rows shuffled with --seed {seed}", file=sys.stderr)
    print(folder)
    return 0
