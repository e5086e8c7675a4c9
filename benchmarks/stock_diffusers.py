"""The peer of generate.py: what a user of stock diffusers writes to turn prompts into files. No roentgen.

python benchmarks/stock_diffusers.py '{"model": ..., "prompts": [...], "seeds": [...], "batch": 16, "steps": 25,
    "guidance": 4.0, "scheduler": ["DDIMScheduler", {"clip_sample": false}], "dtype": "float32", "device": "cpu",
    "out": FOLDER}'
"""

import json
import sys
from pathlib import Path

import diffusers
import torch

job = json.loads(sys.argv[1])
pipe = diffusers.DiffusionPipeline.from_pretrained(job["model"], torch_dtype=getattr(torch, job["dtype"]))
pipe.to(job["device"])
pipe.set_progress_bar_config(disable=True)
name, changes = job["scheduler"]
pipe.scheduler = getattr(diffusers, name).from_config(pipe.scheduler.config, **changes)
for start in range(0, len(job["prompts"]), job["batch"]):
    part = slice(start, start + job["batch"])
    pictures = pipe(
        job["prompts"][part],
        num_inference_steps=job["steps"],
        guidance_scale=job["guidance"],
        generator=[torch.Generator().manual_seed(seed) for seed in job["seeds"][part]],
    ).images
    for number, picture in enumerate(pictures, start):
        picture.save(Path(job["out"]) / f"{number}.png")
