// The form, the images as they arrive, and what was made before.

import { call, key, place, setKey, stream } from "/page/api.js";
import { suggest } from "/page/suggest.js";
import { openViewer } from "/page/viewer.js";

const $ = (id) => document.getElementById(id);
const SYNTHETIC = "Synthetic, research only";
const MOST_GROUPS = 40;

let choices = { models: [], reporters: [], suggestions: [], limits: { images: 16 } };
let running = null;

function say(message, status = "") {
  $("message").textContent = message;
  $("status").textContent = status;
}

function refused(error) {
  if (error.name === "AbortError") return say("", "Stopped.");
  if (error.status === 401) {
    $("access").open = true;
    $("key").focus();
    return say(key() ? "This key is not known here." : "This server wants a key: type it below.");
  }
  return say(error.message);
}

async function loadChoices() {
  try {
    choices = await (await call("/v1/choices")).json();
    say("");
  } catch (error) {
    return refused(error);
  }
  $("model").replaceChildren(...choices.models.map(({ name, pixels }) => new Option(`${name} (${pixels} px)`, name)));
  $("count").max = choices.limits.images;
  $("prompt").maxLength = choices.limits.prompt;
  return showDefaults();
}

function showDefaults() {
  const model = choices.models.find(({ name }) => name === $("model").value);
  for (const field of ["guidance", "steps"]) $(field).placeholder = model?.defaults[field] ?? "";
}

function wanted(prompt, seed) {
  const body = { prompt, seed, model: $("model").value || undefined, n: Number($("count").value) || 1 };
  for (const field of ["guidance", "steps"]) if ($(field).value !== "") body[field] = Number($(field).value);
  return body;
}

function cardOf() {
  const card = document.createElement("figure");
  card.className = "card";
  const waiting = document.createElement("div");
  waiting.className = "waiting";
  const caption = document.createElement("figcaption");
  caption.textContent = "waiting";
  card.append(waiting, caption);
  return card;
}

function fill(card, image) {
  const button = document.createElement("button");
  button.type = "button";
  button.setAttribute("aria-label", `Open: ${image.prompt}, seed ${image.event.seed}`);
  const picture = document.createElement("img");
  picture.alt = `${SYNTHETIC}: chest X-ray of "${image.prompt}"`;
  picture.src = image.src;
  button.append(picture);
  button.addEventListener("click", () => openViewer(image, choices, edit));
  const caption = document.createElement("figcaption");
  const mark = document.createElement("b");
  mark.textContent = SYNTHETIC;
  caption.append(mark, `seed ${image.event.seed}`);
  card.replaceChildren(button, caption);
}

// A new group on top of the others: a heading, a way back to the form, one card an image, pairs side by side.
function groupOf(prompts, body) {
  const group = document.createElement("article");
  group.className = "group";
  const heading = document.createElement("h3");
  const facts = document.createElement("small");
  facts.textContent = ` seed ${body.seed}, ${body.model || ""}`;
  heading.append(prompts.join("  |  "), facts);
  const again = document.createElement("button");
  again.type = "button";
  again.textContent = "Use again";
  again.addEventListener("click", () => {
    $("prompt").value = prompts[0];
    $("prompt2").value = prompts[1] || "";
    $("compare").checked = prompts.length > 1;
    $("second").hidden = prompts.length < 2;
    for (const field of ["seed", "guidance", "steps"]) $(field).value = body[field] ?? "";
    $("count").value = body.n;
    $("prompt").focus();
  });
  const pictures = document.createElement("div");
  pictures.className = "pictures";
  if (prompts.length > 1) pictures.style.gridTemplateColumns = "repeat(2, minmax(0, 18rem))";
  const cards = Array.from({ length: body.n * prompts.length }, cardOf);
  pictures.append(...cards);
  group.append(heading, pictures, again);
  $("empty")?.remove();
  $("results").prepend(group);
  while ($("results").children.length > MOST_GROUPS) $("results").lastChild.remove();
  return { group, cards };
}

async function generate() {
  const prompts = [$("prompt").value.trim()];
  if ($("compare").checked) prompts.push($("prompt2").value.trim());
  const seed = $("seed").value === "" ? crypto.getRandomValues(new Uint32Array(1))[0] >>> 1 : Number($("seed").value);
  const bodies = prompts.map((prompt) => wanted(prompt, seed));
  await run(prompts, bodies, bodies[0]);
}

// An edit of an image that is here; see the viewer.
async function edit(form) {
  if (running) return say("Wait until the other images are there.");
  return run([form.get("prompt")], [form], { seed: Number(form.get("seed")), model: form.get("model"), n: 1 });
}

// Sends each body, and shows what comes of the prompt beside it.
async function run(prompts, bodies, about) {
  running = new AbortController();
  const { signal } = running;
  const { group, cards } = groupOf(prompts, about);
  const shares = prompts.map(() => 0);
  const warnings = new Set();
  let arrived = 0;
  say("", "Generating ...");
  $("go").disabled = true;
  $("stop").hidden = $("progress").hidden = false;
  $("progress").value = 0;
  const follow = (body, row) => stream(body, (event) => {
    if (event.type === "image_generation.progress") {
      shares[row] = event.share;
    } else if (event.type === "image_generation.completed") {
      fill(cards[event.index * prompts.length + row], { event, prompt: prompts[row], src: place(event.url) });
      arrived += 1;
      event.warnings.forEach((one) => warnings.add(one));
    }
    $("progress").value = shares.reduce((sum, share) => sum + share, 0) / shares.length;
  }, signal);
  const ends = await Promise.allSettled(bodies.map(follow));
  const failed = ends.find(({ status }) => status === "rejected");
  cards.filter((card) => card.querySelector(".waiting")).forEach((card) => card.remove());
  if (!arrived) group.remove();
  $("go").disabled = false;
  $("stop").hidden = $("progress").hidden = true;
  running = null;
  if (failed) refused(failed.reason);
  else say("", [`${arrived} image${arrived === 1 ? "" : "s"}.`, ...warnings].join(" "));
}

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  if (!running) generate();
});
$("stop").addEventListener("click", () => running?.abort());
$("model").addEventListener("change", showDefaults);
$("compare").addEventListener("change", () => {
  $("second").hidden = !$("compare").checked;
  $("prompt2").required = $("compare").checked;
});
$("key").value = key();
$("key").addEventListener("change", () => {
  setKey($("key").value.trim());
  loadChoices();
});
suggest($("prompt"), $("suggestions"), () => choices.suggestions);
for (const id of ["prompt", "prompt2"]) {
  $(id).addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    $("form").requestSubmit();
  });
}
loadChoices();
