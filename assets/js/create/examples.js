// An example prompt is taken into the form.
export default function examples({ element, trigger }) {
  element.addEventListener("click", (event) => {
    const chip = event.target.closest("[data-example]");
    if (chip) trigger("example", { index: Number(chip.dataset.example) });
  });
}
