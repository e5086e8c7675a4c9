"""XREPORT's architecture, trained from nothing: an image encoder, transformer encoders, and decoders that read them.

The image encoder is convolutional, or a pretrained ViT or BEiT that stays frozen. The decoder is transformers' BERT
with a causal mask and cross-attention, so that generating has a key-value cache, beams, and no-repeat from there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    BertConfig,
    BertLMHeadModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    VisionEncoderDecoderModel,
)
from transformers.configuration_utils import PretrainedConfig
from transformers.modeling_outputs import BaseModelOutput

from roentgen.errors import UserError
from roentgen.files import explained, new_files, read_json, write_atomic
from roentgen.models import hub, loading

KIND = "roentgen xreport reporter"
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")


class EncoderConfig(PretrainedConfig):
    """Of ``XreportEncoder``."""

    model_type = "roentgen-xreport-encoder"

    def __init__(
        self, *, image_shape: int = 224, hidden_size: int = 256, num_heads: int = 4, num_encoders: int = 3,
        dropout: float = 0.1, backbone: dict[str, Any] | None = None, **more: Any,
    ) -> None:  # fmt: skip
        super().__init__(**more)
        self.image_shape, self.hidden_size, self.num_heads = image_shape, hidden_size, num_heads
        self.num_encoders, self.dropout, self.backbone = num_encoders, dropout, backbone


class XreportEncoder(PreTrainedModel):
    """Images float (N, 3, S, S), normalised -> states (N, places, embedding_dims).

    ``backbone``: a pretrained vision transformer; without one, five convolutions of stride 2 make (S / 32)^2 places.
    """

    config_class = EncoderConfig
    main_input_name = "pixel_values"

    def __init__(self, config: EncoderConfig, backbone: PreTrainedModel | None = None) -> None:
        super().__init__(config)
        width = config.hidden_size
        self.backbone = backbone
        self.stem: nn.Module
        if backbone is None:
            sides = [3, *(max(width // 2**n, 16) for n in (4, 3, 2, 1)), width]
            layers: list[nn.Module] = []
            for before, after in pairwise(sides):
                layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.GroupNorm(1, after), nn.GELU()]
            self.stem = nn.Sequential(*layers)
            self.places = nn.Parameter(0.02 * torch.randn(1, (config.image_shape // 32) ** 2, width))
        else:
            self.stem = nn.Linear(backbone.config.hidden_size, width)
        layer = nn.TransformerEncoderLayer(
            width, config.num_heads, 4 * width, dropout=config.dropout, batch_first=True, norm_first=True,
            activation="gelu",
        )  # fmt: skip
        self.encoders = nn.TransformerEncoder(layer, config.num_encoders, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(width)
        self.post_init()

    def forward(self, pixel_values: Tensor, **_: Any) -> BaseModelOutput:
        """See the class."""
        if self.backbone is None:
            states = self.stem(pixel_values).flatten(2).transpose(1, 2) + self.places
        else:
            with torch.no_grad():
                states = self.backbone(pixel_values=pixel_values).last_hidden_state
            states = self.stem(states)
        return BaseModelOutput(last_hidden_state=self.norm(self.encoders(states)))


def build(values: Mapping[str, Any], tokenizer: Any, *, max_tokens: int, flag: str) -> VisionEncoderDecoderModel:
    """A model of XREPORT's settings ``values`` (see ``XreportRecipe``), random but for a pretrained image encoder."""
    backbone, name = None, str(values["image_encoder"])
    if name != "convolutional":
        backbone = _backbone(name, flag)
        side = int(getattr(backbone.config, "image_size", values["image_shape"]))
        if side != values["image_shape"]:
            raise UserError(f"{flag} {name}: reads images of {side} pixels; set --xreport.image-shape {side}")
    if values["image_shape"] % 32:
        raise UserError(f"--xreport.image-shape {values['image_shape']}: must be a multiple of 32")
    if values["embedding_dims"] % values["num_heads"]:
        raise UserError(
            f"--xreport.embedding-dims {values['embedding_dims']}: must be a multiple of --xreport.num-heads, which is "
            f"{values['num_heads']}"
        )
    encoder = XreportEncoder(
        EncoderConfig(
            image_shape=values["image_shape"], hidden_size=values["embedding_dims"], num_heads=values["num_heads"],
            num_encoders=values["num_encoders"], dropout=values["dropout"],
            backbone=None if backbone is None else backbone.config.to_dict(),
        ),
        backbone,
    )  # fmt: skip
    decoder = BertLMHeadModel(
        BertConfig(
            vocab_size=len(tokenizer), hidden_size=values["embedding_dims"], num_hidden_layers=values["num_decoders"],
            num_attention_heads=values["num_heads"], intermediate_size=4 * values["embedding_dims"],
            hidden_dropout_prob=values["dropout"], attention_probs_dropout_prob=values["dropout"],
            max_position_embeddings=max_tokens, is_decoder=True, add_cross_attention=True,
            pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.cls_token_id,
            eos_token_id=tokenizer.sep_token_id,
        )
    )  # fmt: skip
    AutoConfig.register(EncoderConfig.model_type, EncoderConfig, exist_ok=True)  # transformers looks its parts up there
    model = VisionEncoderDecoderModel(encoder=encoder, decoder=decoder)
    for config in (model.config, model.generation_config):
        config.decoder_start_token_id, config.bos_token_id = tokenizer.cls_token_id, tokenizer.cls_token_id
        config.eos_token_id, config.pad_token_id = tokenizer.sep_token_id, tokenizer.pad_token_id
    return model


def _backbone(name: str, flag: str) -> PreTrainedModel:
    folder = hub.local(name)
    if folder is None:
        raise UserError(
            f"{flag} {name}: not on this disk; where there is a network run `hf download {name} --local-dir FOLDER` "
            "(config.json and model.safetensors), then give the folder; `convolutional` needs none"
        )
    what = f"{flag} {name}: no vision transformer can be loaded there"
    # Files of classifiers have no pooler, and nothing here reads one.
    model: PreTrainedModel = loading.from_folder(AutoModel, folder, what, "", who=f"{flag} {name}", unused=("pooler.",))
    return model.requires_grad_(False)


def make_tokenizer(texts: Sequence[str], *, size: int = 8_000) -> PreTrainedTokenizerFast:
    """A WordPiece tokenizer of the commonest words of ``texts``, lower case, punctuation kept; the rest by letters.

    Counted here and not by the library's trainer, whose tokens come in another order each time.
    """
    from collections import Counter

    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    normalizer, pieces = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    counts = Counter(word for text in texts for word, _ in pieces.pre_tokenize_str(normalizer.normalize_str(text)))
    letters = sorted({letter for word in counts for letter in word})
    words = sorted((word for word in counts if len(word) > 1), key=lambda word: (-counts[word], word))
    tokens = [*SPECIAL, *letters, *(f"##{letter}" for letter in letters)]
    tokens += words[: max(0, size - len(tokens))]
    made = Tokenizer(models.WordPiece({token: n for n, token in enumerate(tokens)}, unk_token=SPECIAL[1]))
    made.normalizer, made.pre_tokenizer, made.decoder = normalizer, pieces, decoders.WordPiece()
    first, last = ((word, tokens.index(word)) for word in ("[CLS]", "[SEP]"))
    made.post_processor = processors.BertProcessing(last, first)
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )


def save(
    folder: Path, model: VisionEncoderDecoderModel, tokenizer: Any, values: Mapping[str, Any], max_tokens: int
) -> None:
    """Write ``config.json``, ``model.safetensors`` and the tokenizer; a frozen image encoder goes with them."""
    from safetensors.torch import save as as_bytes

    state = {name: value.detach().cpu().contiguous().clone() for name, value in model.state_dict().items()}
    write_atomic(folder / "model.safetensors", as_bytes(state))
    backbone = model.encoder.config.backbone
    about = {"kind": KIND, "max_tokens": max_tokens, "xreport": dict(values), "backbone": backbone}
    write_atomic(folder / "config.json", (json.dumps(about, indent=1, default=str) + "\n").encode())
    write_atomic(folder / "generation_config.json", model.generation_config.to_json_string().encode())
    with new_files(folder) as made:
        tokenizer.save_pretrained(made)


def load(folder: Path, *, flag: str) -> tuple[VisionEncoderDecoderModel, Any, int]:
    """Model, tokenizer and image side of a folder that ``save`` wrote; UserError where they do not fit."""
    from safetensors.torch import load_file
    from transformers import GenerationConfig

    about = read_json(folder / "config.json")
    with explained(f"{flag} {folder}: cannot be loaded as an xreport reporter"):
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, **loading.SAFE)
        values = about["xreport"]
        model = build(
            {**values, "image_encoder": "convolutional"}, tokenizer, max_tokens=about["max_tokens"], flag=flag
        )
        if about.get("backbone"):
            settings = dict(about["backbone"])
            config = AutoConfig.for_model(settings.pop("model_type"), **settings)
            backbone = AutoModel.from_config(config).eval().requires_grad_(False)
            model = VisionEncoderDecoderModel(
                encoder=XreportEncoder(cast(EncoderConfig, model.encoder.config), backbone), decoder=model.decoder
            )
        model.load_state_dict(load_file(folder / "model.safetensors"))
        model.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
    return model.eval(), tokenizer, int(values["image_shape"])
