// Every button under [data-do] asks the studio to do that with the picture [data-name].
element.addEventListener("click", (event) => {
  const button = event.target.closest("[data-do]");
  if (button && !button.disabled)
    trigger("act", { do: button.dataset.do, name: button.dataset.name });
});
// On a phone the form is below: whoever pressed Generate wants to see the canvas.
let before = element.querySelector(".canvas")?.dataset.state ?? "";
watch("value", () => {
  const now = element.querySelector(".canvas")?.dataset.state;
  if (now === "painting" && before && before !== now && innerWidth < 900)
    element.scrollIntoView({ block: "start", behavior: "smooth" });
  before = now ?? "";
});
// A question takes the focus to its harmless answer, and gives it back.
let asked = false;
watch("value", () => {
  const asks = Boolean(element.querySelector(".asks"));
  const here = document.activeElement;
  // Who is somewhere else on the page stays there.
  if (asks !== asked && (here === document.body || element.contains(here)))
    element.querySelector(asks ? "[data-do=keep]" : "[data-do=ask-delete]")?.focus();
  asked = asks;
});
// Arrow keys move between the pictures of a grid.
element.addEventListener("keydown", (event) => {
  const here = event.target.closest(".picture");
  if (!here || !event.key.startsWith("Arrow")) return;
  const all = [...element.querySelectorAll(".picture:not(:disabled)")];
  const across = Number(getComputedStyle(here).getPropertyValue("--across")) || 1;
  const by = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -across, ArrowDown: across }[event.key];
  const next = all[all.indexOf(here) + by];
  if (!next) return;
  event.preventDefault();
  next.focus();
  next.click();
});
