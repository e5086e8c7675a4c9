"""Load a model of any family and generate: from prompts to an iterator of samples, one seed an image.

Everything is checked before the first image is computed. An image depends on (model, prompt, seed, sampling settings),
not on the order or on what else was generated; batch size, threads and device change it by rounding alone, which is one
grey level at most in float32. Light at import: no torch.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from roentgen.errors import UserError
from roentgen.generators import FAMILIES
from roentgen.generators.base import (
    Attentive,
    Generator,
    Sample,
    Sampling,
    check_seed,
    check_text,
    roentgen_json,
    weights_in,
)
from roentgen.models import hub
from roentgen.models.lora import find_lora
from roentgen.provenance import __version__

if TYPE_CHECKING:
    import numpy as np

MOST_IMAGES = 1_000_000
LIMIT = "ROENTGEN_MAX_IMAGES"
"""Environment variable that raises ``MOST_IMAGES``, of one call: what is planned lies in memory."""
DTYPES = ("auto", "float32", "float16", "bfloat16")


def load_model(
    name: str = "mini",
    *,
    device: str | None = None,
    dtype: str | None = None,
    compile: bool = False,
    lora: str | Path | None = None,
    trainable: bool = False,
) -> Generator:
    """Load a named model, a model folder or a hub id.

    ``device``: None or ``auto`` takes a GPU if there is one. ``dtype``: None or ``auto`` is float16 on a CUDA
    GPU and float32 elsewhere. ``compile``: torch.compile the network. ``lora``: an adapter to merge into the weights,
    as a file or a folder with pytorch_lora_weights.safetensors; the model's hash then covers it too. ``trainable``: its
    parts are the libraries' own modules, to train or to save; else they are the quickest that sample the same.
    UserError on an unknown or damaged model or LoRA.
    """
    file = None if lora is None else find_lora(lora)
    source = hub.resolve(name)
    if (dtype or "auto") not in DTYPES:
        raise UserError(f"--dtype {dtype}: unknown; choose one of {', '.join(DTYPES)}")
    folder = hub.find_folder(source, check=check_model)
    options = {"device": device, "dtype": None if dtype == "auto" else dtype, "compile": compile, "lora": file}
    options["trainable"] = trainable
    model: Generator = import_module(FAMILIES[_family(folder)]).load(folder, name=hub.public_name(name), **options)
    return model


def check_model(folder: Path) -> None:
    """UserError if ``folder`` is no whole model of its family; looks at files only."""
    import_module(FAMILIES[_family(folder)]).check_folder(folder)


def _family(folder: Path) -> str:
    """Family of the model in ``folder``, a key of ``FAMILIES``."""
    name = roentgen_json(folder).get("family", "diffusion")
    if not isinstance(name, str) or name not in FAMILIES:
        raise UserError(
            f"{folder / 'roentgen.json'}: family is {name!r}, which this version does not know; "
            f"it knows {', '.join(FAMILIES)}"
        )
    return name


def check_settings(*, num_images: int = 1, seed: int = 0, batch_size: int = 4, **settings: Any) -> None:
    """UserError on a setting out of range; needs no model, so that a typing error costs no loading.

    ``settings`` are those of sampling; None stands for the model's own. Where several families have them, they are
    good if one of these takes them.
    """
    for flag, value in (("num-images", num_images), ("batch-size", batch_size)):
        if value < 1:
            raise UserError(f"--{flag} {value}: must be at least 1")
    check_seed(seed)
    given = {key: value for key, value in settings.items() if value is not None}
    kinds: list[Any] = [import_module(package).Sampling for package in FAMILIES.values()]
    fitting = [kind for kind in kinds if given.keys() <= {field.name for field in dataclasses.fields(kind)}]
    problems = []
    for kind in fitting:
        try:
            kind(**given)
        except UserError as error:
            problems.append(str(error))
        else:
            return
    if not problems:
        raise UserError(f"{', '.join(given)}: no family of models has these settings together")
    # What the first says, and what the others would take instead.
    others = [said.rpartition("; ")[2] for said in problems[1:] if "; " in said and said != problems[0]]
    raise UserError("; ".join([problems[0], *others]))


def check_count(images: int, flag: str) -> None:
    """UserError where more images are asked for at once than ``LIMIT`` allows."""
    said = os.environ.get(LIMIT) or str(MOST_IMAGES)
    if not (said.isascii() and said.isdecimal()) or len(said) > 18:
        raise UserError(f"{LIMIT}={said[:40]}: must be a whole number of images")
    if images > int(said):
        raise UserError(
            f"{flag}: {images:,} images in one call, more than {int(said):,}; `roentgen export` makes sets of any "
            f"size, or set {LIMIT} to allow it"
        )


def generate(
    model: Generator,
    prompts: str | Sequence[str],
    *,
    seeds: Sequence[int | None] | None = None,
    num_images: int = 1,
    seed: int = 0,
    batch_size: int = 4,
    progress: bool = False,
    on_step: Callable[[float], object] | None = None,
    **settings: Any,
) -> Iterator[Sample]:
    """Check everything now, then generate lazily: prompt by prompt, ``num_images`` each.

    Image i of a prompt has the seed ``seed + i``; ``seeds`` gives a prompt its own first seed (or None).
    ``settings`` are those of the model's family, such as ``steps``, ``guidance``, ``sampler`` and ``negative_prompt``;
    they default to the model's. ``progress`` shows a bar on stderr. ``on_step`` is called after each step with its
    share of the work, in images. UserError on bad settings or prompts, and on NaN images.
    """
    if isinstance(prompts, str):
        prompts = [prompts]
    if not prompts:
        raise UserError("no prompt: give at least one")
    if seeds is not None and len(seeds) != len(prompts):
        raise UserError(f"seeds: {len(seeds)} seeds for {len(prompts)} prompts; give one for each")
    check_settings(num_images=num_images, seed=seed, batch_size=batch_size)
    check_count(len(prompts) * num_images, "num_images")
    sampling = model.sampling(**settings)
    for prompt in prompts:
        check_text(prompt)
    for prompt in dict.fromkeys(prompts):
        model.check(prompt)
    jobs: list[tuple[str, int, int]] = []
    for number, prompt in enumerate(prompts):
        own = None if seeds is None else seeds[number]
        first = seed if own is None else own
        check_seed(first, num_images - 1)
        jobs += [(prompt, first + index, index) for index in range(num_images)]
    samples = _run(model, jobs, sampling, batch_size, provenance_of(model, sampling), on_step)
    if not progress:
        return samples
    from tqdm import tqdm

    return iter(tqdm(samples, total=len(jobs), desc="images", file=sys.stderr))


def watch(model: Generator, sample: Sample, **settings: Any) -> list[np.ndarray]:
    """How ``sample``, which ``generate`` made with these ``settings``, came about: a picture a step, the image last."""
    return list(model.watch(sample.prompt, sample.seed, model.sampling(**settings)))


def word_maps(model: Generator, prompt: str, seed: int = 0, **settings: Any) -> dict[str, np.ndarray]:
    """Which words made which pixels of the image of ``prompt`` and ``seed``: the network's attention to each word.

    Returns:
        By word, lower-case and in the order of the prompt, a map float32 (h, w) of the size of the latents, which
        covers the whole image: the share in [0, 1] of a place's attention that the word got. A word that comes twice
        has one map. ``images.lit`` shows a map on its image.

    Raises:
        UserError: a prompt without a word or longer than the model reads; a model that cannot say (a masked
            transformer, or a compiled one).
    """
    check_text(prompt)
    check_seed(seed)
    model.check(prompt)
    return attentive(model).word_maps(prompt, seed, model.sampling(**settings))[1]


def attentive(model: Generator) -> Attentive:
    """``model``, if it can say which words made which pixels; else UserError."""
    if not isinstance(model, Attentive):
        raise UserError(f"--model {model.info.name}: only diffusion models say which words made which pixels")
    return model


def read_settings(pairs: Sequence[str]) -> dict[str, Any]:
    """Settings of sampling from texts such as ``temperature=1.2``; UserError on one of another form."""
    found: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not (name and equals and text):
            raise UserError(f"--setting {pair}: write NAME=VALUE, such as temperature=1.2")
        value: Any = text
        for kind in (float, int):  # a whole number stays one
            try:
                value = kind(text)
            except ValueError:
                break
        found[name.replace("-", "_")] = value
    return found


def provenance_of(model: Generator, sampling: Sampling) -> dict[str, str]:
    """What the images of ``model`` carry beside prompt and seed."""
    return {
        "model": model.info.name,
        "model_hash": model.info.hash,
        **({} if model.info.lora is None else {"lora": model.info.lora}),
        **sampling.provenance(),
        "dtype": model.info.dtype,
        "version": __version__,
        "software": "roentgen",
        "synthetic": "true",
    }


def _run(
    model: Generator,
    jobs: Sequence[tuple[str, int, int]],
    sampling: Sampling,
    batch_size: int,
    provenance: Mapping[str, str],
    on_step: Callable[[float], object] | None,
) -> Iterator[Sample]:
    import torch

    for batch in _batches(model, jobs, batch_size):
        texts, seeds, _ = zip(*batch, strict=True)
        pictures = model.sample(texts, seeds, sampling, on_step)
        for prompt, seed, index in batch:
            try:
                image = next(pictures)
            except torch.cuda.OutOfMemoryError as error:
                raise UserError(f"--batch-size {batch_size}: out of GPU memory; pass a smaller one") from error
            yield Sample(image, prompt, seed, index, {"prompt": prompt, "seed": str(seed), **provenance})


def _batches(
    model: Generator, jobs: Sequence[tuple[str, int, int]], batch_size: int
) -> Iterator[Sequence[tuple[str, int, int]]]:
    """``jobs`` in order, in batches of texts that may share one: an image must not depend on its batch."""
    keys = {prompt: model.batch_key(prompt) for prompt in dict.fromkeys(job[0] for job in jobs)}
    for _, run in groupby(jobs, key=lambda job: keys[job[0]]):
        alike = list(run)
        for start in range(0, len(alike), batch_size):
            yield alike[start : start + batch_size]


def reads(model: Generator, text: str) -> bool:
    """Whether the model reads ``text`` whole."""
    try:
        model.check(text)
    except UserError:
        return False
    return True


def warn_unknown_words(model: Generator, prompts: Sequence[str]) -> dict[str, list[str]]:
    """One line on stderr for all words that the model has not seen, and one for weights; return the words by prompt."""
    unknown = {prompt: model.info.unknown_words(prompt) for prompt in prompts}
    words = list(dict.fromkeys(word for found in unknown.values() for word in found))
    if words:
        print(
            f"roentgen: warning: {model.info.name} has never seen these words in training, so expect them to have "
            f"little effect: {', '.join(words)}",
            file=sys.stderr,
        )
    weights = list(dict.fromkeys(weight for prompt in prompts for weight in weights_in(prompt)))
    if weights:
        print(
            f"roentgen: warning: weights such as {weights[0]} are read as text, and weigh nothing; say it in words",
            file=sys.stderr,
        )
    return unknown
