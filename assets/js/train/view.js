// What was chosen at the right: a training that is being prepared, or one that was begun.
import { presses } from "../presses.js";
import { bring, dropped } from "./photos.js";
import { plots } from "./plot.js";

export default function view({ element, trigger, watch }) {
  // Of a form what differs from what the studio has shown: the rest may have been changed in another
  // browser tab since.
  const differs = (one) =>
    one.options
      ? [...one.options].some((option) => option.selected !== option.defaultSelected)
      : one.value !== one.defaultValue;
  const fields = (page, changed) =>
    Object.fromEntries(
      [...element.querySelectorAll("[data-field]")]
        .filter((one) => !page || one === changed || differs(one))
        .map((one) => [one.dataset.field, one.value]),
    );
  const act = (wanted, name, more = {}, changed = null) => {
    const page = element.querySelector("[data-preparation]");
    const told = { do: wanted, name: name ?? "", fields: fields(page, changed), ...more };
    trigger("act", page ? { preparation: page.dataset.preparation, ...told } : told);
  };

  presses(element, (wanted, button) => act(wanted, button.dataset.name));
  element.addEventListener("change", (event) => {
    if (event.target.matches("[data-bring]")) {
      send([...event.target.files].map((file) => [file.name, file]));
      event.target.value = "";
    } else if (event.target.closest(".train-new [data-field]")) {
      act("set", event.target.dataset.field, {}, event.target);
    }
  });
  element.addEventListener("click", (event) => {
    const photo = event.target.closest("[data-focus]");
    if (!photo) return;
    const box = photo.getBoundingClientRect();
    const x = event.detail ? (event.clientX - box.left) / box.width : 0.5;
    const y = event.detail ? (event.clientY - box.top) / box.height : 0.5;
    const inside = (v) => Math.min(1, Math.max(0, v));
    act("focus", photo.dataset.focus, { x: inside(x), y: inside(y) });
  });

  let bringing = Promise.resolve();
  const send = (files) => {
    const page = element.querySelector("[data-preparation]");
    if (!page || !files.length) return;
    const tell = (words) => {
      const place = element.querySelector("[data-bringing]");
      if (place) place.textContent = words;
    };
    // One lot after another: the next may come before the last is there.
    const preparation = page.dataset.preparation;
    bringing = bringing.then(async () => {
      const refused = await bring(preparation, files, tell);
      tell("or press to choose them");
      act("brought", preparation, { value: refused });
    });
  };
  const hasFiles = (event) =>
    [...(event.dataTransfer?.items ?? [])].some((item) => item.kind === "file");
  element.addEventListener("dragover", (event) => {
    const page = event.target.closest(".train-new");
    if (!page || !hasFiles(event)) return;
    event.preventDefault();
    page.dataset.over = "";
  });
  element.addEventListener("dragleave", (event) => {
    const page = event.target.closest(".train-new");
    if (page && !page.contains(event.relatedTarget)) delete page.dataset.over;
  });
  element.addEventListener("drop", async (event) => {
    const page = event.target.closest(".train-new");
    if (!page || !hasFiles(event)) return;
    event.preventDefault();
    delete page.dataset.over;
    send(await dropped(event.dataTransfer));
  });

  // What somebody opened stays open, although the studio draws the page anew.
  const opened = new Map();
  element.addEventListener("click", (event) => {
    const details = event.target.closest("summary")?.parentElement;
    if (details) opened.set(details.className, !details.open);
  });
  const reopen = () => {
    for (const details of element.querySelectorAll("details"))
      details.open = opened.get(details.className) ?? details.open;
  };

  plots(element);
  // Another page at the right begins at its title.
  const shown = () => {
    const part = element.querySelector("[data-run], [data-preparation], .train-kinds");
    return part ? (part.dataset.run ?? part.dataset.preparation ?? "kinds") : "";
  };
  let before = "";
  watch("value", () => {
    const now = shown();
    if (before && now !== before) element.querySelector("#train-title")?.focus();
    if (before !== now) opened.clear();
    before = now;
    reopen();
    requestAnimationFrame(reopen);
  });
}
