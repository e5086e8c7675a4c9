// One image, large: window and level, zoom, what each word changes, the reporter's boxes, provenance, downloads.

import { call, place, stream } from "/page/api.js";

const $ = (id) => document.getElementById(id);
const dialog = $("viewer");
const canvas = $("canvas");
const START = { window: 255, level: 128, zoom: 1, x: 0.5, y: 0.5 };

let shown = null; // the image: its event, pixels, words' heat by word, report
let view = { ...START };
let edit = () => {}; // what to do with an edit of the image that is shown

// Grey levels of a picture, at another size if given.
async function greyOf(url, wide, high) {
  const image = new Image();
  image.src = url;
  await image.decode();
  const area = new OffscreenCanvas(wide || image.naturalWidth, high || image.naturalHeight);
  const pen = area.getContext("2d", { willReadFrequently: true });
  pen.imageSmoothingQuality = "high";
  pen.drawImage(image, 0, 0, area.width, area.height);
  const { data, width, height } = pen.getImageData(0, 0, area.width, area.height);
  const grey = new Uint8Array(width * height);
  for (let i = 0; i < grey.length; i += 1) grey[i] = data[4 * i];
  return { grey, width, height };
}

// The picture as it is looked at: windowed, with the chosen word's pixels lit.
function painted() {
  const { grey, width, height } = shown.pixels;
  const low = view.level - view.window / 2;
  const table = Uint8ClampedArray.from({ length: 256 }, (_, value) => (255 * (value - low)) / view.window);
  const out = new ImageData(width, height);
  const heat = shown.heats.get(shown.word);
  for (let i = 0; i < grey.length; i += 1) {
    const value = table[grey[i]];
    const share = heat ? heat[i] : 0;
    out.data[4 * i] = value + (255 - value) * share;
    out.data[4 * i + 1] = value + (150 - value) * share;
    out.data[4 * i + 2] = value * (1 - share);
    out.data[4 * i + 3] = 255;
  }
  const area = new OffscreenCanvas(width, height);
  area.getContext("2d").putImageData(out, 0, 0);
  return area;
}

function draw() {
  if (!shown?.pixels) return;
  const side = Math.max(256, Math.round(canvas.clientWidth * devicePixelRatio));
  canvas.width = side;
  canvas.height = side;
  const { width, height } = shown.pixels;
  const scale = (side / Math.max(width, height)) * view.zoom;
  const left = side / 2 - view.x * width * scale;
  const top = side / 2 - view.y * height * scale;
  const pen = canvas.getContext("2d");
  pen.imageSmoothingEnabled = view.zoom < 3;
  pen.imageSmoothingQuality = "high";
  pen.drawImage(painted(), left, top, width * scale, height * scale);
  if (!$("boxes").checked) return;
  pen.lineWidth = 2 * devicePixelRatio;
  pen.font = `${14 * devicePixelRatio}px system-ui, sans-serif`;
  const labels = [];
  for (const { box, finding, text } of shown.report?.grounding || []) {
    const [x, y] = [left + box[0] * width * scale, top + box[1] * height * scale];
    pen.strokeStyle = "#ffd166";
    pen.strokeRect(x, y, (box[2] - box[0]) * width * scale, (box[3] - box[1]) * height * scale);
    const said = finding || text;
    const [wide, high] = [pen.measureText(said).width + 8, 20 * devicePixelRatio];
    let line = y; // below the labels that are there already
    while (labels.some((one) => x < one.x + one.wide && one.x < x + wide && Math.abs(one.line - line) < high)) line += high / 4;
    labels.push({ x, line, wide });
    pen.fillStyle = "#000c";
    pen.fillRect(x, line, wide, high);
    pen.fillStyle = "#ffd166";
    pen.fillText(said, x + 4, line + 15 * devicePixelRatio);
  }
}

function set(changes) {
  view = { ...view, ...changes };
  view.zoom = Math.min(8, Math.max(1, view.zoom));
  const half = 0.5 / view.zoom;
  view.x = Math.min(1 - half, Math.max(half, view.x));
  view.y = Math.min(1 - half, Math.max(half, view.y));
  for (const name of ["window", "level", "zoom"]) $(name).value = view[name];
  draw();
}

function bodyOf(event, prompt) {
  const settings = Object.fromEntries(Object.entries(event.settings).map(
    ([name, value]) => [name, value !== "" && !Number.isNaN(Number(value)) ? Number(value) : value]));
  return { ...settings, prompt, model: event.model, seed: event.seed, n: 1 };
}

// How much each pixel changes when the word is left out: |with - without|, in [0, 1].
async function differenceOf(image, index) {
  const words = image.prompt.split(/\s+/);
  const rest = words.filter((_, number) => number !== index).join(" ");
  let other = null;
  await stream(bodyOf(image.event, /\p{L}/u.test(rest) ? rest : "chest x-ray"), (event) => {
    if (event.type === "image_generation.completed") other = event;
  });
  const without = await greyOf(place(other.url));
  const changes = Float32Array.from(image.pixels.grey, (value, i) => Math.abs(value - without.grey[i]));
  const most = Math.max(48, ...[...changes].sort((a, b) => b - a).slice(0, 20));
  return changes.map((value) => Math.min(0.85, value / most));
}

// Where the model looked the word up while it made the image: its share of the attention, in [0, 0.85].
async function attentionOf(image, index) {
  image.looked ??= (await (await call("/v1/images/words", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(bodyOf(image.event, image.prompt)),
  })).json()).words;
  const said = image.prompt.split(/\s+/)[index].toLowerCase().match(/[\p{L}\p{N}]+(?:['-][\p{L}\p{N}]+)*/u);
  const found = image.looked.find(({ word }) => word === said?.[0]);
  if (!found) throw new Error("The model reads nothing there.");
  const { width, height } = image.pixels;
  const { grey } = await greyOf(`data:image/png;base64,${found.b64_json}`, width, height);
  return Float32Array.from(grey, (value) => 0.85 * (value / 255) ** 1.5);
}

async function light(index, button) {
  const image = shown;
  const kind = $("lighting").value;
  const word = image.word === `${kind} ${index}` ? null : `${kind} ${index}`;
  $("viewer-message").textContent = "";
  try {
    if (word !== null && !image.heats.has(word)) {
      button.disabled = true;
      image.heats.set(word, await (kind === "looked" ? attentionOf : differenceOf)(image, index));
    }
    image.word = word;
  } catch (error) {
    $("viewer-message").textContent = error.message;
  }
  button.disabled = false;
  if (shown === image) showWord();
}

function showWord() {
  const pressed = shown.word === null ? -1 : Number(shown.word.split(" ")[1]);
  [...$("words").children].forEach((one, number) => one.setAttribute("aria-pressed", String(number === pressed)));
  draw();
}

async function readIt() {
  const image = shown;
  $("viewer-message").textContent = "";
  if ($("boxes").checked && !image.report) {
    $("boxes").disabled = true;
    try {
      const form = new FormData();
      form.append("image", image.picture, "image.png");
      image.report = await (await call("/v1/report", { method: "POST", body: form })).json();
    } catch (error) {
      $("boxes").checked = false;
      $("viewer-message").textContent = error.message;
    }
    $("boxes").disabled = false;
  }
  if (shown === image) {
    showReport();
    draw();
  }
}

function showReport() {
  const report = $("boxes").checked ? shown.report : null;
  $("report").textContent = report ? [(report.warnings || []).join("; "), report.report].filter(Boolean).join(". ") : "";
  const found = (report?.findings || []).filter((one) => one.label && one.present);
  $("findings").replaceChildren(...found.map((one) => {
    const item = document.createElement("li");
    const share = one.probability === null ? "" : ` (${Math.round(100 * one.probability)} %)`;
    item.textContent = `${[one.side, one.label].filter(Boolean).join(" ")}${share}`;
    return item;
  }));
}

export async function openViewer(image, { models, reporters }, onEdit) {
  edit = onEdit;
  shown = Object.assign(image, { heats: image.heats || new Map(), word: image.word ?? null });
  const { event, prompt } = image;
  $("viewer-title").textContent = prompt;
  $("viewer-message").textContent = "";
  $("report-box").hidden = !reporters.length;
  $("words-box").hidden = Boolean(event.settings.edited);
  const looks = Boolean(models.find(({ name }) => name === event.model)?.words);
  $("lighting").options[0].disabled = !looks;
  if (!looks) $("lighting").value = "differs";
  $("boxes").checked = Boolean(image.report);
  const facts = {
    prompt, seed: event.seed, model: `${event.model} (${event.model_hash})`, ...event.settings, synthetic: "true",
  };
  $("provenance").replaceChildren(...Object.entries(facts).filter(([, value]) => value !== "").flatMap(([name, value]) => {
    const term = document.createElement("dt");
    term.textContent = name.replaceAll("_", " ");
    const said = document.createElement("dd");
    said.textContent = value;
    return [term, said];
  }));
  $("words").replaceChildren(...prompt.split(/\s+/).filter(Boolean).map((word, index) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = word;
    button.addEventListener("click", () => light(index, button));
    return button;
  }));
  $("png").href = image.src;
  $("dcm").href = place(event.url, "dcm");
  for (const [id, ending] of [["png", "png"], ["dcm", "dcm"]]) $(id).download = `synthetic-${event.seed}.${ending}`;
  showWord();
  showReport();
  dialog.showModal();
  image.pixels ??= await greyOf(image.src);
  set({ ...START });
}

for (const name of ["window", "level", "zoom"]) {
  $(name).addEventListener("input", () => set({ [name]: Number($(name).value) }));
}
$("reset").addEventListener("click", () => set({ ...START }));
$("close").addEventListener("click", () => dialog.close());
$("boxes").addEventListener("change", readIt);
$("lighting").addEventListener("change", () => {
  shown.word = null;
  showWord();
});
$("edit").addEventListener("click", () => {
  const form = new FormData();
  form.set("image", shown.picture, "image.png");
  form.set("prompt", $("edit-text").value.trim());
  form.set("remove", $("edit-remove").value.trim());
  form.set("model", shown.event.model);
  form.set("seed", shown.event.seed);
  form.set("strength", $("strength").value);
  if ($("lung").value) form.set("lung", $("lung").value);
  dialog.close();
  edit(form);
});
// The server keeps an image for a while only: ask before a file is offered that is its refusal.
$("dcm").addEventListener("click", async (event) => {
  if ($("dcm").href.startsWith("blob:")) return;
  event.preventDefault();
  const image = shown;
  $("viewer-message").textContent = "";
  try {
    image.dicom ??= URL.createObjectURL(await (await call($("dcm").getAttribute("href"))).blob());
    if (shown !== image) return;
    $("dcm").href = image.dicom;
    $("dcm").click();
  } catch (error) {
    $("viewer-message").textContent = error.status === 404
      ? "The server has forgotten this image; press Use again and Generate for a DICOM file." : error.message;
  }
});
dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
window.addEventListener("resize", draw);
canvas.addEventListener("wheel", (event) => {
  event.preventDefault();
  set({ zoom: view.zoom * (event.deltaY < 0 ? 1.15 : 1 / 1.15) });
}, { passive: false });
canvas.addEventListener("pointerdown", (event) => canvas.setPointerCapture(event.pointerId));
canvas.addEventListener("pointermove", (event) => {
  if (!canvas.hasPointerCapture(event.pointerId)) return;
  const side = canvas.clientWidth * view.zoom;
  if (event.shiftKey) set({ level: view.level - event.movementY / 2, window: Math.max(1, view.window + event.movementX / 2) });
  else set({ x: view.x - event.movementX / side, y: view.y - event.movementY / side });
});
canvas.addEventListener("keydown", (event) => {
  const step = 0.1 / view.zoom;
  const moves = {
    ArrowLeft: { x: view.x - step }, ArrowRight: { x: view.x + step }, ArrowUp: { y: view.y - step },
    ArrowDown: { y: view.y + step }, "+": { zoom: view.zoom * 1.25 }, "-": { zoom: view.zoom / 1.25 }, 0: { ...START },
  };
  if (!(event.key in moves)) return;
  event.preventDefault();
  set(moves[event.key]);
});
