// Every button under [data-do] asks the studio to do that with the model [data-name].
let pressed = "";
element.addEventListener("click", (event) => {
  const button = event.target.closest("[data-do]");
  if (!button || button.disabled) return;
  pressed = button.dataset.name;
  // The other tab keeps no place of its own.
  if (button.dataset.do === "use") scrollTo(0, 0);
  trigger("act", { do: button.dataset.do, name: pressed });
});
// What was asked may have made its card longer than the window.
watch("value", () => {
  const card = pressed && element.querySelector(`[data-model="${CSS.escape(pressed)}"]`);
  if (!card) return;
  const asks = card.querySelector(".ask, [data-do=remove]");
  if (asks) pressed = "";
  if (asks) card.scrollIntoView({ block: "nearest", behavior: "smooth" });
});
