// The form: prompts and settings to images as they arrive.

import { call, key, setKey, stream } from "/page/api.js";
import { begin, start } from "/page/results.js";
import { suggest } from "/page/suggest.js";
import { openViewer } from "/page/viewer.js";

const $ = (id) => document.getElementById(id);

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

// Prompts and settings of a group, back in the form.
function useAgain(prompts, about) {
  $("prompt").value = prompts[0];
  $("prompt2").value = prompts[1] || "";
  $("compare").checked = prompts.length > 1;
  showSecond();
  for (const field of ["seed", "guidance", "steps"]) $(field).value = about[field] ?? "";
  $("count").value = about.n;
  if (choices.models.some(({ name }) => name === about.model)) $("model").value = about.model;
  showDefaults();
  $("prompt").focus();
}

function showSecond() {
  $("second").hidden = !$("compare").checked;
  $("prompt2").required = $("compare").checked;
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
  const prompt = form.get("prompt") || `no ${form.get("remove")}`;
  return run([prompt], [form], { seed: Number(form.get("seed")), model: form.get("model"), n: 1 });
}

// Sends each body, and shows what comes of the prompt beside it.
async function run(prompts, bodies, about) {
  running = new AbortController();
  const { signal } = running;
  const group = begin(prompts, about);
  const shares = prompts.map(() => 0);
  const warnings = new Set();
  const arriving = [];
  say("", "Generating ...");
  $("go").disabled = true;
  $("stop").hidden = $("progress").hidden = false;
  $("progress").value = 0;
  const follow = (body, row) => stream(body, (event) => {
    if (event.type === "image_generation.progress") {
      shares[row] = event.share;
    } else if (event.type === "image_generation.completed") {
      arriving.push(group.add(event, row));
      event.warnings.forEach((one) => warnings.add(one));
    }
    $("progress").value = shares.reduce((sum, share) => sum + share, 0) / shares.length;
  }, signal);
  const made = await Promise.allSettled(bodies.map(follow));
  const shown = await Promise.allSettled(arriving);
  const failed = [...made, ...shown].find(({ status }) => status === "rejected");
  const arrived = shown.filter(({ status }) => status === "fulfilled").length;
  group.end();
  $("go").disabled = false;
  $("stop").hidden = $("progress").hidden = true;
  running = null;
  if (failed) refused(failed.reason);
  else say("", `${arrived} image${arrived === 1 ? "" : "s"}. ${[...warnings].join("; ")}`.trim());
}

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  if (!running) generate();
});
$("stop").addEventListener("click", () => running?.abort());
$("model").addEventListener("change", showDefaults);
$("compare").addEventListener("change", showSecond);
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
start({ open: (image) => openViewer(image, choices, edit), again: useAgain });
loadChoices();
