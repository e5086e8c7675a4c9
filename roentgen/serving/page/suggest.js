// Suggestions under the prompt: a list that arrows, Enter, Tab and the mouse choose from.

export function suggest(field, list, words) {
  let chosen = -1;

  // What is being written: the part after the last comma, full stop or line break.
  const cut = () => Math.max(...[",", ".", "\n"].map((mark) => field.value.lastIndexOf(mark))) + 1;

  function close() {
    list.hidden = true;
    chosen = -1;
    field.setAttribute("aria-expanded", "false");
    field.removeAttribute("aria-activedescendant");
  }

  function take(text) {
    const before = field.value.slice(0, cut());
    field.value = before + (before && !before.endsWith("\n") ? " " : "") + text;
    close();
    field.focus();
  }

  function mark(index) {
    chosen = index;
    [...list.children].forEach((item, number) => {
      item.setAttribute("aria-selected", String(number === index));
      if (number === index) item.scrollIntoView({ block: "nearest" });
    });
    if (index >= 0) field.setAttribute("aria-activedescendant", list.children[index].id);
  }

  function show() {
    const typed = field.value.slice(cut()).trim().toLowerCase();
    const rank = (word) => (word.startsWith(typed) ? 0 : 1);
    const found = typed.length < 2 ? [] : words()
      .filter((word) => word.toLowerCase().includes(typed) && word.toLowerCase() !== typed)
      .sort((one, other) => rank(one) - rank(other) || one.length - other.length)
      .slice(0, 8);
    if (!found.length) return close();
    list.replaceChildren(...found.map((word, number) => {
      const item = document.createElement("li");
      item.id = `suggestion-${number}`;
      item.setAttribute("role", "option");
      item.setAttribute("aria-selected", "false");
      item.textContent = word;
      item.addEventListener("mousedown", (event) => {
        event.preventDefault();
        take(word);
      });
      return item;
    }));
    list.hidden = false;
    chosen = -1;
    field.setAttribute("aria-expanded", "true");
  }

  field.addEventListener("input", show);
  field.addEventListener("blur", close);
  field.addEventListener("keydown", (event) => {
    if (list.hidden) return;
    const count = list.children.length;
    if (event.key === "ArrowDown") mark((chosen + 1) % count);
    else if (event.key === "ArrowUp") mark(chosen <= 0 ? count - 1 : chosen - 1);
    else if (event.key === "Escape") close();
    else if ((event.key === "Enter" || event.key === "Tab") && chosen >= 0) take(list.children[chosen].textContent);
    else return;
    event.preventDefault();
    event.stopImmediatePropagation();
  });
}
