// Exports and notices: they lie over the edge of the page, so that nothing moves for them.
import { presses } from "../presses.js";
import { gallery } from "./state.js";

export default function dock({ element, trigger, watch }) {
  let inside = false;
  let closing = false;
  presses(element, (wanted) => {
    closing = true;
    trigger("act", { do: wanted, name: "" });
  });
  for (const kind of ["focusin", "pointerdown"])
    document.addEventListener(kind, (event) => {
      inside = element.contains(event.target);
    });
  // The one who exports goes from Stop to Download, and from there back to where it began.
  const follow = () => {
    const work = element.querySelector(".work");
    const summary = gallery.one("summary[data-export]");
    const buttons = element.querySelector("[data-do]");
    if (work && (gallery.exporting || inside)) {
      if (gallery.lost() || (gallery.exporting && document.activeElement === summary))
        gallery.focus(work.querySelector(".tools > *"));
      gallery.exporting = false;
    } else if (closing && !buttons && gallery.lost()) gallery.focus(summary, gallery.box());
    if (!buttons) closing = inside = false;
  };
  watch("value", () => gallery.later(follow));
}
