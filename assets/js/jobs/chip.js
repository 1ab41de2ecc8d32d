// The button in the header, and the keys that open and close the Jobs panel from everywhere.
import { close, isOpen, open, place, say, studio } from "./opening.js";

const turn = () => (isOpen() ? close() : open());

export default function chip({ element, trigger, watch }) {
  studio.tell = (data) => trigger("act", data);
  watch("value", say);
  element.addEventListener("click", (event) => {
    if (event.target.closest("[data-jobs-toggle]")) turn();
  });
  document.addEventListener("keydown", (event) => {
    if (event.altKey && !event.ctrlKey && !event.metaKey && event.code === "KeyJ") {
      event.preventDefault();
      turn();
    } else if (event.key === "Escape" && place()?.contains(document.activeElement)) {
      event.stopPropagation();
      close();
    }
  }, true);
}
