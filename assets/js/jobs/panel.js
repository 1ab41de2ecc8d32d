// The Jobs panel: what its buttons do, and where the focus goes.
import { presses } from "../presses.js";
import { close, isOpen, opening } from "./opening.js";

export default function panel({ element, trigger, watch }) {
  let pressed = null;
  const press = (wanted, target) => {
    const { name, value } = target.dataset;
    pressed = { name };
    trigger("act", { do: wanted, name, value: target.value || value || "" });
  };
  presses(element, (wanted, button) => {
    if (button.matches("button")) press(wanted, button);
  });
  element.addEventListener("click", (event) => {
    if (event.target.closest("[data-jobs-close]")) close();
  });
  element.addEventListener("change", (event) => {
    if (event.target.matches("select[data-do]")) press(event.target.dataset.do, event.target);
  });
  const settle = () => {
    // A studio that was started anew does not know that the panel is open.
    if (isOpen() && !element.querySelector(".jobs")) opening.ask({ do: "open" });
    const title = document.getElementById("jobs-title");
    if (opening.focusWanted && title) {
      title.focus();
      opening.focusWanted = false;
    } else if (pressed && isOpen() && document.activeElement === document.body) {
      // The job went to another list with its button: the focus goes along, or to the title.
      const row = element.querySelector(`[data-job="${CSS.escape(pressed.name ?? "")}"]`);
      (row?.querySelector("button, select, a") ?? title)?.focus();
    }
    pressed = null;
  };
  watch("value", () => requestAnimationFrame(settle));
}
