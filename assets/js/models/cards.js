// The cards of the Models tab, and what became of an import.
import { presses } from "../presses.js";
import { typed } from "./typed.js";

export default function cards({ element, trigger, watch }) {
  let pressed = "";
  let before = "";
  const find = () => pressed && element.querySelector(`[data-model="${CSS.escape(pressed)}"]`);
  // In which list the card is, and whether it asks something.
  const where = () => {
    const card = find();
    const list = card && [...element.querySelectorAll(".models")].indexOf(card.parentElement);
    return card ? `${list} ${Boolean(card.querySelector(".ask, [data-do=remove]"))}` : "";
  };
  presses(element, (wanted, button) => {
    pressed = button.dataset.name;
    before = where();
    // The other tab keeps no place of its own.
    if (wanted === "use") scrollTo(0, 0);
    trigger("act", { do: wanted, name: pressed, typed: typed() });
  });
  // A card that grew by a question, or went to the other list, stays in sight.
  watch("value", () => {
    const now = where();
    if (now && now !== before) find().scrollIntoView({ block: "nearest", behavior: "smooth" });
    before = now;
  });
}
