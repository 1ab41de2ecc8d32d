// What the buttons of the Jobs panel do, and where the focus goes when a job changes its list.
import { close, isOpen, wanted } from "./opening.js";

export default function panel({ element, trigger, watch }) {
  let pressed = null;
  const press = ({ dataset, value }) => {
    pressed = dataset.name;
    trigger("act", { do: dataset.do, name: dataset.name, value: value || dataset.value || "" });
  };
  element.addEventListener("click", (event) => {
    if (event.target.closest("[data-jobs-close]")) close();
    const button = event.target.closest("button[data-do]");
    if (button) press(button);
  });
  element.addEventListener("change", (event) => {
    if (event.target.matches("select[data-do]")) press(event.target);
  });
  watch("value", () => requestAnimationFrame(() => {
    const title = document.getElementById("jobs-title");
    if (wanted.focus && title) {
      title.focus();
      wanted.focus = false;
    } else if (pressed !== null && isOpen() && document.activeElement === document.body) {
      // The job went to another list with its button.
      const row = element.querySelector(`[data-job="${CSS.escape(pressed)}"]`);
      (row?.querySelector("button, select, a") ?? title)?.focus();
      pressed = null;
    }
  }));
}
