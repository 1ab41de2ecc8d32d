// The pictures: which are selected, which one is looked at, keys, and more of them on the way down.
const selected = new Set();
let last = "";
let opened = "";
const ticks = () => [...element.querySelectorAll("[data-tick]")];
const tell = () => {
  for (const tick of ticks())
    tick.closest(".shot").toggleAttribute("data-selected", tick.checked);
  element.toggleAttribute("data-selecting", selected.size > 0);
  document.dispatchEvent(new CustomEvent("gallery-selected", { detail: [...selected] }));
};
const mark = () => {
  for (const button of element.querySelectorAll(".open"))
    button.toggleAttribute("aria-current", button.dataset.name === opened);
};
element.addEventListener("click", (event) => {
  const button = event.target.closest("[data-do]");
  if (button) {
    if (button.dataset.do === "open") opened = button.dataset.name;
    mark();
    trigger("act", { do: button.dataset.do, name: button.dataset.name });
    return;
  }
  const tick = event.target.closest("[data-tick]");
  if (!tick) return;
  const all = ticks();
  const from = all.findIndex((one) => one.dataset.tick === last);
  const to = all.indexOf(tick);
  // With Shift all between the last one and this one.
  const range = event.shiftKey && from >= 0 ? all.slice(Math.min(from, to), Math.max(from, to) + 1) : [tick];
  for (const one of range) {
    one.checked = tick.checked;
    selected[tick.checked ? "add" : "delete"](one.dataset.tick);
  }
  last = tick.dataset.tick;
  tell();
});
document.addEventListener("gallery-select", (event) => {
  selected.clear();
  for (const tick of ticks()) {
    tick.checked = event.detail;
    if (tick.checked) selected.add(tick.dataset.tick);
  }
  tell();
});
document.addEventListener("gallery-closed", () => {
  const cell = [...element.querySelectorAll(".open")].find((one) => one.dataset.name === opened);
  opened = "";
  mark();
  cell?.focus();
});
// Arrow keys move between the pictures.
element.addEventListener("keydown", (event) => {
  const here = event.target.closest(".open");
  if (!here || !event.key.startsWith("Arrow")) return;
  const all = [...element.querySelectorAll(".open")];
  const top = all[0].getBoundingClientRect().top;
  const across = all.filter((one) => Math.abs(one.getBoundingClientRect().top - top) < 2).length;
  const by = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -across, ArrowDown: across }[event.key];
  const next = all[all.indexOf(here) + by];
  if (!next) return;
  event.preventDefault();
  next.focus();
  next.click();
});
const sight = new IntersectionObserver((entries) => {
  if (entries.some((entry) => entry.isIntersecting)) element.querySelector(".more")?.click();
}, { rootMargin: "300px" });
const refresh = () => {
  const there = new Set();
  for (const tick of ticks()) {
    tick.checked = selected.has(tick.dataset.tick);
    there.add(tick.dataset.tick);
  }
  for (const name of [...selected]) if (!there.has(name)) selected.delete(name);
  mark();
  tell();
  sight.disconnect();
  const more = element.querySelector(".more");
  if (more) sight.observe(more);
};
watch("value", refresh);
refresh();
