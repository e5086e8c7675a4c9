"""The peer of serve.py: the simplest handler that puts stock diffusers behind FastAPI. No roentgen.

python benchmarks/stock_server.py '{"model": FOLDER, "steps": 10, "guidance": 4.0,
    "scheduler": ["UniPCMultistepScheduler", {}]}'
"""

import io
import json
import socket
import sys
import threading

import diffusers
import torch
import uvicorn
from fastapi import FastAPI, Response

job = json.loads(sys.argv[1])
pipe = diffusers.DiffusionPipeline.from_pretrained(job["model"], torch_dtype=torch.float32)
pipe.set_progress_bar_config(disable=True)
name, changes = job["scheduler"]
pipe.scheduler = getattr(diffusers, name).from_config(pipe.scheduler.config, **changes)
one_at_a_time = threading.Lock()  # a pipeline's scheduler has a state
app = FastAPI()


@app.post("/generate")
def generate(prompt: str, seed: int) -> Response:
    with one_at_a_time:
        generator = torch.Generator().manual_seed(seed)
        made = pipe(prompt, num_inference_steps=job["steps"], guidance_scale=job["guidance"], generator=generator)
    content = io.BytesIO()
    made.images[0].save(content, "PNG")
    return Response(content.getvalue(), media_type="image/png")


listener = socket.create_server(("127.0.0.1", 0))
print(f"http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listener])
