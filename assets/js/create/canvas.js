// The canvas and the result bar below it: what is pressed there, and where the focus goes.
import { presses } from "../presses.js";

export default function canvas({ element, trigger, watch }) {
  const state = () => element.querySelector(".canvas")?.dataset.state ?? "";
  const asks = () => Boolean(element.querySelector(".asks"));
  presses(element, (wanted, button) => trigger("act", { do: wanted, name: button.dataset.name }));
  // On a phone the form is below: whoever pressed Generate wants to see the canvas.
  let before = state();
  watch("value", () => {
    const now = state();
    if (now === "painting" && before && before !== now && innerWidth < 900)
      element.scrollIntoView({ block: "start", behavior: "smooth" });
    before = now;
  });
  // A question takes the focus to its harmless answer, and gives it back.
  let asked = asks();
  watch("value", () => {
    const now = asks();
    const here = document.activeElement;
    // Who is somewhere else on the page stays there.
    if (now !== asked && (here === document.body || element.contains(here)))
      element.querySelector(now ? "[data-do=keep]" : "[data-do=ask-delete]")?.focus();
    asked = now;
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
}
