// Beside the search box: a cross that empties it, and what is searched for most.
import { gallery } from "./state.js";

export default function find({ element }) {
  const term = /(^|\s)starred:yes(?=\s|$)/i;
  const show = () => {
    const text = gallery.box()?.value ?? "";
    element.querySelector("[data-empty]").hidden = !text;
    element.querySelector("[data-starred]").setAttribute("aria-pressed", String(term.test(text)));
  };
  element.addEventListener("click", (event) => {
    const text = gallery.box().value;
    if (event.target.closest("[data-empty]")) {
      gallery.write("");
      gallery.box().focus();
    } else if (event.target.closest("[data-starred]"))
      gallery.write((term.test(text) ? text.replace(term, "") : `${text} starred:yes`).trim());
  });
  document.addEventListener("input", (event) => {
    if (event.target === gallery.box()) show();
  });
}
