// The images of the page in groups, as they arrive and as they are kept; see history.js.

import { call, place } from "/page/api.js";
import * as kept from "/page/history.js";

const $ = (id) => document.getElementById(id);
const SYNTHETIC = "Synthetic, research only";
const MOST_GROUPS = 40;

let onOpen = () => {}; // what to do with an image that is chosen
let onAgain = () => {}; // what to do with the prompts and settings of a group that is wanted again
let writing = Promise.resolve(); // one write after another

function element(name, properties = {}, ...children) {
  const node = Object.assign(document.createElement(name), properties);
  node.append(...children);
  return node;
}

function waitingCard() {
  return element("figure", { className: "card" },
    element("div", { className: "waiting" }), element("figcaption", { textContent: "waiting" }));
}

// A card with its picture, once that can be painted; until then it stays as it was.
async function fill(card, image) {
  const { event, prompt, picture } = image;
  const caption = element("figcaption", {}, element("b", { textContent: SYNTHETIC }), `seed ${event.seed}`);
  if (!picture) {
    card.replaceChildren(element("div", { className: "gone", textContent: "Not kept: use again, and generate." }), caption);
    return;
  }
  image.src = URL.createObjectURL(picture);
  const shown = element("img", { alt: `${SYNTHETIC}: chest X-ray of "${prompt}"`, src: image.src });
  await shown.decode();
  const button = element("button", { type: "button" }, shown);
  button.setAttribute("aria-label", `Open: ${prompt}, seed ${event.seed}`);
  button.addEventListener("click", () => onOpen(image));
  card.replaceChildren(button, caption);
}

function showHistory() {
  const some = $("results").querySelector(".group") !== null;
  $("empty").hidden = some;
  $("history").hidden = !some;
}

function drop(group) {
  for (const { src } of group.record.images) if (src) URL.revokeObjectURL(src);
  group.remove();
  showHistory();
}

// What is written: without what only this tab knows of an image, such as its heat maps.
function written({ id, prompts, about, count, images }) {
  const own = images.map(({ event, prompt, place: where, picture }) => ({ event, prompt, place: where, picture }));
  return { ...(id === undefined ? {} : { id }), prompts, about, count, images: own };
}

function write(work) {
  writing = writing.then(work).catch((error) => {
    $("kept").textContent = `This browser does not keep the history (${error?.name || "error"}); it lasts as long as this tab.`;
  });
  return writing;
}

function save(record) {
  return write(async () => {
    if (record.removed) return;
    const now = written(record);
    await kept.keep(now);
    record.id = now.id;
  });
}

// Out of sight once it is forgotten, so that a reload shows no more than the page did.
async function remove(group) {
  const { record } = group;
  record.removed = true;
  await write(() => (record.id === undefined ? null : kept.forget(record.id)));
  drop(group);
}

// A new group on top of the others: a heading, a way back to the form, one card an image, pairs side by side.
function groupOf(record) {
  const { prompts, about, count } = record;
  const facts = element("small", { textContent: ` seed ${about.seed}, ${about.model || ""}` });
  const heading = element("h3", {}, prompts.join("  |  "), facts);
  const again = element("button", { type: "button", textContent: "Use again" });
  again.addEventListener("click", () => onAgain(prompts, about));
  const away = element("button", { type: "button", textContent: "Remove" });
  const pictures = element("div", { className: "pictures" });
  if (prompts.length > 1) pictures.style.gridTemplateColumns = "repeat(2, minmax(0, 18rem))";
  const cards = Array.from({ length: count }, waitingCard);
  pictures.append(...cards);
  const group = element("article", { className: "group" }, heading, pictures,
    element("div", { className: "buttons" }, again, away));
  away.addEventListener("click", () => remove(group));
  group.record = record;
  $("results").prepend(group);
  showHistory();
  return { group, cards };
}

// Takes the places away that stayed empty.
function clean(group, cards) {
  cards.filter((card) => card.querySelector(".waiting")).forEach((card) => card.remove());
  if (!group.record.images.length) drop(group);
}

// Room for images of the prompts; add(event, row) shows one and keeps it, end() takes the empty places away.
export function begin(prompts, about) {
  const record = { prompts, about, count: about.n * prompts.length, images: [] };
  const { group, cards } = groupOf(record);
  const groups = [...$("results").querySelectorAll(".group")];
  groups.slice(MOST_GROUPS).forEach(remove);
  return {
    async add(event, row) {
      const at = event.index * prompts.length + row;
      const picture = await (await call(place(event.url))).blob();
      const image = { event, prompt: prompts[row], place: at, picture };
      await fill(cards[at], image);
      record.images.push(image);
      await save(record);
    },
    end: () => clean(group, cards),
  };
}

// Shows what this browser has kept, the newest first.
async function restore() {
  const groups = (await kept.all()).map(groupOf).reverse();
  for (const { group, cards } of groups) {
    const { images } = group.record;
    await Promise.all(images.map((image) => fill(cards[image.place], image)
      .catch(() => fill(cards[image.place], Object.assign(image, { picture: null })))));
    clean(group, cards);
  }
}

// open(image) looks at one closely; again(prompts, about) fills the form.
export function start({ open, again }) {
  onOpen = open;
  onAgain = again;
  $("clear").addEventListener("click", async () => {
    const groups = [...$("results").querySelectorAll(".group")];
    for (const { record } of groups) record.removed = true;
    await write(kept.clear);
    groups.forEach(drop);
  });
  return write(restore);
}
