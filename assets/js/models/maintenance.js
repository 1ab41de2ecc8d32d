// The report on the computer: asked for, copied, closed.
import { copy } from "../clipboard.js";
import { presses } from "../presses.js";

export default function maintenance({ element, trigger, watch }) {
  let pressed = "";
  presses(element, (wanted, button) => {
    pressed = wanted;
    const report = element.querySelector(".report");
    if (wanted === "copy") copy(button, report.dataset.text, report.querySelector("ul"));
    else trigger("act", { do: wanted, name: "" });
  });
  // Whoever asked for the report is led to it.
  watch("value", () => {
    const head = pressed === "examine" && element.querySelector(".report h2");
    pressed = "";
    if (!head) return;
    head.focus({ preventScroll: true });
    head.closest(".report").scrollIntoView({ block: "nearest", behavior: "smooth" });
  });
}
