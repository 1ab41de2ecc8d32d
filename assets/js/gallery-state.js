// What the parts of the Gallery tab know together: it stands in front of the script of each.
const gallery = (window.studioGallery ??= (() => {
  const one = (query) => document.querySelector(`#gallery ${query}`);
  const all = (query) => [...document.querySelectorAll(`#gallery ${query}`)];
  const phone = matchMedia("(max-width: 899px)");
  const seen = (place) => Boolean(place?.isConnected && place.checkVisibility());
  const state = {
    one, all, phone, seen,
    // The names of those with a tick, whether they are shown or not.
    selected: new Set(),
    // The picture in the panel; the one that was asked for last; the one that Tab leads to.
    opened: "", wanted: "", here: "",
    // Presses that open and close are numbered: on a slow line one may overtake another.
    at: 0,
    visible: () => seen(document.getElementById("gallery")),
    asked: () => one(".asks"),
    box: () => one("#gallery-search :is(input, textarea)"),
    buttons: () => all("#shots .open"),
    cell: (name) => state.buttons().find((button) => button.dataset.name === name),
    field: (target) => Boolean(target.closest?.("textarea, select, [contenteditable=true], input:not([type=checkbox])")),
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
    home: () => state.focus(state.cell(state.opened), state.cell(state.here), state.buttons()[0], state.box()),
    tell: (what) => document.dispatchEvent(new CustomEvent(`gallery-${what}`)),
    write: (text) => {
      const box = state.box();
      box.value = text;
      box.dispatchEvent(new Event("input", { bubbles: true }));
    },
    act: () => {},
    open: (name) => {
      state.wanted = name;
      state.here = name;
      state.act("open", { name, at: ++state.at });
    },
    beside: (by) => {
      const all = state.buttons();
      const at = all.findIndex((button) => button.dataset.name === (state.wanted || state.opened));
      return at < 0 ? undefined : all[at + by];
    },
    step: (by) => {
      const next = state.beside(by);
      if (next) state.open(next.dataset.name);
      else if (by > 0) one(".more")?.click();
      return next;
    },
  };
  // A finger that goes sideways over a picture wants the next one.
  state.swipe = (place) => {
    let from = null;
    place.addEventListener("touchstart", (event) => {
      from = event.touches.length === 1 && event.target.closest(".stage, dialog") ? event.touches[0] : null;
    }, { passive: true });
    place.addEventListener("touchend", (event) => {
      if (!from) return;
      const across = event.changedTouches[0].clientX - from.clientX;
      const down = event.changedTouches[0].clientY - from.clientY;
      from = null;
      if (Math.abs(across) > 48 && Math.abs(across) > 2 * Math.abs(down)) state.step(across < 0 ? 1 : -1);
    });
  };
  return state;
})());
