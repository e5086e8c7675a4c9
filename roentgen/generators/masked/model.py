"""The masked transformer as one object: it samples, it has a loss, it is loaded and saved as a folder.

The folder holds safetensors and JSON only, and no code runs on loading::

    roentgen.json              family: masked; name, defaults, vocabulary
    codes/, vae/ or vq/        the image tokenizer (``tokenizer.py``)
    transformer/               config.json (fit, shape, process, the tokenizer's hash), model.safetensors
    text_encoder/, tokenizer/  the text encoder, in transformers' layout
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from roentgen import images
from roentgen.config import from_json
from roentgen.errors import UserError, told_of
from roentgen.files import explained, new_folder, read_json, sha256
from roentgen.generators.base import Info, checked_images, roentgen_json
from roentgen.generators.masked import process as P
from roentgen.generators.masked.folder import ADVICE, PARTS, check_folder
from roentgen.generators.masked.sampling import Sampling
from roentgen.generators.masked.tokenizer import ImageTokenizer
from roentgen.generators.masked.transformer import Fit, MaskedTransformer, Shape
from roentgen.generators.networks import Networks, info_of, place_of
from roentgen.models import hub
from roentgen.models.text_encoders import TextReader, encode_text_states, load_text_encoder, make_reader
from roentgen.models.trial import tried

if TYPE_CHECKING:
    from roentgen.generators.masked.objective import Objective


@dataclass
class Masked(Networks):
    """Image tokenizer, transformer and text encoder on one device, and what ``roentgen.json`` says.

    reader: how prompts become tokens, padding hidden. process: what is masked when. objective: what ``loss`` computes,
    once training has set it.
    """

    info: Info
    codes: ImageTokenizer = field(repr=False)
    transformer: MaskedTransformer = field(repr=False)
    text_encoder: Any = field(repr=False)
    reader: TextReader = field(repr=False)
    process: P.Process = field(default_factory=P.Process)
    objective: Objective | None = field(default=None, repr=False)

    @property
    def pixels(self) -> int:
        """Side of the images in pixels."""
        return self.transformer.fit.side * self.codes.factor

    # ------------------------------------------------------------------------------------ loading, saving

    @classmethod
    def load(
        cls,
        folder: Path,
        *,
        name: str,
        device: str | None = None,
        dtype: str | None = None,
        compile: bool = False,
        lora: Path | None = None,
        trainable: bool = False,
    ) -> Masked:
        """The model in ``folder`` under the name ``name``; see ``generate.load_model`` for the rest."""
        check_folder(folder)
        if lora is not None:
            raise UserError(f"--lora {lora}: {name} is a masked transformer, which has no adapters; leave it out")
        device, kind = place_of(device, dtype)
        codes = ImageTokenizer.load(folder, dtype=kind)
        transformer, process = _load_transformer(folder, codes)
        said = roentgen_json(folder)
        words_of_text, encoder = load_text_encoder(str(folder))
        with told_of(f"--model {name}:"):
            reader = read_with(words_of_text, encoder, chunks=said.get("text", {}).get("chunks", 1))
        if device == "cpu":  # its convolutions decode faster in this layout
            codes.autoencoder.to(memory_format=torch.channels_last)
        transformer = transformer.to(device, kind).train(trainable).requires_grad_(trainable)
        if compile:
            transformer.compile()
        info = info_of(said, name=name, folder=folder, place=(device, kind), hash=_hash(folder, codes))
        encoder = encoder.to(device, kind).requires_grad_(False)
        return cls(info, codes.to(device), transformer, encoder, reader, process)

    def save(self, folder: Path, facts: dict[str, Any], *, dtype: torch.dtype = torch.float32) -> None:
        """Write the folder with ``facts`` in its ``roentgen.json``; the old folder goes at the end."""
        with new_folder(folder, advice="checkpoints are kept: run the same command again") as temporary:
            self.codes.save(temporary)
            own = temporary / "transformer"
            own.mkdir()
            weights = {key: value.to(dtype).contiguous().cpu() for key, value in self.transformer.state_dict().items()}
            save_file(weights, own / "model.safetensors")
            said = {
                "codes": self.codes.hash,
                "fit": dataclasses.asdict(self.transformer.fit),
                "shape": dataclasses.asdict(self.transformer.shape),
                "process": dataclasses.asdict(self.process),
            }
            (own / "config.json").write_text(json.dumps(said, indent=1) + "\n")
            encoder = self.text_encoder
            if dtype != torch.float32:
                import copy

                encoder = copy.deepcopy(encoder).to(dtype)
            encoder.save_pretrained(temporary / "text_encoder", safe_serialization=True)
            self.reader.tokenizer.save_pretrained(temporary / "tokenizer")
            self._finish(temporary, {"family": "masked", **facts})

    # ------------------------------------------------------------------------------------------ sampling

    def on(self, device: torch.device) -> Masked:
        """The same networks, moved to ``device``, which new samples are made on."""
        self.transformer.to(device)
        self.text_encoder.to(device)
        return replace(self, info=replace(self.info, device=str(device)), codes=self.codes.to(device))

    def sampling(self, **settings: Any) -> Sampling:
        """Settings of sampling: those given and not None, else the model's own, else the family's."""
        known = {item.name for item in dataclasses.fields(Sampling)}
        strange = [key for key, value in settings.items() if value is not None and key not in known]
        if strange:
            flags = ", ".join(f"--{key.replace('_', '-')}" for key in strange)
            raise UserError(
                f"{flags}: {self.info.name} is a masked transformer, which has no such setting; leave it out "
                f"(it has {', '.join(sorted(known))})"
            )
        sampling: Sampling = self._settings(Sampling, "a masked transformer", settings)
        if sampling.steps > self.transformer.positions:
            raise UserError(
                f"--steps {sampling.steps}: {self.info.name} fills {self.transformer.positions} positions; at most as "
                "many steps make sense (8 to 32 are usual)"
            )
        return sampling

    def batch_key(self, text: str) -> Hashable:
        """Any texts may share a batch: padding is hidden."""
        return 0

    @tried
    def sample(
        self,
        texts: Sequence[str],
        seeds: Sequence[int],
        sampling: Sampling,
        on_step: Callable[[float], object] | None = None,
    ) -> Iterator[np.ndarray]:
        """One batch: the image of each text with its seed, uint8 grey (H, W), in order. UserError on one of NaN."""
        # A code is chosen or not: rounding that differs by the size of a batch could change a picture. A processor
        # loses next to nothing by going one by one; on a GPU batches agree as far as its rounding does.
        together = 1 if self.info.device == "cpu" else len(texts)
        finished: list[Tensor] = []
        with torch.inference_mode():
            for start in range(0, len(texts), together):
                mine = slice(start, start + together)
                *_, last = self.fill(texts[mine], seeds[mine], sampling, on_step)
                finished.append(last)
            pixels = self.codes.decode(torch.cat(finished), self.transformer.fit.side)
        yield from checked_images(pixels, texts, seeds)

    @tried
    def watch(self, text: str, seed: int, sampling: Sampling) -> Iterator[np.ndarray]:
        """The picture filling up: uint8 grey (H, W) after each step, what is still masked an even grey."""
        for codes in self.fill([text], [seed], sampling):
            yield images.from_autoencoder(self.codes.decode(codes, self.transformer.fit.side))[0]

    @torch.inference_mode()
    def trial(self) -> None:
        """See ``Networks``."""
        *_, codes = self.fill([""], [0], self.sampling(steps=1))
        self.codes.decode(codes, self.transformer.fit.side)

    @torch.inference_mode()
    def fill(
        self,
        texts: Sequence[str],
        seeds: Sequence[int],
        sampling: Sampling,
        on_step: Callable[[float], object] | None = None,
    ) -> Iterator[Tensor]:
        """Codes int64 (N, P, G) after each step, -1 where still masked; none are after the last."""
        network, count = self.transformer, len(texts)
        positions, groups = network.positions, len(network.fit.codes)
        guided = sampling.guidance != 1
        states = [*map(self._states, texts)]
        text, seen = _padded([self._states(sampling.negative_prompt)] * count + states if guided else states)
        # Everything that an image draws comes from its own seed, on the CPU: equal on every device.
        shape = (sampling.steps, 2, positions, groups)
        noise = torch.stack([torch.rand(shape, generator=torch.Generator("cpu").manual_seed(s)) for s in seeds])
        noise = noise.to(self.info.device)
        rank = torch.empty(positions, device=self.info.device)
        rank[P.halton_order(network.fit.side, network.fit.side).to(rank.device)] = torch.arange(
            positions, dtype=torch.float32, device=rank.device
        )
        codes = torch.full((count, positions, groups), -1, device=self.info.device)
        left = [positions] * groups
        for step in range(sampling.steps):
            progress, after = step / sampling.steps, (step + 1) / sampling.steps
            goal = self.process.count(torch.tensor(after), positions, groups).tolist()
            features = network(torch.cat([codes, codes]) if guided else codes, text, seen)
            proposed, score = torch.zeros_like(codes), torch.zeros(codes.shape, device=codes.device)
            for group in range(groups):
                if left[group] == goal[group]:
                    continue
                logits = network.logits(features, group).float()
                if guided:
                    without, with_text = logits.chunk(2)
                    logits = without + sampling.guidance_at(progress) * (with_text - without)
                chosen, sure = _draw(logits, noise[:, step, 0, :, group], sampling, progress)
                proposed[..., group] = chosen
                if sampling.sampler == "halton":
                    score[..., group] = -rank
                else:
                    gumbel = -torch.log(-torch.log(noise[:, step, 1, :, group].clamp(1e-9, 1 - 1e-7)))
                    score[..., group] = sure + sampling.randomness * (1 - after) * gumbel
            number = [now - then for now, then in zip(left, goal, strict=True)]
            codes = torch.stack([P.fill(*each, number) for each in zip(codes, proposed, score, strict=True)])
            left = goal
            if on_step is not None:
                on_step(count / sampling.steps)
            yield codes

    def encode_text(self, text: str) -> Tensor:
        """Text-encoder output (L, C) of the tokens of one prompt (or of "" for no prompt), without padding."""
        tokens = self.reader.fitted(text).tokens([text]).to(self.info.device)
        states = encode_text_states(self.text_encoder, tokens, masked=self.reader.masked).to(self.dtype)
        return states[0][tokens.used[0]]

    @tried
    @torch.inference_mode()
    def reconstruct(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 grey (N, H, W) to codes and back."""
        side = pixels.shape[1] // self.codes.factor
        return images.from_autoencoder(self.codes.decode(self.codes.encode(pixels), side))


def _draw(logits: Tensor, uniform: Tensor, sampling: Sampling, progress: float) -> tuple[Tensor, Tensor]:
    """Codes (N, P) drawn from ``logits`` (N, P, K) by ``uniform`` (N, P), and their log probabilities."""
    heat = sampling.temperature_at(progress)
    likelihood = logits.log_softmax(-1)
    if heat == 0:
        sure, chosen = likelihood.max(-1)
        return chosen, sure
    chosen = P.pick((P.keep_top(logits, sampling.top_k) / heat).softmax(-1), uniform)
    return chosen, likelihood.gather(-1, chosen[..., None])[..., 0]


def _padded(states: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """States (L, C) of several lengths as (N, L, C), and which are theirs, bool (N, L)."""
    text = torch.nn.utils.rnn.pad_sequence([*states], batch_first=True)
    lengths = torch.tensor([len(each) for each in states], device=text.device)
    return text, torch.arange(text.shape[1], device=text.device) < lengths[:, None]


def read_with(tokenizer: Any, encoder: Any, *, window: int | None = None, chunks: int = 1) -> TextReader:
    """The reader of a masked transformer: padding is hidden from it."""
    return replace(make_reader(tokenizer, encoder, window=window, chunks=chunks), padding=False)


def _hash(folder: Path, codes: ImageTokenizer) -> str:
    """Of all weights that a picture depends on; those of mini's autoencoder where that is borrowed."""
    own = hub.model_hash(folder, PARTS if codes.borrowed else (*PARTS, "vq" if codes.learned else "vae"))
    return sha256(f"{own} {hub.model_hash(hub.MINI, ('vae',))}")[:16] if codes.borrowed else own


def _load_transformer(folder: Path, codes: ImageTokenizer) -> tuple[MaskedTransformer, P.Process]:
    own = folder / "transformer"
    said = read_json(own / "config.json", advice=ADVICE)
    with explained(f"{own}: the transformer cannot be loaded", ADVICE):
        where = str(own / "config.json")
        fit = from_json(Fit, said["fit"], f"{where}: fit")
        process = from_json(P.Process, said["process"], f"{where}: process")
        network = MaskedTransformer(fit, from_json(Shape, said["shape"], f"{where}: shape"))
        network.load_state_dict(load_file(own / "model.safetensors"))
    if said.get("codes") != codes.hash or fit.codes != codes.sizes:
        raise UserError(
            f"{folder}: its transformer was trained on the codes of another image tokenizer ({said.get('codes')}) than "
            f"that in codes/ ({codes.hash}); put the one it was trained with beside it"
        )
    return network, process
