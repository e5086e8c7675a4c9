"""``roentgen models``: what can be generated with."""

from __future__ import annotations

from typing import Any

from roentgen.commands.generate import dumps


def models(json: bool = False) -> int:
    """List the named models: size, licence, and what is on this disk.

        roentgen models
        roentgen models --json

    Output:
        json: Print JSON lines instead of a table.
    """
    from roentgen.models.hub import NAMED, on_disk

    rows: list[dict[str, Any]] = []
    for model in NAMED.values():
        found = on_disk(model)
        rows.append(
            {
                "name": model.name,
                "pixels": model.pixels,
                "size_mb": round(found[1] / 1e6) if found else model.size_mb,
                "licence": model.licence,
                "on_disk": str(found[0]) if found else None,
                "hub_ids": list(model.hub_ids),
                "about": model.about,
            }
        )
    if json:
        print("\n".join(dumps(row) for row in rows))
        return 0
    print(f"{'NAME':<12} {'PIXELS':>6} {'SIZE':>7}  {'LICENCE':<26} {'ON DISK':<8} ABOUT")
    for row in rows:
        size = f"{row['size_mb']} MB" if row["size_mb"] < 1000 else f"{row['size_mb'] / 1000:.1f} GB"
        here = "yes" if row["on_disk"] else "no"
        print(f"{row['name']:<12} {row['pixels']:>6} {size:>7}  {row['licence']:<26} {here:<8} {row['about']}")
    print("Any other Stable Diffusion pipeline: --model FOLDER or --model OWNER/NAME (Hugging Face).")
    return 0
