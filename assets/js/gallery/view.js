// The chosen picture in the full window, with the same keys as beside the others.
import { gallery } from "./state.js";

export default function fullWindow({ element }) {
  const view = document.createElement("dialog");
  view.className = "viewer";
  view.setAttribute("aria-label", "The picture in the full window");
  view.innerHTML = `<img alt=""><div class="viewer-bar"><button type="button" class="action" data-mark>Star</button>
    <a class="action" target="_blank" rel="noopener">Original</a>
    <button type="button" class="round" data-shut aria-label="Back to the gallery">×</button></div>
    <button type="button" class="round" data-step="-1" aria-label="Previous picture">‹</button>
    <button type="button" class="round" data-step="1" aria-label="Next picture">›</button>`;
  document.getElementById("gallery").append(view);
  let soon = false;
  const draw = () => {
    const image = element.querySelector(".look[data-name] .large img");
    if (!image) return view.close();
    const shown = view.querySelector("img");
    if (shown.getAttribute("src") !== image.getAttribute("src"))
      shown.src = image.getAttribute("src");
    shown.alt = image.alt;
    view.querySelector("a").href = image.src;
    const star = element.querySelector("[data-do=star], [data-do=unstar]");
    const button = view.querySelector("[data-mark]");
    // While a question is asked there is no star; then it stays what it was.
    if (star) button.dataset.mark = star.dataset.do;
    button.hidden = !button.dataset.mark;
    button.textContent = button.dataset.mark === "unstar" ? "Take the star off" : "Star";
    for (const by of [-1, 1])
      view.querySelector(`[data-step="${by}"]`).disabled = !gallery.beside(by);
  };
  document.addEventListener("gallery-view", () => {
    soon = !gallery.opened || Boolean(gallery.wanted);
    if (soon) return;
    draw();
    if (!view.open) view.showModal();
  });
  document.addEventListener("gallery-opened", () => {
    if (soon && gallery.opened) gallery.tell("view");
    else if (view.open) draw();
  });
  view.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (event.target === view || event.target.closest("[data-shut]")) view.close();
    else if (button?.dataset.mark) gallery.act(button.dataset.mark, { name: gallery.opened });
    else if (button?.dataset.step) gallery.step(Number(button.dataset.step));
  });
  view.addEventListener("close", () => {
    if (gallery.lost()) gallery.home();
  });
  gallery.swipe(view);
}
