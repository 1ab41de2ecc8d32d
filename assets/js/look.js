// The chosen picture: beside the others, and over them on a phone.
let before = "";
element.addEventListener("click", (event) => {
  const button = event.target.closest("[data-do]");
  if (!button) return;
  const wanted = button.dataset.do;
  if (["use", "start"].includes(wanted)) scrollTo(0, 0);
  trigger("act", { do: wanted, name: button.dataset.name ?? "" });
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || !element.querySelector("[data-name]")) return;
  if (!element.offsetParent && getComputedStyle(element).position !== "fixed") return;
  trigger("act", { do: "close", name: "" });
});
// A question takes the focus to its harmless answer, and gives it back.
let asked = false;
watch("value", () => {
  const asks = Boolean(element.querySelector(".asks"));
  if (asks && !asked) element.querySelector("[data-do=keep]").focus();
  if (asked && !asks) element.querySelector("[data-do=ask-delete]")?.focus({ preventScroll: true });
  asked = asks;
  const look = element.querySelector(".look[data-name]");
  const now = look?.dataset.name ?? "";
  if (now && now !== before && innerWidth < 900) look.querySelector(".close").focus();
  if (!now && before) document.dispatchEvent(new CustomEvent("gallery-closed"));
  before = now;
});
