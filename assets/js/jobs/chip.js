// The button of the Jobs panel in the header; Alt+J from everywhere, Esc closes it.
import { close, isOpen, open, opening, say, within } from "./opening.js";

export default function chip({ element, trigger, watch }) {
  opening.ask = (data) => trigger("act", data);
  // The answer of the studio draws the button anew: closed, as it knows nothing of the page.
  watch("value", say);
  element.addEventListener("click", (event) => {
    if (event.target.closest("[data-jobs-toggle]")) (isOpen() ? close : open)();
  });
  document.addEventListener(
    "keydown",
    (event) => {
      if (event.altKey && !event.ctrlKey && !event.metaKey && event.code === "KeyJ") {
        event.preventDefault();
        (isOpen() ? close : open)();
      } else if (event.key === "Escape" && within()) {
        event.stopPropagation();
        close();
      }
    },
    true,
  );
}
