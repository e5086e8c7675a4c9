"""Send a chest X-ray to a CXRReportGen endpoint, or to `roentgen serve`, print its findings and draw their boxes.

    python examples/cxrreportgen_client.py data/sample/images/nih_00000061_012.jpg --out boxes.png

What the public example does with an endpoint's key and OpenCV: the endpoint and its key come from --url and --key (or
CXRREPORTGEN_ENDPOINT and CXRREPORTGEN_API_KEY), and boxes in the endpoint's own convention, fractions of the centre
square of the shorter side, become pixels of the image. Pillow draws them, or with --opencv OpenCV
(pip install opencv-python-headless). Nothing here needs roentgen.
"""

from __future__ import annotations

import argparse
import base64
import importlib.util
import json
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

COLUMNS = ["frontal_image", "lateral_image", "indication", "technique", "comparison", "prior_image", "prior_report"]
COLOURS = ["#e69f00", "#56b4e9", "#009e73", "#f0e442", "#d55e00", "#cc79a7"]  # Okabe & Ito's


def request_of(path: Path, texts: dict[str, str]) -> dict[str, Any]:
    """The request for one frontal image."""
    row = [texts.get(name, "") for name in COLUMNS]
    row[0] = base64.encodebytes(path.read_bytes()).decode()
    return {"input_data": {"columns": COLUMNS, "index": [0], "data": [row]}, "params": {}}


def ask(url: str, key: str, body: dict[str, Any], *, timeout: float = 120) -> list[list[Any]]:
    """The findings that the endpoint answers: [[sentence, None or boxes], ...]."""
    headers = {"Content-Type": "application/json", "Accept": "application/json"}
    headers |= {"Authorization": f"Bearer {key}"} if key else {}
    sent = urllib.request.Request(url, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(sent, timeout=timeout) as reply:
        answered = json.load(reply)
    found: list[list[Any]] = json.loads(answered[0]["output"])
    return found


def whole_image(box: Sequence[float], width: int, height: int) -> tuple[float, float, float, float]:
    """Pixels of the whole image from fractions of its centre square."""
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    x1, y1, x2, y2 = (value * side for value in box)
    return left + x1, top + y1, left + x2, top + y2


def placed(findings: Sequence[Sequence[Any]], width: int, height: int) -> list[tuple[str, list[int]]]:
    """Colour and pixels of each box of the findings, one colour a finding."""
    with_boxes = [boxes for _, boxes in findings if boxes]
    return [
        (COLOURS[number % len(COLOURS)], [round(value) for value in whole_image(box, width, height)])
        for number, boxes in enumerate(with_boxes)
        for box in boxes
    ]


def draw(path: Path, findings: Sequence[Sequence[Any]], out: Path) -> None:
    """Write the image with the boxes of the findings, by Pillow."""
    with Image.open(path) as image:
        shown = image.convert("RGB")
    pen = ImageDraw.Draw(shown)
    for colour, box in placed(findings, *shown.size):
        pen.rectangle(box, outline=colour, width=max(2, min(shown.size) // 200))
    shown.save(out)


def draw_by_opencv(path: Path, findings: Sequence[Sequence[Any]], out: Path) -> None:
    """The same by OpenCV, which counts colours as blue, green, red."""
    import cv2

    shown = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if shown is None:
        raise OSError(f"OpenCV cannot read {path}")
    height, width = shown.shape[:2]
    for colour, (x1, y1, x2, y2) in placed(findings, width, height):
        red, green, blue = bytes.fromhex(colour[1:])
        cv2.rectangle(shown, (x1, y1), (x2, y2), (blue, green, red), thickness=max(2, min(width, height) // 200))
    if not cv2.imwrite(str(out), shown):
        raise OSError(f"OpenCV cannot write {out}")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("image", type=Path, help="frontal chest X-ray, PNG or JPEG")
    parser.add_argument("--url", default=os.environ.get("CXRREPORTGEN_ENDPOINT", "http://127.0.0.1:8000/score"))
    parser.add_argument("--key", default=os.environ.get("CXRREPORTGEN_API_KEY", ""), help="bearer key")
    parser.add_argument("--indication", default="")
    parser.add_argument("--technique", default="")
    parser.add_argument("--comparison", default="")
    parser.add_argument("--out", type=Path, default=Path("boxes.png"), help="picture with the boxes")
    parser.add_argument("--opencv", action="store_true", help="draw by OpenCV")
    args = parser.parse_args(argv)
    if args.opencv and importlib.util.find_spec("cv2") is None:
        print("--opencv: OpenCV is not installed; run `pip install opencv-python-headless`", file=sys.stderr)
        return 2
    texts = {"indication": args.indication, "technique": args.technique, "comparison": args.comparison}
    try:
        findings = ask(args.url, args.key, request_of(args.image, texts))
    except urllib.error.HTTPError as error:
        print(f"{args.url}: {error.code} {error.read().decode(errors='replace')[:500]}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"--url {args.url}: cannot be reached ({error}); start `roentgen serve`, or check it", file=sys.stderr)
        return 2
    for sentence, boxes in findings:
        print(sentence, boxes or "")
    try:
        (draw_by_opencv if args.opencv else draw)(args.image, findings, args.out)
    except (OSError, ValueError) as error:
        print(f"--out {args.out}: the picture cannot be drawn ({error}); name a PNG or JPEG file", file=sys.stderr)
        return 2
    print(args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
