// A sentence about one field is shown at that field too, and tied to it for screen readers.

export default function status({ element, watch }) {
  const clear = () => {
    for (const old of document.querySelectorAll(".field-error")) old.remove();
    for (const input of document.querySelectorAll("#form [aria-invalid]")) {
      input.removeAttribute("aria-invalid");
      input.removeAttribute("aria-describedby");
    }
  };
  const show = () => {
    clear();
    const status = element.querySelector("[data-field]");
    const field = status && document.getElementById(status.dataset.field);
    if (!field) return;
    const said = document.createElement("p");
    said.className = "field-error";
    said.id = "field-error";
    said.textContent = status.querySelector("[role=status]").textContent;
    field.append(said);
    const input = field.querySelector("textarea, input, select");
    if (input) {
      input.setAttribute("aria-invalid", "true");
      input.setAttribute("aria-describedby", said.id);
      input.focus({ preventScroll: true });
    }
    field.scrollIntoView({ block: "center", behavior: "smooth" });
  };
  show();
  watch("value", show);
  document.getElementById("form")?.addEventListener("input", (event) => {
    // Repaired, or about to be: the old sentence would only confuse.
    if (!document.getElementById("field-error")?.parentElement.contains(event.target)) return;
    clear();
    const said = element.querySelector(".status[data-field]");
    if (said) {
      said.dataset.tone = "idle";
      said.querySelector("[role=status]").textContent = "";
    }
  });
}
