// The chosen picture: beside the others, and on a phone a dialog over them.
import { copy } from "../clipboard.js";
import { gallery } from "./state.js";
import fullWindow from "./view.js";

const LOOK = ".look[data-name]";
const BEHIND = "#top, #rail > .tab-wrapper, #gallery-find, #gallery-bar, #shots";

export default function look({ element, trigger, watch }) {
  let before = "";
  let asked = false;
  let answered = "";
  const press = (wanted, name = "") => {
    answered = wanted;
    trigger("act", { do: wanted, name, at: wanted === "close" ? ++gallery.at : 0 });
  };
  // In Create, as soon as it is there, whoever left is led to what has changed.
  const arrive = (query, then, until = performance.now() + 10000) => {
    const place = document.querySelector(query);
    // The tab takes its own place first.
    if (gallery.seen(place)) gallery.later(() => then(place));
    else if (performance.now() < until) requestAnimationFrame(() => arrive(query, then, until));
  };
  // On a phone the picture is a page of its own for the Back button.
  let pushed = false;
  const close = () => (pushed ? history.back() : press("close"));
  element.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    const { do: wanted, name, step, copy: text } = button.dataset;
    if (step) gallery.step(Number(step));
    else if ("view" in button.dataset) gallery.tell("view");
    else if (text !== undefined)
      copy(button, text, button.closest("dd") ?? element.querySelector(".prompt"));
    else if ("unfold" in button.dataset) {
      element.querySelector(".look").toggleAttribute("data-whole");
      unfold();
    } else if (wanted === "close") close();
    else if (wanted) {
      press(wanted, name);
      if (wanted === "use")
        arrive("#prompt textarea", (box) => {
          scrollTo(0, 0);
          box.focus({ preventScroll: true });
        });
      if (wanted === "start")
        arrive("#start-card .start-chip", (chip) => {
          chip.tabIndex = -1;
          chip.scrollIntoView({ block: "center" });
          chip.focus({ preventScroll: true });
        });
    }
  });
  document.addEventListener("gallery-leave", close);
  addEventListener("popstate", () => {
    if (!pushed || history.state?.picture) return;
    pushed = false;
    if (gallery.opened) press("close");
  });
  gallery.swipe(element);
  // Its file is gone, or is no picture.
  element.addEventListener(
    "error",
    (event) => {
      const look = event.target.closest?.(LOOK);
      if (!look || !event.target.matches(".large img")) return;
      look.setAttribute("data-lost", "");
      trigger("act", { do: "missing", name: look.dataset.name });
    },
    true,
  );

  const unfold = () => {
    const look = element.querySelector(".look");
    const prompt = look?.querySelector(".prompt");
    const button = look?.querySelector("[data-unfold]");
    if (!prompt || !button) return;
    const whole = look.hasAttribute("data-whole");
    button.hidden = !whole && prompt.scrollHeight <= prompt.clientHeight + 1;
    button.textContent = whole ? "Show less" : "Show all";
  };
  // On a phone nothing else can be reached while it is open.
  const dress = () => {
    const look = element.querySelector(LOOK);
    const over = Boolean(look && gallery.phone.matches && gallery.visible());
    if (over)
      for (const [key, value] of [
        ["role", "dialog"],
        ["aria-modal", "true"],
      ])
        look.setAttribute(key, value);
    else for (const key of ["role", "aria-modal"]) look?.removeAttribute(key);
    for (const place of document.querySelectorAll(BEHIND)) place.inert = over;
    document.documentElement.toggleAttribute("data-over", over);
    for (const by of [-1, 1]) {
      const button = look?.querySelector(`[data-step="${by}"]`);
      if (button) button.disabled = !gallery.beside(by);
    }
    unfold();
  };
  gallery.phone.addEventListener("change", dress);
  new ResizeObserver(dress).observe(document.getElementById("gallery"));
  document.addEventListener("gallery-selected", dress);

  // A question takes the focus to its harmless answer, and gives it back; nothing loses it.
  const settle = (look, now) => {
    const was = before;
    const asks = Boolean(element.querySelector(".asks"));
    const deleted = asked && !asks && answered === "delete";
    if (asks && !asked) element.querySelector("[data-do=keep]").focus();
    else if (asked && !asks && !deleted)
      gallery.focus(element.querySelector("[data-do=ask-delete]"));
    else if (now && gallery.phone.matches && (!was || deleted || gallery.lost()))
      look.querySelector(".close").focus();
    else if (deleted) gallery.later(gallery.home);
    else if (!now && was)
      gallery.later(
        () =>
          gallery.lost() &&
          gallery.focus(gallery.cell(was), gallery.cell(gallery.here), gallery.box()),
      );
    asked = asks;
    answered = "";
  };
  let arrived = 0;
  watch("value", () => {
    const at = Number(element.querySelector(".look")?.dataset.at ?? arrived);
    if (at < arrived) trigger("act", { do: "again", name: "" });
    arrived = at;
    const look = element.querySelector(LOOK);
    const now = look?.dataset.name ?? "";
    if (now !== before) look?.removeAttribute("data-whole");
    look?.removeAttribute("data-lost");
    gallery.opened = now;
    // What was asked for since is still on its way.
    if (!now || gallery.wanted === now) gallery.wanted = "";
    dress();
    settle(look, now);
    gallery.tell("opened");
    if (now && !pushed && gallery.phone.matches) {
      history.pushState({ ...history.state, picture: true }, "");
      pushed = true;
    } else if (!now && pushed) history.back();
    before = now;
  });
  fullWindow({ element });
}
