// The list of trainings.
import { presses } from "../presses.js";

export default function runs({ element, trigger }) {
  presses(element, (wanted, button) =>
    trigger("act", { do: wanted, name: button.dataset.name ?? "" }),
  );
}
