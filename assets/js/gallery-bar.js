// What is done with many pictures: those that are selected, else all that the search finds.
let selected = [];
const show = () => {
  const many = selected.length;
  const count = element.querySelector("[data-count]");
  if (!count) return;
  count.dataset.all ??= count.textContent;
  count.textContent = many ? `${many.toLocaleString("en")} selected` : count.dataset.all;
  for (const button of element.querySelectorAll("[data-many]")) button.hidden = !many;
  const summary = element.querySelector("[data-export]");
  if (summary) summary.textContent = many ? `Export ${many.toLocaleString("en")}…` : "Export all…";
};
document.addEventListener("gallery-selected", (event) => {
  selected = event.detail;
  show();
});
element.addEventListener("click", (event) => {
  const button = event.target.closest("[data-do]");
  if (!button || button.disabled) return;
  const wanted = button.dataset.do;
  if (wanted.startsWith("select-")) {
    document.dispatchEvent(new CustomEvent("gallery-select", { detail: wanted === "select-all" }));
    return;
  }
  const strip = Boolean(element.querySelector("[data-strip]")?.checked);
  element.querySelector("details[open]")?.removeAttribute("open");
  trigger("act", { do: wanted, name: "", names: selected, format: button.dataset.format, strip });
});
document.addEventListener("click", (event) => {
  const menu = element.querySelector("details[open]");
  if (menu && !menu.contains(event.target)) menu.removeAttribute("open");
});
element.addEventListener("keydown", (event) => {
  const menu = element.querySelector("details[open]");
  if (event.key !== "Escape" || !menu) return;
  menu.removeAttribute("open");
  menu.querySelector("summary").focus();
});
// A question is answered where it is asked: on a phone the picture lies over it.
let asked = false;
watch("value", () => {
  const asks = Boolean(element.querySelector(".asks"));
  if (asks && !asked) element.querySelector("[data-do=keep]").focus();
  asked = asks;
  show();
});
show();
