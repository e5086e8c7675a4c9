"""``roentgen serve``: a page in the browser and an address for other programs."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from roentgen.config import BatchSize, Count, CountFromZero, PathOrName, Range
from roentgen.errors import UserError, install

if TYPE_CHECKING:
    from roentgen.serving.catalogue import Catalogue

Port = Annotated[int, Range(0, 65_535)]
Milliseconds = Annotated[int, Range(0, 10_000)]


@dataclass(frozen=True)
class Serve:
    """Answer over HTTP: a page to type prompts into, and the image interfaces that other programs speak.

        roentgen serve --open
        roentgen serve --host 0.0.0.0 --keys keys.txt --tls-cert cert.pem --tls-key key.pem
        roentgen serve --ray auto --replicas 4

    What is served:
        model: Models that make images, as of `roentgen generate`; the first answers where a request names none.
        reporter: Models that read images (default: the one that ships).
        open: Open the page in the browser.

    Address:
        host: Address to listen on; one that others can reach needs keys.
        port: Port to listen on; 0 takes any, and the address is printed.
        keys: File with hashes of keys, readable for you alone; ROENTGEN_API_KEY may hold keys as well.
        add_key: Make a key for this name, add its hash to --keys, print the key, and stop.
        tls_cert: PEM file of the certificate (chain), for HTTPS.
        tls_key: PEM file of its private key.
        log_prompts: Write prompts to the log, which has none otherwise.

    Limits:
        max_images: Images a request.
        max_prompt: Characters a prompt.
        max_queue: Images that wait; a request beyond them gets a 429.
        max_body_mb: Size of a request, in MB.
        max_pixels: Pixels of an uploaded image.
        max_seconds: Time for a request.
        keep: Generated images that stay fetchable by their address, for an hour.

    Machine:
        ray: Compute on replicas behind Ray Serve: a cluster's address, auto (the one that this machine is of) or local.
        replicas: Replicas, with --ray (default: one for each GPU of the cluster, or CPU where it has none).
        batch_size: Images computed at once, of any requests; changes no image.
        gather_ms: How long the first request of a batch waits for others.
        device: auto, cpu, cuda, cuda:N or mps.
        dtype: auto (float16 on a CUDA GPU, else float32), float32, float16 or bfloat16.
        compile: Compile the networks first; for GPUs, on a CPU it makes images slower.
    """

    model: tuple[PathOrName, ...] = ("mini",)
    reporter: tuple[PathOrName, ...] = ()
    open: bool = False
    host: str = "127.0.0.1"
    port: Port = 8000
    keys: Path | None = None
    add_key: str | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    log_prompts: bool = False
    max_images: Count = 16
    max_prompt: Count = 2000
    max_queue: Count = 64
    max_body_mb: Count = 32
    max_pixels: Count = 30_000_000
    max_seconds: Count = 300
    keep: CountFromZero = 256
    ray: str | None = None
    replicas: Count | None = None
    batch_size: BatchSize = 8
    gather_ms: Milliseconds = 10
    device: str = "auto"
    dtype: str = "auto"
    compile: bool = False


def serve(s: Serve) -> int:
    """Listen; see ``Serve``."""
    from roentgen.serving.keys import add_key as new_key
    from roentgen.serving.keys import load_keys

    if s.add_key is not None:
        if s.keys is None:
            raise UserError(f"--add-key {s.add_key}: pass --keys FILE, where its hash goes")
        print(new_key(s.keys, s.add_key))
        print(f"roentgen: only its hash is in {s.keys}: keep the key itself", file=sys.stderr)
        return 0
    try:
        from roentgen.serving import launch
    except ImportError as error:
        raise UserError(f"roentgen serve needs {error.name}, which is not installed; {install('serve')}") from None
    from roentgen.serving.settings import Limits, Options

    if s.replicas is not None and s.ray is None:
        raise UserError(f"--replicas {s.replicas}: is for --ray; without it this process computes")
    if s.ray is not None:
        from roentgen.cluster import require_ray

        require_ray(s.ray)
    limits = Limits(
        images=s.max_images,
        prompt=s.max_prompt,
        queue=s.max_queue,
        body_mb=s.max_body_mb,
        pixels=s.max_pixels,
        seconds=s.max_seconds,
        kept=s.keep,
    )
    known = load_keys(s.keys)
    launch.check_keys(s.host, known)
    tls = launch.check_tls(s.tls_cert, s.tls_key)
    hosts = frozenset(("127.0.0.1", "localhost", "::1", s.host)) if launch.is_loopback(s.host) else frozenset()
    options = Options(limits, s.batch_size, s.gather_ms / 1000, hosts, s.log_prompts)
    address = launch.Address(s.host, s.port, tls)
    with launch.bind(address) as listener, ExitStack() as cluster:
        launch.launch(address, lambda: _load(s, cluster), options, known, listener=listener, open_page=s.open)
    return 0


def _load(s: Serve, cluster: ExitStack) -> Catalogue:
    """The models; with ``ray`` they compute on a cluster until ``cluster`` is closed."""
    from roentgen.serving import catalogue

    how: dict[str, Any] = {"dtype": s.dtype, "compile": s.compile}
    if s.ray is None:
        return catalogue.load(s.model, s.reporter, device=s.device, **how)
    from roentgen.serving.replicas import Wish, spread

    here = catalogue.load(s.model, s.reporter, device="cpu", dtype=s.dtype)  # for the checks of requests
    hashes = {name: model.info.hash for name, model in here.generators.items()}
    wish = Wish(s.model, s.reporter, s.device, hashes=hashes, **how)
    return cluster.enter_context(spread(here, s.ray, wish, s.replicas))
