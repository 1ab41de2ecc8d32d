// Every button under [data-do] asks the studio to do that with the model [data-name].
let pressed = "";
let before = "";
element.addEventListener("click", (event) => {
  const button = event.target.closest("[data-do]");
  if (!button || button.disabled) return;
  pressed = button.dataset.name;
  before = where();
  // The other tab keeps no place of its own.
  if (button.dataset.do === "use") scrollTo(0, 0);
  trigger("act", { do: button.dataset.do, name: pressed });
});
const find = () => pressed && element.querySelector(`[data-model="${CSS.escape(pressed)}"]`);
// In which list the card is, and whether it asks something.
const where = () => {
  const card = find();
  const list = card && [...element.querySelectorAll(".models")].indexOf(card.parentElement);
  return card ? `${list} ${Boolean(card.querySelector(".ask, [data-do=remove]"))}` : "";
};
// A card that grew by a question, or went to the other list, stays in sight.
watch("value", () => {
  const now = where();
  if (now && now !== before) find().scrollIntoView({ block: "nearest", behavior: "smooth" });
  before = now;
});
