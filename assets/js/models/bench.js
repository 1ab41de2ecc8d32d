// Selected LoRAs: what is pressed is sent with all that was typed.
import { presses } from "../presses.js";
import { typed } from "./typed.js";

export default function bench({ element, trigger, watch }) {
  let pressed = false;
  presses(element, (wanted, button) => {
    pressed = true;
    if (wanted === "use") scrollTo(0, 0);
    trigger("act", { do: wanted, name: button.dataset.name, typed: typed() });
  });
  // As in any form.
  element.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || !event.target.matches("input")) return;
    event.preventDefault();
    element.querySelector("[data-do=bench-go]")?.click();
  });
  // The answer replaces what had the focus: it goes to what is asked next, or stays with the buttons.
  watch("value", () => {
    if (pressed) (element.querySelector("[data-focus]") ?? element.querySelector("[data-do]"))?.focus();
    pressed = false;
  });
}
