"""The peer of generate.py: what a user of stock diffusers writes to turn a prompt into files. No roentgen.

python benchmarks/stock_diffusers.py '{"model": ..., "prompt": ..., "images": 1, "steps": 25,
    "guidance": 4.0, "scheduler": ["DDIMScheduler", {"clip_sample": false}], "out": FOLDER}'
"""

import json
import sys
from pathlib import Path

import diffusers
import torch

job = json.loads(sys.argv[1])
pipe = diffusers.DiffusionPipeline.from_pretrained(job["model"], torch_dtype=torch.float32)
pipe.set_progress_bar_config(disable=True)
name, changes = job["scheduler"]
pipe.scheduler = getattr(diffusers, name).from_config(pipe.scheduler.config, **changes)
pictures = pipe(
    job["prompt"],
    num_images_per_prompt=job["images"],
    num_inference_steps=job["steps"],
    guidance_scale=job["guidance"],
    generator=[torch.Generator().manual_seed(seed) for seed in range(job["images"])],
).images
for seed, picture in enumerate(pictures):
    picture.save(Path(job["out"]) / f"{seed}.png")
