"""The server as OpenAI's own client sees it."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from PIL import Image
from server import Running, running

from roentgen import generate
from roentgen.serving.catalogue import Catalogue
from roentgen.serving.settings import Limits

PROMPT = "left pleural effusion"


@pytest.fixture(scope="module")
def server(tiny_model: Any) -> Iterator[Running]:
    with running(Catalogue({"tiny": tiny_model}), limits=Limits(images=6)) as one:
        yield one


@pytest.fixture(scope="module")
def client(server: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def pixels(entry: Any) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(base64.b64decode(entry.b64_json))))


def test_prompt_alone_gives_a_marked_image_both_ways(client: openai.OpenAI) -> None:
    reply = client.images.generate(prompt=PROMPT)
    assert reply.created > 0 and reply.size == "32x32" and reply.data is not None
    (entry,) = reply.data
    image = Image.open(io.BytesIO(base64.b64decode(entry.b64_json or "")))
    assert image.info["prompt"] == PROMPT and image.info["synthetic"] == "true"
    fetched = httpx.get(entry.url or "")
    assert fetched.headers["content-type"] == "image/png"
    assert np.array_equal(np.array(Image.open(io.BytesIO(fetched.content))), pixels(entry))
    dicom = httpx.get((entry.url or "").replace(".png", ".dcm"))
    assert dicom.content[128:132] == b"DICM"


def test_settings_travel_and_images_are_those_of_the_library(client: openai.OpenAI, tiny_model: Any) -> None:
    extra = {"seed": 5, "steps": 2, "guidance": 2.0, "negative_prompt": "heart", "sampler": "ddim"}
    reply = client.images.generate(prompt=PROMPT, model="tiny", n=2, response_format="b64_json", extra_body=extra)
    settings = {key: value for key, value in extra.items() if key != "seed"}
    wanted = [one.image for one in generate(tiny_model, PROMPT, num_images=2, seed=5, **settings)]
    assert reply.data is not None and all(entry.url is None for entry in reply.data)
    assert [entry.seed for entry in reply.data] == [5, 6]  # type: ignore[attr-defined]
    for entry, image in zip(reply.data, wanted, strict=True):
        assert np.array_equal(pixels(entry), image)


def test_addresses_alone_when_asked_for(client: openai.OpenAI) -> None:
    reply = client.images.generate(prompt=PROMPT, response_format="url", output_format="jpeg")
    assert reply.data is not None and reply.data[0].b64_json is None
    fetched = httpx.get(reply.data[0].url or "")
    assert fetched.headers["content-type"] == "image/jpeg" and fetched.content[:2] == b"\xff\xd8"


def test_size_and_unknown_fields_are_answered_with_what_was_used(client: openai.OpenAI) -> None:
    reply: Any = client.images.generate(prompt=PROMPT + " zebra", size="1024x1024", extra_body={"guidence": 3})
    said = " ".join(reply.warnings)
    assert reply.size == "32x32" and "size" in said and "guidence" in said and "zebra" in said


def test_stream_has_an_event_for_each_image(client: openai.OpenAI, server: Running) -> None:
    events = list(client.images.generate(prompt=PROMPT, n=2, stream=True, extra_body={"seed": 1}))
    assert [event.type for event in events] == ["image_generation.completed"] * 2
    body = {"prompt": PROMPT, "n": 2, "stream": True, "progress": True, "seed": 1}
    text = httpx.post(f"{server.url}/v1/images/generations", json=body).text
    assert "image_generation.progress" in text and text.endswith("data: [DONE]\n\n")


def test_models_are_listed(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("dall-e-3")


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        ({"prompt": "  "}, "prompt"),
        ({"prompt": "12"}, "prompt"),
        ({"prompt": "effusion " * 40}, "prompt"),
        ({"prompt": "x" * 3000}, "prompt"),
        ({"n": 0}, "n"),
        ({"n": 7}, "n"),
        ({"response_format": "gif"}, "response_format"),
        ({"extra_body": {"steps": 0}}, "steps"),
        ({"extra_body": {"steps": "many"}}, "steps"),
        ({"extra_body": {"guidance": -1}}, "guidance"),
        ({"extra_body": {"seed": -1}}, "seed"),
        ({"extra_body": {"sampler": "euler"}}, "sampler"),
        ({"extra_body": {"negative_prompt": "99"}}, "negative_prompt"),
    ],
)
def test_a_mistake_is_one_sentence_that_names_the_field(client: openai.OpenAI, wrong: Any, param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.images.generate(**{"prompt": PROMPT, **wrong})
    body: Any = caught.value.body
    assert body["param"] == param and body["type"] == "invalid_request_error" and body["message"].startswith(param)
    assert "--" not in body["message"] and "\n" not in body["message"]


def test_unknown_model_is_not_found(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.images.generate(prompt=PROMPT, model="dall-e-3")
    assert "tiny" in caught.value.message


def test_what_is_no_json_is_refused(server: Running) -> None:
    for content in (b"", b"{", b"[1]", b"\xff\xfe", b'"' + b"[" * 100_000):
        reply = httpx.post(
            f"{server.url}/v1/images/generations", content=content, headers={"content-type": "application/json"}
        )
        error = reply.json()["error"]
        assert reply.status_code == 400 and error["param"] == "body" and error["message"].startswith("body")


def test_words_have_maps_of_their_own(server: Running, tiny_model: Any) -> None:
    """Each word's map is that of the library, from its lowest share to its highest; mistakes are named."""
    from roentgen.generators.generate import word_maps

    wanted = word_maps(tiny_model, PROMPT, 3, steps=2)
    reply = httpx.post(f"{server.url}/v1/images/words", json={"prompt": PROMPT, "seed": 3, "steps": 2}).json()
    assert [one["word"] for one in reply["words"]] == list(wanted) and reply["seed"] == 3
    for one in reply["words"]:
        grey = np.asarray(Image.open(io.BytesIO(base64.b64decode(one["b64_json"]))).convert("L"), dtype=np.float32)
        shares = one["low"] + grey / 255 * (one["high"] - one["low"])
        assert np.abs(shares - wanted[one["word"]]).max() < 0.01
    for bad in ({"prompt": "123"}, {"prompt": PROMPT, "steps": 0}, {"prompt": "left " * 300}):
        assert httpx.post(f"{server.url}/v1/images/words", json=bad).status_code == 400
