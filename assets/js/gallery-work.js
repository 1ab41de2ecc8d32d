// Exports and notices: they lie over the edge of the page, so that nothing moves for them.
let inside = false;
let closing = false;
element.addEventListener("click", (event) => {
  const button = event.target.closest("[data-do]");
  if (!button) return;
  closing = true;
  trigger("act", { do: button.dataset.do, name: "" });
});
document.addEventListener("focusin", (event) => { inside = element.contains(event.target); });
document.addEventListener("pointerdown", (event) => { inside = element.contains(event.target); });
// The one who exports goes from Stop to Download, and from there back to where it began.
watch("value", () => gallery.later(() => {
  const work = element.querySelector(".work");
  const summary = gallery.one("summary[data-export]");
  if (work && (gallery.exporting || inside)) {
    if (gallery.lost() || (gallery.exporting && document.activeElement === summary))
      gallery.focus(work.querySelector(".tools > *"));
    gallery.exporting = false;
  } else if (closing && !element.querySelector("[data-do]") && gallery.lost())
    gallery.focus(summary, gallery.box());
  if (!element.querySelector("[data-do]")) closing = inside = false;
}));
