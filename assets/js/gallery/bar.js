// What is done with many pictures: those that are selected, else all that the search finds.
import { gallery } from "./state.js";

export default function bar({ element, trigger, watch }) {
  const { selected } = gallery;
  let turn = 0;
  let asked = false;
  let answered = "";
  let told = "";
  const number = (count) => count.toLocaleString("en");
  const show = () => {
    const count = element.querySelector("[data-count]");
    if (!count) return;
    const many = selected.size;
    const shown = gallery.all("[data-tick]").map((tick) => tick.dataset.tick);
    const ticked = shown.filter((name) => selected.has(name)).length;
    const away = many - ticked ? `, ${number(many - ticked)} not shown` : "";
    const words = many ? `${number(many)} selected${away}` : count.dataset.all;
    if (count.textContent !== words) count.textContent = words;
    element.toggleAttribute("data-selecting", many > 0);
    for (const place of element.querySelectorAll("[data-many]")) place.hidden = !many;
    const total = Number(element.querySelector(".gallery-bar").dataset.total);
    const every = shown.length > 0 && ticked === shown.length;
    const [page, found] = ["select-all", "select-found"].map((key) =>
      element.querySelector(`[data-do=${key}]`),
    );
    if (page) page.hidden = every;
    if (found) found.hidden = !every || total <= shown.length || many >= total;
    const summary = element.querySelector("[data-export]");
    if (summary) summary.textContent = many ? `Export ${number(many)}…` : "Export all…";
    const star = element.querySelector("[data-do=star], [data-do=unstar]");
    if (star) {
      const plain = gallery
        .all(".shot[data-selected]")
        .some((shot) => !shot.querySelector(".starred"));
      const off = ticked > 0 && !plain;
      star.dataset.do = off ? "unstar" : "star";
      star.textContent = off ? "Take stars off" : "Star";
    }
  };
  // Only what the question names is deleted: whoever changes the selection is asked again.
  document.addEventListener("gallery-selected", () => {
    const now = [...selected].toSorted().join();
    if (now !== told && element.querySelector(".asks")) gallery.act("keep");
    told = now;
    show();
  });
  element.addEventListener("click", (event) => {
    const button = event.target.closest("[data-do]");
    if (!button || button.disabled) return;
    const wanted = button.dataset.do;
    if (wanted === "select-all")
      for (const tick of gallery.all("[data-tick]")) selected.add(tick.dataset.tick);
    if (wanted === "select-none") selected.clear();
    if (wanted === "select-all" || wanted === "select-none") {
      gallery.tell("select");
      gallery.focus(
        wanted === "select-none"
          ? gallery.buttons()[0]
          : element.querySelector("[data-do=select-found]:not([hidden])"),
        element.querySelector("[data-do=select-none]:not([hidden])"),
        gallery.box(),
      );
      return;
    }
    const strip = Boolean(element.querySelector("[data-strip]")?.checked);
    if (wanted === "export") {
      element.querySelector("details[open]")?.removeAttribute("open");
      gallery.focus(element.querySelector("summary"));
      gallery.exporting = true;
    }
    answered = wanted;
    trigger("act", {
      do: wanted,
      name: "",
      names: [...selected],
      format: button.dataset.format,
      strip,
    });
  });
  document.addEventListener("click", (event) => {
    const menu = element.querySelector("details[open]");
    if (menu && !menu.contains(event.target)) menu.removeAttribute("open");
  });
  // What the studio says about the selection, once.
  const obey = () => {
    const orders = JSON.parse(element.querySelector(".gallery-bar")?.dataset.orders ?? "{}");
    if (!(orders.turn > turn)) return;
    turn = orders.turn;
    for (const name of orders.select) selected.add(name);
    for (const name of orders.gone) selected.delete(name);
    told = [...selected].toSorted().join();
    gallery.tell("select");
    if (orders.select.length)
      gallery.later(() => gallery.focus(element.querySelector("[data-do=select-none]")));
  };
  // A question takes the focus to its harmless answer, and gives it back.
  watch("value", () => {
    obey();
    show();
    const asks = Boolean(element.querySelector(".asks"));
    const deleted = answered === "delete";
    if (asks && !asked) element.querySelector("[data-do=keep]").focus();
    else if (asked && !asks)
      gallery.later(() => {
        if (!gallery.lost() && !element.contains(document.activeElement)) return;
        if (deleted) gallery.home();
        else
          gallery.focus(element.querySelector("[data-do=ask-delete]"), gallery.cell(gallery.here));
      });
    if (!asks) answered = "";
    asked = asks;
  });
  show();
}
