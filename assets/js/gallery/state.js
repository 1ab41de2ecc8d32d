// What the parts of the Gallery tab know together.
const one = (query) => document.querySelector(`#gallery ${query}`);
const all = (query) => [...document.querySelectorAll(`#gallery ${query}`)];
const phone = matchMedia("(max-width: 899px)");
const seen = (place) => Boolean(place?.isConnected && place.checkVisibility());
const FIELDS = "textarea, select, [contenteditable=true], input:not([type=checkbox])";

export const gallery = {
  one,
  all,
  phone,
  seen,
  // The names of those with a tick, whether they are shown or not.
  selected: new Set(),
  // The picture in the panel; the one that was asked for last; the one that Tab leads to.
  opened: "",
  wanted: "",
  here: "",
  // Presses that open and close are numbered: on a slow line one may overtake another.
  at: 0,
  // Whether an export was just asked for.
  exporting: false,
  visible: () => seen(document.getElementById("gallery")),
  asked: () => one(".asks"),
  box: () => one("#gallery-search :is(input, textarea)"),
  buttons: () => all("#shots .open"),
  cell: (name) => gallery.buttons().find((button) => button.dataset.name === name),
  field: (target) => Boolean(target.closest?.(FIELDS)),
  lost: () => document.activeElement === document.body || !document.activeElement,
  // The first of these that can be seen gets the focus; the page stays where it is.
  focus: (...places) => {
    const place = places.find(seen);
    place?.focus({ preventScroll: true });
    return place;
  },
  // After everything that came with this answer is on the page.
  later: (then) => requestAnimationFrame(() => requestAnimationFrame(then)),
  // Whoever deleted or finished something goes on with the pictures.
  home: () => {
    const [opened, here] = [gallery.cell(gallery.opened), gallery.cell(gallery.here)];
    gallery.focus(opened, here, gallery.buttons()[0], gallery.box());
  },
  tell: (what) => document.dispatchEvent(new CustomEvent(`gallery-${what}`)),
  write: (text) => {
    const box = gallery.box();
    box.value = text;
    box.dispatchEvent(new Event("input", { bubbles: true }));
  },
  // Asks the studio; the pictures say how, once they are there.
  act: () => {},
  open: (name) => {
    gallery.wanted = name;
    gallery.here = name;
    gallery.act("open", { name, at: ++gallery.at });
  },
  beside: (by) => {
    const all = gallery.buttons();
    const name = gallery.wanted || gallery.opened;
    const at = all.findIndex((button) => button.dataset.name === name);
    return at < 0 ? undefined : all[at + by];
  },
  step: (by) => {
    const next = gallery.beside(by);
    if (next) gallery.open(next.dataset.name);
    else if (by > 0) one(".more")?.click();
    return next;
  },
  // A finger that goes sideways over a picture wants the next one.
  swipe: (place) => {
    let from = null;
    place.addEventListener(
      "touchstart",
      (event) => {
        const one = event.touches.length === 1 && event.target.closest(".stage, dialog");
        from = one ? event.touches[0] : null;
      },
      { passive: true },
    );
    place.addEventListener("touchend", (event) => {
      if (!from) return;
      const across = event.changedTouches[0].clientX - from.clientX;
      const down = event.changedTouches[0].clientY - from.clientY;
      from = null;
      if (Math.abs(across) > Math.max(48, 2 * Math.abs(down))) gallery.step(across < 0 ? 1 : -1);
    });
  },
};
