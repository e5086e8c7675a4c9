"""The server as the web UI's client, CXRReportGen's and /v1/report's see it."""

from __future__ import annotations

import base64
import io
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import httpx
import numpy as np
import openai
import pytest
import webuiapi
from PIL import Image
from server import Running, running

from roentgen import generate
from roentgen.images import encode_image
from roentgen.reports import Context, Finding, Report, read_reply, write_request
from roentgen.reports.base import Info
from roentgen.serving.catalogue import Catalogue
from roentgen.serving.settings import Limits

PROMPT = "left pleural effusion"
BOX = (0.25, 0.25, 0.5, 0.75)


class Reader:
    """A reporter that says what it was given."""

    info = Info("reader", "0", "test", reads=("indication",))

    def report_many(self, images: Any, contexts: Any = ()) -> list[Report]:
        return [self.report(image, context) for image, context in zip(images, contexts, strict=True)]

    def report(self, image: np.ndarray, context: Context) -> Report:
        text = f"Mean {round(image.mean())}, {context.indication or 'no indication'}."
        finding = Finding("Left pleural effusion.", "Effusion", 0.75, (BOX,), "left")
        return Report((finding, Finding(text)), f"Left pleural effusion. {text}")


@pytest.fixture(scope="module")
def server(tiny_model: Any) -> Iterator[Running]:
    two = replace(tiny_model, info=replace(tiny_model.info, name="other", hash="beef"))
    catalogue = Catalogue({"tiny": tiny_model, "other": two}, {"reader": Reader()})
    with running(catalogue, limits=Limits(images=4, pixels=10_000)) as one:
        yield one


@pytest.fixture(scope="module")
def client(server: Running) -> webuiapi.WebUIApi:
    return webuiapi.WebUIApi(baseurl=f"{server.url}/sdapi/v1")


@pytest.fixture
def xray() -> np.ndarray:
    return np.full((40, 50), 100, dtype=np.uint8)


# ------------------------------------------------------------------------------------------- web UI


def test_txt2img_with_all_the_clients_keys(client: webuiapi.WebUIApi, tiny_model: Any) -> None:
    asked = {"prompt": PROMPT, "seed": 3, "steps": 2, "cfg_scale": 2, "sampler_name": "DDIM", "batch_size": 2}
    result = client.txt2img(**asked, negative_prompt="heart")
    settings = {"steps": 2, "guidance": 2.0, "sampler": "ddim", "negative_prompt": "heart"}
    wanted = [one.image for one in generate(tiny_model, PROMPT, num_images=2, seed=3, **settings)]
    assert [np.array_equal(np.array(got), one) for got, one in zip(result.images, wanted, strict=True)] == [True, True]
    assert result.info["all_seeds"] == [3, 4] and result.info["steps"] == 2 and result.info["sampler_name"] == "DDIM"
    assert set(result.info["used_instead"]) == {"width", "height"} and result.info["width"] == 32


def test_what_is_not_known_is_answered_with_what_was_used(client: webuiapi.WebUIApi) -> None:
    result = client.txt2img(prompt=PROMPT, steps=2, enable_hr=True, styles=["film"])  # its default is Euler a
    used = result.info["used_instead"]
    assert used["sampler_name"] == "DPM++ 2M" and used["enable_hr"] is False and used["styles"] == []
    assert result.info["seed"] >= 0


# Sampler and schedule that are asked for; ours that is taken; what is used instead.
SCHEDULED = [
    ("DPM++ 2M", "karras", "dpm++-karras", {}),
    ("DPM++ 2M", "Karras", "dpm++-karras", {}),
    ("DPM++ 2M Karras", "automatic", "dpm++-karras", {}),
    ("DPM++ 2M Karras", "uniform", "dpm++-karras", {"scheduler": "karras"}),
    ("UniPC", "uniform", "unipc", {}),
    ("UniPC", "exponential", "unipc", {"scheduler": "uniform"}),
    ("DDIM", "karras", "ddim", {"scheduler": "uniform"}),
    ("Euler a", "karras", "dpm++-karras", {"sampler_name": "DPM++ 2M"}),
    ("Euler a Karras", "automatic", "dpm++", {"sampler_name": "DPM++ 2M"}),
    ("dpm++-karras", "automatic", "dpm++-karras", {}),
]


@pytest.mark.parametrize(("name", "scheduler", "ours", "instead"), SCHEDULED)
def test_scheduler(
    client: webuiapi.WebUIApi, tiny_model: Any, name: str, scheduler: str, ours: str, instead: dict[str, str]
) -> None:
    asked = {"prompt": PROMPT, "seed": 3, "steps": 4, "cfg_scale": 2}
    result = client.txt2img(**asked, sampler_name=name, scheduler=scheduler)
    (wanted,) = generate(tiny_model, PROMPT, seed=3, steps=4, guidance=2.0, sampler=ours)
    assert np.array_equal(np.array(result.image), wanted.image)
    used = {key: value for key, value in result.info["used_instead"].items() if key not in ("width", "height")}
    assert used == instead
    schedule = "karras" if ours.endswith("-karras") else "uniform"
    assert result.info["scheduler"] == schedule and result.info["sampler_name"] in ("DPM++ 2M", "UniPC", "DDIM")
    assert f"Schedule type: {schedule.capitalize()}" in result.info["infotexts"][0]


def test_automatic_schedule_is_the_models_own(server: Running, tiny_model: Any) -> None:
    model = replace(tiny_model, info=replace(tiny_model.info, defaults={"sampler": "unipc-karras"}))
    with running(Catalogue({"tiny": model})) as one:
        client = webuiapi.WebUIApi(baseurl=f"{one.url}/sdapi/v1")
        for name, schedule in {"UniPC": "karras", "DPM++ 2M": "uniform", "": "karras"}.items():
            assert client.txt2img(prompt=PROMPT, steps=2, sampler_name=name).info["scheduler"] == schedule


def test_lists_and_the_chosen_model(client: webuiapi.WebUIApi) -> None:
    assert "DPM++ 2M" in client.util_get_sampler_names() and client.get_scripts() == {"txt2img": [], "img2img": []}
    assert client.util_get_scheduler_names() == ["automatic", "karras", "uniform"]
    titles = client.util_get_model_names()
    assert len(titles) == 2 and client.util_get_current_model().startswith("tiny")
    client.util_set_model("other")
    try:
        assert client.util_get_current_model() == "other [beef]"
        assert client.txt2img(prompt=PROMPT, steps=1).info["sd_model_hash"] == "beef"
        asked = {"sd_model_checkpoint": "tiny"}
        assert client.txt2img(prompt=PROMPT, steps=1, override_settings=asked).info["sd_model_name"] == "tiny"
    finally:
        client.util_set_model("tiny")


def test_png_info_reads_our_marks(client: webuiapi.WebUIApi, server: Running) -> None:
    made = client.txt2img(prompt=PROMPT, steps=2, seed=8, negative_prompt="heart")
    body = {"image": "data:image/png;base64," + made.json["images"][0]}
    info = httpx.post(f"{server.url}/sdapi/v1/png-info", json=body).json()
    assert info["info"] == made.info["infotexts"][0] and "Negative prompt: heart" in info["info"]
    assert info["items"]["prompt"] == PROMPT and info["items"]["seed"] == "8"


def test_progress_and_interrupt(client: webuiapi.WebUIApi) -> None:
    client.util_wait_for_ready(0.01)
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(client.txt2img(prompt=PROMPT, steps=900, batch_size=4)))
    thread.start()
    other = webuiapi.WebUIApi(baseurl=client.baseurl)
    until = time.monotonic() + 60
    while not (said := other.get_progress())["progress"] and time.monotonic() < until:
        time.sleep(0.01)
    assert 0 < said["progress"] <= 1 and said["state"]["job_count"] == 1
    other.interrupt()
    thread.join(60)
    assert results[0].info["interrupted"] and results[0].images == []
    assert other.get_progress()["state"]["job_count"] == 0


def test_mistakes_of_web_ui_clients(server: Running) -> None:
    for wrong in ({"prompt": ""}, {"prompt": PROMPT, "steps": 5000}, {"prompt": PROMPT, "batch_size": 50}):
        reply = httpx.post(f"{server.url}/sdapi/v1/txt2img", json=wrong)
        assert reply.status_code == 400 and isinstance(reply.json()["detail"], str)
    wrong = {"prompt": PROMPT, "override_settings": {"sd_model_checkpoint": "nope"}}
    assert httpx.post(f"{server.url}/sdapi/v1/txt2img", json=wrong).status_code == 404


# ------------------------------------------------------------------------------------------ reports


def test_score_answers_cxrreportgen(server: Running, xray: np.ndarray) -> None:
    png = encode_image(xray, "png", {})
    dicom = encode_image(xray, "dicom", {})
    payload = write_request([{"frontal_image": png, "indication": "cough"}, {"frontal_image": dicom}])
    payload["input_data"]["data"][0][0] = base64.encodebytes(png).decode()
    reply = httpx.post(f"{server.url}/score", json=payload).json()
    first, second = read_reply(reply)
    assert first[0][0] == "Left pleural effusion." and len(first[0][1]) == 1
    assert first[1] == ["Mean 100, cough.", None] and second[1] == ["Mean 100, no indication.", None]


def test_score_with_the_image_column_alone(server: Running, xray: np.ndarray) -> None:
    image = base64.b64encode(encode_image(xray, "png", {})).decode()
    table = {"columns": ["frontal_image"], "index": [0], "data": [[image]]}
    assert len(httpx.post(f"{server.url}/score", json={"input_data": table}).json()) == 1


def test_v1_report_has_text_and_grounding(server: Running, xray: np.ndarray) -> None:
    files = {"image": ("x.png", encode_image(xray, "png", {}), "image/png")}
    reply = httpx.post(f"{server.url}/v1/report", files=files, data={"indication": "cough", "colour": "red"})
    said = reply.json()
    assert said["report"].startswith("Left pleural effusion.") and "cough" in said["report"]
    (place,) = said["grounding"]
    assert place["box"] == list(BOX) and place["finding"] == "Effusion" and place["probability"] == 0.75
    assert said["image"] == {"height": 40, "width": 50} and said["ignored"] == ["colour"]


def bomb() -> bytes:
    """A PNG of a few bytes that says it is 60,000 x 60,000."""
    buffer = io.BytesIO()
    Image.new("L", (1, 1)).save(buffer, "PNG")
    data = bytearray(buffer.getvalue())
    data[16:24] = (60_000).to_bytes(4, "big") * 2
    import zlib

    data[29:33] = zlib.crc32(bytes(data[12:29])).to_bytes(4, "big")
    return bytes(data)


def dicom(**changes: Any) -> bytes:
    """A DICOM file with other values in some attributes."""
    from roentgen.dicom import dicom_bytes, dicom_dataset

    data = dicom_dataset(np.zeros((8, 8), np.uint8), {})
    for key, value in changes.items():
        setattr(data, key, value)
    return dicom_bytes(data)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"GIF89a",
        bomb(),
        encode_image(np.zeros((200, 200), np.uint8), "png", {}),
        encode_image(np.zeros((200, 200), np.uint8), "dicom", {}),
        encode_image(np.zeros((20, 20), np.uint8), "dicom", {})[:300],
        encode_image(np.zeros((20, 20), np.uint8), "png", {})[:40],
        dicom(Modality="CT"),
        dicom(NumberOfFrames=3),
        b"\0" * 128 + b"DICM" + b"1.2.840.10008.1.2.1.99" + b"\0" * 200,
    ],
    ids=["empty", "gif", "bomb", "large", "large dicom", "cut dicom", "cut png", "ct", "frames", "deflated"],
)
def test_images_that_are_refused(server: Running, data: bytes) -> None:
    replies = [httpx.post(f"{server.url}/v1/report", files={"image": data})]
    cell = base64.b64encode(data).decode()
    table = {"columns": ["frontal_image"], "index": [0], "data": [[cell]]}
    replies.append(httpx.post(f"{server.url}/score", json={"input_data": table}))
    for reply in replies:
        message = reply.json()["error"]["message"]
        assert reply.status_code == 400 and "image" in message and "\n" not in message, message


def test_report_needs_an_image_and_a_reporter(server: Running, tiny_model: Any) -> None:
    for request in ({"json": {}}, {"files": {"other": b"x"}}, {"content": b"--", "headers": MULTIPART}, {"data": FORM}):
        assert httpx.post(f"{server.url}/v1/report", **request).status_code == 400  # type: ignore[arg-type]
    assert httpx.post(f"{server.url}/score", json={"input_data": 3}).status_code == 400
    with running(Catalogue({"tiny": tiny_model})) as bare:
        reply = httpx.post(f"{bare.url}/v1/report", files={"image": b"x"})
        assert reply.status_code == 503 and "--reporter" in json.dumps(reply.json())


MULTIPART = {"content-type": "multipart/form-data"}
FORM = {"image": "not a file"}


# -------------------------------------------------------------------------------------------- edits


@pytest.fixture
def chest(tiny_model: Any) -> np.ndarray:
    return next(generate(tiny_model, PROMPT, seed=1)).image


def half(mask_mode: str) -> bytes:
    """A mask of the right half of a 32 x 32 image: white, or transparent."""
    mask = Image.new("L", (32, 32), 0)
    mask.paste(255, (16, 0, 32, 32))
    if mask_mode == "RGBA":
        clear = Image.new("RGBA", (32, 32), (0, 0, 0, 255))
        clear.paste((0, 0, 0, 0), (16, 0, 32, 32))
        mask = clear
    buffer = io.BytesIO()
    mask.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    "region", [{"mask": "L"}, {"mask": "RGBA"}, {"lung": "left"}, {"box": "0.5,0,1,1"}, {"box": "0.5 0 1 1"}]
)
def test_openai_edits_keep_what_is_outside(server: Running, chest: np.ndarray, region: dict[str, str]) -> None:
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    asked: dict[str, Any] = {"image": encode_image(chest, "png", {}), "prompt": "no acute process"}
    if "mask" in region:
        asked["mask"] = half(region["mask"])
    extra = {"seed": 4, "steps": 3, **{key: value for key, value in region.items() if key != "mask"}}
    reply = client.images.edit(**asked, response_format="b64_json", extra_body=extra)
    assert reply.data is not None
    image = Image.open(io.BytesIO(base64.b64decode(reply.data[0].b64_json or "")))
    made = np.array(image)
    assert np.array_equal(made[:, :16], chest[:, :16]) and not np.array_equal(made[:, 16:], chest[:, 16:])
    assert image.info["edited"] == "true" and image.info["prompt"] == "no acute process"


def test_an_edit_has_the_size_of_its_source(server: Running, chest: np.ndarray) -> None:
    wide = np.tile(chest, 2)
    files = {"image": encode_image(wide, "png", {})}
    for size, warned in (("64x32", False), ("32x32", True)):
        asked = {"prompt": PROMPT, "steps": "2", "size": size, "response_format": "b64_json"}
        reply = httpx.post(f"{server.url}/v1/images/edits", data=asked, files=files).json()
        made = Image.open(io.BytesIO(base64.b64decode(reply["data"][0]["b64_json"])))
        assert made.size == (64, 32) and reply["size"] == "64x32"
        assert any("size" in warning for warning in reply["warnings"]) == warned


def test_an_edit_of_what_is_no_chest_xray_says_so(server: Running, client: webuiapi.WebUIApi) -> None:
    grain = np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8)
    files, asked = {"image": encode_image(grain, "png", {})}, {"prompt": PROMPT, "steps": "2"}
    reply = httpx.post(f"{server.url}/v1/images/edits", data=asked, files=files)
    assert any("chest X-rays" in warning for warning in reply.json()["warnings"])
    result = client.img2img(images=[Image.fromarray(grain)], prompt=PROMPT, steps=2)
    assert any("chest X-rays" in warning for warning in result.info["warnings"])


def test_img2img_with_a_mask(client: webuiapi.WebUIApi, chest: np.ndarray) -> None:
    mask = Image.open(io.BytesIO(half("L")))
    asked = {"images": [Image.fromarray(chest)], "prompt": PROMPT, "seed": 2, "steps": 4, "cfg_scale": 2}
    result = client.img2img(**asked, mask_image=mask, batch_size=2)
    first, second = map(np.array, result.images)
    assert np.array_equal(first[:, :16], chest[:, :16]) and not np.array_equal(first, second)
    assert result.info["all_seeds"] == [2, 3] and result.info["steps"] == 4
    other = np.array(client.img2img(**asked, mask_image=mask, inpainting_mask_invert=1).images[0])
    assert np.array_equal(other[:, 16:], chest[:, 16:]) and not np.array_equal(other[:, :16], chest[:, :16])


def test_mistakes_in_edits(server: Running, chest: np.ndarray) -> None:
    png = encode_image(chest, "png", {})
    small = encode_image(np.full((8, 8), 255, np.uint8), "png", {})
    black = encode_image(np.zeros((32, 32), np.uint8), "png", {})
    wrong: dict[str, tuple[dict[str, str], dict[str, bytes]]] = {
        "image": ({"prompt": PROMPT}, {"mask": small}),
        "mask": ({"prompt": PROMPT}, {"image": png, "mask": small}),
        "mask:": ({"prompt": PROMPT}, {"image": png, "mask": black}),
        "strength": ({"prompt": PROMPT, "strength": "0"}, {"image": png}),
        "box": ({"prompt": PROMPT, "box": "0,0,2,1"}, {"image": png}),
        "box:": ({"prompt": PROMPT, "box": "0,a"}, {"image": png}),
        "lung": ({"prompt": PROMPT, "lung": "both"}, {"image": png}),
        "'left' or 'right'": ({"prompt": PROMPT, "lung": "middle"}, {"image": png}),
        "lung and box": ({"prompt": PROMPT, "lung": "left", "box": "0,0,1,1"}, {"image": png}),
        "text": ({}, {"image": png}),
        "equal": ({"prompt": PROMPT, "n": "2", "invert": "true"}, {"image": png}),
        "n": ({"prompt": PROMPT, "n": "2", "seed": "9223372036854775807"}, {"image": png}),
    }
    for names, (texts, files) in wrong.items():
        reply = httpx.post(f"{server.url}/v1/images/edits", data=texts, files=files)
        message = reply.json()["error"]["message"]
        assert reply.status_code == 400 and names.rstrip(":") in message and "--" not in message, (names, message)
