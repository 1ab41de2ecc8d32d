// The pictures: which are selected, which one is looked at, keys, and more of them on the way down.
import { gallery } from "./state.js";

export default function shots({ element, trigger, watch }) {
  const { selected } = gallery;
  let last = "";
  let focused = "";
  let focusFirst = false;
  gallery.act = (wanted, data = {}) => trigger("act", { do: wanted, name: "", ...data });
  const ticks = () => [...element.querySelectorAll("[data-tick]")];
  const mark = () => {
    const all = gallery.buttons();
    const stop = gallery.cell(gallery.here) ?? gallery.cell(gallery.opened) ?? all[0];
    for (const button of all) {
      // One stop for Tab; the arrow keys do the rest.
      button.tabIndex = button === stop ? 0 : -1;
      if (button.dataset.name === gallery.opened) button.setAttribute("aria-current", "true");
      else button.removeAttribute("aria-current");
    }
  };
  const tell = () => {
    for (const tick of ticks()) {
      tick.checked = selected.has(tick.dataset.tick);
      tick.closest(".shot").toggleAttribute("data-selected", tick.checked);
    }
    element.toggleAttribute("data-selecting", selected.size > 0);
    gallery.tell("selected");
  };
  // With Shift all between the last one and this one.
  const choose = (name, range) => {
    const names = ticks().map((tick) => tick.dataset.tick);
    const [from, to] = [names.indexOf(last), names.indexOf(name)];
    const on = !selected.has(name);
    const those =
      range && from >= 0 ? names.slice(Math.min(from, to), Math.max(from, to) + 1) : [name];
    for (const one of those) selected[on ? "add" : "delete"](one);
    last = name;
    tell();
  };
  document.addEventListener("gallery-select", tell);
  document.addEventListener("gallery-opened", mark);

  // A long press begins to select where there is no pointer to hover with.
  let hold = 0;
  let held = false;
  element.addEventListener("pointerdown", (event) => {
    held = false;
    const button = event.pointerType === "touch" && event.target.closest(".open");
    if (!button) return;
    hold = setTimeout(() => {
      held = true;
      choose(button.dataset.name, false);
      navigator.vibrate?.(15);
    }, 450);
  });
  for (const kind of ["pointerup", "pointercancel", "pointermove"])
    element.addEventListener(kind, (event) => {
      if (kind !== "pointermove" || Math.hypot(event.movementX, event.movementY) > 6)
        clearTimeout(hold);
    });
  element.addEventListener("contextmenu", (event) => {
    if (held || (event.pointerType === "touch" && event.target.closest(".open")))
      event.preventDefault();
  });

  element.addEventListener("click", (event) => {
    const tick = event.target.closest("[data-tick]");
    if (tick) return choose(tick.dataset.tick, event.shiftKey);
    const button = event.target.closest("[data-do]");
    if (!button) return;
    const { do: wanted, name } = button.dataset;
    if (wanted === "open") {
      if (held) return void (held = false);
      gallery.here = name;
      if (selected.size || event.shiftKey || event.ctrlKey || event.metaKey)
        choose(name, event.shiftKey);
      else if (name === gallery.opened && !event.detail) gallery.tell("view");
      else gallery.open(name);
      mark();
    } else if (wanted === "clear") {
      gallery.write("");
      gallery.box().focus();
    } else {
      if (wanted === "fresh") focusFirst = true;
      gallery.act(wanted);
    }
  });
  element.addEventListener("dblclick", (event) => {
    if (event.target.closest(".open") && !selected.size) gallery.tell("view");
  });

  // Where the focus is, by name: what stands at a place changes when others come or go.
  document.addEventListener("focusin", (event) => {
    const button = element.contains(event.target) && event.target.closest(".open");
    focused = button ? button.dataset.name : "";
    if (button) gallery.here = focused;
    if (button) mark();
  });
  document.addEventListener("pointerdown", (event) => {
    if (!element.contains(event.target)) focused = "";
  });

  const move = (event) => {
    const here = event.target.closest?.("#shots .open");
    const all = gallery.buttons();
    if (!here) {
      const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!by || !gallery.opened) return;
      event.preventDefault();
      // The panel keeps the focus on what is pressed there again and again.
      const next = gallery.step(by);
      if (next && !event.target.closest?.("[data-step]")) next.scrollIntoView({ block: "nearest" });
      return;
    }
    const top = all[0].getBoundingClientRect().top;
    const across = all.filter((one) => Math.abs(one.getBoundingClientRect().top - top) < 2).length;
    const at = all.indexOf(here);
    const to = {
      ArrowLeft: at - 1,
      ArrowRight: at + 1,
      ArrowUp: at - across,
      ArrowDown: at + across,
      Home: 0,
      End: all.length - 1,
    }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    const next = all[to];
    if (!next) return void (to > at && element.querySelector(".more")?.click());
    next.focus();
    if (!selected.size) gallery.open(next.dataset.name);
  };
  element.addEventListener("keydown", (event) => {
    if (event.key !== " " || !event.target.closest(".open")) return;
    event.preventDefault();
    choose(event.target.closest(".open").dataset.name, event.shiftKey);
  });
  element.addEventListener("keyup", (event) => {
    if (event.key === " " && event.target.closest(".open")) event.preventDefault();
  });
  // Escape leaves the innermost thing.
  const leave = (event) => {
    const menu = gallery.one("details[open]");
    const asked = gallery.asked();
    const box = gallery.box();
    if (menu) {
      menu.removeAttribute("open");
      menu.querySelector("summary").focus();
    } else if (asked) asked.querySelector("[data-do=keep]").click();
    else if (event.target === box) {
      if (box.value) gallery.write("");
    } else if (gallery.opened || gallery.wanted) gallery.tell("leave");
  };
  document.addEventListener("keydown", (event) => {
    if (
      event.defaultPrevented ||
      event.altKey ||
      event.ctrlKey ||
      event.metaKey ||
      !gallery.visible()
    )
      return;
    if (document.querySelector("dialog[open]") && event.key === "Escape") return;
    if (event.key === "Escape") leave(event);
    else if (!gallery.field(event.target) && !gallery.asked() && !gallery.one("details[open]"))
      move(event);
  });

  const sight = new IntersectionObserver(
    (entries) => {
      if (!entries.some((entry) => entry.isIntersecting)) return;
      sight.disconnect();
      element.querySelector(".more")?.click();
    },
    { rootMargin: "300px" },
  );
  // Nothing may move under the eyes or the pointer of whoever is in the middle of the pictures.
  const free = () =>
    scrollY < 40 &&
    !selected.size &&
    !element.matches(":hover") &&
    !element.contains(document.activeElement);
  const refresh = () => {
    const now = document.activeElement;
    if (focused && (gallery.lost() || (element.contains(now) && now.dataset.name !== focused)))
      gallery.cell(focused)?.focus({ preventScroll: true });
    const fresh = element.querySelector("[data-do=fresh]");
    if (fresh && free()) gallery.act("fresh");
    if (focusFirst && !fresh && gallery.lost()) {
      gallery.focus(gallery.buttons()[0]);
      scrollTo(0, 0);
    }
    if (!fresh) focusFirst = false;
    mark();
    tell();
    sight.disconnect();
    const more = element.querySelector(".more");
    if (more) sight.observe(more);
  };
  watch("value", refresh);
  refresh();
}
